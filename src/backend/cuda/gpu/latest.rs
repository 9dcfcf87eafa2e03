//! What was enqueued last. A fault on the device is told by whichever call comes next, without a name.

use crate::backend::cuda::driver::{Gemm, Launch, Result};
use crate::backend::cuda::{CudaError, locked};
use std::fmt;
use std::sync::Mutex;

/// One thing for the device to do; there is one such value.
#[allow(clippy::large_enum_variant)]
pub enum Enqueued {
    Launch(Launch),
    Gemm(Gemm),
    Replay,
}

impl fmt::Display for Enqueued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Enqueued::Launch(launch) => launch.fmt(f),
            Enqueued::Gemm(Gemm { m, n, k, dtype, .. }) => {
                write!(f, "a product, {dtype} m={m} n={n} k={k}")
            }
            Enqueued::Replay => f.write_str("a captured step"),
        }
    }
}

/// The last work that was handed to the device.
#[derive(Default)]
pub struct Latest(Mutex<Option<Enqueued>>);

impl Latest {
    pub fn set(&self, work: Enqueued) {
        *locked(&self.0) = Some(work);
    }

    /// Adds to the error of a device that is lost what came before it.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match (error, &*locked(&self.0)) {
            (CudaError::Lost { call, problem }, Some(work)) => {
                CudaError::Lost { call, problem: format!("{problem}, and {work} was enqueued last") }
            }
            (error, _) => error,
        })
    }
}
