//! Where a command computes, by the settings device and precision.

use crate::TrainError;
use crate::backend::Linear;
use crate::backend::cpu::{Cpu, Features, Isa};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::gpu::probe;
use crate::backend::cuda::gpu::store::FOLDER;
use crate::backend::prelude::*;
use crate::dev::on_twin;
use crate::progress::Monitor;
use crate::settings::Precision;
use crate::tensor::{DType, Tensor};
use anyhow::{Result, anyhow, bail};

/// An opened device.
pub enum Device {
    /// The CPU, in f32 or bf16.
    Cpu(Cpu<f32>),
    /// A GPU.
    Cuda(Cuda),
}

/// Runs `$body` with the device's backend as `$backend`: one copy of the code for each kind of device.
macro_rules! on_device {
    ($device:expr, $backend:ident => $body:expr) => {
        match $device {
            $crate::commands::device::Device::Cpu($backend) => $body,
            $crate::commands::device::Device::Cuda($backend) => $body,
        }
    };
}
pub(crate) use on_device;

impl Device {
    /// The number type that the device computes in.
    pub fn precision(&self) -> Precision {
        match on_device!(self, backend => backend.compute_dtype()) {
            DType::F16 => Precision::F16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    fn describe(&self) -> String {
        on_device!(self, backend => backend.describe())
    }
}

/// Value of `--device`.
pub(crate) enum Choice {
    Auto,
    Cpu,
    Cuda(usize),
    /// The kernels on the CPU, for those who work on them; its number is a compute capability.
    Twin(u32),
}

impl Choice {
    pub fn parse(name: &str) -> Result<Self> {
        let (kind, number) = match name.split_once(':') {
            Some((kind, number)) => (kind, Some(number)),
            None => (name, None),
        };
        let parsed = number.map(|n| n.parse::<u32>());
        match (kind, parsed) {
            ("auto", None) => Ok(Choice::Auto),
            ("cpu", None) => Ok(Choice::Cpu),
            ("cuda", None) => Ok(Choice::Cuda(0)),
            ("cuda", Some(Ok(index))) => Ok(Choice::Cuda(index as usize)),
            ("twin", None) => Ok(Choice::Twin(90)),
            ("twin", Some(Ok(capability))) => Ok(Choice::Twin(capability)),
            _ => {
                let text = format!("--device {name}: not a device; use auto, cpu, cuda or cuda:N");
                Err(TrainError::Setting(text).into())
            }
        }
    }
}

/// Opens the device that `name` chooses and says which it is. The precision is f16 on a GPU and f32 on the
/// CPU unless one is given; bf16 on the CPU is never chosen for anybody.
pub fn open(name: &str, precision: Option<Precision>, monitor: &dyn Monitor) -> Result<Device> {
    open_by(Cuda::open, name, precision, monitor)
}

/// Opens the device as [`open`] does, and warns where a resumed run could not repeat what this one will have measured.
pub fn open_to_train(name: &str, precision: Option<Precision>, monitor: &dyn Monitor) -> Result<Device> {
    let device = open(name, precision, monitor)?;
    if let (Device::Cpu(_), None) = (&device, precision)
        && let Some(times) = gain_of_bf16()?
    {
        monitor.line(&format!("--precision bf16 multiplies {times:.1} times as fast as f32 here"));
    }
    if let Device::Cuda(cuda) = &device
        && let Some(problem) = cuda.driver().forgets()
    {
        monitor.warn(&format!(
            "what this run measures on the GPU is not kept, so a resumed run may differ in its last bits \
             ({problem}); set {FOLDER} to a folder that can be written"
        ));
    }
    Ok(device)
}

/// As [`open`], writing nothing to the disk.
pub fn open_without_cache(name: &str, precision: Option<Precision>, monitor: &dyn Monitor) -> Result<Device> {
    open_by(Cuda::open_without_cache, name, precision, monitor)
}

fn open_by(
    open_gpu: fn(usize, DType) -> crate::backend::Result<Cuda>,
    name: &str,
    precision: Option<Precision>,
    monitor: &dyn Monitor,
) -> Result<Device> {
    let on_gpu = DType::from(precision.unwrap_or(Precision::F16));
    let (device, remark) = match Choice::parse(name)? {
        Choice::Cpu => (cpu(precision)?, String::new()),
        Choice::Cuda(index) => {
            let cuda = open_gpu(index, on_gpu).map_err(|e| {
                anyhow!("--device {name}: {e}; engine doctor says what was found; or use --device cpu")
            })?;
            (Device::Cuda(cuda), String::new())
        }
        Choice::Twin(capability) => {
            let cuda = on_twin(on_gpu, capability).map_err(|e| anyhow!("--device {name}: {e}"))?;
            (Device::Cuda(cuda), String::new())
        }
        Choice::Auto => match open_gpu(0, on_gpu) {
            Ok(cuda) => (Device::Cuda(cuda), String::new()),
            Err(problem) if precision == Some(Precision::F16) => {
                bail!("--precision f16 needs a GPU: {problem}")
            }
            // What to do about it is engine doctor's to say.
            Err(_) if probe().devices.is_empty() => (cpu(precision)?, " (no GPU found)".into()),
            Err(_) => (cpu(precision)?, " (the GPU cannot be used; engine doctor says why)".into()),
        },
    };
    monitor.line(&format!("device: {}{remark}", device.describe()));
    Ok(device)
}

fn cpu(precision: Option<Precision>) -> Result<Device> {
    let setting = |text: &str| Err(TrainError::Setting(text.into()).into());
    match precision {
        None | Some(Precision::F32) => Ok(Device::Cpu(Cpu::new())),
        Some(Precision::Bf16) => match Isa::best(Features::found()) {
            Isa::Plain => setting(
                "--precision bf16: this processor multiplies no bf16 (AVX512-BF16 or AMX); use --precision f32",
            ),
            isa => Ok(Device::Cpu(Cpu::in_bf16(isa)?)),
        },
        Some(Precision::F16) => setting(
            "--precision f16: the CPU computes in f32, or in bf16 where its processor does; use --precision f32 or \
             --device cuda",
        ),
    }
}

/// How many times as fast as in f32 a product of a step is in bf16; none where that is not worth a word, or the processor
/// has no products for it.
fn gain_of_bf16() -> Result<Option<f64>> {
    const WORTH: f64 = 1.3;
    let isa = Isa::best(Features::found());
    if isa == Isa::Plain {
        return Ok(None);
    }
    let times = seconds_of_product(&Cpu::new())? / seconds_of_product(&Cpu::in_bf16(isa)?)?;
    Ok((times >= WORTH).then_some(times))
}

/// The fastest of a few products of a size that fills the processor and takes milliseconds.
fn seconds_of_product(cpu: &Cpu<f32>) -> Result<f64> {
    const ROWS: usize = 512;
    const WIDTH: usize = 768;
    let dtype = cpu.compute_dtype();
    let weight = cpu.weight(Tensor::zeros([WIDTH, WIDTH], DType::F32).view())?;
    let layer = Linear::<Cpu<f32>> { weight, bias: None };
    let (x, mut y) = (cpu.zeros([ROWS, WIDTH], dtype)?, cpu.zeros([ROWS, WIDTH], dtype)?);
    let mut fastest = f64::INFINITY;
    for _ in 0..5 {
        fastest = fastest.min(cpu.seconds(&mut || cpu.linear(&x, &layer, None, &mut y))?);
    }
    Ok(fastest)
}
