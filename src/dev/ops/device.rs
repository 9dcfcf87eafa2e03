//! Every operation of a device against its definition: the CPU form in f64, on the same inputs.
//!
//! Inputs are random numbers rounded to the type that the device computes in, so what is measured is the
//! device's own arithmetic.

use super::Group;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DeviceTensor, Memory};
use crate::dev::check::difference::normal;
use crate::dev::check::{Result, Row, relative_error};
use crate::tensor::{DType, Shape, Tensor, TensorError};
use std::ops::Range;

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

/// Checks these groups of `device`'s operations, and hands out one row for each tensor that one of them computes, as it
/// comes. An operation that fails has one for itself; what is left is checked all the same, unless the device is lost.
///
/// # Errors
/// That the device is lost, after a row that says so.
pub fn check<B: Backend>(
    device: &B,
    scope: Scope,
    groups: &[Group],
    report: &mut dyn FnMut(Row),
) -> Result<()> {
    for &group in groups {
        let mut checker = Checker { device, cpu: Cpu::new(), scope, group, lost: false, report };
        // What comes before its first case: memory for it, or numbers.
        checker.case("", |c| group.check(c))?;
    }
    Ok(())
}

/// The rows of these groups.
///
/// # Errors
/// As [`check`].
pub fn rows<B: Backend>(device: &B, scope: Scope, groups: &[Group]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    check(device, scope, groups, &mut |row| rows.push(row))?;
    Ok(rows)
}

/// Whole steps, of `parts` parts of about the same length the one of number `part`, for threads with a device each.
///
/// # Errors
/// As [`check`].
pub fn check_part_of_steps<B: Backend>(device: &B, part: usize, parts: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let report = &mut |row| rows.push(row);
    let mut checker =
        Checker { device, cpu: Cpu::new(), scope: Scope::Quick, group: Group::Steps, lost: false, report };
    checker.steps(part, parts)?;
    Ok(rows)
}

/// A device under test, and who is told of each row.
pub struct Checker<'a, B: Backend> {
    pub device: &'a B,
    pub cpu: Cpu<f64>,
    pub scope: Scope,
    group: Group,
    /// The device is lost, and a row has said so.
    lost: bool,
    report: &'a mut dyn FnMut(Row),
}

/// Counterparts on the device and on the host, there in f64 but where it says otherwise.
#[derive(Clone, Copy)]
pub struct Both<D, H> {
    pub device: D,
    pub host: H,
}

/// Tensors with the same numbers on the device and on the host.
pub type Pair<B> = Both<<B as Memory>::Tensor, Tensor>;

impl<'a, B: Backend> Checker<'a, B> {
    pub fn row(&mut self, row: Row) {
        (self.report)(row);
    }

    /// One case of the group. Where it fails that is a row, and an error only if nothing can follow.
    pub fn case(&mut self, at: impl Into<String>, check: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Err(problem) = check(self) else { return Ok(()) };
        // A case within this one has said it already.
        if !self.lost {
            self.lost = problem.lost_device();
            self.row(Row::failed(self.group.name(), at, &problem));
        }
        if self.lost { Err(problem) } else { Ok(()) }
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
        Ok(Both { device, host: rounded.view().to_tensor(DType::F64)? })
    }

    /// The numbers of a pair as the weights of a layer.
    pub fn weight(&self, pair: &Pair<B>) -> Result<Both<B::Weight, <Cpu<f64> as Memory>::Weight>> {
        let device = self.device.weight(self.device.download(&pair.device)?.view())?;
        Ok(Both { device, host: self.cpu.weight(pair.host.view())? })
    }

    /// Integers, which both take as they are.
    pub fn same(&self, host: Tensor) -> Result<Pair<B>> {
        Ok(Both { device: self.device.upload(host.view(), host.dtype())?, host })
    }

    /// The device's numbers, copied to the host.
    pub fn found(&self, pair: &Pair<B>) -> Result<Vec<f64>> {
        Ok(self.device.download(&pair.device)?.view().to_tensor(DType::F64)?.typed::<f64>()?.to_vec())
    }

    /// Memory for a result: unspecified on the device, zeros on the host.
    pub fn output(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Pair<B>> {
        let shape = shape.into();
        Ok(Both { device: self.device.empty(shape, dtype)?, host: Tensor::zeros(shape, DType::F64) })
    }

    /// Adds a row: what the device computed against what the definition gave.
    pub fn compare(&mut self, name: &str, at: &str, pair: &Pair<B>) -> Result<()> {
        let bound = bound(self.real());
        self.compare_within(name, at, pair, bound)
    }

    /// As [`Checker::compare`], for results with a bound of their own.
    pub fn compare_within(&mut self, name: &str, at: &str, pair: &Pair<B>, bound: f64) -> Result<()> {
        let (expected, found) = (pair.host.shape(), pair.device.shape());
        if expected != found {
            return Err(TensorError::shape("check", expected, found).into());
        }
        self.compare_part(name, at, pair, 0..expected.elements(), bound)
    }

    /// As [`Checker::compare_within`], for these elements.
    pub fn compare_part(
        &mut self,
        name: &str,
        at: &str,
        pair: &Pair<B>,
        part: Range<usize>,
        bound: f64,
    ) -> Result<()> {
        let error = relative_error(&self.found(pair)?[part.clone()], &pair.host.typed::<f64>()?[part]);
        self.row(Row::new(name, at, error, bound));
        Ok(())
    }
}
