//! Checks of embed.

use super::layer_norm::norm;
use super::mix::MixPair;
use super::{Checker, Result, Scope};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, PatchEmbedding};
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
) -> Result<(PatchEmbedding<B>, PatchEmbedding<Cpu<f64>>)> {
    let (real, master, inputs) = (c.real(), c.device.master_dtype(), 3 * patch * patch);
    let weight = c.random([width, inputs], real, 1.0 / (inputs as f64).sqrt(), 1)?;
    let class = c.random([width], master, 1.0, 2)?;
    let position = c.random([tokens, width], master, 1.0, 3)?;
    let (device, host) = norm(c, width, 4)?;
    let (mean, std) = (MEAN, STD);
    Ok((
        PatchEmbedding {
            weight: weight.device,
            class: class.device,
            position: position.device,
            norm: device,
            patch,
            mean,
            std,
        },
        PatchEmbedding {
            weight: weight.host,
            class: class.host,
            position: position.host,
            norm: host,
            patch,
            mean,
            std,
        },
    ))
}

fn patch_embed<B: Backend>(
    c: &mut Checker<'_, B>,
    (batch, side, patch, width): (usize, usize, usize, usize),
    levels: bool,
    mixed: bool,
) -> Result<()> {
    let (real, count) = (c.real(), (side / patch).pow(2));
    let (device, host) = embedding(c, patch, count + 1, width)?;
    let pixels = if levels {
        // Every level in every channel, in no simple order.
        let pixels: Vec<u8> = (0..batch * side * side * 3).map(|i| (i * 89 % 257) as u8).collect();
        c.same(Tensor::from_slice([batch, side, side, 3], &pixels)?)?
    } else {
        c.random([batch, 3, side, side], real, 1.0, 9)?
    };
    let mix = if mixed { Some(MixPair::new(c, batch)?) } else { None };
    let (on_device, on_host) = (mix.as_ref().map(|mix| &mix.device), mix.as_ref().map(|mix| &mix.host));
    let mut patches = c.output([batch, count, 3 * patch * patch], real)?;
    let mut products = c.output([batch, count, width], real)?;
    let mut x = c.output([batch, count + 1, width], real)?;
    c.device.patch_embed(
        &pixels.device,
        on_device,
        &device,
        &mut patches.device,
        &mut products.device,
        &mut x.device,
    )?;
    c.cpu.patch_embed(&pixels.host, on_host, &host, &mut patches.host, &mut products.host, &mut x.host)?;
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
    c.device.take_rows(&x.device, &rows.device, &mut y.device)?;
    c.cpu.take_rows(&x.host, &rows.host, &mut y.host)?;
    let at = format!("{batch}x{s}x{width}");
    c.compare_within("take_rows y", &at, &y, 0.0)?;

    let dy = c.random([batch, 1, width], real, 1.0, 2)?;
    let mut dx = c.random([batch, s, width], real, 1.0, 3)?;
    c.device.take_rows_backward(&dy.device, &rows.device, &mut dx.device)?;
    c.cpu.take_rows_backward(&dy.host, &rows.host, &mut dx.host)?;
    c.compare("take_rows dx", &at, &dx)
}
