//! Checks and benchmark of activation.

use super::*;
use crate::backend::Activation;

pub struct Checks;

pub(super) const KINDS: [Activation; 2] = [Activation::QuickGelu, Activation::Gelu];

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
                both!(c.activation(kind, &z, None, &mut g));
                c.compare("activation g", &at, &g)?;

                let mut d = c.random([size], real, 1.0, 2)?;
                both!(c.activation_backward(kind, &z, None, &mut d));
                c.compare("activation dz", &at, &d)
            })?;
        }
        // Rows of whole packs and of none, of which the last block has all or some; columns of one block and of
        // several, of which the last is partly filled.
        let mut shapes = vec![[1, 1], [7, 13], [4, 8], [3, 264], [9, 1040], [5, 2056], [6, 131]];
        if c.scope == Scope::Full {
            shapes.extend([[1600, 3072], [2 * 257, 4096], [32, 3072], [102 * 77, 2048]]);
        }
        for (shape, kind) in shapes.into_iter().flat_map(|shape| KINDS.map(|kind| (shape, kind))) {
            let at = format!("{kind:?}, {}x{}", shape[0], shape[1]);
            c.case(at.clone(), |c| {
                let real = c.real();
                let (z, bias) = (c.random(shape, real, 3.0, 1)?, Some(c.random([shape[1]], real, 2.0, 2)?));
                let mut g = c.output(shape, real)?;
                both!(c.activation(kind, &z, ?bias, &mut g));
                c.compare("activation_bias g", &at, &g)?;

                let mut d = c.random(shape, real, 1.0, 3)?;
                both!(c.activation_backward(kind, &z, ?bias, &mut d));
                c.compare("activation_bias dz", &at, &d)
            })?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        KINDS.into_iter().try_for_each(|kind| {
            let (z, w) = (random([3, 37], 1)?, random([3, 37], 2)?);
            let mut d = w.clone();
            b.activation_backward(kind, &z, None, &mut d)?;
            row(rows, "activation dz", format!("{kind:?}"), &z, &d, |z| {
                let mut g = zeros(z.shape());
                b.activation(kind, z, None, &mut g)?;
                dot(&g, &w)
            })?;

            let (bias, mut d) = (random([37], 3)?, w.clone());
            b.activation_backward(kind, &z, Some(&bias), &mut d)?;
            row(rows, "activation_bias dz", format!("{kind:?}"), &z, &d, |z| {
                let mut g = zeros(z.shape());
                b.activation(kind, z, Some(&bias), &mut g)?;
                dot(&g, &w)
            })
        })
    }

    const BENCHES: &[&str] = &["activation"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [b.sizes.batch, b.sizes.tokens, b.sizes.mlp];
        let bias = b.numbers([b.sizes.mlp], b.real, 0.0, 0.1)?;
        let forms = [
            (["activation", "activation_backward"], None),
            (["activation_bias", "activation_bias_backward"], Some(&bias)),
        ];
        for (kind, ([name, backward], bias)) in
            KINDS.into_iter().flat_map(|kind| forms.map(|form| (kind, form)))
        {
            let (z, mut g) = (b.random(shape)?, b.empty(shape)?);
            let at = format!("{kind:?} {shape:?}");
            let run = Box::new(|| b.backend.activation(kind, &z, bias, &mut g));
            visit(Ready { name, at: at.clone(), run })?;
            // The derivative is near 1 here, so that repetition in place changes little.
            let (z, mut d) = (b.numbers(shape, b.real, 6.0, 0.5)?, b.random(shape)?);
            let run = Box::new(|| b.backend.activation_backward(kind, &z, bias, &mut d));
            visit(Ready { name: backward, at, run })?;
        }
        Ok(())
    }
}
