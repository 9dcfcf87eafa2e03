//! The two number types that the CPU backend computes with, and loops over them that the compiler turns into SIMD code.

use crate::tensor::Element;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// What formulas are written in: a number, or several at once.
pub trait Arithmetic:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// Rounds to the nearest; infinite beyond the type's range.
    fn from_f64(value: f64) -> Self;
    /// eˣ; of a number to about an ulp.
    fn exp(self) -> Self;
    /// The error function; within 5e-7 in f32.
    fn erf(self) -> Self;
}

/// f32 for work, f64 for the gradient checks.
pub trait Real: Element + PartialOrd + AddAssign + Arithmetic {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// √x, rounded to the nearest; not a number below 0.
    fn sqrt(self) -> Self;
}

impl Arithmetic for f64 {
    #[inline(always)]
    fn from_f64(value: f64) -> f64 {
        value
    }

    fn exp(self) -> f64 {
        self.exp()
    }

    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        self.sqrt()
    }
}

impl Arithmetic for f32 {
    #[inline(always)]
    fn from_f64(value: f64) -> f32 {
        value as f32
    }

    /// Branch-free, so that it vectorises: x = n·ln 2 + r with |r| ≤ ln 2/2 (ln 2 in two parts), eʳ by
    /// the polynomial of Cephes' `expf`, 2ⁿ written into the exponent. Results saturate at 2^±126.
    #[inline(always)]
    fn exp(self) -> f32 {
        // Adding and taking away 1.5·2²³ rounds to the nearest integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if self > 87.0 { 87.0 } else { self };
        let x = if x < -87.0 { -87.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * LN2_HIGH - n * LN2_LOW;
        let mut p = EXP[0];
        for coefficient in &EXP[1..] {
            p = p * r + coefficient;
        }
        let power = (shifted.to_bits() << 23).wrapping_add(127 << 23);
        (p * r * r + r + 1.0) * f32::from_bits(power)
    }

    /// A rational approximation in x² on |x| ≤ 4, beyond which erf is ±1 in f32; the coefficients are
    /// those of Eigen's `erf`.
    #[inline(always)]
    fn erf(self) -> f32 {
        let x = if self > 4.0 { 4.0 } else { self };
        let x = if x < -4.0 { -4.0 } else { x };
        let q = x * x;
        let (mut top, mut bottom) = (ERF_TOP[0], ERF_BOTTOM[0]);
        for coefficient in &ERF_TOP[1..] {
            top = top * q + coefficient;
        }
        for coefficient in &ERF_BOTTOM[1..] {
            bottom = bottom * q + coefficient;
        }
        x * top / bottom
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
}

/// ln 2 in two parts.
pub const LN2_HIGH: f32 = 0.693_359_4;
/// As [`LN2_HIGH`].
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// (eʳ − 1 − r)/r² on |r| ≤ ln 2/2; the highest power first.
pub const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];
/// Of `erf`, as polynomials in x²; the highest power first.
pub const ERF_TOP: [f32; 7] = [
    -2.726_142_3e-10,
    2.770_681_4e-8,
    -2.101_024e-6,
    -5.692_506_4e-5,
    -7.349_906_4e-4,
    -2.954_6e-3,
    -1.609_603_3e-2,
];
/// As [`ERF_TOP`].
pub const ERF_BOTTOM: [f32; 5] =
    [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_474e-2];

/// The widest vectors that loops use on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the program was compiled for.
    Compiled,
}

impl Vectors {
    /// Those of this machine.
    #[inline]
    pub fn found() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return Vectors::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Vectors::Avx2;
            }
        }
        Vectors::Compiled
    }
}

/// A function of plain loops, compiled once for each kind of [`Vectors`] and run for those of the machine. It stands three
/// times in the program, so that what it calls becomes part of each: a closure handed to a dispatcher is not, where it is
/// long. Generic parameters stand in brackets, and follow from the arguments.
macro_rules! vectors {
    ($(#[$meta:meta])* $vis:vis fn $name:ident [$($generics:tt)*] ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($generics)*>($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn of_512<$($generics)*>($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn of_256<$($generics)*>($($arg: $type),*) $(-> $result)? $body

            fn compiled<$($generics)*>($($arg: $type),*) $(-> $result)? $body

            match $crate::backend::cpu::real::Vectors::found() {
                // SAFETY: the machine has these instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::real::Vectors::Avx512 => unsafe { of_512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::real::Vectors::Avx2 => unsafe { of_256($($arg),*) },
                $crate::backend::cpu::real::Vectors::Compiled => compiled($($arg),*),
            }
        }
    };
}
pub(crate) use vectors;

/// Σ f(aᵢ, bᵢ) in sixteen interleaved partial sums: an order that is fixed, and that vectorises.
#[inline(always)]
pub fn sum_of<A: Copy, B: Copy, T: Real>(a: &[A], b: &[B], f: impl Fn(A, B) -> T) -> T {
    let mut lanes = [T::ZERO; 16];
    let (a_blocks, a_rest) = a.as_chunks::<16>();
    let (b_blocks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..16 {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(a, b);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            let upper = lanes[i + half];
            lanes[i] += upper;
        }
    }
    lanes[0]
}

/// The largest element; `T::ZERO` for none.
#[inline(always)]
pub fn max_of<T: Real>(values: &[T]) -> T {
    let Some(&first) = values.first() else { return T::ZERO };
    let mut lanes = [first; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    let larger = |best: &mut T, v: T| *best = if v > *best { v } else { *best };
    for block in blocks {
        for i in 0..16 {
            larger(&mut lanes[i], block[i]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        larger(lane, v);
    }
    let mut best = first;
    lanes.into_iter().for_each(|v| larger(&mut best, v));
    best
}

#[cfg(test)]
mod tests {
    use super::Arithmetic;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -860_000..870_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(Arithmetic::exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
        assert_eq!(Arithmetic::exp(0.0f32), 1.0);
        assert!(Arithmetic::exp(f32::NEG_INFINITY) < 1e-37);
        assert!(Arithmetic::exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_5e_7() {
        let mut worst = 0.0f64;
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max((f64::from(Arithmetic::erf(x)) - libm::erf(f64::from(x))).abs());
        }
        assert!(worst < 5e-7, "absolute error {worst:e}");
    }
}
