//! NVRTC compiles every kernel for every architecture, without spilled registers; compiled kernels are
//! kept and never trusted blindly. No GPU is needed.

use clip_engine::backend::cuda::CudaError;
use clip_engine::backend::cuda::gpu::compile::{KernelResources, architecture_for, compile};
use clip_engine::backend::cuda::gpu::cubins::Cubins;
use clip_engine::backend::cuda::gpu::{Gpu, GpuOptions};
use clip_engine::backend::cuda::kernel_sources::Sources;
use clip_engine::tensor::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Turing, the oldest of CUDA 13 and without code paths that later ones have, and Hopper.
const ARCHITECTURES: [u32; 2] = [75, 90];
/// Those between and Blackwell, for which f16 is compiled too, but not the other number types. Ada, 89, has the
/// instructions and registers of 86.
const OTHER_ARCHITECTURES: [u32; 4] = [80, 86, 100, 120];

/// Files of which others are the same templates with fewer or more registers, and which those architectures are left
/// out of: head widths of 64 and 128 stay.
const BETWEEN: [&str; 3] = ["attention_mma_32", "attention_mma_80", "attention_mma_96"];

/// Kernels that may spill registers: file, kernel, and why.
const MAY_SPILL: [(&str, &str, &str); 0] = [];

/// Uses something of each part of the prelude.
const PROBE: &str = r#"
#include "prelude.cuh"

extern "C" __global__ void probe_sum(const Real* x, float* y, int n) {
  begin_kernel();
  __shared__ float scratch[32];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += to_float(x[blockIdx.x * n + i]);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

extern "C" __global__ void probe_scale(const Real* x, Real* y, float s, int n) {
  begin_kernel();
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * Wide<Real>::N;
  if (i >= n) return;
  Pack<Real, Wide<Real>::N> v = load_pack<Wide<Real>::N>(x + i);
#pragma unroll
  for (int j = 0; j < Wide<Real>::N; j++) v.at[j] = from_float<Real>(s * to_float(v.at[j]));
  store_pack(y + i, v);
}
"#;

/// Three times as many values per thread as it may have registers.
const SPILLING: &str = r#"
#include "prelude.cuh"

extern "C" __global__ void __launch_bounds__(1024) spilling(float* x, int n) {
  float a[192];
#pragma unroll
  for (int i = 0; i < 192; i++) a[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 192; i++) x[i * n + threadIdx.x] = a[i] * a[(i * 7 + 1) % 192];
}
"#;

pub struct Report {
    pub file: String,
    architecture: u32,
    dtype: DType,
    kernels: Vec<KernelResources>,
    pub cubin: Vec<u8>,
    seconds: f64,
}

/// Compiles on all cores; panics with the log of the first file that does not compile.
fn compile_all(sources: &Sources, jobs: &[(String, u32, DType)]) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            // The compiler recurses deeply in templates.
            let thread = std::thread::Builder::new().stack_size(16 << 20);
            let work = || {
                while let Some((file, architecture, dtype)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let compiled = compile(sources, file, *architecture, *dtype)
                        .unwrap_or_else(|error| panic!("sm_{architecture}, {dtype}: {error}"));
                    assert!(compiled.cubin.starts_with(b"\x7fELF"), "{file}: machine code is an ELF file");
                    // A file of tensor-core kernels is empty where there are none.
                    let may_be_empty = *architecture < 80 || *dtype == DType::F32;
                    assert!(may_be_empty || !compiled.kernels.is_empty(), "{file}: no kernels are reported");
                    reports.lock().unwrap().push(Report {
                        file: file.clone(),
                        architecture: *architecture,
                        dtype: *dtype,
                        kernels: compiled.kernels,
                        cubin: compiled.cubin,
                        seconds: start.elapsed().as_secs_f64(),
                    });
                }
            };
            thread.spawn_scoped(scope, work).unwrap();
        }
    });
    let mut reports = reports.into_inner().unwrap();
    reports.sort_by_key(|r| (r.file.clone(), r.dtype.name(), r.architecture));
    reports
}

fn print_table(reports: &[Report]) {
    println!("{:<14} {:<34} {:<5} {:>4} registers shared stack spills", "file", "kernel", "type", "sm");
    for report in reports {
        let Report { file, architecture, dtype, seconds, .. } = report;
        println!("{file} for sm_{architecture} in {dtype}: compiled in {seconds:.1} s");
        for kernel in &report.kernels {
            println!(
                "{:<14} {:<34} {:<5} {:>4} {:>9} {:>6} {:>5} {:>6}",
                report.file,
                kernel.name,
                report.dtype,
                report.architecture,
                kernel.registers,
                kernel.shared,
                kernel.stack,
                kernel.spill_stores + kernel.spill_loads
            );
        }
    }
}

fn spills(reports: &[Report]) -> Vec<String> {
    let mut found = Vec::new();
    for report in reports {
        for kernel in &report.kernels {
            let allowed =
                MAY_SPILL.iter().any(|(file, name, _)| *file == report.file && *name == kernel.name);
            if kernel.spill_stores + kernel.spill_loads > 0 && !allowed {
                let Report { file, architecture, dtype, .. } = report;
                found.push(format!("{file} {} sm_{architecture} {dtype}: {kernel:?}", kernel.name));
            }
        }
    }
    found
}

/// Every kernel of those files for one architecture and number type.
fn compile_files(files: &dyn Fn(&str) -> bool, architecture: u32, dtype: DType) -> Vec<Report> {
    let sources = Sources::embedded().with_file("probe.cu", PROBE);
    let files = sources.kernel_files().filter(|file| files(file));
    let jobs: Vec<_> = files.map(|file| (file.to_owned(), architecture, dtype)).collect();
    let reports = compile_all(&sources, &jobs);
    assert_eq!(reports.len(), jobs.len());
    reports
}

/// Every kernel in f16 for one architecture.
pub fn in_f16(architecture: u32) -> &'static [Report] {
    compiled(architecture, DType::F16)
}

/// Every kernel for one architecture and number type, compiled once for all tests.
pub fn compiled(architecture: u32, dtype: DType) -> &'static [Report] {
    static COMPILED: Mutex<BTreeMap<(u32, &str), &[Report]>> = Mutex::new(BTreeMap::new());
    let files = |file: &str| ARCHITECTURES.contains(&architecture) || !BETWEEN.contains(&file);
    let mut compiled = COMPILED.lock().unwrap();
    let key = (architecture, dtype.name());
    compiled.entry(key).or_insert_with(|| compile_files(&files, architecture, dtype).leak())
}

fn assert_no_spills(reports: &[Report]) {
    print_table(reports);
    let probe = reports.iter().find(|r| r.file == "probe").unwrap();
    let sum = probe.kernels.iter().find(|k| k.name == "probe_sum").expect("both kernels are reported");
    assert!(sum.registers > 0 && sum.shared >= 128, "32 floats of shared memory: {sum:?}");
    let spills = spills(reports);
    assert!(spills.is_empty(), "registers are spilled:\n{}", spills.join("\n"));
}

#[test]
#[ignore = "long: two architectures stay, in f16"]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    OTHER_ARCHITECTURES.iter().for_each(|architecture| assert_no_spills(in_f16(*architecture)));
    for (architecture, dtype) in [(75, DType::BF16), (90, DType::BF16), (90, DType::F32)] {
        assert_no_spills(compiled(architecture, dtype));
    }
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn every_kernel_compiles_for_turing_and_hopper_without_spills() {
    ARCHITECTURES.iter().for_each(|architecture| assert_no_spills(in_f16(*architecture)));
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn spilled_registers_are_noticed() {
    let sources = Sources::embedded().with_file("spilling.cu", SPILLING);
    let reports = compile_all(&sources, &[("spilling".into(), 90, DType::F32)]);
    assert_eq!(spills(&reports).len(), 1);
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn a_kernel_that_does_not_compile_shows_the_log() {
    let text =
        "#include \"prelude.cuh\"\nextern \"C\" __global__ void broken(Real* x) { x[0] = nonsense; }\n";
    let sources = Sources::embedded().with_file("broken.cu", text);
    let error = compile(&sources, "broken", 90, DType::F16).unwrap_err();
    assert!(matches!(&error, CudaError::Compile { file, .. } if file == "broken"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("broken.cu(2)") && text.contains("nonsense"), "{text}");
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn devices_beyond_the_compiler_are_refused() {
    assert_eq!(architecture_for(90).unwrap(), 90);
    let text = architecture_for(30).unwrap_err().to_string();
    assert!(text.contains("3.0") && text.contains("pip install"), "{text}");
}

/// A folder with all of the embedded files, which `Sources::from_folder` reads.
fn kernels_folder(root: &Path) -> PathBuf {
    let folder = root.join("kernels");
    for (name, text) in Sources::embedded().files() {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn a_folder_overrides_the_embedded_kernels() {
    let root = tempfile::tempdir().unwrap();
    let folder = kernels_folder(root.path());
    let prelude = folder.join("prelude.cuh");
    let text = std::fs::read_to_string(&prelude).unwrap();
    std::fs::write(&prelude, text + "\nDEVICE float only_in_the_folder() { return 1.0f; }\n").unwrap();
    let user = "#include \"prelude.cuh\"\n\
                extern \"C\" __global__ void user(float* x) { *x = only_in_the_folder(); }\n";
    let edited = Sources::from_folder(&folder).unwrap().with_file("user.cu", user);
    assert!(compile(&edited, "user", 90, DType::F16).is_ok());
    let embedded = Sources::embedded().with_file("user.cu", user);
    assert!(matches!(compile(&embedded, "user", 90, DType::F16), Err(CudaError::Compile { .. })));

    let missing = Sources::from_folder(&root.path().join("elsewhere")).unwrap_err().to_string();
    assert!(missing.contains("elsewhere"), "{missing}");
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn compiled_kernels_are_kept_and_checked() {
    let root = tempfile::tempdir().unwrap();
    let cubins = Cubins::new(Some(root.path().join("cache/kernels")));
    let sources = Sources::embedded().with_file("probe.cu", PROBE);
    let get = || cubins.get(&sources, "probe", 80, DType::F16).unwrap();
    let first = get();
    assert!(!first.cached && get().cached && get().code == first.code);

    let path = cubins.path(&sources, "probe", 80, DType::F16).unwrap().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for spoilt in [&flipped[..], &whole[..whole.len() / 2], &whole[..20], b"", b"text", &first.code] {
        std::fs::write(&path, spoilt).unwrap();
        let rebuilt = get();
        assert!(!rebuilt.cached, "an entry of {} bytes was trusted", spoilt.len());
        assert_eq!(rebuilt.code, first.code);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "the entry is written again");
    }
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn whatever_the_code_depends_on_makes_another_entry() {
    let cubins = Cubins::new(Some(PathBuf::from("folder")));
    let sources = Sources::embedded().with_file("probe.cu", PROBE);
    let path = |sources: &Sources, file, architecture, dtype| {
        cubins.path(sources, file, architecture, dtype).unwrap().unwrap()
    };
    let edited = sources.clone().with_file("probe.cu", &PROBE.replace("s *", "2.0f * s *"));
    let prelude = sources.text("prelude.cuh").unwrap().to_owned() + "// edited\n";
    let other_prelude = sources.clone().with_file("prelude.cuh", &prelude);
    let mut paths = vec![
        path(&sources, "probe", 80, DType::F16),
        path(&sources, "probe", 90, DType::F16),
        path(&sources, "probe", 80, DType::BF16),
        path(&edited, "probe", 80, DType::F16),
        path(&other_prelude, "probe", 80, DType::F16),
    ];
    assert_eq!(paths[0], path(&sources.clone(), "probe", 80, DType::F16));
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 5, "{paths:#?}");
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn a_cache_that_cannot_be_written_only_costs_time() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let sources = Sources::embedded().with_file("probe.cu", PROBE);
    for folder in [None, Some(file.join("below"))] {
        let cubins = Cubins::new(folder);
        for _ in 0..2 {
            assert!(!cubins.get(&sources, "probe", 80, DType::F16).unwrap().cached);
        }
    }
}

#[test]
#[cfg_attr(not(nvrtc), ignore = "needs NVRTC")]
fn common_files_are_compiled_at_once() {
    let root = tempfile::tempdir().unwrap();
    let cubins = Cubins::new(Some(root.path().to_path_buf()));
    let mut sources = Sources::from_folder(&kernels_folder(root.path())).unwrap();
    // Small ones in the place of the engine's.
    let names: Vec<String> = sources.common_kernel_files().map(str::to_owned).collect();
    for name in names.iter().map(String::as_str).chain(["a", "b", "c"]) {
        sources = sources.with_file(&format!("{name}.cu"), &PROBE.replace("probe_", &format!("{name}_")));
    }
    let count = sources.common_kernel_files().count();
    assert!((1..sources.kernel_files().count()).contains(&count), "rare files are left for later");
    let cold = cubins.common(&sources, 90, DType::F16).unwrap();
    let warm = cubins.common(&sources, 90, DType::F16).unwrap();
    assert!(cold.len() == count && cold.iter().all(|c| !c.cached));
    assert!(warm.len() == count && warm.iter().all(|c| c.cached));
    assert!(cold.iter().zip(&warm).all(|(a, b)| a.file == b.file && a.code == b.code));

    let broken = sources.with_file("d.cu", "not C++");
    assert!(
        matches!(cubins.common(&broken, 90, DType::F16), Err(CudaError::Compile { file, .. }) if file == "d")
    );
}

#[test]
#[cfg_attr(nvidia_driver, ignore = "needs no NVIDIA driver")]
fn without_a_driver_there_is_a_clear_line() {
    let options = GpuOptions { cache: None, ..GpuOptions::default() };
    let Err(error) = Gpu::new(0, DType::F16, &Sources::embedded(), options) else {
        panic!("a GPU without a driver");
    };
    assert!(matches!(error, CudaError::Missing { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("libcuda") && text.contains("install the NVIDIA driver"), "{text}");
}
