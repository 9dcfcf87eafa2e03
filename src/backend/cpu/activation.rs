//! The MLP's non-linearity.

use super::number::Number;
use super::real::{Real, vectors};
use crate::backend::{Activation, Result, expect_shape};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Elements that one task handles.
const BLOCK: usize = 16 * 1024;

/// 1.702: the slope at which z·σ(1.702·z) lies closest to GELU.
const QUICK: f64 = 1.702;

pub fn activation<T: Number>(kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
    expect_shape("activation", "g", z.shape(), g.shape())?;
    let (g, z) = (g.typed_mut::<T>()?, z.typed::<T>()?);
    g.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(g, z)| activate(kind, z, g));
    Ok(())
}

pub fn activation_backward<T: Number>(kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
    expect_shape("activation_backward", "d", z.shape(), d.shape())?;
    let (d, z) = (d.typed_mut::<T>()?, z.typed::<T>()?);
    d.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(d, z)| slope(kind, z, d));
    Ok(())
}

vectors! {
    /// g = act(z).
    pub fn activate[T: Number](kind: Activation, z: &[T], g: &mut [T]) {
        let quick = T::Real::from_f64(QUICK);
        let (half, root) = (T::Real::from_f64(0.5), T::Real::from_f64(std::f64::consts::FRAC_1_SQRT_2));
        match kind {
            Activation::QuickGelu => {
                for (g, &z) in g.iter_mut().zip(z) {
                    let z = z.widen();
                    *g = T::narrow(z / (T::Real::ONE + (-(quick * z)).exp()));
                }
            }
            Activation::Gelu => {
                for (g, &z) in g.iter_mut().zip(z) {
                    let z = z.widen();
                    *g = T::narrow(half * z * (T::Real::ONE + (z * root).erf()));
                }
            }
        }
    }
}

vectors! {
    /// d becomes d·act′(z).
    pub fn slope[T: Number](kind: Activation, z: &[T], d: &mut [T]) {
        let quick = T::Real::from_f64(QUICK);
        let (half, root) = (T::Real::from_f64(0.5), T::Real::from_f64(std::f64::consts::FRAC_1_SQRT_2));
        // The normal density at 0: 1/√(2π).
        let density = T::Real::from_f64(0.398_942_280_401_432_7);
        match kind {
            Activation::QuickGelu => {
                for (d, &z) in d.iter_mut().zip(z) {
                    let z = z.widen();
                    let sigma = T::Real::ONE / (T::Real::ONE + (-(quick * z)).exp());
                    *d = T::narrow(d.widen() * sigma * (T::Real::ONE + quick * z * (T::Real::ONE - sigma)));
                }
            }
            Activation::Gelu => {
                for (d, &z) in d.iter_mut().zip(z) {
                    let z = z.widen();
                    let cdf = half * (T::Real::ONE + (z * root).erf());
                    *d = T::narrow(d.widen() * (cdf + z * density * (-(half * z * z)).exp()));
                }
            }
        }
    }
}
