//! The one product that all others are made of: 32 rows by 32 columns, in the instructions of an [`Isa`].
//!
//! Terms are 32 deep, or a multiple of it. The second factor of each lies packed as [`Panels`](super::panels::Panels)
//! says, in the order in which both AMX and AVX-512 read it.

use super::isa::Isa;
use super::widen;
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
pub struct Rows<'a> {
    pub data: &'a [bf16],
    pub stride: usize,
}

/// A product that goes into a sum: rows, and steps of the second factor.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    pub rows: Rows<'a>,
    pub steps: &'a [bf16],
}

impl Term<'_> {
    fn check(&self) {
        let depth = self.steps.len() / STEP * SIDE;
        assert!(
            self.steps.len().is_multiple_of(STEP)
                && (SIDE - 1) * self.rows.stride + depth <= self.rows.data.len(),
            "{} packed elements by 32 rows {} apart in {}",
            self.steps.len(),
            self.rows.stride,
            self.rows.data.len()
        );
    }
}

/// A thread's leave to multiply; while it lives, the thread's tiles are set up for it.
pub struct Unit {
    isa: Isa,
    /// Tiles are a thread's own.
    on_this_thread: PhantomData<*const ()>,
}

impl Unit {
    /// # Panics
    /// Where the machine does not run `isa`.
    pub fn new(isa: Isa) -> Self {
        // Asking again is cheap: the answers are kept.
        assert!(isa == Isa::Plain || Isa::found().any(|found| found == isa), "this machine has no {isa}");
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            // SAFETY: the machine has AMX, as was asserted.
            unsafe { amx::set_up() };
        }
        Unit { isa, on_this_thread: PhantomData }
    }

    /// block = Σ rows·steps over `terms`, of which there is at least one.
    #[inline]
    pub fn multiply(&self, terms: &[Term<'_>], block: &mut Block) {
        terms.iter().for_each(Term::check);
        match self.isa {
            Isa::Plain => plain(terms, block),
            // SAFETY: `new` has asserted that the machine has the instructions, and set up the tiles of this thread,
            // which this value does not leave. All reads lie within the slices, as was just checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::multiply(terms, block) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { amx::multiply(terms, block) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Amx => unreachable!("no machine of this kind has them"),
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx {
            // SAFETY: the machine has AMX, and nobody else uses the tiles of this thread.
            unsafe { amx::release() };
        }
    }
}

/// Place of element (k, n) in a packed step: two tiles of 16 columns, in which pairs of rows are interleaved.
#[inline(always)]
pub const fn place(k: usize, n: usize) -> usize {
    n / 16 * 512 + k / 2 * 32 + n % 16 * 2 + k % 2
}

vectors! {
    /// The definition.
    fn plain[](terms: &[Term<'_>], block: &mut Block) {
        block.0.fill(0.0);
        for Term { rows, steps } in terms {
            let mut wide = [0.0f32; STEP];
            for (step, packed) in steps.chunks_exact(STEP).enumerate() {
                for k in 0..SIDE {
                    for n in 0..SIDE {
                        wide[k * SIDE + n] = widen(packed[place(k, n)]);
                    }
                }
                for (row, sums) in block.0.chunks_exact_mut(SIDE).enumerate() {
                    let a = &rows.data[row * rows.stride + step * SIDE..][..SIDE];
                    for (&a, wide) in a.iter().zip(wide.chunks_exact(SIDE)) {
                        let a = widen(a);
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
    use super::{Block, SIDE, STEP, Term};
    use std::arch::asm;
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_store_ps,
    };

    /// # Safety
    /// For machines with AVX-512 F and BF16, and terms that were checked.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn multiply(terms: &[Term<'_>], block: &mut Block) {
        // SAFETY: rows 0 to 31.
        unsafe {
            rows::<12>(terms, block, 0);
            rows::<12>(terms, block, 12);
            rows::<8>(terms, block, 24);
        }
    }

    /// Σ of pairs of products, added to `sum`. `_mm512_dpbf16_ps` came after the oldest Rust that builds this.
    ///
    /// # Safety
    /// For machines with AVX512-BF16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn dot_pairs(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        let mut sum = sum;
        // SAFETY: registers only.
        unsafe {
            asm!("vdpbf16ps {}, {}, {}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    /// Rows `first` to `first` + R − 1 of the block.
    ///
    /// # Safety
    /// As [`multiply`]; the rows are of the block.
    #[target_feature(enable = "avx512f")]
    unsafe fn rows<const R: usize>(terms: &[Term<'_>], block: &mut Block, first: usize) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for Term { rows, steps } in terms {
            // SAFETY: the term was checked: 32 rows of as many elements as the steps are deep.
            unsafe {
                let a = rows.data.as_ptr().add(first * rows.stride);
                let mut packed = steps.as_ptr();
                for step in 0..steps.len() / STEP {
                    let a = a.add(step * SIDE);
                    for pair in 0..SIDE / 2 {
                        let left = _mm512_loadu_si512(packed.add(pair * 32).cast());
                        let right = _mm512_loadu_si512(packed.add(512 + pair * 32).cast());
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let two = a.add(row * rows.stride + 2 * pair).cast::<i32>().read_unaligned();
                            let two = _mm512_set1_epi32(two);
                            sums[0] = dot_pairs(sums[0], two, left);
                            sums[1] = dot_pairs(sums[1], two, right);
                        }
                    }
                    packed = packed.add(STEP);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let at = &mut block.0[(first + row) * SIDE..][..SIDE];
            // SAFETY: 32 numbers, in a block that begins at a cache line.
            unsafe {
                _mm512_store_ps(at.as_mut_ptr(), sums[0]);
                _mm512_store_ps(at.as_mut_ptr().add(16), sums[1]);
            }
        }
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
            for Term { rows, steps } in terms {
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
