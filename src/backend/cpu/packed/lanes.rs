//! Sixteen numbers at once, for what is computed around the products: the formulas stand once, over [`Lanes`], and run as
//! plain arrays or in the registers of AVX-512, as the products do.

use super::Packed;
use crate::backend::cpu::bf16::{round, widen};
use crate::backend::cpu::real::{Arithmetic, max_of};
use half::bf16;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Sixteen numbers.
pub trait Lanes: Arithmetic {
    fn load(from: &[f32; 16]) -> Self;
    fn store(self, to: &mut [f32; 16]);
    /// Exact.
    fn widened(from: &[bf16; 16]) -> Self;
    /// Rounds 32 numbers to the nearest, of two the even one.
    fn rounded(low: Self, high: Self) -> [bf16; 32];
    /// The larger of each two.
    fn larger(self, other: Self) -> Self;
    /// Pairs of elements, one of each row: of columns 0 to 15, and of 16 to 31.
    fn interleaved(rows: [&[bf16; 32]; 2]) -> [[bf16; 32]; 2];
    /// Sixteen rows of sixteen pairs as columns; a pair stays as it is.
    fn turned(rows: &[[bf16; 32]; 16]) -> [[bf16; 32]; 16];
}

/// The registers for an element; for bf16 where none is named.
macro_rules! wide_of {
    () => {
        $crate::backend::cpu::packed::lanes::Wide
    };
    ($element:ident) => {
        <$element as $crate::backend::cpu::packed::Packed>::Wide
    };
}
#[cfg(target_arch = "x86_64")]
pub(in crate::backend::cpu) use wide_of;

/// A function over `$lanes`, and over `$element` where it is for more than bf16, run for the instructions of `isa`.
macro_rules! lanes {
    ($(#[$meta:meta])* $vis:vis fn $name:ident [$lanes:ident $(, $element:ident)?] ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "`isa` is one more")]
        #[allow(clippy::needless_range_loop, reason = "iterators are functions of their own")]
        $vis fn $name $(<$element: $crate::backend::cpu::packed::Packed>)? (isa: $crate::backend::cpu::packed::isa::Ready $(<$element>)?, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$lanes: $crate::backend::cpu::packed::lanes::Lanes $(, $element: $crate::backend::cpu::packed::Packed)?>($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn wide $(<$element: $crate::backend::cpu::packed::Packed>)? ($($arg: $type),*) $(-> $result)? {
                body::<$crate::backend::cpu::packed::lanes::wide_of!($($element)?) $(, $element)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            if isa.wide() {
                // SAFETY: the machine has these instructions.
                return unsafe { wide $(::<$element>)? ($($arg),*) };
            }
            let _ = isa;
            body::<$crate::backend::cpu::packed::lanes::Plain $(, $element)?>($($arg),*)
        }
    };
}
pub(in crate::backend::cpu) use lanes;

/// 32 numbers of a row.
#[derive(Clone, Copy)]
pub struct Row<L>(pub [L; 2]);

/// No closures here, nor in what follows: a function of its own is compiled without the instructions.
impl<L: Lanes> Row<L> {
    #[inline(always)]
    pub fn splat(value: f32) -> Self {
        Row([L::from_f64(f64::from(value)); 2])
    }

    #[inline(always)]
    pub fn load(from: &[f32; 32]) -> Self {
        let (halves, _) = from.as_chunks::<16>();
        Row([L::load(&halves[0]), L::load(&halves[1])])
    }

    #[inline(always)]
    pub fn store(self, to: &mut [f32; 32]) {
        let (halves, _) = to.as_chunks_mut::<16>();
        self.0[0].store(&mut halves[0]);
        self.0[1].store(&mut halves[1]);
    }

    #[inline(always)]
    pub fn widened<E: Packed>(from: &[E; 32]) -> Self {
        E::widened(from)
    }

    /// Of up to 32 numbers, and zeros behind them.
    #[inline(always)]
    pub fn widened_part<E: Packed>(from: &[E]) -> Self {
        match from.first_chunk() {
            Some(from) => Self::widened(from),
            None => {
                let mut padded = [E::default(); 32];
                padded[..from.len()].copy_from_slice(from);
                Self::widened(&padded)
            }
        }
    }

    #[inline(always)]
    pub fn rounded<E: Packed>(self) -> [E; 32] {
        E::rounded(self)
    }

    /// Rounds the first of them to all of `to`, 32 at most.
    #[inline(always)]
    pub fn round_to<E: Packed>(self, to: &mut [E]) {
        E::put(self, to);
    }

    /// The larger of each two.
    #[inline(always)]
    pub fn larger(self, other: Self) -> Self {
        Row([self.0[0].larger(other.0[0]), self.0[1].larger(other.0[1])])
    }

    #[inline(always)]
    pub fn largest(self) -> f32 {
        let mut lanes = [0.0; 16];
        self.0[0].larger(self.0[1]).store(&mut lanes);
        max_of(&lanes)
    }

    #[inline(always)]
    pub fn sum(self) -> f32 {
        let mut lanes = [0.0; 16];
        (self.0[0] + self.0[1]).store(&mut lanes);
        for count in [8, 4, 2, 1] {
            for i in 0..count {
                lanes[i] += lanes[i + count];
            }
        }
        lanes[0]
    }
}

/// The first of them, as many as there is room for.
#[inline(always)]
pub fn put<E: Packed>(from: &[E; 32], to: &mut [E]) {
    match to.first_chunk_mut() {
        Some(to) => *to = *from,
        None => to.copy_from_slice(&from[..to.len()]),
    }
}

impl<L: Lanes> Arithmetic for Row<L> {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Row([L::from_f64(value); 2])
    }

    #[inline(always)]
    fn exp(self) -> Self {
        Row([self.0[0].exp(), self.0[1].exp()])
    }

    #[inline(always)]
    fn erf(self) -> Self {
        Row([self.0[0].erf(), self.0[1].erf()])
    }
}

impl<L: Lanes> Neg for Row<L> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Row([-self.0[0], -self.0[1]])
    }
}

/// An array: the definition.
#[derive(Clone, Copy)]
pub struct Plain([f32; 16]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Plain(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Arithmetic for Plain {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Plain([value as f32; 16])
    }

    #[inline(always)]
    fn exp(self) -> Self {
        Plain(self.0.map(Arithmetic::exp))
    }

    #[inline(always)]
    fn erf(self) -> Self {
        Plain(self.0.map(Arithmetic::erf))
    }
}

impl Neg for Plain {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Plain(self.0.map(|v| -v))
    }
}

impl Lanes for Plain {
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        Plain(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        *to = self.0;
    }

    #[inline(always)]
    fn widened(from: &[bf16; 16]) -> Self {
        Plain(from.map(widen))
    }

    #[inline(always)]
    fn rounded(low: Self, high: Self) -> [bf16; 32] {
        std::array::from_fn(|i| round(if i < 16 { low.0[i] } else { high.0[i - 16] }))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn interleaved(rows: [&[bf16; 32]; 2]) -> [[bf16; 32]; 2] {
        std::array::from_fn(|half| std::array::from_fn(|i| rows[i % 2][16 * half + i / 2]))
    }

    #[inline(always)]
    fn turned(rows: &[[bf16; 32]; 16]) -> [[bf16; 32]; 16] {
        std::array::from_fn(|row| std::array::from_fn(|i| rows[i / 2][2 * row + i % 2]))
    }
}

macro_rules! operators {
    ($($op:ident, $name:ident, $instruction:ident;)*) => {$(
        impl<L: Lanes> $op for Row<L> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Row([self.0[0].$name(other.0[0]), self.0[1].$name(other.0[1])])
            }
        }

        impl $op for Plain {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                self.zip(other, |a, b| a.$name(b))
            }
        }

        #[cfg(target_arch = "x86_64")]
        impl<const EXACT: bool> $op for Wide<EXACT> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: whoever has such a value has the instructions.
                Wide(unsafe { $instruction(self.0, other.0) })
            }
        }
    )*};
}

operators! {
    Add, add, _mm512_add_ps;
    Sub, sub, _mm512_sub_ps;
    Mul, mul, _mm512_mul_ps;
    Div, div, _mm512_div_ps;
}

#[cfg(target_arch = "x86_64")]
pub use wide::Wide;
#[cfg(target_arch = "x86_64")]
use wide::{_mm512_add_ps, _mm512_div_ps, _mm512_mul_ps, _mm512_sub_ps};

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Arithmetic, Lanes, Neg, bf16};
    use crate::backend::cpu::real::{ERF_BOTTOM, ERF_TOP, EXP, LN2_HIGH, LN2_LOW};
    use std::arch::asm;
    use std::arch::x86_64::*;
    pub use std::arch::x86_64::{_mm512_add_ps, _mm512_div_ps, _mm512_mul_ps, _mm512_sub_ps};

    /// A register, with functions as exact as those of f32 or as bf16 needs. [`lanes!`](super::lanes) alone names it, where
    /// the machine was found to have AVX-512 F, BW, DQ and VL, and for bf16 AVX512-BF16, in functions that are compiled for
    /// it: all that is below becomes part of them.
    #[derive(Clone, Copy)]
    pub struct Wide<const EXACT: bool = false>(pub __m512);

    /// 2ʳ on |r| ≤ 1/2 to 2.7e-6; the highest power first.
    const POWER: [f32; 5] = [9.570_101e-3, 5.591_786e-2, 2.402_474_4e-1, 6.931_218e-1, 9.999_993e-1];

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterators are functions of their own")]
    fn polynomial<const N: usize>(coefficients: &[f32; N], x: __m512) -> __m512 {
        // SAFETY: as of `Wide`.
        unsafe {
            let mut sum = _mm512_set1_ps(coefficients[0]);
            for i in 1..N {
                sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(coefficients[i]));
            }
            sum
        }
    }

    impl<const EXACT: bool> Arithmetic for Wide<EXACT> {
        #[inline(always)]
        fn from_f64(value: f64) -> Self {
            // SAFETY: as of `Wide`.
            Wide(unsafe { _mm512_set1_ps(value as f32) })
        }

        /// As that of f32, or to 1e-5 of it, a fifth of a hundredth of what rounding to bf16 takes; saturates at 2^±126. The
        /// constants stand first, so that what is not a number stays that.
        #[inline(always)]
        fn exp(self) -> Self {
            // SAFETY: as of `Wide`.
            unsafe {
                if EXACT {
                    let x = _mm512_max_ps(_mm512_set1_ps(-87.0), _mm512_min_ps(_mm512_set1_ps(87.0), self.0));
                    let n =
                        _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
                    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
                    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
                    let p = _mm512_mul_ps(polynomial(&EXP, r), _mm512_mul_ps(r, r));
                    let p = _mm512_add_ps(_mm512_add_ps(p, r), _mm512_set1_ps(1.0));
                    return Wide(_mm512_scalef_ps(p, n));
                }
                let t = _mm512_mul_ps(self.0, _mm512_set1_ps(std::f32::consts::LOG2_E));
                let t = _mm512_max_ps(_mm512_set1_ps(-126.0), _mm512_min_ps(_mm512_set1_ps(126.0), t));
                let n = _mm512_roundscale_ps::<0>(t);
                Wide(_mm512_scalef_ps(polynomial(&POWER, _mm512_sub_ps(t, n)), n))
            }
        }

        #[inline(always)]
        fn erf(self) -> Self {
            // SAFETY: as of `Wide`.
            unsafe {
                let x = _mm512_max_ps(_mm512_set1_ps(-4.0), _mm512_min_ps(_mm512_set1_ps(4.0), self.0));
                let q = _mm512_mul_ps(x, x);
                Wide(_mm512_div_ps(_mm512_mul_ps(x, polynomial(&ERF_TOP, q)), polynomial(&ERF_BOTTOM, q)))
            }
        }
    }

    impl<const EXACT: bool> Neg for Wide<EXACT> {
        type Output = Self;

        #[inline(always)]
        fn neg(self) -> Self {
            // SAFETY: as of `Wide`.
            Wide(unsafe { _mm512_xor_ps(self.0, _mm512_set1_ps(-0.0)) })
        }
    }

    /// A row as a register.
    #[inline(always)]
    fn register(row: &[bf16; 32]) -> __m512i {
        // SAFETY: 64 bytes, and as of `Wide`.
        unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
    }

    /// A register as a row.
    #[inline(always)]
    fn row(register: __m512i) -> [bf16; 32] {
        let mut row = [bf16::ZERO; 32];
        // SAFETY: 64 bytes, and as of `Wide`.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), register) };
        row
    }

    /// `_mm512_cvtne2ps_pbh` came after the oldest Rust that builds this.
    ///
    /// # Safety
    /// For machines with AVX512-BF16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round_both(high: __m512, low: __m512) -> __m512i {
        let rounded: __m512i;
        // SAFETY: registers only.
        unsafe {
            asm!("vcvtne2ps2bf16 {}, {}, {}", out(zmm_reg) rounded, in(zmm_reg) high, in(zmm_reg) low,
                options(pure, nomem, nostack, preserves_flags));
        }
        rounded
    }

    impl<const EXACT: bool> Lanes for Wide<EXACT> {
        #[inline(always)]
        fn load(from: &[f32; 16]) -> Self {
            // SAFETY: 64 bytes, and as of `Wide`.
            Wide(unsafe { _mm512_loadu_ps(from.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            // SAFETY: 64 bytes, and as of `Wide`.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) };
        }

        #[inline(always)]
        fn widened(from: &[bf16; 16]) -> Self {
            // SAFETY: 32 bytes, and as of `Wide`.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                Wide(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
            }
        }

        /// Numbers below 2^-126 become 0 here.
        #[inline(always)]
        fn rounded(low: Self, high: Self) -> [bf16; 32] {
            // SAFETY: as of `Wide`.
            row(unsafe { round_both(high.0, low.0) })
        }

        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            // SAFETY: as of `Wide`.
            Wide(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn interleaved(rows: [&[bf16; 32]; 2]) -> [[bf16; 32]; 2] {
            let (first, second) = (register(rows[0]), register(rows[1]));
            // SAFETY: as of `Wide`.
            unsafe {
                // In each half of a lane: elements i of both, from 0 to 15 and from 16 to 31.
                let counts = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
                let both = _mm512_or_si512(counts, _mm512_slli_epi32::<16>(counts));
                let left = _mm512_add_epi32(both, _mm512_set1_epi32(0x0020_0000));
                let right = _mm512_add_epi32(both, _mm512_set1_epi32(0x0030_0010));
                [
                    row(_mm512_permutex2var_epi16(first, left, second)),
                    row(_mm512_permutex2var_epi16(first, right, second)),
                ]
            }
        }

        #[inline(always)]
        #[allow(clippy::needless_range_loop, reason = "iterators are functions of their own")]
        fn turned(rows: &[[bf16; 32]; 16]) -> [[bf16; 32]; 16] {
            // SAFETY: as of `Wide`.
            unsafe {
                let zero = [_mm512_setzero_si512(); 16];
                // Columns of two rows, and then of four, in each lane of 128 bits.
                let (mut two, mut four) = (zero, zero);
                for i in 0..8 {
                    let (upper, lower) = (register(&rows[2 * i]), register(&rows[2 * i + 1]));
                    two[2 * i] = _mm512_unpacklo_epi32(upper, lower);
                    two[2 * i + 1] = _mm512_unpackhi_epi32(upper, lower);
                }
                for i in 0..4 {
                    for half in 0..2 {
                        let (upper, lower) = (two[4 * i + half], two[4 * i + 2 + half]);
                        four[4 * i + 2 * half] = _mm512_unpacklo_epi64(upper, lower);
                        four[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(upper, lower);
                    }
                }
                // `four[4·i + c]` has in lane l column 4·l + c of rows 4·i to 4·i + 3: lanes 0 and 2 of two of them, or
                // 1 and 3, and so of all four.
                let mut columns = [[bf16::ZERO; 32]; 16];
                for c in 0..4 {
                    let even_upper = _mm512_shuffle_i32x4::<0x88>(four[c], four[4 + c]);
                    let even_lower = _mm512_shuffle_i32x4::<0x88>(four[8 + c], four[12 + c]);
                    let odd_upper = _mm512_shuffle_i32x4::<0xdd>(four[c], four[4 + c]);
                    let odd_lower = _mm512_shuffle_i32x4::<0xdd>(four[8 + c], four[12 + c]);
                    columns[c] = row(_mm512_shuffle_i32x4::<0x88>(even_upper, even_lower));
                    columns[4 + c] = row(_mm512_shuffle_i32x4::<0x88>(odd_upper, odd_lower));
                    columns[8 + c] = row(_mm512_shuffle_i32x4::<0xdd>(even_upper, even_lower));
                    columns[12 + c] = row(_mm512_shuffle_i32x4::<0xdd>(odd_upper, odd_lower));
                }
                columns
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::packed::isa::{Features, Isa, Ready};

    /// Every kind that this machine runs.
    fn kinds() -> impl Iterator<Item = Ready> {
        Isa::found().map(Isa::ready)
    }

    lanes! {
        fn exp_of[L](from: &[f32; 16], to: &mut [f32; 16]) {
            L::load(from).exp().store(to);
        }
    }

    lanes! {
        fn erf_of[L](from: &[f32; 16], to: &mut [f32; 16]) {
            L::load(from).erf().store(to);
        }
    }

    #[test]
    fn exp_is_within_1e_5_and_erf_within_5e_7() {
        for isa in kinds() {
            let (mut of_exp, mut of_erf) = (0.0f64, 0.0f64);
            for i in -54_000..54_000 {
                let x: [f32; 16] = std::array::from_fn(|lane| (i * 16 + lane as i32) as f32 * 1e-4);
                let mut y = [0.0; 16];
                exp_of(isa, &x, &mut y);
                for (x, y) in x.iter().zip(y) {
                    let exact = f64::from(*x).exp();
                    of_exp = of_exp.max((f64::from(y) - exact).abs() / exact);
                }
                erf_of(isa, &x, &mut y);
                for (x, y) in x.iter().zip(y) {
                    of_erf = of_erf.max((f64::from(y) - libm::erf(f64::from(*x))).abs());
                }
            }
            assert!(of_exp < 1e-5 && of_erf < 5e-7, "{isa:?}: {of_exp:e}, {of_erf:e}");
            let mut y = [0.0; 16];
            exp_of(
                isa,
                &[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0].repeat(4).try_into().unwrap(),
                &mut y,
            );
            assert!(
                y[0].is_nan() && y[1] < 1e-37 && y[2] > 1e37 && (y[3] - 1.0).abs() < 1e-5,
                "{isa:?}: {y:?}"
            );
        }
    }

    lanes! {
        fn exp_in[L, E](from: &[f32; 16], to: &mut [f32; 16]) {
            L::load(from).exp().store(to);
        }
    }

    #[test]
    fn exp_in_f32_is_within_two_ulp() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.runs_f32_with(Features::found())) {
            let mut worst = 0.0f64;
            for i in -54_000..54_000 {
                let x: [f32; 16] = std::array::from_fn(|lane| (i * 16 + lane as i32) as f32 * 1e-4);
                let mut y = [0.0; 16];
                exp_in(isa.ready::<f32>(), &x, &mut y);
                for (x, y) in x.iter().zip(y) {
                    let exact = f64::from(*x).exp();
                    worst = worst.max((f64::from(y) - exact).abs() / exact);
                }
            }
            assert!(worst < 2.0 * f64::from(f32::EPSILON), "{isa:?}: {worst:e}");
            let mut y = [0.0; 16];
            let x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0].repeat(4).try_into().unwrap();
            exp_in(isa.ready::<f32>(), &x, &mut y);
            assert!(y[0].is_nan() && y[1] < 1e-37 && y[2] > 1e37 && y[3] == 1.0, "{isa:?}: {y:?}");
        }
    }

    lanes! {
        fn rounded[L](from: &[f32; 32], to: &mut [bf16; 32], back: &mut [f32; 32]) {
            Row::<L>::load(from).round_to(to);
            Row::<L>::widened(to).store(back);
        }
    }

    #[test]
    fn rounding_is_that_of_half_for_all_but_the_smallest() {
        for isa in kinds() {
            for first in (0..=u32::MAX).step_by(100_003) {
                let from: [f32; 32] =
                    std::array::from_fn(|i| f32::from_bits(first.wrapping_add(i as u32 * 3_001)));
                let (mut to, mut back) = ([bf16::ZERO; 32], [0.0; 32]);
                rounded(isa, &from, &mut to, &mut back);
                for ((from, to), back) in from.iter().zip(to).zip(back) {
                    let expected = bf16::from_f32(*from);
                    let same = to == expected || (to.is_nan() && from.is_nan());
                    assert!(
                        same || (from.abs() < f32::MIN_POSITIVE && to.to_f32() == 0.0),
                        "{isa:?}: {from:e}"
                    );
                    assert_eq!(back.to_bits(), to.to_f32().to_bits());
                }
            }
        }
    }

    lanes! {
        fn moved[L](rows: &[[bf16; 32]; 16]) -> ([[bf16; 32]; 2], [[bf16; 32]; 16]) {
            (L::interleaved([&rows[3], &rows[7]]), L::turned(rows))
        }
    }

    #[test]
    fn elements_move_as_plainly() {
        let mut rows = [[bf16::ZERO; 32]; 16];
        for (i, value) in rows.iter_mut().flatten().enumerate() {
            *value = bf16::from_bits(i as u16);
        }
        let (pairs, turned) = (Plain::interleaved([&rows[3], &rows[7]]), Plain::turned(&rows));
        assert_eq!((pairs[1][0], pairs[1][1], pairs[1][2]), (rows[3][16], rows[7][16], rows[3][17]));
        assert_eq!((turned[5][4], turned[5][5]), (rows[2][10], rows[2][11]));
        for isa in kinds() {
            assert_eq!(moved(isa, &rows), (pairs, turned), "{isa:?}");
        }
    }

    lanes! {
        fn of_row[L](row: &[f32; 32]) -> [f32; 3] {
            let row = Row::<L>::load(row);
            [row.sum(), row.largest(), row.larger(Row::splat(3.5)).sum()]
        }
    }

    #[test]
    fn rows_have_sums_and_a_largest() {
        for isa in kinds() {
            let row: [f32; 32] = std::array::from_fn(|i| ((i * 5) % 32) as f32);
            assert_eq!(of_row(isa, &row), [496.0, 31.0, 504.0]);
        }
    }
}
