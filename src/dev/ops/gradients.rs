//! Finite differences of every operation that has a backward form, in f64 on the CPU.
//!
//! Each check defines a number L = Σ out·w with fixed random w, asks the operation's backward form for
//! the gradient of L, and compares it with central differences of the forward form. The sizes are those
//! of real models and deliberately odd ones.

use super::Group;
use crate::backend::cpu::Cpu;
use crate::dev::check::difference::{against, normal};
use crate::dev::check::{Result, Row};
use crate::tensor::{DType, Shape, Tensor};

pub type F64 = Cpu<f64>;

pub const BOUND: f64 = 1e-6;

/// Checks every operation; one row for each gradient.
pub fn check() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    Group::ALL.into_iter().try_for_each(|group| group.gradients(&F64::new(), &mut rows))?;
    Ok(rows)
}

pub(super) fn tensor(shape: impl Into<Shape>, values: &[f64]) -> Result<Tensor> {
    Ok(Tensor::from_slice(shape, values)?)
}

pub(super) fn random(shape: impl Into<Shape>, seed: u64) -> Result<Tensor> {
    let shape = shape.into();
    tensor(shape, &normal(shape.elements(), seed))
}

pub(super) fn zeros(shape: impl Into<Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F64)
}

pub(super) fn values(tensor: &Tensor) -> Result<&[f64]> {
    Ok(tensor.typed::<f64>()?)
}

pub(super) fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(values(a)?.iter().zip(values(b)?).map(|(a, b)| a * b).sum())
}

pub(super) fn added(after: &Tensor, before: &Tensor) -> Result<Tensor> {
    let added: Vec<f64> = values(after)?.iter().zip(values(before)?).map(|(a, b)| a - b).collect();
    tensor(after.shape(), &added)
}

/// Adds a row: `gradient` against differences of `loss` with the tensor `x` varied.
pub(super) fn row(
    rows: &mut Vec<Row>,
    name: &str,
    at: String,
    x: &Tensor,
    gradient: &Tensor,
    mut loss: impl FnMut(&Tensor) -> Result<f64>,
) -> Result<()> {
    let error = against(values(x)?, values(gradient)?, 99, |moved| loss(&tensor(x.shape(), moved)?))?;
    rows.push(Row::new(name, at, error, BOUND));
    Ok(())
}
