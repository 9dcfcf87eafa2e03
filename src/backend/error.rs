//! What can go wrong in an operation.

use super::cuda;
use crate::tensor::{Shape, TensorError};
use thiserror::Error;

/// Errors of a backend's operations.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A tensor has another type than the operation takes, or no room for a shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An operation was handed tensors that do not fit together.
    #[error("{op}: {what} is {}, expected {}", shapes[1], shapes[0])]
    Shape {
        /// The operation.
        op: &'static str,
        /// Name of the tensor in that operation.
        what: &'static str,
        /// Expected shape, then found shape; boxed to keep results small.
        shapes: Box<[Shape; 2]>,
    },
    /// An operation was handed a size it cannot work with.
    #[error("{op}: {problem}")]
    Invalid {
        /// The operation, or the kernel that it launches.
        op: &'static str,
        /// Description of what does not work, with the sizes in question.
        problem: String,
    },
    /// The GPU, its driver or its libraries.
    #[error(transparent)]
    Cuda(Box<cuda::CudaError>),
}

impl BackendError {
    /// Whether the device answers nothing more in this process.
    pub fn lost_device(&self) -> bool {
        matches!(self, BackendError::Cuda(error) if matches!(**error, cuda::CudaError::Lost { .. }))
    }
}

impl From<cuda::CudaError> for BackendError {
    fn from(error: cuda::CudaError) -> Self {
        BackendError::Cuda(Box::new(error))
    }
}

/// Result of a backend's operation.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;
