//! Products by factors that are packed: of all that the CPU multiplies in bf16, and of frozen weights in f32.
//!
//! Every product is cut into blocks of 32 by 32, which [`block`] computes by the instructions that the processor has.
//! Frozen weights are packed for them once, when they are loaded; adapters stay beside the weights.

pub mod activation;
pub mod block;
pub mod isa;
pub mod lanes;
pub mod layer_norm;
pub mod linear;
pub mod panels;
pub mod product;

use super::number::Number;
use block::{Block, Part, Term};
use half::bf16;
use isa::{Features, Isa};
use lanes::{Lanes, Row, put};
use product::Strips;
use std::cell::RefCell;
use std::thread::LocalKey;

/// What packed products multiply, in sums of f32.
pub trait Packed: Number<Real = f32> + Default {
    /// The registers of what is around the products.
    #[cfg(target_arch = "x86_64")]
    type Wide: Lanes;

    /// Place of element (k, n) in a packed step: two tiles of 16 columns.
    fn place(k: usize, n: usize) -> usize;

    /// Whether a machine with these features runs it.
    fn runs(isa: Isa, features: Features) -> bool;

    /// `part` of block = Σ rows·steps over `terms`.
    ///
    /// # Safety
    /// For machines that run `isa`, on a thread whose tiles are set up where it is AMX, and terms and a part that were
    /// checked.
    unsafe fn multiply(isa: Isa, terms: &[Term<'_, Self>], part: Part, block: &mut Block);

    /// Exact.
    fn widened<L: Lanes>(from: &[Self; 32]) -> Row<L>;

    /// The nearest, of two the even one.
    fn rounded<L: Lanes>(row: Row<L>) -> [Self; 32];

    /// What `rounded` gives, widened.
    fn kept<L: Lanes>(row: Row<L>) -> Row<L>;

    /// Rounds the first of them to all of `to`, 32 at most.
    fn put<L: Lanes>(row: Row<L>, to: &mut [Self]);

    /// Two rows as they lie in a step: columns 0 to 15, and 16 to 31.
    fn interleaved<L: Lanes>(rows: [&[Self; 32]; 2]) -> [[Self; 32]; 2];

    /// Sixteen columns of 32 rows, which are pairs as `interleaved` gives them.
    fn turned<L: Lanes>(pairs: &[[Self; 32]; 16]) -> [[Self; 32]; 16];

    /// This thread's.
    fn strips() -> &'static LocalKey<RefCell<Strips<Self>>>;
}

/// Pairs of rows are interleaved.
impl Packed for bf16 {
    #[cfg(target_arch = "x86_64")]
    type Wide = lanes::Wide;

    #[inline(always)]
    fn place(k: usize, n: usize) -> usize {
        n / 16 * 512 + k / 2 * 32 + n % 16 * 2 + k % 2
    }

    fn runs(isa: Isa, features: Features) -> bool {
        isa.runs_with(features)
    }

    #[inline(always)]
    unsafe fn multiply(isa: Isa, terms: &[Term<'_>], part: Part, block: &mut Block) {
        // SAFETY: as of this function.
        unsafe { block::multiply_bf16(isa, terms, part, block) }
    }

    #[inline(always)]
    fn widened<L: Lanes>(from: &[bf16; 32]) -> Row<L> {
        let (halves, _) = from.as_chunks::<16>();
        Row([L::widened(&halves[0]), L::widened(&halves[1])])
    }

    #[inline(always)]
    fn rounded<L: Lanes>(row: Row<L>) -> [bf16; 32] {
        L::rounded(row.0[0], row.0[1])
    }

    #[inline(always)]
    fn kept<L: Lanes>(row: Row<L>) -> Row<L> {
        Self::widened(&Self::rounded(row))
    }

    #[inline(always)]
    fn put<L: Lanes>(row: Row<L>, to: &mut [bf16]) {
        put(&Self::rounded(row), to);
    }

    #[inline(always)]
    fn interleaved<L: Lanes>(rows: [&[bf16; 32]; 2]) -> [[bf16; 32]; 2] {
        L::interleaved(rows)
    }

    #[inline(always)]
    fn turned<L: Lanes>(pairs: &[[bf16; 32]; 16]) -> [[bf16; 32]; 16] {
        L::turned(pairs)
    }

    fn strips() -> &'static LocalKey<RefCell<Strips<bf16>>> {
        thread_local! {
            static STRIPS: RefCell<Strips<bf16>> = RefCell::default();
        }
        &STRIPS
    }
}

/// A row of a tile is a cache line.
impl Packed for f32 {
    #[cfg(target_arch = "x86_64")]
    type Wide = lanes::Wide<true>;

    #[inline(always)]
    fn place(k: usize, n: usize) -> usize {
        n / 16 * 512 + k * 16 + n % 16
    }

    fn runs(isa: Isa, features: Features) -> bool {
        isa.runs_f32_with(features)
    }

    #[inline(always)]
    unsafe fn multiply(isa: Isa, terms: &[Term<'_, f32>], part: Part, block: &mut Block) {
        // SAFETY: as of this function.
        unsafe { block::multiply_f32(isa, terms, part, block) }
    }

    #[inline(always)]
    fn widened<L: Lanes>(from: &[f32; 32]) -> Row<L> {
        Row::load(from)
    }

    #[inline(always)]
    fn rounded<L: Lanes>(row: Row<L>) -> [f32; 32] {
        let mut to = [0.0; 32];
        row.store(&mut to);
        to
    }

    #[inline(always)]
    fn kept<L: Lanes>(row: Row<L>) -> Row<L> {
        row
    }

    /// Past an array of its own, which would not lie in whole cache lines.
    #[inline(always)]
    fn put<L: Lanes>(row: Row<L>, to: &mut [f32]) {
        match to.first_chunk_mut() {
            Some(to) => row.store(to),
            None => put(&Self::rounded(row), to),
        }
    }

    #[inline(always)]
    fn interleaved<L: Lanes>([first, second]: [&[f32; 32]; 2]) -> [[f32; 32]; 2] {
        let mut halves = [[0.0; 32]; 2];
        for half in 0..2 {
            halves[half][..16].copy_from_slice(&first[16 * half..][..16]);
            halves[half][16..].copy_from_slice(&second[16 * half..][..16]);
        }
        halves
    }

    #[inline(always)]
    fn turned<L: Lanes>(pairs: &[[f32; 32]; 16]) -> [[f32; 32]; 16] {
        // A pair of bf16 has the size of an f32.
        let rows: &[[bf16; 32]] = bytemuck::cast_slice(pairs.as_slice());
        let mut columns = [[0.0; 32]; 16];
        for half in 0..2 {
            let Some(rows) = rows[16 * half..].first_chunk() else { unreachable!("32 rows") };
            let turned: [[f32; 16]; 16] = bytemuck::cast(L::turned(rows));
            for column in 0..16 {
                columns[column][16 * half..][..16].copy_from_slice(&turned[column]);
            }
        }
        columns
    }

    fn strips() -> &'static LocalKey<RefCell<Strips<f32>>> {
        thread_local! {
            static STRIPS: RefCell<Strips<f32>> = RefCell::default();
        }
        &STRIPS
    }
}

/// Asks for the cache line at `at`, to read it or to write to it.
#[inline(always)]
fn fetch<const READ: bool, T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        if READ { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
