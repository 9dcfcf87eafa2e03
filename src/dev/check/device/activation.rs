//! Checks of activation.

use super::{Checker, Result, Scope};
use crate::backend::prelude::*;
use crate::backend::{Activation, Backend};

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    // Less than a pack, one block with a rest behind its packs, and several blocks of which the last is
    // partly filled.
    let mut sizes = vec![1, 37, 4 * 2048 + 1029];
    if c.scope == Scope::Full {
        sizes.extend([400 * 3072, 257 * 4096]);
    }
    for size in sizes {
        for kind in [Activation::QuickGelu, Activation::Gelu] {
            c.case(format!("{kind:?}, {size}"), |c| activation(c, kind, size))?;
        }
    }
    Ok(())
}

fn activation<B: Backend>(c: &mut Checker<'_, B>, kind: Activation, size: usize) -> Result<()> {
    let real = c.real();
    // Wide enough for both ends of the curves.
    let z = c.random([size], real, 3.0, 1)?;
    let mut g = c.output([size], real)?;
    both!(c.activation(kind, &z, &mut g));
    let at = format!("{kind:?}, {size}");
    c.compare("activation g", &at, &g)?;

    let mut d = c.random([size], real, 1.0, 2)?;
    both!(c.activation_backward(kind, &z, &mut d));
    c.compare("activation dz", &at, &d)
}
