//! Checks and benchmark of activation.

use super::*;
use crate::backend::Activation;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
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

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for kind in [Activation::QuickGelu, Activation::Gelu] {
            activation_gradients(b, kind, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["activation"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.activation(Activation::QuickGelu, visit)?;
        b.activation(Activation::Gelu, visit)
    }
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

fn activation_gradients(b: &F64, kind: Activation, rows: &mut Vec<Row>) -> Result<()> {
    let (z, w) = (random([3, 37], 1)?, random([3, 37], 2)?);
    let mut d = w.clone();
    b.activation_backward(kind, &z, &mut d)?;
    row(rows, "activation dz", format!("{kind:?}"), &z, &d, |z| {
        let mut g = zeros(z.shape());
        b.activation(kind, z, &mut g)?;
        dot(&g, &w)
    })
}

impl<B: Backend> Bench<'_, B> {
    fn activation(&self, kind: Activation, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [self.sizes.batch, self.sizes.tokens, self.sizes.mlp];
        let (z, mut g) = (self.random(shape)?, self.empty(shape)?);
        let at = format!("{kind:?} {shape:?}");
        let run = Box::new(|| self.backend.activation(kind, &z, &mut g));
        visit(Ready { name: "activation", at: at.clone(), run })?;
        // The derivative is near 1 here, so that repetition in place changes little.
        let (z, mut d) = (self.numbers(shape, self.real, 6.0, 0.5)?, self.random(shape)?);
        let run = Box::new(|| self.backend.activation_backward(kind, &z, &mut d));
        visit(Ready { name: "activation_backward", at, run })
    }
}
