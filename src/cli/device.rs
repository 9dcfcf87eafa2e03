//! The flags that say where a subcommand computes, and on which device launches are listed.

use super::flags::like;
use crate::TrainError;
use crate::backend::cuda::{Cuda, LoraForm};
use crate::commands::device::{Choice, Device, open};
use crate::dev::absent::Absent;
use crate::progress::Monitor;
use crate::settings::{Key, Precision, parse_word};
use crate::tensor::DType;
use anyhow::{Result, anyhow};
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

    /// The type of numbers that is asked for.
    pub fn precision(&self) -> Option<Precision> {
        self.precision
    }

    /// The settings device and precision.
    pub fn given(self) -> (String, Option<Precision>) {
        (self.device, self.precision)
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
