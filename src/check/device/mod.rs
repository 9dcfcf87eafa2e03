//! Every operation of a device against its definition: the CPU form in f64, on the same inputs.
//!
//! Inputs are random numbers rounded to the type that the device computes in, so what is measured is the
//! device's own arithmetic. One file per operation, named as its kernel.

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod class_features;
mod crop_resize;
mod dropout;
mod embed;
mod head_loss;
mod l2_norm;
mod layer_norm;
mod lora_linear;
mod mix;
mod prompts;
mod step;
mod triplet;

use super::difference::normal;
use super::{CheckError, Row, relative_error};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DeviceTensor};
use crate::tensor::{DType, Shape, Tensor};

type Result<T> = std::result::Result<T, CheckError>;

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Small and odd sizes, and one of each kind that a kernel treats differently: for the host twin.
    Quick,
    /// Also the sizes of real models.
    Full,
}

/// Largest error, relative to the largest value of the tensor, that passes for a type.
pub fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        _ => 1e-5,
    }
}

/// Checks all operations of `device` and whole steps; one row for each tensor that one of them computes.
pub fn check<B: Backend>(device: &B, scope: Scope) -> Result<Vec<Row>> {
    let mut rows = check_small(device, scope)?;
    rows.extend(check_attention(device, scope)?);
    rows.extend(check_lora_linear(device, scope)?);
    rows.extend(check_steps(device)?);
    Ok(rows)
}

/// Whole steps alone.
pub fn check_steps<B: Backend>(device: &B) -> Result<Vec<Row>> {
    check_part_of_steps(device, 0, 1)
}

/// The same, of `parts` parts of about the same length the one of number `part`, for threads with a device each.
pub fn check_part_of_steps<B: Backend>(device: &B, part: usize, parts: usize) -> Result<Vec<Row>> {
    let mut checker = Checker::new(device, Scope::Quick);
    step::check(&mut checker, part, parts)?;
    Ok(checker.rows)
}

/// All operations but attention and linear layers.
pub fn check_small<B: Backend>(device: &B, scope: Scope) -> Result<Vec<Row>> {
    let mut checker = Checker::new(device, scope);
    layer_norm::check(&mut checker)?;
    activation::check(&mut checker)?;
    dropout::check(&mut checker)?;
    crop_resize::check(&mut checker)?;
    embed::check(&mut checker)?;
    prompts::check(&mut checker)?;
    l2_norm::check(&mut checker)?;
    class_features::check(&mut checker)?;
    mix::check(&mut checker)?;
    head_loss::check(&mut checker)?;
    triplet::check(&mut checker)?;
    accumulate::check(&mut checker)?;
    adamw::check(&mut checker)?;
    Ok(checker.rows)
}

/// Attention alone.
pub fn check_attention<B: Backend>(device: &B, scope: Scope) -> Result<Vec<Row>> {
    let mut checker = Checker::new(device, scope);
    attention::check(&mut checker)?;
    Ok(checker.rows)
}

/// Linear layers alone.
pub fn check_lora_linear<B: Backend>(device: &B, scope: Scope) -> Result<Vec<Row>> {
    let mut checker = Checker::new(device, scope);
    lora_linear::check(&mut checker)?;
    Ok(checker.rows)
}

/// A device under test, and the rows so far.
pub(super) struct Checker<'a, B: Backend> {
    pub device: &'a B,
    pub cpu: Cpu<f64>,
    pub scope: Scope,
    pub rows: Vec<Row>,
}

/// The same numbers on the device and, in f64, on the host.
pub(super) struct Pair<B: Backend> {
    pub device: B::Tensor,
    pub host: Tensor,
}

impl<'a, B: Backend> Checker<'a, B> {
    fn new(device: &'a B, scope: Scope) -> Self {
        Checker { device, cpu: Cpu::new(), scope, rows: Vec::new() }
    }

    /// Type of activations on the device.
    pub fn real(&self) -> DType {
        self.device.compute_dtype()
    }

    /// Normally distributed numbers times `scale`, rounded to `dtype`.
    pub fn random(&self, shape: impl Into<Shape>, dtype: DType, scale: f64, seed: u64) -> Result<Pair<B>> {
        let shape = shape.into();
        let values: Vec<f64> = normal(shape.elements(), seed).into_iter().map(|v| scale * v).collect();
        self.pair(&Tensor::from_slice(shape, &values)?, dtype)
    }

    /// `values` (f64) rounded to `dtype`.
    pub fn pair(&self, values: &Tensor, dtype: DType) -> Result<Pair<B>> {
        let rounded = values.view().to_tensor(dtype)?;
        let device = self.device.upload(rounded.view(), dtype)?;
        Ok(Pair { device, host: rounded.view().to_tensor(DType::F64)? })
    }

    /// Memory for a result: unspecified on the device, zeros on the host.
    pub fn output(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Pair<B>> {
        let shape = shape.into();
        Ok(Pair { device: self.device.empty(shape, dtype)?, host: Tensor::zeros(shape, DType::F64) })
    }

    /// Adds a row: what the device computed against what the definition gave.
    pub fn compare(&mut self, name: &str, at: &str, pair: &Pair<B>) -> Result<()> {
        let bound = bound(self.real());
        self.compare_within(name, at, pair, bound)
    }

    /// As [`Checker::compare`], for results with a bound of their own.
    pub fn compare_within(&mut self, name: &str, at: &str, pair: &Pair<B>, bound: f64) -> Result<()> {
        let found = self.device.download(&pair.device)?.view().to_tensor(DType::F64)?;
        if pair.device.shape() != pair.host.shape() {
            return Err(crate::tensor::TensorError::shape("check", pair.host.shape(), found.shape()).into());
        }
        let error = relative_error(found.typed::<f64>()?, pair.host.typed::<f64>()?);
        self.rows.push(Row { name: name.into(), at: at.into(), error, bound, peer: None });
        Ok(())
    }
}
