//! What a GPU is given in one training step: every launch with its grid, what it moves and multiplies, and the
//! least time that takes. A profile of a GPU is held against it, row by row.

use crate::backend::cuda::driver::{Command, Gemm, Kernel, Launch, Work};
use crate::backend::cuda::gpu::compile::{KernelResources, architecture_for, compile};
use crate::backend::cuda::gpu::cubins::COMPILER_STACK;
use crate::backend::cuda::kernel_sources::Sources;
use crate::backend::cuda::{CudaError, driver};
use crate::tensor::DType;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Peak rates of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peaks {
    /// Bytes per second, to and from its memory.
    pub bytes: f64,
    /// Floating-point operations per second of f32 outside tensor cores.
    pub flop: f64,
    /// Floating-point operations per second of f16 or bf16 in tensor cores, without sparsity.
    pub tensor_flop: f64,
}

impl Peaks {
    /// NVIDIA's data sheet of the H100, SXM form.
    pub const H100_SXM: Peaks = Peaks { bytes: 3.35e12, flop: 67e12, tensor_flop: 989e12 };

    /// Seconds that nothing which does all of it can stay below, if all bytes come from memory.
    pub fn floor(&self, work: Work) -> f64 {
        let Work { bytes, flop, tensor_flop } = work;
        let times =
            [bytes as f64 / self.bytes, flop as f64 / self.flop, tensor_flop as f64 / self.tensor_flop];
        times.into_iter().fold(0.0, f64::max)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: usize,
}

/// One command of a captured step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the kernel, or of another command: "x·wᵀ 1600x768 to 2304".
    pub name: String,
    /// The file of the kernel, without ".cu"; none where it is not one of kernels/.
    pub file: Option<&'static str>,
    /// Grid, block and dynamic shared memory; none where they are the library's or the driver's affair.
    pub shape: Option<Shape>,
    /// Registers of a thread; none where the kernel is not one of kernels/ or was not compiled.
    pub registers: Option<u32>,
    /// Bytes of shared memory that the kernel declares itself; none as for `registers`.
    pub static_shared: Option<u32>,
    pub bytes: usize,
    /// Floating-point operations of the products in it, outside tensor cores and in them.
    pub flop: usize,
    /// Seconds, see [`Peaks::floor`].
    pub floor_s: f64,
}

impl Row {
    /// The row of a captured command, with the resources that its kernel was compiled to.
    pub fn new(command: &Command, peaks: &Peaks, resources: &Resources) -> Self {
        let work = command.work();
        let (mut file, mut shape, mut compiled) = (None, None, None);
        let name = match command {
            Command::Launch(launch) => {
                let Launch { kernel, grid, block, shared, .. } = **launch;
                (file, shape) = (Some(kernel.file), Some(Shape { grid, block, shared }));
                compiled = resources.get(&kernel);
                kernel.name.to_owned()
            }
            Command::Gemm(gemm) => gemm_name(gemm),
            Command::Clear { .. } => "clear".to_owned(),
            Command::Copy { .. } => "copy".to_owned(),
        };
        Row {
            name,
            file,
            shape,
            registers: compiled.map(|c| c.registers),
            static_shared: compiled.map(|c| c.shared),
            bytes: work.bytes,
            flop: work.flop + work.tensor_flop,
            floor_s: peaks.floor(work),
        }
    }
}

/// "x·w 1600x2304 to 768, added".
fn gemm_name(gemm: &Gemm) -> String {
    let Gemm { m, n, k, transposed, bias, add, .. } = gemm;
    let form = if *transposed { "x·wᵀ" } else { "x·w" };
    let bias = if bias.is_some() { ", bias" } else { "" };
    let added = if add.is_some() { ", added" } else { "" };
    format!("{form} {m}x{k} to {n}{bias}{added}")
}

/// Resources of compiled kernels, by kernel.
pub type Resources = HashMap<Kernel, KernelResources>;

/// Compiles the kernels that are launched for a device of `compute_capability`.
///
/// # Errors
/// NVRTC is not there, or does not compile for such a device.
pub fn resources<'a>(
    commands: impl IntoIterator<Item = &'a Command>,
    compute_capability: u32,
    dtype: DType,
) -> driver::Result<Resources> {
    let kernels = commands.into_iter().filter_map(|command| match command {
        Command::Launch(launch) => Some(launch.kernel),
        _ => None,
    });
    let kernels: HashSet<Kernel> = kernels.collect();
    let files: BTreeSet<&str> = kernels.iter().map(|kernel| kernel.file).collect();
    let (sources, architecture) = (Sources::load()?, architecture_for(compute_capability)?);
    let pool = ThreadPoolBuilder::new().stack_size(COMPILER_STACK).build();
    let pool = pool.map_err(|e| CudaError::Unsupported(format!("no threads to compile on: {e}")))?;
    let compile_file = |file| Ok((file, compile(&sources, file, architecture, dtype)?.kernels));
    let compiled: Vec<(&str, Vec<KernelResources>)> =
        pool.install(|| files.into_par_iter().map(compile_file).collect::<driver::Result<_>>())?;
    let find = |kernel: Kernel| {
        let (_, found) = compiled.iter().find(|(file, _)| *file == kernel.file)?;
        Some((kernel, found.iter().find(|resources| resources.name == kernel.name)?.clone()))
    };
    Ok(kernels.into_iter().filter_map(find).collect())
}

/// Rows of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sum {
    pub name: String,
    pub launches: usize,
    pub bytes: usize,
    pub flop: usize,
    pub floor_s: f64,
}

impl Sum {
    fn of(name: String) -> Self {
        Sum { name, launches: 0, bytes: 0, flop: 0, floor_s: 0.0 }
    }

    fn add(&mut self, row: &Row) {
        self.launches += 1;
        self.bytes += row.bytes;
        self.flop += row.flop;
        self.floor_s += row.floor_s;
    }

    /// One for each name, in the order in which they come first, and one of all rows.
    pub fn of_rows(rows: &[Row]) -> (Vec<Sum>, Sum) {
        let (mut sums, mut all) = (Vec::<Sum>::new(), Sum::of("all".to_owned()));
        for row in rows {
            let at = sums.iter().position(|sum| sum.name == row.name).unwrap_or_else(|| {
                sums.push(Sum::of(row.name.clone()));
                sums.len() - 1
            });
            sums[at].add(row);
            all.add(row);
        }
        (sums, all)
    }
}
