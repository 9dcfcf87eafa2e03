//! Layer norm over the last dimension, and its gradient with respect to the input.

use super::number::{Number, OnHost};
use super::packed::Packed;
use super::real::{Real, sum_of, vectors};
use super::*;
use rayon::prelude::*;

/// Rows that one task handles: enough work to be worth a task, few enough to spread.
const ROWS: usize = 32;

impl<T: Real> LayerNormOp for Cpu<T> {
    fn layer_norm_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        y: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        match (device.bf16, device.f32) {
            (None, None) => layer_norm::<T, Self>(x, norm, y, stats, normalise),
            (None, Some(isa)) => in_lanes::<f32, Self>(isa, x, norm, y, stats),
            (Some(isa), _) => in_lanes::<Bf16, Self>(isa, x, norm, y, stats),
        }
    }

    fn layer_norm_backward_checked(
        device: Checked<'_, Self>,
        dy: &Tensor,
        x: &Tensor,
        norm: &LayerNorm<Self>,
        stats: &Tensor,
        to: AddTo<'_, Tensor>,
        dx: &mut Tensor,
    ) -> Result<()> {
        match (device.bf16, device.f32) {
            (None, None) => layer_norm_backward::<T, Self>(dy, x, norm, stats, to, dx, normalise_backward),
            (None, Some(isa)) => backward_in_lanes::<f32, Self>(isa, dy, x, norm, stats, to, dx),
            (Some(isa), _) => backward_in_lanes::<Bf16, Self>(isa, dy, x, norm, stats, to, dx),
        }
    }
}

fn in_lanes<E: Packed, B: OnHost>(
    isa: Isa,
    x: &Tensor,
    norm: &LayerNorm<B>,
    y: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let isa = isa.ready();
    layer_norm::<E, B>(x, norm, y, stats, |x, weight, bias, eps, y, stats| {
        packed::layer_norm::normalise(isa, x, weight, bias, eps, y, stats)
    })
}

fn backward_in_lanes<E: Packed, B: OnHost>(
    isa: Isa,
    dy: &Tensor,
    x: &Tensor,
    norm: &LayerNorm<B>,
    stats: &Tensor,
    to: AddTo<'_, Tensor>,
    dx: &mut Tensor,
) -> Result<()> {
    let isa = isa.ready();
    layer_norm_backward::<E, B>(dy, x, norm, stats, to, dx, |dy, x, weight, stats, dx| {
        packed::layer_norm::normalise_backward(isa, dy, x, weight, stats, dx)
    })
}

fn layer_norm<T: Number, B: OnHost>(
    x: &Tensor,
    norm: &LayerNorm<B>,
    y: &mut Tensor,
    stats: &mut Tensor,
    normalise: impl Fn(&[T], &[T::Real], &[T::Real], T::Real, &mut [T], &mut [T::Real]) + Sync,
) -> Result<()> {
    let d = x.shape().columns();
    let (weight, bias) = (norm.weight.typed::<T::Real>()?, norm.bias.typed::<T::Real>()?);
    let eps = T::Real::from_f64(norm.eps);
    y.typed_mut::<T>()?
        .par_chunks_mut(ROWS * d)
        .zip(x.typed::<T>()?.par_chunks(ROWS * d))
        .zip(stats.typed_mut::<T::Real>()?.par_chunks_mut(ROWS * 2))
        .for_each(|((y, x), stats)| {
            normalise(x, weight, bias, eps, y, stats);
        });
    Ok(())
}

vectors! {
    fn normalise[T: Real](x: &[T], weight: &[T], bias: &[T], eps: T, y: &mut [T], stats: &mut [T]) {
        let (d, n) = (weight.len(), T::from_f64(weight.len() as f64));
        let rows = y.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(stats.chunks_exact_mut(2));
        for ((y, x), stats) in rows {
            let mean = sum_of(x, x, |v, _| v) / n;
            let variance = sum_of(x, x, |v, _| (v - mean) * (v - mean)) / n;
            let inverse = T::ONE / (variance + eps).sqrt();
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * inverse * w + b;
            }
            stats[0] = mean;
            stats[1] = inverse;
        }
    }
}

/// Layer norm of single rows where they stand.
pub struct NormInPlace<'a, T> {
    weight: &'a [T],
    bias: &'a [T],
    eps: T,
}

impl<'a, T: Real> NormInPlace<'a, T> {
    pub fn of<B: OnHost>(norm: &'a LayerNorm<B>) -> Result<Self> {
        let eps = T::from_f64(norm.eps);
        Ok(NormInPlace { weight: norm.weight.typed()?, bias: norm.bias.typed()?, eps })
    }

    pub fn apply(&self, row: &mut [T]) {
        normalise_in_place(row, self.weight, self.bias, self.eps);
    }
}

vectors! {
    fn normalise_in_place[T: Real](row: &mut [T], weight: &[T], bias: &[T], eps: T) {
        let n = T::from_f64(row.len() as f64);
        let mean = sum_of(row, row, |v, _| v) / n;
        let variance = sum_of(row, row, |v, _| (v - mean) * (v - mean)) / n;
        let inverse = T::ONE / (variance + eps).sqrt();
        for ((x, &w), &b) in row.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * inverse * w + b;
        }
    }
}

fn layer_norm_backward<T: Number, B: OnHost>(
    dy: &Tensor,
    x: &Tensor,
    norm: &LayerNorm<B>,
    stats: &Tensor,
    to: AddTo<'_, Tensor>,
    dx: &mut Tensor,
    normalise_backward: impl Fn(&[T], &[T], &[T::Real], &[T::Real], &mut [T]) + Sync,
) -> Result<()> {
    let d = x.shape().columns();
    match to {
        AddTo::Nothing => dx.bytes_mut().fill(0),
        AddTo::Output => {}
        AddTo::Tensor(before) => {
            dx.typed_mut::<T>()?.copy_from_slice(before.typed::<T>()?);
        }
    }
    let weight = norm.weight.typed::<T::Real>()?;
    dx.typed_mut::<T>()?
        .par_chunks_mut(ROWS * d)
        .zip(dy.typed::<T>()?.par_chunks(ROWS * d))
        .zip(x.typed::<T>()?.par_chunks(ROWS * d))
        .zip(stats.typed::<T::Real>()?.par_chunks(ROWS * 2))
        .for_each(|(((dx, dy), x), stats)| {
            normalise_backward(dy, x, weight, stats, dx);
        });
    Ok(())
}

vectors! {
    fn normalise_backward[T: Real](dy: &[T], x: &[T], weight: &[T], stats: &[T], dx: &mut [T]) {
        let (d, n) = (weight.len(), T::from_f64(weight.len() as f64));
        let rows =
            dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d)).zip(stats.chunks_exact(2));
        for (((dx, dy), x), stats) in rows {
            let (mean, inverse) = (stats[0], stats[1]);
            let mean_g = sum_of(dy, weight, |d, w| d * w) / n;
            let mut lanes = [T::ZERO; 16];
            for ((dy, x), w) in dy.chunks(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
                for (lane, ((&d, &x), &w)) in lanes.iter_mut().zip(dy.iter().zip(x).zip(w)) {
                    *lane += d * w * (x - mean);
                }
            }
            let mean_gx = sum_of(&lanes, &lanes, |v, _| v) * inverse / n;
            for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                let g = dy * w - mean_g - (x - mean) * inverse * mean_gx;
                *dx += g * inverse;
            }
        }
    }
}
