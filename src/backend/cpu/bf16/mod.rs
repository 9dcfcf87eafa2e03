//! The CPU backend in bf16: activations and frozen weights in 16 bits, sums, statistics, losses and all that is trained
//! in f32.
//!
//! Every product is cut into blocks of 32 by 32, which [`block`] computes by the instructions that the processor has.
//! Frozen weights are packed for them once, when they are loaded; adapters stay beside the weights.

pub mod activation;
pub mod attention;
mod block;
pub mod isa;
mod lanes;
pub mod layer_norm;
pub mod linear;
mod panels;
mod product;

use super::number::Number;
use half::bf16;

/// The nearest bf16, of two the even one; not a number stays that. `bf16::from_f32`, in a form that vectorises.
#[inline(always)]
pub fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if value.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16)
}

/// Exact; `to_f32` takes care of the kinds of numbers that are not.
#[inline(always)]
pub fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Asks for the cache line at `at`, to read it or to write to it.
#[inline(always)]
fn fetch<const READ: bool>(at: *const bf16) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        if READ { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

impl Number for bf16 {
    type Real = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        widen(self)
    }

    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        round(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(1_021) {
            let value = f32::from_bits(bits);
            assert_eq!(round(value).to_bits(), bf16::from_f32(value).to_bits(), "{value} ({bits:x})");
            assert_eq!(round(value).widen().to_bits(), round(value).to_f32().to_bits());
        }
        for value in [f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, -f32::NAN, f32::MIN_POSITIVE, -0.0] {
            assert_eq!(round(value).to_bits(), bf16::from_f32(value).to_bits(), "{value}");
        }
    }
}
