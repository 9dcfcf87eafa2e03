//! The one product that all others are made of: 32 rows by 32 columns, in the instructions of an [`Isa`].
//!
//! Terms are 32 deep, or a multiple of it. The second factor of each lies packed as [`Panels`](super::panels::Panels)
//! says, in the order in which both AMX and AVX-512 read it.

use super::Packed;
use super::isa::{Isa, Ready};
use crate::backend::cpu::real::vectors;
use half::bf16;
use std::marker::PhantomData;

/// Rows and columns of a block, and the depth of a step.
pub const SIDE: usize = 32;
/// Elements of a packed step: 32 deep and 32 wide.
pub const STEP: usize = SIDE * SIDE;

/// A block of sums, row-major.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Block(pub [f32; SIDE * SIDE]);

impl Block {
    pub const ZERO: Block = Block([0.0; SIDE * SIDE]);

    /// The first `columns` of row `row`.
    #[inline(always)]
    pub fn row(&self, row: usize, columns: usize) -> &[f32] {
        &self.0[row * SIDE..][..columns]
    }
}

/// 32 rows of a first factor, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a, E = bf16> {
    pub data: &'a [E],
    pub stride: usize,
}

/// A product that goes into a sum: rows, and steps of the second factor.
#[derive(Clone, Copy)]
pub struct Term<'a, E = bf16> {
    pub rows: Rows<'a, E>,
    pub steps: &'a [E],
    /// What is behind it, up to the end of the steps, is zeros, and may be left out.
    pub depth: usize,
}

impl<E> Term<'_, E> {
    fn check(&self) {
        let depth = self.steps.len() / STEP * SIDE;
        assert!(
            self.steps.len().is_multiple_of(STEP)
                && self.depth <= depth
                && (SIDE - 1) * self.rows.stride + depth <= self.rows.data.len(),
            "{} packed elements by 32 rows {} apart in {}",
            self.steps.len(),
            self.rows.stride,
            self.rows.data.len()
        );
    }
}

/// The part of a block that is asked for: its first rows and columns. The rest may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub rows: usize,
    pub columns: usize,
}

/// A thread's leave to multiply; while it lives, the thread's tiles are set up for it.
pub struct Unit<E = bf16> {
    isa: Ready<E>,
    /// Tiles are a thread's own.
    on_this_thread: PhantomData<*const ()>,
}

impl<E: Packed> Unit<E> {
    /// # Panics
    /// Where the machine does not run `isa`.
    pub fn new(isa: Isa) -> Self {
        let isa = isa.ready();
        #[cfg(target_arch = "x86_64")]
        if isa.isa() == Isa::Amx {
            // SAFETY: the machine has AMX, as was asserted.
            unsafe { amx::set_up() };
        }
        Unit { isa, on_this_thread: PhantomData }
    }

    /// What it multiplies with.
    #[inline(always)]
    pub fn isa(&self) -> Ready<E> {
        self.isa
    }

    /// `part` of block = Σ rows·steps over `terms`, of which there is at least one.
    #[inline]
    pub fn multiply(&self, terms: &[Term<'_, E>], part: Part, block: &mut Block) {
        terms.iter().for_each(Term::check);
        assert!(part.rows <= SIDE && part.columns <= SIDE, "{part:?}");
        // SAFETY: `new` has asserted that the machine has the instructions, and set up the tiles of this thread, which this
        // value does not leave. All reads lie within the slices, as was just checked.
        unsafe { E::multiply(self.isa.isa(), terms, part, block) }
    }
}

/// # Safety
/// For machines that run `isa`, on a thread whose tiles are set up where it is AMX, and terms and a part that were checked.
#[inline(always)]
pub unsafe fn multiply_bf16(isa: Isa, terms: &[Term<'_>], part: Part, block: &mut Block) {
    match isa {
        Isa::Plain => plain(terms, block),
        // SAFETY: as of this function.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply(terms, part, block) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => unsafe { amx::multiply(terms, block) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512 | Isa::Amx => unreachable!("no machine of this kind has them"),
    }
}

/// # Safety
/// As [`multiply_bf16`].
#[inline(always)]
pub unsafe fn multiply_f32(isa: Isa, terms: &[Term<'_, f32>], part: Part, block: &mut Block) {
    match isa {
        Isa::Plain => plain(terms, block),
        // SAFETY: as of this function.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply(terms, part, block) },
        _ => unreachable!("not in f32"),
    }
}

impl<E> Drop for Unit<E> {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.isa.isa() == Isa::Amx {
            // SAFETY: the machine has AMX, and nobody else uses the tiles of this thread.
            unsafe { amx::release() };
        }
    }
}

vectors! {
    /// The definition.
    fn plain[E: Packed](terms: &[Term<'_, E>], block: &mut Block) {
        block.0.fill(0.0);
        for Term { rows, steps, .. } in terms {
            let mut wide = [0.0f32; STEP];
            for (step, packed) in steps.chunks_exact(STEP).enumerate() {
                for k in 0..SIDE {
                    for n in 0..SIDE {
                        wide[k * SIDE + n] = packed[E::place(k, n)].widen();
                    }
                }
                for (row, sums) in block.0.chunks_exact_mut(SIDE).enumerate() {
                    let a = &rows.data[row * rows.stride + step * SIDE..][..SIDE];
                    for (&a, wide) in a.iter().zip(wide.chunks_exact(SIDE)) {
                        let a = a.widen();
                        for (sum, &b) in sums.iter_mut().zip(wide) {
                            *sum += a * b;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Block, Part, SIDE, STEP, Term, bf16};
    use std::arch::asm;
    use std::arch::x86_64::{
        __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castsi512_ps, _mm512_fmadd_ps,
        _mm512_load_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_store_ps,
    };

    /// # Safety
    /// For machines with AVX-512 F, for bf16 with AVX512-BF16, and terms and a part that were checked.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn multiply<E: Depths>(terms: &[Term<'_, E>], part: Part, block: &mut Block) {
        let mut first = 0;
        while first < part.rows {
            let left = part.rows - first;
            // SAFETY: rows of the block.
            first += unsafe {
                match part.columns > SIDE / 2 {
                    true => some_rows::<E, 2>(terms, block, first, left),
                    false => some_rows::<E, 1>(terms, block, first, left),
                }
            };
        }
    }

    /// As many rows from `first` on as go at once, up to `left`, of so many halves of the columns; says how many.
    ///
    /// # Safety
    /// As [`multiply`]; the rows are of the block.
    #[target_feature(enable = "avx512f")]
    unsafe fn some_rows<E: Depths, const H: usize>(
        terms: &[Term<'_, E>],
        block: &mut Block,
        first: usize,
        left: usize,
    ) -> usize {
        // SAFETY: as of this function.
        unsafe {
            match left {
                12.. => rows::<E, 12, H>(terms, block, first),
                8.. => rows::<E, 8, H>(terms, block, first),
                4.. => rows::<E, 4, H>(terms, block, first),
                2.. => rows::<E, 2, H>(terms, block, first),
                _ => rows::<E, 1, H>(terms, block, first),
            }
        }
    }

    /// What one instruction multiplies: a pair of rows of a step in bf16, a row in f32.
    pub trait Depths: Copy {
        /// Rows of a step.
        const AT_ONCE: usize;
        /// After so many steps sums are put aside and begin again: each addition rounds by as much as the sum is large.
        const STEPS_OF_SUM: usize;

        /// Their elements in a row of the first factor, repeated over a register.
        ///
        /// # Safety
        /// For machines with AVX-512 F, and `AT_ONCE` elements at `a`.
        unsafe fn everywhere(a: *const Self) -> __m512;

        /// sum + a·b.
        ///
        /// # Safety
        /// For machines with AVX-512 F, for bf16 with AVX512-BF16.
        unsafe fn add(sum: __m512, a: __m512, b: __m512) -> __m512;
    }

    impl Depths for bf16 {
        const AT_ONCE: usize = 2;
        // What the numbers were rounded by before is more.
        const STEPS_OF_SUM: usize = usize::MAX;

        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn everywhere(a: *const bf16) -> __m512 {
            // SAFETY: as of this function.
            unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
        }

        /// `_mm512_dpbf16_ps` came after the oldest Rust that builds this.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn add(sum: __m512, a: __m512, b: __m512) -> __m512 {
            let mut sum = sum;
            // SAFETY: registers only.
            unsafe {
                asm!("vdpbf16ps {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
                    options(pure, nomem, nostack, preserves_flags));
            }
            sum
        }
    }

    impl Depths for f32 {
        const AT_ONCE: usize = 1;
        const STEPS_OF_SUM: usize = 24;

        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn everywhere(a: *const f32) -> __m512 {
            // SAFETY: as of this function.
            unsafe { _mm512_set1_ps(*a) }
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn add(sum: __m512, a: __m512, b: __m512) -> __m512 {
            _mm512_fmadd_ps(a, b, sum)
        }
    }

    /// Adds the products of the elements of each row that go at once, which begin at `$a`, with a line of each half of a
    /// step. Not a function: `$sums` are registers.
    macro_rules! add_line {
        ($sums:ident, $a:expr, $stride:expr, $packed:expr) => {
            let (a, packed) = ($a, $packed);
            let mut halves = [_mm512_setzero_ps(); H];
            for half in 0..H {
                halves[half] = _mm512_loadu_ps(packed.add(STEP / 2 * half).cast());
            }
            for row in 0..R {
                let a = E::everywhere(a.add(row * $stride));
                for half in 0..H {
                    $sums[row][half] = E::add($sums[row][half], a, halves[half]);
                }
            }
        };
    }

    /// Adds sums to the block, or writes them there; it begins at a cache line.
    macro_rules! put_aside {
        ($sums:ident, $block:ident, $first:expr, $add:expr) => {
            for row in 0..R {
                let at = &mut $block.0[($first + row) * SIDE..][..SIDE];
                for half in 0..H {
                    let at = at.as_mut_ptr().add(SIDE / 2 * half);
                    let before = if $add { _mm512_load_ps(at) } else { _mm512_setzero_ps() };
                    _mm512_store_ps(at, _mm512_add_ps(before, $sums[row][half]));
                }
            }
        };
    }

    /// Rows `first` to `first` + R − 1 of the block, and H halves of their columns; says R.
    ///
    /// # Safety
    /// As [`multiply`]; the rows are of the block.
    #[target_feature(enable = "avx512f")]
    unsafe fn rows<E: Depths, const R: usize, const H: usize>(
        terms: &[Term<'_, E>],
        block: &mut Block,
        first: usize,
    ) -> usize {
        let zeros = [[_mm512_setzero_ps(); H]; R];
        let (mut sums, mut some_there) = (zeros, false);
        // Elements of a cache line.
        let of_line = SIDE / 2 * E::AT_ONCE;
        for Term { rows, steps, depth } in terms {
            // SAFETY: the term was checked: 32 rows of as many elements as the steps are deep, which is no less than
            // `depth`. What is fetched ahead need not be there.
            unsafe {
                let mut a = rows.data.as_ptr().add(first * rows.stride);
                let mut packed = steps.as_ptr();
                let mut left = depth / SIDE;
                loop {
                    let now = left.min(E::STEPS_OF_SUM);
                    for _ in 0..now {
                        for line in 0..SIDE / E::AT_ONCE {
                            let next = packed.wrapping_add(STEP + line * of_line);
                            for half in 0..H {
                                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(STEP / 2 * half).cast());
                            }
                            add_line!(
                                sums,
                                a.add(line * E::AT_ONCE),
                                rows.stride,
                                packed.add(line * of_line)
                            );
                        }
                        a = a.add(SIDE);
                        packed = packed.add(STEP);
                    }
                    left -= now;
                    if left == 0 {
                        break;
                    }
                    put_aside!(sums, block, first, some_there);
                    (sums, some_there) = (zeros, true);
                }
                for line in 0..(depth % SIDE).div_ceil(E::AT_ONCE) {
                    add_line!(sums, a.add(line * E::AT_ONCE), rows.stride, packed.add(line * of_line));
                }
            }
        }
        // SAFETY: rows of the block.
        unsafe { put_aside!(sums, block, first, some_there) };
        R
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::{Block, SIDE, STEP, Term};
    use std::arch::asm;

    /// What `ldtilecfg` reads: palette 1, eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration([u8; 64]);

    const TILES: Configuration = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Configuration(bytes)
    };

    /// # Safety
    /// For machines with AMX, in a process that may use it.
    pub unsafe fn set_up() {
        // SAFETY: the configuration is one that the instruction takes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack, preserves_flags, readonly)) };
    }

    /// # Safety
    /// As [`set_up`].
    pub unsafe fn release() {
        // SAFETY: no tile is in use.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }

    /// Four tiles of sums, two of rows, two of columns.
    ///
    /// # Safety
    /// As [`set_up`], which this thread has called, with terms that were checked.
    pub unsafe fn multiply(terms: &[Term<'_>], block: &mut Block) {
        // SAFETY: the compiler uses no tiles itself, so that they keep what they have from one block of assembly to the
        // next. Each term was checked: 32 rows of as many elements as the steps are deep. What is fetched ahead need not
        // be there. The block has 32 rows of 128 bytes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, preserves_flags, nomem)
            );
            for Term { rows, steps, .. } in terms {
                if steps.is_empty() {
                    continue;
                }
                let upper = rows.data.as_ptr();
                asm!(
                    "2:",
                    "tileloadd tmm6, [{b} + {line}*1]",
                    "tileloadd tmm4, [{upper} + {stride}*1]",
                    "tileloadd tmm7, [{b} + {line}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{lower} + {stride}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {upper}, 64",
                    "add {lower}, 64",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    upper = inout(reg) upper => _,
                    lower = inout(reg) upper.add(16 * rows.stride) => _,
                    b = inout(reg) steps.as_ptr() => _,
                    steps = inout(reg) steps.len() / STEP => _,
                    stride = in(reg) 2 * rows.stride,
                    line = in(reg) 64usize,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{upper} + {row}*1], tmm0",
                "tilestored [{upper} + {row}*1 + 64], tmm1",
                "tilestored [{lower} + {row}*1], tmm2",
                "tilestored [{lower} + {row}*1 + 64], tmm3",
                upper = in(reg) block.0.as_mut_ptr(),
                lower = in(reg) block.0.as_mut_ptr().add(16 * SIDE),
                row = in(reg) 4 * SIDE,
                options(nostack, preserves_flags),
            );
        }
    }
}
