//! Checks and benchmark of activation.

use super::*;
use crate::backend::Activation;

pub struct Checks;

const KINDS: [Activation; 2] = [Activation::QuickGelu, Activation::Gelu];

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Less than a pack, one block with a rest behind its packs, and several blocks of which the last is
        // partly filled.
        let mut sizes = vec![1, 37, 4 * 2048 + 1029];
        if c.scope == Scope::Full {
            sizes.extend([400 * 3072, 257 * 4096]);
        }
        for (size, kind) in sizes.into_iter().flat_map(|size| KINDS.map(|kind| (size, kind))) {
            let at = format!("{kind:?}, {size}");
            c.case(at.clone(), |c| {
                let real = c.real();
                // Wide enough for both ends of the curves.
                let z = c.random([size], real, 3.0, 1)?;
                let mut g = c.output([size], real)?;
                both!(c.activation(kind, &z, &mut g));
                c.compare("activation g", &at, &g)?;

                let mut d = c.random([size], real, 1.0, 2)?;
                both!(c.activation_backward(kind, &z, &mut d));
                c.compare("activation dz", &at, &d)
            })?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        KINDS.into_iter().try_for_each(|kind| {
            let (z, w) = (random([3, 37], 1)?, random([3, 37], 2)?);
            let mut d = w.clone();
            b.activation_backward(kind, &z, &mut d)?;
            row(rows, "activation dz", format!("{kind:?}"), &z, &d, |z| {
                let mut g = zeros(z.shape());
                b.activation(kind, z, &mut g)?;
                dot(&g, &w)
            })
        })
    }

    const BENCHES: &[&str] = &["activation"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [b.sizes.batch, b.sizes.tokens, b.sizes.mlp];
        KINDS.into_iter().try_for_each(|kind| {
            let (z, mut g) = (b.random(shape)?, b.empty(shape)?);
            let at = format!("{kind:?} {shape:?}");
            let run = Box::new(|| b.backend.activation(kind, &z, &mut g));
            visit(Ready { name: "activation", at: at.clone(), run })?;
            // The derivative is near 1 here, so that repetition in place changes little.
            let (z, mut d) = (b.numbers(shape, b.real, 6.0, 0.5)?, b.random(shape)?);
            let run = Box::new(|| b.backend.activation_backward(kind, &z, &mut d));
            visit(Ready { name: "activation_backward", at, run })
        })
    }
}
