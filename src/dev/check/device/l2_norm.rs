//! Checks of l2_norm.

use super::{Checker, Result, Scope, bound, normal};
use crate::backend::Backend;
use crate::backend::prelude::*;
use crate::tensor::Tensor;

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let mut sizes = vec![(1, 1), (3, 7), (5, 100), (2, 515), (9, 512)];
    if c.scope == Scope::Full {
        sizes.extend([(32, 512), (102, 768), (8, 1024)]);
    }
    for (rows, width) in sizes {
        c.case(format!("{rows}x{width}"), |c| l2_norm(c, rows, width))?;
    }
    c.case("zero", zero)
}

fn l2_norm<B: Backend>(c: &mut Checker<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (real, parameter) = (c.real(), c.device.parameter_dtype());
    let x = c.random([rows, width], real, 1.0, 1)?;
    let (mut f, mut norms) = (c.output([rows, width], parameter)?, c.output([rows], parameter)?);
    both!(c.l2_norm(&x, &mut f, &mut norms));
    let at = format!("{rows}x{width}");
    // Nothing is rounded to the activations' type here: the bound of f32 holds for all of them.
    c.compare_within("l2_norm f", &at, &f, bound(parameter))?;
    c.compare_within("l2_norm norms", &at, &norms, bound(parameter))?;
    if width == 1 {
        // The gradient is zero but for rounding: there is no scale to measure it by.
        return Ok(());
    }
    let df = c.random([rows, width], parameter, 1.0, 2)?;
    let (f, norms) = (c.pair(&f.host, parameter)?, c.pair(&norms.host, parameter)?);
    let mut dx = c.output([rows, width], real)?;
    both!(c.l2_norm_backward(&df, &f, &norms, &mut dx));
    c.compare("l2_norm dx", &at, &dx)
}

/// A row of zeros has no direction, and must not become NaN.
fn zero<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let (real, parameter) = (c.real(), c.device.parameter_dtype());
    let mut values = normal(3 * 8, 1);
    values[8..16].fill(0.0);
    let x = c.pair(&Tensor::from_slice([3, 8], &values)?, real)?;
    let (mut f, mut norms) = (c.output([3, 8], parameter)?, c.output([3], parameter)?);
    both!(c.l2_norm(&x, &mut f, &mut norms));
    c.compare_within("l2_norm f", "a row of zeros", &f, bound(parameter))?;
    c.compare_within("l2_norm norms", "a row of zeros", &norms, bound(parameter))
}
