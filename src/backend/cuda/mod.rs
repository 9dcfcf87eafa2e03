//! The CUDA backend: kernels of our own, compiled at run time, and cuBLASLt for the large products.

pub mod driver;
mod error;
pub mod gpu;
pub mod source;
pub mod twin;

pub use error::CudaError;
