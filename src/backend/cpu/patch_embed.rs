//! From pixels to tokens.

use super::layer_norm::NormInPlace;
use super::mix_rows::Mixed;
use super::number::{Number, OnHost, narrow};
use super::real::Real;
use super::*;
use rayon::prelude::*;

impl<T: Real> PatchEmbedOp for Cpu<T> {
    fn patch_embed_checked(
        device: Checked<'_, Self>,
        args: PatchEmbed<'_, Self>,
        grid: PatchGrid,
    ) -> Result<()> {
        in_type!(device, patch_embed<Self>(&device, args, grid))
    }
}

fn patch_embed<T: Number, B: OnHost>(backend: &B, args: PatchEmbed<'_, B>, grid: PatchGrid) -> Result<()> {
    let PatchEmbed { pixels, mix, embedding, patches, products, x } = args;
    let (count, tokens, d) = (grid.patches(), grid.patches() + 1, x.shape().columns());
    let mixed = mix.map(|mix| Mixed::new("patch_embed", mix)).transpose()?;
    gather_patches(grid, pixels, mixed.as_ref(), embedding, patches.typed_mut::<T>()?)?;
    backend.linear(patches, &embedding.projection, None, products)?;
    let class = embedding.class.typed::<T::Real>()?;
    let position = embedding.position.typed::<T::Real>()?;
    let products = products.typed::<T>()?.par_chunks(count * d);
    let norm = NormInPlace::of(&embedding.norm)?;
    x.typed_mut::<T>()?.par_chunks_mut(tokens * d).zip(products).for_each(|(x, products)| {
        let mut sums = vec![T::Real::ZERO; d];
        for (token, (x, position)) in x.chunks_exact_mut(d).zip(position.chunks_exact(d)).enumerate() {
            match token {
                0 => sums.copy_from_slice(class),
                _ => {
                    let products = &products[(token - 1) * d..][..d];
                    sums.iter_mut().zip(products).for_each(|(sum, product)| *sum = product.widen());
                }
            }
            sums.iter_mut().zip(position).for_each(|(sum, &position)| *sum += position);
            norm.apply(&mut sums);
            narrow(&sums, x);
        }
    });
    Ok(())
}

/// Copies every patch into a row, in the order of the convolution's weights; of a mixed image, its two
/// images' patches by their shares.
fn gather_patches<T: Number, B: OnHost>(
    grid: PatchGrid,
    pixels: &Tensor,
    mixed: Option<&Mixed<'_, T::Real>>,
    embedding: &PatchEmbedding<B>,
    out: &mut [T],
) -> Result<()> {
    let PatchGrid { side, across, patch: p, .. } = grid;
    let size = side * side * 3;
    let images = out.par_chunks_mut(grid.patches() * grid.inputs()).enumerate();
    if grid.levels {
        let table = normalisation::<T::Real>(embedding.mean, embedding.std);
        let narrowed = table.map(|levels| levels.map(T::narrow));
        let pixels = pixels.typed::<u8>()?;
        // The pixels of a row of a patch.
        let row = |image: usize, y: usize, x: usize| {
            pixels[image * size + (y * side + x) * 3..][..3 * p].as_chunks::<3>().0
        };
        images.for_each(|(image, out)| {
            each_row(out, across, p, |channel, y, x, out| {
                let (levels, own) = (&table[channel], row(image, y, x));
                match mixed.map(|mixed| mixed.of(image)) {
                    None => {
                        let levels = &narrowed[channel];
                        out.iter_mut().zip(own).for_each(|(out, a)| *out = levels[usize::from(a[channel])]);
                    }
                    Some((partner, share, other)) => {
                        for ((out, a), b) in out.iter_mut().zip(own).zip(row(partner, y, x)) {
                            let (a, b) = (levels[usize::from(a[channel])], levels[usize::from(b[channel])]);
                            *out = T::narrow(share * a + other * b);
                        }
                    }
                }
            });
        });
    } else {
        let pixels = pixels.typed::<T>()?;
        let row = |image: usize, channel: usize, y: usize, x: usize| {
            &pixels[image * size + (channel * side + y) * side + x..][..p]
        };
        images.for_each(|(image, out)| {
            each_row(out, across, p, |channel, y, x, out| {
                let own = row(image, channel, y, x);
                match mixed.map(|mixed| mixed.of(image)) {
                    None => out.copy_from_slice(own),
                    Some((partner, share, other)) => {
                        for ((out, &a), &b) in out.iter_mut().zip(own).zip(row(partner, channel, y, x)) {
                            *out = T::narrow(share * a.widen() + other * b.widen());
                        }
                    }
                }
            });
        });
    }
    Ok(())
}

/// Numbers in a patch of `p` pixels a side.
const fn size_of_patch(p: usize) -> usize {
    3 * p * p
}

/// Calls `fill` with the channel, the row and the first column of each row of each patch, and with its place in `out`.
fn each_row<T>(out: &mut [T], across: usize, p: usize, fill: impl Fn(usize, usize, usize, &mut [T])) {
    for (patch, out) in out.chunks_exact_mut(size_of_patch(p)).enumerate() {
        let (top, left) = (patch / across * p, patch % across * p);
        for (row, out) in out.chunks_exact_mut(p).enumerate() {
            fill(row / p, top + row % p, left, out);
        }
    }
}

/// Normalised value of each of the 256 levels, per channel, in the f32 arithmetic of CLIP's processor.
fn normalisation<T: Real>(mean: [f32; 3], std: [f32; 3]) -> [[T; 256]; 3] {
    std::array::from_fn(|c| {
        std::array::from_fn(|level| {
            let value = (level as f64 * (1.0 / 255.0)) as f32;
            T::from_f64(f64::from((value - mean[c]) / std[c]))
        })
    })
}
