//! Prompt tokens between the class token and the patches.

use super::number::{Number, narrow};
use super::real::Real;
use crate::backend::{BackendError, Result, expect_shape};
use crate::tensor::{Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// The sizes of sequences with prompts in them.
struct Extents {
    /// Tokens with the prompts, prompts, and width.
    tokens: usize,
    count: usize,
    width: usize,
    /// Where the prompts of the layer lie among those of all layers.
    layer: Range<usize>,
}

impl Extents {
    /// `sequences` \[B, tokens, D\] have room for the prompts, \[n, m, D\].
    fn of(op: &'static str, sequences: Shape, prompts: Shape, layer: usize) -> Result<Self> {
        match (sequences.dims(), prompts.dims()) {
            (&[_, tokens, width], &[layers, count, same])
                if same == width && layer < layers && tokens > count && width > 0 =>
            {
                let each = count * width;
                Ok(Extents { tokens, count, width, layer: layer * each..(layer + 1) * each })
            }
            _ => {
                let problem = format!("prompts {prompts} of layer {layer} do not go into {sequences}");
                Err(BackendError::Invalid { op, problem })
            }
        }
    }

    /// Elements of one sequence.
    fn sequence(&self) -> usize {
        self.tokens * self.width
    }

    /// The prompts' elements within a sequence.
    fn prompts(&self) -> Range<usize> {
        self.width..(1 + self.count) * self.width
    }

    /// The shape of sequences without the prompts.
    fn without(&self, sequences: Shape) -> Shape {
        [sequences.rows(), self.tokens - self.count, self.width].into()
    }
}

pub fn insert_prompts<T: Number>(x: &Tensor, prompts: &Tensor, layer: usize, y: &mut Tensor) -> Result<()> {
    const OP: &str = "insert_prompts";
    let extents = Extents::of(OP, y.shape(), prompts.shape(), layer)?;
    expect_shape(OP, "x", extents.without(y.shape()), x.shape())?;
    let (range, width) = (extents.prompts(), extents.width);
    let prompts = &prompts.typed::<T::Real>()?[extents.layer.clone()];
    let sequences = x.typed::<T>()?.par_chunks(extents.sequence() - range.len());
    y.typed_mut::<T>()?.par_chunks_mut(extents.sequence()).zip(sequences).for_each(|(y, x)| {
        y[..width].copy_from_slice(&x[..width]);
        narrow(prompts, &mut y[range.clone()]);
        y[range.end..].copy_from_slice(&x[width..]);
    });
    Ok(())
}

pub fn insert_prompts_backward<T: Number>(
    dy: &Tensor,
    layer: usize,
    d_prompts: &mut Tensor,
    dx: Option<&mut Tensor>,
) -> Result<()> {
    const OP: &str = "insert_prompts_backward";
    let extents = Extents::of(OP, dy.shape(), d_prompts.shape(), layer)?;
    let (range, width) = (extents.prompts(), extents.width);
    if let Some(dx) = dx {
        expect_shape(OP, "dx", extents.without(dy.shape()), dx.shape())?;
        let sequences = dy.typed::<T>()?.par_chunks(extents.sequence());
        let dx = dx.typed_mut::<T>()?.par_chunks_mut(extents.sequence() - range.len());
        dx.zip(sequences).for_each(|(dx, dy)| {
            dx[..width].copy_from_slice(&dy[..width]);
            dx[width..].copy_from_slice(&dy[range.end..]);
        });
    }
    add_gradient(dy.typed::<T>()?, &extents, d_prompts)
}

pub fn replace_prompts<T: Number>(prompts: &Tensor, layer: usize, x: &mut Tensor) -> Result<()> {
    let extents = Extents::of("replace_prompts", x.shape(), prompts.shape(), layer)?;
    let prompts = &prompts.typed::<T::Real>()?[extents.layer.clone()];
    for x in x.typed_mut::<T>()?.chunks_exact_mut(extents.sequence()) {
        narrow(prompts, &mut x[extents.prompts()]);
    }
    Ok(())
}

pub fn replace_prompts_backward<T: Number>(
    d: &mut Tensor,
    layer: usize,
    d_prompts: &mut Tensor,
) -> Result<()> {
    let extents = Extents::of("replace_prompts_backward", d.shape(), d_prompts.shape(), layer)?;
    add_gradient(d.typed::<T>()?, &extents, d_prompts)?;
    for d in d.typed_mut::<T>()?.chunks_exact_mut(extents.sequence()) {
        d[extents.prompts()].fill(T::narrow(T::Real::ZERO));
    }
    Ok(())
}

/// Adds the prompts' rows of all sequences to their gradient.
fn add_gradient<T: Number>(d: &[T], extents: &Extents, d_prompts: &mut Tensor) -> Result<()> {
    let sums = &mut d_prompts.typed_mut::<T::Real>()?[extents.layer.clone()];
    for d in d.chunks_exact(extents.sequence()) {
        sums.iter_mut().zip(&d[extents.prompts()]).for_each(|(sum, &d)| *sum += d.widen());
    }
    Ok(())
}
