//! The MLP's non-linearity.

use super::number::Number;
use super::real::{Arithmetic, Real, vectors};
use super::*;
use rayon::prelude::*;
use std::borrow::Cow;

/// Elements that one task handles.
pub const BLOCK: usize = 16 * 1024;

/// 1.702: the slope at which z·σ(1.702·z) lies closest to GELU.
const QUICK: f64 = 1.702;

impl<T: Real> ActivationOp for Cpu<T> {
    fn activation_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Tensor,
        bias: Option<&Tensor>,
        g: &mut Tensor,
    ) -> Result<()> {
        let z = in_type!(device, sum<>(z, bias))?;
        match (device.bf16, device.f32) {
            (None, None) => activation::<T>(kind, &z, g),
            (None, Some(isa)) => packed::activation::activation::<f32>(isa, kind, &z, g),
            (Some(isa), _) => packed::activation::activation::<Bf16>(isa, kind, &z, g),
        }
    }

    fn activation_backward_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &Tensor,
        bias: Option<&Tensor>,
        d: &mut Tensor,
    ) -> Result<()> {
        let z = in_type!(device, sum<>(z, bias))?;
        match (device.bf16, device.f32) {
            (None, None) => activation_backward::<T>(kind, &z, d),
            (None, Some(isa)) => packed::activation::activation_backward::<f32>(isa, kind, &z, d),
            (Some(isa), _) => packed::activation::activation_backward::<Bf16>(isa, kind, &z, d),
        }
    }
}

/// z + bias, rounded. No layer on the CPU keeps z without its bias: this is for checks of devices that do.
fn sum<'a, T: Number>(z: &'a Tensor, bias: Option<&Tensor>) -> Result<Cow<'a, Tensor>> {
    let Some(bias) = bias else { return Ok(Cow::Borrowed(z)) };
    let (mut z, bias) = (z.clone(), bias.typed::<T>()?);
    for row in z.typed_mut::<T>()?.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(z, b)| *z = T::narrow(z.widen() + b.widen()));
    }
    Ok(Cow::Owned(z))
}

fn activation<T: Real>(kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
    let (g, z) = (g.typed_mut::<T>()?, z.typed::<T>()?);
    g.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(g, z)| activate(kind, z, g));
    Ok(())
}

fn activation_backward<T: Real>(kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
    let (d, z) = (d.typed_mut::<T>()?, z.typed::<T>()?);
    d.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(d, z)| slope(kind, z, d));
    Ok(())
}

/// act(z).
#[inline(always)]
pub fn activated<A: Arithmetic>(kind: Activation, z: A) -> A {
    let of = A::from_f64;
    match kind {
        Activation::QuickGelu => z / (of(1.0) + (-(of(QUICK) * z)).exp()),
        Activation::Gelu => of(0.5) * z * (of(1.0) + (z * of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
    }
}

/// d·act′(z).
#[inline(always)]
pub fn sloped<A: Arithmetic>(kind: Activation, z: A, d: A) -> A {
    let of = A::from_f64;
    match kind {
        Activation::QuickGelu => {
            let sigma = of(1.0) / (of(1.0) + (-(of(QUICK) * z)).exp());
            d * sigma * (of(1.0) + of(QUICK) * z * (of(1.0) - sigma))
        }
        Activation::Gelu => {
            // The normal density at 0: 1/√(2π).
            let density = of(0.398_942_280_401_432_7);
            let cdf = of(0.5) * (of(1.0) + (z * of(std::f64::consts::FRAC_1_SQRT_2)).erf());
            d * (cdf + z * density * (-(of(0.5) * z * z)).exp())
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
    fn activate[T: Real](kind: Activation, z: &[T], g: &mut [T]) {
        of_kind!(kind => {
            for (g, &z) in g.iter_mut().zip(z) {
                *g = activated(kind, z);
            }
        })
    }
}

vectors! {
    /// d becomes d·act′(z).
    fn slope[T: Real](kind: Activation, z: &[T], d: &mut [T]) {
        of_kind!(kind => {
            for (d, &z) in d.iter_mut().zip(z) {
                *d = sloped(kind, z, *d);
            }
        })
    }
}
