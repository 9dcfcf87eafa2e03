//! From pixels to tokens, and picking single tokens out of sequences.

use super::layer_norm::NormInPlace;
use super::mix::Mixed;
use super::number::{Number, OnHost, narrow};
use super::real::Real;
use crate::backend::{BackendError, Mix, PatchEmbedding, Result, expect_matrix, expect_shape};
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;

pub fn patch_embed<T: Number, B: OnHost>(
    backend: &B,
    pixels: &Tensor,
    mix: Option<&Mix<B>>,
    embedding: &PatchEmbedding<B>,
    patches: &mut Tensor,
    products: &mut Tensor,
    x: &mut Tensor,
) -> Result<()> {
    const OP: &str = "patch_embed";
    let [batch, tokens, d] = *x.shape().dims() else {
        return Err(BackendError::Invalid { op: OP, problem: format!("x {} is not [B, S, D]", x.shape()) });
    };
    let (count, p) = (tokens - 1, embedding.patch);
    let inputs = 3 * p * p;
    expect_shape(OP, "position", [tokens, d], embedding.position.shape())?;
    expect_matrix(OP, "patches", batch * count, inputs, patches.shape())?;
    expect_matrix(OP, "products", batch * count, d, products.shape())?;
    let mixed = mix.map(|mix| Mixed::new(OP, mix, batch)).transpose()?;
    gather_patches(pixels, mixed.as_ref(), embedding, count, patches.typed_mut::<T>()?)?;
    backend.linear(patches, &embedding.projection, None, products)?;
    let class = embedding.class.typed::<T::Real>()?;
    let position = embedding.position.typed::<T::Real>()?;
    let products = products.typed::<T>()?.par_chunks(count * d);
    let norm = NormInPlace::of(&embedding.norm, d)?;
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
    pixels: &Tensor,
    mixed: Option<&Mixed<'_, T::Real>>,
    embedding: &PatchEmbedding<B>,
    count: usize,
    out: &mut [T],
) -> Result<()> {
    let p = embedding.patch;
    let unfit = || BackendError::Invalid {
        op: "patch_embed",
        problem: format!(
            "pixels {} of {} make no {count} patches of {p} a side",
            pixels.shape(),
            pixels.dtype()
        ),
    };
    let (side, hwc) = match *pixels.shape().dims() {
        [_, h, w, 3] if h == w && pixels.dtype() == DType::U8 => (h, true),
        [_, 3, h, w] if h == w => (h, false),
        _ => return Err(unfit()),
    };
    let across = side / p;
    if across * across != count {
        return Err(unfit());
    }
    let size = side * side * 3;
    let images = out.par_chunks_mut(count * size_of_patch(p)).enumerate();
    if hwc {
        let table = normalisation::<T::Real>(embedding.mean, embedding.std);
        let pixels = pixels.typed::<u8>()?;
        // The pixels of a row of a patch.
        let row = |image: usize, y: usize, x: usize| {
            pixels[image * size + (y * side + x) * 3..][..3 * p].as_chunks::<3>().0
        };
        images.for_each(|(image, out)| {
            each_row(out, across, p, |channel, y, x, out| {
                let (levels, own) = (&table[channel], row(image, y, x));
                match mixed.map(|mixed| mixed.of(image)) {
                    None => out
                        .iter_mut()
                        .zip(own)
                        .for_each(|(out, a)| *out = T::narrow(levels[usize::from(a[channel])])),
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

/// The sizes of a row selection: batch, sequence length, width, and the chosen row of each sequence.
fn selection<'a>(op: &'static str, x: &Tensor, rows: &'a Tensor) -> Result<(usize, usize, &'a [u32])> {
    let [batch, s, d] = *x.shape().dims() else {
        return Err(BackendError::Invalid { op, problem: format!("x {} is not [B, S, D]", x.shape()) });
    };
    expect_shape(op, "rows", [batch], rows.shape())?;
    let rows = rows.typed::<u32>()?;
    match rows.iter().find(|&&row| row as usize >= s) {
        Some(row) => Err(BackendError::Invalid { op, problem: format!("row {row} of a sequence of {s}") }),
        None => Ok((s, d, rows)),
    }
}

pub fn take_rows<T: Number>(x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
    let (s, d, rows) = selection("take_rows", x, rows)?;
    expect_matrix("take_rows", "y", rows.len(), d, y.shape())?;
    let x = x.typed::<T>()?.chunks_exact(s * d);
    for ((y, x), &row) in y.typed_mut::<T>()?.chunks_exact_mut(d).zip(x).zip(rows) {
        y.copy_from_slice(&x[row as usize * d..][..d]);
    }
    Ok(())
}

pub fn take_rows_backward<T: Number>(dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (s, d, rows) = selection("take_rows_backward", dx, rows)?;
    expect_matrix("take_rows_backward", "dy", rows.len(), d, dy.shape())?;
    let dx = dx.typed_mut::<T>()?.chunks_exact_mut(s * d);
    for ((dx, dy), &row) in dx.zip(dy.typed::<T>()?.chunks_exact(d)).zip(rows) {
        for (dx, &dy) in dx[row as usize * d..][..d].iter_mut().zip(dy) {
            *dx = T::narrow(dx.widen() + dy.widen());
        }
    }
    Ok(())
}
