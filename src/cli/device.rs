//! Where a subcommand computes: `--device` and `--precision`.

use super::flags::like;
use anyhow::{Result, anyhow, bail};
use clip_engine::TrainError;
use clip_engine::backend::Backend;
use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::gpu::probe;
use clip_engine::backend::cuda::gpu::store::FOLDER;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::dev::absent::Absent;
use clip_engine::dev::on_twin;
use clip_engine::progress::Monitor;
use clip_engine::settings::{Key, Precision, parse_word};
use clip_engine::tensor::DType;
use std::sync::Arc;

/// The flags by which a subcommand is told.
#[derive(clap::Args)]
pub struct DeviceArgs {
    #[arg(long, help = Key::device.setting().text(), value_name = Key::device.setting().value_name,
          default_value = "auto")]
    device: String,
    #[arg(long, help = like(Key::precision, "f16 on a GPU, f32 on the CPU"), value_parser = parse_word::<Precision>,
          value_name = Key::precision.setting().value_name)]
    precision: Option<Precision>,
}

impl DeviceArgs {
    /// As [`open`].
    pub fn open(&self, monitor: &dyn Monitor) -> Result<Device> {
        open(&self.device, self.precision, monitor)
    }

    /// A GPU to list the launches of, and whether it is there: the one that is named, else an H100 that is not.
    pub fn open_to_list(&self) -> Result<(Cuda, bool)> {
        let (name, dtype) = (&self.device, DType::from(self.precision.unwrap_or(Precision::F16)));
        match Choice::parse(name)? {
            Choice::Auto | Choice::Twin(90) => {
                Ok((Cuda::new(Arc::new(Absent::h100()), dtype, LoraForm::Auto)?, false))
            }
            Choice::Cuda(index) => {
                let cuda = Cuda::open(index, dtype);
                Ok((cuda.map_err(|e| anyhow!("--device {name}: {e}; or leave it out"))?, true))
            }
            Choice::Cpu | Choice::Twin(_) => {
                let text = format!(
                    "--device {name}: launches are listed for an H100 or, with --device cuda, for the GPU that is there"
                );
                Err(TrainError::Setting(text).into())
            }
        }
    }
}

/// An opened device.
pub enum Device {
    Cpu(Cpu<f32>),
    Cuda(Cuda),
}

/// Runs `$body` with the device's backend as `$backend`: one copy of the code for each kind of device.
macro_rules! on_device {
    ($device:expr, $backend:ident => $body:expr) => {
        match $device {
            $crate::cli::device::Device::Cpu($backend) => $body,
            $crate::cli::device::Device::Cuda($backend) => $body,
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
enum Choice {
    Auto,
    Cpu,
    Cuda(usize),
    /// The kernels on the CPU, for those who work on them; its number is a compute capability.
    Twin(u32),
}

impl Choice {
    fn parse(name: &str) -> Result<Self> {
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
/// CPU unless one is given.
pub fn open(name: &str, precision: Option<Precision>, monitor: &dyn Monitor) -> Result<Device> {
    open_by(Cuda::open, name, precision, monitor)
}

/// Opens the device as [`open`] does, and warns where a resumed run could not repeat what this one will have measured.
pub fn open_to_train(name: &str, precision: Option<Precision>, monitor: &dyn Monitor) -> Result<Device> {
    let device = open(name, precision, monitor)?;
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
    open_gpu: fn(usize, DType) -> clip_engine::backend::Result<Cuda>,
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
            Err(problem) if on_gpu != DType::F32 && precision.is_some() => {
                bail!("--precision {on_gpu} needs a GPU: {problem}")
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
    match precision {
        None | Some(Precision::F32) => Ok(Device::Cpu(Cpu::new())),
        Some(_) => {
            let text = "--precision: the CPU computes in f32 only; use --precision f32 or --device cuda";
            Err(TrainError::Setting(text.into()).into())
        }
    }
}
