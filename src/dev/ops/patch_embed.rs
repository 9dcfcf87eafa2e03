//! Checks and benchmark of patch_embed.

use super::bench::Sizes;
use super::*;
use crate::backend::{LayerNorm, Linear, PatchEmbed, PatchEmbedding};
use crate::data::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::dev::check::worse;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Batch, side, patch, width. One patch alone; patches that leave a border and that no pack divides; an
        // even side that packs of 16 bytes do not divide; and one that they do, in several strips of rows.
        let mut sizes =
            vec![(1, 3, 3, 24), (2, 17, 5, 33), (2, 28, 14, 64), (1, 48, 16, 256), (3, 35, 8, 40)];
        if c.scope == Scope::Full {
            sizes.extend([(4, 224, 32, 768), (2, 224, 14, 1024), (2, 224, 16, 768), (1, 336, 14, 1024)]);
        }
        for size in sizes {
            for levels in [true, false] {
                for mixed in [false, true] {
                    let at = format!("{size:?}, levels {levels}, mixed {mixed}");
                    c.case(at, |c| c.patch_embed_case(size, levels, mixed))?;
                }
            }
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (side, patch) in [(12, 4), (17, 5)] {
            patch_embed_gradients(b, side, patch, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["patch_embed"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let Sizes { batch, side, patch, width: d, .. } = *b.sizes;
        let count = (side / patch).pow(2);
        let inputs = b.backend.patch_columns(3 * patch * patch);
        let pixels = b.levels([batch, side])?;
        let embedding = PatchEmbedding {
            projection: Linear { weight: b.weight(inputs, d)?, bias: None },
            class: b.parameter([d], 1.0)?,
            position: b.parameter([count + 1, d], 0.1)?,
            norm: b.norm(d)?,
            patch,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        };
        let mut patches = b.empty([batch, count, inputs])?;
        let mut products = b.empty([batch, count, d])?;
        let mut x = b.empty([batch, count + 1, d])?;
        let at = format!("{batch} of {side} px in patches of {patch}");
        let mixed = b.mix()?;
        for (name, mix) in [("patch_embed", None), ("patch_embed, mixed", Some(&mixed))] {
            let run = Box::new(|| {
                let (pixels, embedding) = (&pixels, &embedding);
                let (patches, products, x) = (&mut patches, &mut products, &mut x);
                b.backend.patch_embed(PatchEmbed { pixels, mix, embedding, patches, products, x })
            });
            visit(Ready { name, at: at.clone(), run })?;
        }
        Ok(())
    }
}

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl<B: Backend> Checker<'_, B> {
    fn patch_embedding(
        &self,
        patch: usize,
        tokens: usize,
        width: usize,
    ) -> Result<Both<PatchEmbedding<B>, PatchEmbedding<Cpu<f64>>>> {
        let (real, parameter, inputs) = (self.real(), self.device.parameter_dtype(), 3 * patch * patch);
        let numbers = self.random([width, inputs], real, 1.0 / (inputs as f64).sqrt(), 1)?;
        let columns = self.device.patch_columns(inputs);
        let mut wide = vec![0.0; width * columns];
        let rows = wide.chunks_exact_mut(columns).zip(values(&numbers.host)?.chunks_exact(inputs));
        rows.for_each(|(wide, numbers)| wide[..inputs].copy_from_slice(numbers));
        let wide = self.pair(&Tensor::from_slice([width, columns], &wide)?, real)?;
        let weight = Both { device: self.weight(&wide)?.device, host: self.weight(&numbers)?.host };
        let class = self.random([width], parameter, 1.0, 2)?;
        let position = self.random([tokens, width], parameter, 1.0, 3)?;
        let norm = self.norm(width, 4)?;
        let projection = both!(Linear { weight: *weight, bias: None });
        Ok(both!(PatchEmbedding {
            projection: *projection,
            class: *class,
            position: *position,
            norm: *norm,
            patch,
            mean: MEAN,
            std: STD,
        }))
    }

    fn patch_embed_case(
        &mut self,
        (batch, side, patch, width): (usize, usize, usize, usize),
        levels: bool,
        mixed: bool,
    ) -> Result<()> {
        let (real, count) = (self.real(), (side / patch).pow(2));
        let embedding = self.patch_embedding(patch, count + 1, width)?;
        let pixels = if levels {
            // Every level in every channel, in no simple order.
            let pixels: Vec<u8> = (0..batch * side * side * 3).map(|i| (i * 89 % 257) as u8).collect();
            self.same(Tensor::from_slice([batch, side, side, 3], &pixels)?)?
        } else {
            self.random([batch, 3, side, side], real, 1.0, 9)?
        };
        let mix = if mixed { Some(self.mix(batch)?) } else { None };
        let inputs = 3 * patch * patch;
        let columns = self.device.patch_columns(inputs);
        let mut patches = self.output([batch, count, inputs], real)?;
        patches.device = self.device.empty([batch, count, columns], real)?;
        let mut products = self.output([batch, count, width], real)?;
        let mut x = self.output([batch, count + 1, width], real)?;
        both!(self.patch_embed(PatchEmbed {
            pixels: &pixels,
            mix: ?mix,
            embedding: &embedding,
            patches: &mut patches,
            products: &mut products,
            x: &mut x,
        }));
        let what = if levels { "u8" } else { "numbers" };
        let what = format!("{what}{}", if mixed { ", mixed" } else { "" });
        let at = format!("{batch} of {side} px, patches of {patch}, width {width}, {what}");
        let (found, mut numbers, mut behind) = (self.found(&patches)?, Vec::new(), 0.0f64);
        for row in found.chunks_exact(columns) {
            numbers.extend_from_slice(&row[..inputs]);
            behind = row[inputs..].iter().fold(behind, |worst, v| worse(worst, v.abs()));
        }
        // In f32 the pixels' arithmetic is that of the definition, step by step; a mix of two is rounded.
        let within = if real == DType::F32 && !mixed { 0.0 } else { bound(real) };
        let error = relative_error(&numbers, values(&patches.host)?);
        self.row(Row::new("patch_embed patches", &at, error, within));
        self.row(Row::new("patch_embed behind patches", &at, behind, 0.0));
        self.compare("patch_embed x", &at, &x)
    }
}

/// The embedding has no gradient; its product form is compared with the sums of a convolution.
fn patch_embed_gradients(b: &F64, side: usize, patch: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (batch, d, across) = (2, 6, side / patch);
    let tokens = across * across + 1;
    let weight = random([d, 3 * patch * patch], 1)?;
    let embedding = PatchEmbedding::<F64> {
        projection: Linear { weight: b.weight(weight.view())?, bias: None },
        class: random([d], 2)?,
        position: random([tokens, d], 3)?,
        norm: LayerNorm { weight: random([d], 5)?, bias: random([d], 6)?, eps: 1e-5 },
        patch,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    let pixels = random([batch, 3, side, side], 4)?;
    let mut x = zeros([batch, tokens, d]);
    b.patch_embed(PatchEmbed {
        pixels: &pixels,
        mix: None,
        embedding: &embedding,
        patches: &mut zeros([batch, tokens - 1, 3 * patch * patch]),
        products: &mut zeros([batch, tokens - 1, d]),
        x: &mut x,
    })?;
    let (p, w) = (values(&pixels)?, values(&weight)?);
    let mut direct = Vec::with_capacity(batch * tokens * d);
    for index in 0..batch * tokens * d {
        let (image, token, out) = (index / (tokens * d), index / d % tokens, index % d);
        let mut sum = values(&embedding.position)?[token * d + out];
        if token == 0 {
            sum += values(&embedding.class)?[out];
        } else {
            let (top, left) = ((token - 1) / across * patch, (token - 1) % across * patch);
            for tap in 0..3 * patch * patch {
                let (c, y, x) = (tap / (patch * patch), tap / patch % patch, tap % patch);
                let pixel = p[((image * 3 + c) * side + top + y) * side + left + x];
                sum += pixel * w[out * 3 * patch * patch + tap];
            }
        }
        direct.push(sum);
    }
    let sums = tensor([batch, tokens, d], &direct)?;
    let (mut direct, mut stats) = (zeros([batch, tokens, d]), zeros([batch, tokens, 2]));
    b.layer_norm(&sums, &embedding.norm, &mut direct, &mut stats)?;
    let error = relative_error(values(&x)?, values(&direct)?);
    let at = format!("{side} px in patches of {patch}");
    rows.push(Row::new("patch_embed x", at, error, 1e-13));
    Ok(())
}
