//! What only those who work on the engine use: checks of its numbers, benchmarks, and devices that stand in for a GPU.
//!
//! Above [`train`](crate::train), whose steps they check and time; the rest of the library takes nothing from here.

#![allow(missing_docs, reason = "read beside its source")]

pub mod absent;
pub mod bench;
pub mod check;
pub mod listing;
pub mod ops;
#[cfg(target_os = "linux")]
pub mod twin;

use crate::backend::Result;
use crate::backend::cuda::Cuda;
use crate::tensor::DType;

/// The CUDA backend on the [host twin](twin) of a device of this compute capability.
///
/// # Errors
/// Where there is no C++ compiler, or no Linux.
pub fn on_twin(dtype: DType, compute_capability: u32) -> Result<Cuda> {
    #[cfg(target_os = "linux")]
    return on(twin::Twin::new(dtype, compute_capability)?, dtype);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (dtype, compute_capability);
        Err(crate::backend::cuda::CudaError::Unsupported("the host twin runs on Linux only".into()).into())
    }
}

/// As [`on_twin`], [without watching](twin::Twin::unwatched) what the kernels load and store.
///
/// # Errors
/// Where there is no C++ compiler.
#[cfg(target_os = "linux")]
pub fn on_unwatched_twin(dtype: DType, compute_capability: u32) -> Result<Cuda> {
    on(twin::Twin::new(dtype, compute_capability)?.unwatched(), dtype)
}

#[cfg(target_os = "linux")]
fn on(twin: twin::Twin, dtype: DType) -> Result<Cuda> {
    use crate::backend::cuda::LoraForm;
    Cuda::new(std::sync::Arc::new(twin), dtype, LoraForm::Auto)
}
