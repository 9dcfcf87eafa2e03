//! The MLP's non-linearity.

use super::number::Number;
use super::real::{Real, vectors};
use super::*;
use rayon::prelude::*;

/// Elements that one task handles.
const BLOCK: usize = 16 * 1024;

/// 1.702: the slope at which z·σ(1.702·z) lies closest to GELU.
const QUICK: f64 = 1.702;

impl<T: Real> ActivationOp for Cpu<T> {
    fn activation_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Tensor,
        g: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, activation<>(kind, z, g))
    }

    fn activation_backward_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Tensor,
        d: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, activation_backward<>(kind, z, d))
    }
}

fn activation<T: Number>(kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
    let (g, z) = (g.typed_mut::<T>()?, z.typed::<T>()?);
    g.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(g, z)| activate(kind, z, g));
    Ok(())
}

fn activation_backward<T: Number>(kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
    let (d, z) = (d.typed_mut::<T>()?, z.typed::<T>()?);
    d.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(d, z)| slope(kind, z, d));
    Ok(())
}

/// act(z).
#[inline(always)]
pub fn activated<R: Real>(kind: Activation, z: R) -> R {
    match kind {
        Activation::QuickGelu => z / (R::ONE + (-(R::from_f64(QUICK) * z)).exp()),
        Activation::Gelu => {
            R::from_f64(0.5) * z * (R::ONE + (z * R::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
        }
    }
}

/// d·act′(z).
#[inline(always)]
pub fn sloped<R: Real>(kind: Activation, z: R, d: R) -> R {
    let half = R::from_f64(0.5);
    match kind {
        Activation::QuickGelu => {
            let quick = R::from_f64(QUICK);
            let sigma = R::ONE / (R::ONE + (-(quick * z)).exp());
            d * sigma * (R::ONE + quick * z * (R::ONE - sigma))
        }
        Activation::Gelu => {
            // The normal density at 0: 1/√(2π).
            let density = R::from_f64(0.398_942_280_401_432_7);
            let cdf = half * (R::ONE + (z * R::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
            d * (cdf + z * density * (-(half * z * z)).exp())
        }
    }
}

/// Runs `$body` with a kind that is known where it is compiled, so that a loop in it has no choice to make.
macro_rules! of_kind {
    ($kind:ident => $body:block) => {
        match $kind {
            Activation::QuickGelu => {
                let $kind = Activation::QuickGelu;
                $body
            }
            Activation::Gelu => {
                let $kind = Activation::Gelu;
                $body
            }
        }
    };
}
pub(in crate::backend::cpu) use of_kind;

vectors! {
    /// g = act(z).
    fn activate[T: Number](kind: Activation, z: &[T], g: &mut [T]) {
        of_kind!(kind => {
            for (g, &z) in g.iter_mut().zip(z) {
                *g = T::narrow(activated(kind, z.widen()));
            }
        })
    }
}

vectors! {
    /// d becomes d·act′(z).
    fn slope[T: Number](kind: Activation, z: &[T], d: &mut [T]) {
        of_kind!(kind => {
            for (d, &z) in d.iter_mut().zip(z) {
                *d = T::narrow(sloped(kind, z.widen(), d.widen()));
            }
        })
    }
}
