//! Checks of embed.

use super::layer_norm::norm;
use super::mix::MixPair;
use super::{Both, Checker, Result, Scope};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Backend, Linear, PatchEmbedding};
use crate::tensor::{DType, Tensor};

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    // Batch, side, patch, width. One patch alone; patches that leave a border and that no pack divides; an
    // even side that packs of 16 bytes do not divide; and one that they do, in several strips of rows.
    let mut sizes = vec![(1, 3, 3, 24), (2, 17, 5, 33), (2, 28, 14, 64), (1, 48, 16, 256), (3, 35, 8, 40)];
    if c.scope == Scope::Full {
        sizes.extend([(4, 224, 32, 768), (2, 224, 14, 1024), (2, 224, 16, 768), (1, 336, 14, 1024)]);
    }
    for size in sizes {
        for levels in [true, false] {
            for mixed in [false, true] {
                let at = format!("{size:?}, levels {levels}, mixed {mixed}");
                c.case(at, |c| patch_embed(c, size, levels, mixed))?;
            }
        }
    }
    let mut sizes = vec![(1, 1, 1), (3, 5, 7), (2, 4, 64), (2, 3, 1200)];
    if c.scope == Scope::Full {
        sizes.extend([(32, 50, 768), (8, 77, 512)]);
    }
    sizes.into_iter().try_for_each(|size| c.case(format!("rows of {size:?}"), |c| take_rows(c, size)))
}

fn embedding<B: Backend>(
    c: &Checker<'_, B>,
    patch: usize,
    tokens: usize,
    width: usize,
) -> Result<Both<PatchEmbedding<B>, PatchEmbedding<Cpu<f64>>>> {
    let (real, parameter, inputs) = (c.real(), c.device.parameter_dtype(), 3 * patch * patch);
    let weight = c.weight(&c.random([width, inputs], real, 1.0 / (inputs as f64).sqrt(), 1)?)?;
    let class = c.random([width], parameter, 1.0, 2)?;
    let position = c.random([tokens, width], parameter, 1.0, 3)?;
    let norm = norm(c, width, 4)?;
    macro_rules! on {
        ($side:ident) => {
            PatchEmbedding {
                projection: Linear { weight: weight.$side, bias: None },
                class: class.$side,
                position: position.$side,
                norm: norm.$side,
                patch,
                mean: MEAN,
                std: STD,
            }
        };
    }
    Ok(Both { device: on!(device), host: on!(host) })
}

fn patch_embed<B: Backend>(
    c: &mut Checker<'_, B>,
    (batch, side, patch, width): (usize, usize, usize, usize),
    levels: bool,
    mixed: bool,
) -> Result<()> {
    let (real, count) = (c.real(), (side / patch).pow(2));
    let embedding = embedding(c, patch, count + 1, width)?;
    let pixels = if levels {
        // Every level in every channel, in no simple order.
        let pixels: Vec<u8> = (0..batch * side * side * 3).map(|i| (i * 89 % 257) as u8).collect();
        c.same(Tensor::from_slice([batch, side, side, 3], &pixels)?)?
    } else {
        c.random([batch, 3, side, side], real, 1.0, 9)?
    };
    let mix = if mixed { Some(MixPair::new(c, batch)?) } else { None };
    let mut patches = c.output([batch, count, 3 * patch * patch], real)?;
    let mut products = c.output([batch, count, width], real)?;
    let mut x = c.output([batch, count + 1, width], real)?;
    both!(c.patch_embed(&pixels, ?mix, &embedding, &mut patches, &mut products, &mut x));
    let what = if levels { "u8" } else { "numbers" };
    let what = format!("{what}{}", if mixed { ", mixed" } else { "" });
    let at = format!("{batch} of {side} px, patches of {patch}, width {width}, {what}");
    // In f32 the pixels' arithmetic is that of the definition, step by step; a mix of two is rounded.
    match real {
        DType::F32 if !mixed => c.compare_within("patch_embed patches", &at, &patches, 0.0)?,
        _ => c.compare("patch_embed patches", &at, &patches)?,
    }
    c.compare("patch_embed x", &at, &x)
}

fn take_rows<B: Backend>(c: &mut Checker<'_, B>, (batch, s, width): (usize, usize, usize)) -> Result<()> {
    let real = c.real();
    let chosen: Vec<u32> = (0..batch).map(|b| ((b * 3 + s - 1) % s) as u32).collect();
    let rows = c.same(Tensor::from_slice([batch], &chosen)?)?;
    let x = c.random([batch, s, width], real, 1.0, 1)?;
    let mut y = c.output([batch, 1, width], real)?;
    both!(c.take_rows(&x, &rows, &mut y));
    let at = format!("{batch}x{s}x{width}");
    c.compare_within("take_rows y", &at, &y, 0.0)?;

    let dy = c.random([batch, 1, width], real, 1.0, 2)?;
    let mut dx = c.random([batch, s, width], real, 1.0, 3)?;
    both!(c.take_rows_backward(&dy, &rows, &mut dx));
    c.compare("take_rows dx", &at, &dx)
}
