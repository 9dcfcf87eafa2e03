//! Checks of layer_norm.

use super::{Both, Checker, Pair, Result, Scope, bound, normal};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{AddTo, Backend, LayerNorm};
use crate::tensor::Tensor;

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
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
