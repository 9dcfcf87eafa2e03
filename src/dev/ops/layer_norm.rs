//! Checks and benchmark of layer_norm.

use super::*;
use crate::backend::{AddTo, LayerNorm};

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // One element; rows over one and several turns of a block; and every width that a warp holds, with more
        // and less rows than a block has warps.
        let mut shapes = vec![[1, 1, 1], [2, 3, 7], [1, 5, 301], [3, 3, 64], [1, 1, 256], [1, 2, 512]];
        shapes.extend([[1, 5, 768], [3, 3, 1024], [1, 2, 1280], [1, 2, 1536]]);
        // Widths of large models that are none of those.
        shapes.extend([[1, 2, 1408], [1, 5, 1664]]);
        if c.scope == Scope::Full {
            shapes.extend([
                [8, 50, 768],
                [8, 77, 512],
                [4, 197, 768],
                [2, 257, 1024],
                [4, 66, 768],
                [2, 242, 768],
                [2, 257, 1280],
                [2, 257, 1408],
                [2, 257, 1664],
            ]);
        }
        shapes.into_iter().try_for_each(|shape| c.case(format!("{shape:?}"), |c| c.layer_norm_case(shape)))
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for shape in [[2, 3, 7], [2, 50, 768], [1, 1, 33]] {
            layer_norm_gradients(b, shape, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["layer_norm"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [b.sizes.batch, b.sizes.tokens, b.sizes.width];
        let d = b.sizes.width;
        let norm = b.norm(d)?;
        let stats = [b.sizes.batch, b.sizes.tokens, 2];
        let (x, mut y) = (b.random(shape)?, b.empty(shape)?);
        let mut stats = b.backend.empty(stats, b.backend.parameter_dtype())?;
        let at = format!("{shape:?}");
        let run = Box::new(|| b.backend.layer_norm(&x, &norm, &mut y, &mut stats));
        visit(Ready { name: "layer_norm", at: at.clone(), run })?;
        let (dy, mut dx) = (b.random(shape)?, b.random(shape)?);
        let run = Box::new(|| b.backend.layer_norm_backward(&dy, &x, &norm, &stats, AddTo::Output, &mut dx));
        visit(Ready { name: "layer_norm_backward", at, run })
    }
}

impl<B: Backend> Checker<'_, B> {
    /// A norm of `width`.
    pub(super) fn norm(&self, width: usize, seed: u64) -> Result<Both<LayerNorm<B>, LayerNorm<Cpu<f64>>>> {
        let parameter = self.device.parameter_dtype();
        let (weight, bias) =
            (self.random([width], parameter, 1.0, seed)?, self.random([width], parameter, 1.0, seed + 1)?);
        Ok(both!(LayerNorm { weight: *weight, bias: *bias, eps: 1e-5 }))
    }

    fn layer_norm_case(&mut self, shape: [usize; 3]) -> Result<()> {
        let (real, parameter) = (self.real(), self.device.parameter_dtype());
        let norm = self.norm(shape[2], 1)?;
        // Rows away from zero: their variance is small beside the square of their mean.
        let values: Vec<f64> = normal(shape.iter().product(), 3).into_iter().map(|v| 0.5 * v + 2.0).collect();
        let x = self.pair(&Tensor::from_slice(shape, &values)?, real)?;
        let mut y: Pair<B> = self.output(shape, real)?;
        let mut stats = self.output([shape[0], shape[1], 2], parameter)?;
        both!(self.layer_norm(&x, &norm, &mut y, &mut stats));
        let at = format!("{}x{}x{}", shape[0], shape[1], shape[2]);
        self.compare("layer_norm y", &at, &y)?;
        self.compare_within("layer_norm stats", &at, &stats, bound(parameter))?;

        let dy = self.random(shape, real, 1.0, 4)?;
        // From the same stats on both sides.
        let stats = self.pair(&stats.host, parameter)?;
        let before = self.random(shape, real, 1.0, 5)?;
        for case in ["added to itself", "added to another", "added to nothing"] {
            // A single number has no gradient: there is nothing to hold an error against.
            if shape[2] == 1 && case == "added to nothing" {
                continue;
            }
            let mut dx = self.random(shape, real, 1.0, if case == "added to itself" { 5 } else { 6 })?;
            let add_to = match case {
                "added to itself" => Both { device: AddTo::Output, host: AddTo::Output },
                "added to another" => {
                    Both { device: AddTo::Tensor(&before.device), host: AddTo::Tensor(&before.host) }
                }
                _ => Both { device: AddTo::Nothing, host: AddTo::Nothing },
            };
            both!(self.layer_norm_backward(&dy, &x, &norm, &stats, *add_to, &mut dx));
            self.compare("layer_norm dx", &format!("{at}, {case}"), &dx)?;
        }
        Ok(())
    }
}

fn layer_norm_gradients(b: &F64, shape: [usize; 3], rows: &mut Vec<Row>) -> Result<()> {
    let d = shape[2];
    let norm = LayerNorm::<F64> { weight: random([d], 1)?, bias: random([d], 2)?, eps: 1e-5 };
    let (x, w) = (random(shape, 3)?, random(shape, 4)?);
    let (mut y, mut stats) = (zeros(shape), zeros([shape[0], shape[1], 2]));
    b.layer_norm(&x, &norm, &mut y, &mut stats)?;
    // The backward form adds: what was there before must still be in the sum.
    let mut dx = random(shape, 5)?;
    let before = dx.clone();
    b.layer_norm_backward(&w, &x, &norm, &stats, AddTo::Output, &mut dx)?;
    row(rows, "layer_norm dx", format!("{shape:?}"), &x, &added(&dx, &before)?, |x| {
        let (mut y, mut stats) = (zeros(shape), zeros([shape[0], shape[1], 2]));
        b.layer_norm(x, &norm, &mut y, &mut stats)?;
        dot(&y, &w)
    })
}
