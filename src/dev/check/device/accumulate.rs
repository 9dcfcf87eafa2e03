//! Checks of accumulate. All of it is in the parameter dtype, whatever the activations are in.

use super::{Checker, Pair, Result, bound};
use crate::backend::Backend;
use crate::backend::prelude::*;

/// Less than a pack, a pack and a rest, one chunk and several, and nothing.
const SIZES: [usize; 5] = [1, 7, 4096, 0, 10_001];

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    c.case("three batches", accumulate)
}

fn accumulate<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let parameter = c.device.parameter_dtype();
    let mut sums = SIZES.iter().map(|&size| c.output([size], parameter)).collect::<Result<Vec<_>>>()?;
    for batch in 0..3 {
        let gradient = |(i, &size)| c.random([size], parameter, 1.0, 10 * batch + i as u64);
        let gradients = SIZES.iter().enumerate().map(gradient).collect::<Result<Vec<Pair<B>>>>()?;
        // What was there before the first batch is unspecified, and must not show.
        let (mut device, mut host) = (Vec::new(), Vec::new());
        for (gradient, sum) in gradients.iter().zip(&mut sums) {
            device.push((&gradient.device, &mut sum.device));
            host.push((&gradient.host, &mut sum.host));
        }
        c.device.accumulate(&mut device, batch == 0)?;
        c.cpu.accumulate(&mut host, batch == 0)?;
        for (sum, size) in sums.iter().zip(SIZES) {
            c.compare_within("accumulate", &format!("{size}, batch {batch}"), sum, bound(parameter))?;
        }
    }
    Ok(())
}
