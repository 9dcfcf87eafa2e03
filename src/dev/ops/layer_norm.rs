//! Checks and benchmark of layer_norm.

use super::*;
use crate::backend::{AddTo, LayerNorm};

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
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
        shapes.into_iter().try_for_each(|shape| c.case(format!("{shape:?}"), |c| layer_norm(c, shape)))
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for shape in [[2, 3, 7], [2, 50, 768], [1, 1, 33]] {
            layer_norm_gradients(b, shape, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["layer_norm"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.layer_norm(visit)
    }
}

/// A norm of `width`.
pub(super) fn norm<B: Backend>(
    c: &Checker<'_, B>,
    width: usize,
    seed: u64,
) -> Result<Both<LayerNorm<B>, LayerNorm<Cpu<f64>>>> {
    let parameter = c.device.parameter_dtype();
    let (weight, bias) =
        (c.random([width], parameter, 1.0, seed)?, c.random([width], parameter, 1.0, seed + 1)?);
    let eps = 1e-5;
    Ok(Both {
        device: LayerNorm { weight: weight.device, bias: bias.device, eps },
        host: LayerNorm { weight: weight.host, bias: bias.host, eps },
    })
}

fn layer_norm<B: Backend>(c: &mut Checker<'_, B>, shape: [usize; 3]) -> Result<()> {
    let (real, parameter) = (c.real(), c.device.parameter_dtype());
    let norm = norm(c, shape[2], 1)?;
    // Rows away from zero: their variance is small beside the square of their mean.
    let values: Vec<f64> = normal(shape.iter().product(), 3).into_iter().map(|v| 0.5 * v + 2.0).collect();
    let x = c.pair(&Tensor::from_slice(shape, &values)?, real)?;
    let mut y: Pair<B> = c.output(shape, real)?;
    let mut stats = c.output([shape[0], shape[1], 2], parameter)?;
    both!(c.layer_norm(&x, &norm, &mut y, &mut stats));
    let at = format!("{}x{}x{}", shape[0], shape[1], shape[2]);
    c.compare("layer_norm y", &at, &y)?;
    c.compare_within("layer_norm stats", &at, &stats, bound(parameter))?;

    let dy = c.random(shape, real, 1.0, 4)?;
    // From the same stats on both sides.
    let stats = c.pair(&stats.host, parameter)?;
    let before = c.random(shape, real, 1.0, 5)?;
    for case in ["added to itself", "added to another", "added to nothing"] {
        // A single number has no gradient: there is nothing to hold an error against.
        if shape[2] == 1 && case == "added to nothing" {
            continue;
        }
        let mut dx = c.random(shape, real, 1.0, if case == "added to itself" { 5 } else { 6 })?;
        let (device, host) = match case {
            "added to itself" => (AddTo::Output, AddTo::Output),
            "added to another" => (AddTo::Tensor(&before.device), AddTo::Tensor(&before.host)),
            _ => (AddTo::Nothing, AddTo::Nothing),
        };
        c.device.layer_norm_backward(
            &dy.device,
            &x.device,
            &norm.device,
            &stats.device,
            device,
            &mut dx.device,
        )?;
        c.cpu.layer_norm_backward(&dy.host, &x.host, &norm.host, &stats.host, host, &mut dx.host)?;
        c.compare("layer_norm dx", &format!("{at}, {case}"), &dx)?;
    }
    Ok(())
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

impl<B: Backend> Bench<'_, B> {
    fn layer_norm(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [self.sizes.batch, self.sizes.tokens, self.sizes.width];
        let d = self.sizes.width;
        let norm = self.norm(d)?;
        let stats = [self.sizes.batch, self.sizes.tokens, 2];
        let (x, mut y) = (self.random(shape)?, self.empty(shape)?);
        let mut stats = self.backend.empty(stats, self.backend.parameter_dtype())?;
        let at = format!("{shape:?}");
        let run = Box::new(|| self.backend.layer_norm(&x, &norm, &mut y, &mut stats));
        visit(Ready { name: "layer_norm", at: at.clone(), run })?;
        let (dy, mut dx) = (self.random(shape)?, self.random(shape)?);
        let run =
            Box::new(|| self.backend.layer_norm_backward(&dy, &x, &norm, &stats, AddTo::Output, &mut dx));
        visit(Ready { name: "layer_norm_backward", at, run })
    }

    pub(super) fn norm(&self, d: usize) -> backend::Result<LayerNorm<B>> {
        let weight = self.numbers([d], self.backend.parameter_dtype(), 1.0, 0.1)?;
        Ok(LayerNorm { weight, bias: self.parameter([d], 0.1)?, eps: 1e-5 })
    }
}
