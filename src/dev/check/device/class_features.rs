//! Checks of class_features. All of it is in the parameter dtype, whatever the activations are in.

use super::{Checker, Result, Scope, bound, normal};
use crate::backend::Backend;
use crate::backend::prelude::*;
use crate::tensor::Tensor;

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    // Classes, prompts of each, width: one of everything; odd widths; and more columns than a block takes at a
    // time, in packs and without.
    let mut sizes = vec![(1, 1, 1), (3, 1, 7), (5, 3, 33), (4, 9, 64), (2, 4, 131), (3, 2, 520)];
    if c.scope == Scope::Full {
        sizes.extend([(102, 1, 512), (102, 7, 768), (1000, 3, 1023)]);
    }
    for size in sizes {
        let (classes, prompts, width) = size;
        c.case(format!("{size:?}"), |c| class_features(c, classes, prompts, width))?;
    }
    c.case("opposite prompts", opposite)
}

fn class_features<B: Backend>(
    c: &mut Checker<'_, B>,
    classes: usize,
    prompts: usize,
    width: usize,
) -> Result<()> {
    let parameter = c.device.parameter_dtype();
    let at = format!("{classes} classes of {prompts}, width {width}");
    let f = c.random([classes * prompts, width], parameter, 1.0, 1)?;
    let (mut t, mut norms) = (c.output([classes, width], parameter)?, c.output([classes], parameter)?);
    both!(c.class_features(&f, &mut t, &mut norms));
    c.compare_within("class_features t", &at, &t, bound(parameter))?;
    c.compare_within("class_features norms", &at, &norms, bound(parameter))?;
    if width == 1 {
        // The gradient is zero but for rounding: there is no scale to measure it by.
        return Ok(());
    }
    let dt = c.random([classes, width], parameter, 1.0, 2)?;
    let (t, norms) = (c.pair(&t.host, parameter)?, c.pair(&norms.host, parameter)?);
    let mut df = c.output([classes * prompts, width], parameter)?;
    both!(c.class_features_backward(&dt, &t, &norms, &mut df));
    c.compare_within("class_features df", &at, &df, bound(parameter))
}

/// Prompts that cancel out have no direction, and must not become NaN.
fn opposite<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let parameter = c.device.parameter_dtype();
    let mut values = normal(4 * 8, 1);
    for i in 0..8 {
        values[24 + i] = -values[16 + i];
    }
    let f = c.pair(&Tensor::from_slice([4, 8], &values)?, parameter)?;
    let (mut t, mut norms) = (c.output([2, 8], parameter)?, c.output([2], parameter)?);
    both!(c.class_features(&f, &mut t, &mut norms));
    c.compare_within("class_features t", "opposite prompts", &t, bound(parameter))?;
    c.compare_within("class_features norms", "opposite prompts", &norms, bound(parameter))
}
