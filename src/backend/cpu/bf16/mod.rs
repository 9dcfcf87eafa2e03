//! The CPU backend in bf16: activations and frozen weights in 16 bits, sums, statistics, losses and all that is trained
//! in f32.
//!
//! Products are those of [`packed`](super::packed); here is what is around them.

pub mod attention;

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
