//! Numerical checks: finite differences of every operation and of a whole training step, and comparison
//! with reference outputs from PyTorch.

pub mod difference;
pub mod reference;
pub mod step;

use crate::backend::BackendError;
use crate::clip::ClipError;
use crate::tensor::TensorError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a check could not be carried out.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Clip(#[from] ClipError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("{}: {problem}; make it again with tools/reference.py", path.display())]
    Reference { path: PathBuf, problem: String },
}

pub type Result<T, E = CheckError> = std::result::Result<T, E>;

/// One line of the table of errors.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the quantity that was checked: "layer_norm dx".
    pub name: String,
    /// Sizes or number type that it was checked at.
    pub at: String,
    /// Largest absolute error over the largest absolute value.
    pub error: f64,
    pub bound: f64,
    /// PyTorch's own error on the same numbers, in the precision of the reference, where that tells.
    pub peer: Option<f64>,
    /// Why there is no error to tell: the operation failed. The error is not a number then.
    pub problem: Option<String>,
}

impl Row {
    pub fn new(name: impl Into<String>, at: impl Into<String>, error: f64, bound: f64) -> Self {
        Row { name: name.into(), at: at.into(), error, bound, peer: None, problem: None }
    }

    /// One of an operation that failed.
    pub fn failed(name: impl Into<String>, at: impl Into<String>, problem: &CheckError) -> Self {
        Row { problem: Some(problem.to_string()), ..Row::new(name, at, f64::NAN, 0.0) }
    }

    /// False for an error above the bound, for one that is not a number, and where the operation failed.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

impl CheckError {
    /// Whether the device answers nothing more in this process.
    pub fn lost_device(&self) -> bool {
        match self {
            CheckError::Backend(error) => error.lost_device(),
            CheckError::Clip(ClipError::Backend(error)) => error.lost_device(),
            _ => false,
        }
    }
}

/// max|a − b| / max|b|; infinite where only b is zero throughout, or lengths differ.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let mut largest = 0.0f64;
    let mut worst = 0.0f64;
    for (&a, &b) in a.iter().zip(b) {
        let difference = (a - b).abs();
        if difference.is_nan() {
            return f64::NAN;
        }
        worst = worst.max(difference);
        largest = largest.max(b.abs());
    }
    if worst == 0.0 { 0.0 } else { worst / largest }
}

/// The larger of two errors; one that is not a number stays.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if b.is_nan() || b > a { b } else { a }
}

/// |a − b| / |b| as vectors; infinite where lengths differ.
pub fn euclidean_error(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let difference = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    if difference == 0.0 { 0.0 } else { difference / b.iter().map(|b| b * b).sum::<f64>().sqrt() }
}
