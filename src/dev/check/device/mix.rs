//! Checks of mix; and the mixes that the checks of other operations take.

use super::{Both, Checker, Result, Scope, bound};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Backend, Mix};
use crate::tensor::{DType, Tensor};

pub(super) type MixPair<B> = Both<Mix<B>, Mix<Cpu<f64>>>;

impl<B: Backend> MixPair<B> {
    /// A batch in which each has the next as its partner: a permutation that is not its own inverse. In one of
    /// more than three the first is its own partner. λ is 0, 1 and in between.
    pub fn new(c: &Checker<'_, B>, batch: usize) -> Result<Self> {
        const LAMBDA: [f64; 7] = [0.3, 0.85, 0.0, 1.0, 0.6, 0.02, 0.97];
        let alone = usize::from(batch > 3);
        let turn = |i: usize, by: usize| match i.checked_sub(alone) {
            Some(i) => (alone + (i + by) % (batch - alone)) as u32,
            None => i as u32,
        };
        let partner: Vec<u32> = (0..batch).map(|i| turn(i, 1)).collect();
        let inverse: Vec<u32> = (0..batch).map(|i| turn(i, batch - alone - 1)).collect();
        let (partner, inverse) =
            (Tensor::from_slice([batch], &partner)?, Tensor::from_slice([batch], &inverse)?);
        let lambda: Vec<f64> = (0..batch).map(|i| LAMBDA[i % LAMBDA.len()]).collect();
        let lambda = c.pair(&Tensor::from_slice([batch], &lambda)?, c.device.parameter_dtype())?;
        let upload = |indices: &Tensor| c.device.upload(indices.view(), DType::U32);
        let device = Mix { partner: upload(&partner)?, inverse: upload(&inverse)?, lambda: lambda.device };
        Ok(Both { device, host: Mix { partner, inverse, lambda: lambda.host } })
    }
}

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    // One row; odd widths; one pack; and more columns than a block takes, in packs and without.
    let mut sizes = vec![(1, 1), (2, 7), (3, 33), (9, 4), (5, 100), (3, 131), (6, 520)];
    if c.scope == Scope::Full {
        sizes.extend([(32, 512), (33, 768), (512, 1024)]);
    }
    for (batch, width) in sizes {
        c.case(format!("{batch}x{width}"), |c| mix_rows(c, batch, width))?;
    }
    Ok(())
}

fn mix_rows<B: Backend>(c: &mut Checker<'_, B>, batch: usize, width: usize) -> Result<()> {
    // All of it is in the parameter dtype, whatever the activations are in.
    let parameter = c.device.parameter_dtype();
    let mix = MixPair::new(c, batch)?;
    let at = format!("{batch}x{width}");
    let x = c.random([batch, width], parameter, 1.0, 1)?;
    let mut y = c.output([batch, width], parameter)?;
    both!(c.mix_rows(&x, &mix, &mut y));
    c.compare_within("mix_rows y", &at, &y, bound(parameter))?;

    let dy = c.random([batch, width], parameter, 1.0, 2)?;
    let mut dx = c.output([batch, width], parameter)?;
    both!(c.mix_rows_backward(&dy, &mix, &mut dx));
    c.compare_within("mix_rows dx", &at, &dx, bound(parameter))
}
