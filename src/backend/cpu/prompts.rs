//! Prompt tokens between the class token and the patches.

use super::number::{Number, narrow};
use super::real::Real;
use super::*;
use rayon::prelude::*;
use std::ops::Range;

impl PromptExtents {
    /// Elements of one sequence.
    fn sequence(&self) -> usize {
        self.tokens * self.width
    }

    /// The prompts' elements within a sequence.
    fn prompts(&self) -> Range<usize> {
        self.width..(1 + self.count) * self.width
    }

    /// The layer's elements among those of all layers' prompts.
    fn of_layer(&self) -> Range<usize> {
        self.first()..self.first() + self.count * self.width
    }
}

impl<T: Real> PromptsOp for Cpu<T> {
    fn insert_prompts_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        prompts: &Tensor,
        extents: PromptExtents,
        y: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, insert_prompts<>(x, prompts, extents, y))
    }

    fn insert_prompts_backward_checked(
        device: Checked<'_, Self>,
        dy: &Tensor,
        extents: PromptExtents,
        d_prompts: &mut Tensor,
        dx: Option<&mut Tensor>,
    ) -> Result<()> {
        in_type!(device, insert_prompts_backward<>(dy, extents, d_prompts, dx))
    }

    fn replace_prompts_checked(
        device: Checked<'_, Self>,
        prompts: &Tensor,
        extents: PromptExtents,
        x: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, replace_prompts<>(prompts, extents, x))
    }

    fn replace_prompts_backward_checked(
        device: Checked<'_, Self>,
        d: &mut Tensor,
        extents: PromptExtents,
        d_prompts: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, replace_prompts_backward<>(d, extents, d_prompts))
    }
}

fn insert_prompts<T: Number>(
    x: &Tensor,
    prompts: &Tensor,
    extents: PromptExtents,
    y: &mut Tensor,
) -> Result<()> {
    let (range, width) = (extents.prompts(), extents.width);
    let prompts = &prompts.typed::<T::Real>()?[extents.of_layer()];
    let sequences = x.typed::<T>()?.par_chunks(extents.sequence() - range.len());
    y.typed_mut::<T>()?.par_chunks_mut(extents.sequence()).zip(sequences).for_each(|(y, x)| {
        y[..width].copy_from_slice(&x[..width]);
        narrow(prompts, &mut y[range.clone()]);
        y[range.end..].copy_from_slice(&x[width..]);
    });
    Ok(())
}

fn insert_prompts_backward<T: Number>(
    dy: &Tensor,
    extents: PromptExtents,
    d_prompts: &mut Tensor,
    dx: Option<&mut Tensor>,
) -> Result<()> {
    let (range, width) = (extents.prompts(), extents.width);
    if let Some(dx) = dx {
        let sequences = dy.typed::<T>()?.par_chunks(extents.sequence());
        let dx = dx.typed_mut::<T>()?.par_chunks_mut(extents.sequence() - range.len());
        dx.zip(sequences).for_each(|(dx, dy)| {
            dx[..width].copy_from_slice(&dy[..width]);
            dx[width..].copy_from_slice(&dy[range.end..]);
        });
    }
    add_gradient(dy.typed::<T>()?, extents, d_prompts)
}

fn replace_prompts<T: Number>(prompts: &Tensor, extents: PromptExtents, x: &mut Tensor) -> Result<()> {
    let prompts = &prompts.typed::<T::Real>()?[extents.of_layer()];
    for x in x.typed_mut::<T>()?.chunks_exact_mut(extents.sequence()) {
        narrow(prompts, &mut x[extents.prompts()]);
    }
    Ok(())
}

fn replace_prompts_backward<T: Number>(
    d: &mut Tensor,
    extents: PromptExtents,
    d_prompts: &mut Tensor,
) -> Result<()> {
    add_gradient(d.typed::<T>()?, extents, d_prompts)?;
    for d in d.typed_mut::<T>()?.chunks_exact_mut(extents.sequence()) {
        d[extents.prompts()].fill(T::narrow(T::Real::ZERO));
    }
    Ok(())
}

/// Adds the prompts' rows of all sequences to their gradient.
fn add_gradient<T: Number>(d: &[T], extents: PromptExtents, d_prompts: &mut Tensor) -> Result<()> {
    let sums = &mut d_prompts.typed_mut::<T::Real>()?[extents.of_layer()];
    for d in d.chunks_exact(extents.sequence()) {
        sums.iter_mut().zip(&d[extents.prompts()]).for_each(|(sum, &d)| *sum += d.widen());
    }
    Ok(())
}
