//! How fast this machine's threads run the instruction that products are made of, on registers alone: what no product can
//! exceed.

use super::real::Vectors;
use super::{Cpu, Isa};
use std::time::Instant;

/// The rate of an instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InstructionRate {
    /// Its name, in the manuals of the processor.
    pub instruction: &'static str,
    /// Floating-point operations per second, of all threads together.
    pub flop_per_s: f64,
}

/// Sums that do not wait for one another, more than any processor has on their way.
const CHAINS: usize = 24;

impl Cpu<f32> {
    /// That of the products in f32 or bf16, measured; none where it is not known how: of AMX, and of other kinds of
    /// processors.
    pub fn instruction_rate(&self) -> Option<InstructionRate> {
        #[cfg(target_arch = "x86_64")]
        {
            let of = |instruction, flop: usize, run: &(dyn Fn(usize) + Sync)| {
                Some(InstructionRate { instruction, flop_per_s: measured(flop, run) })
            };
            match (self.bf16, Vectors::found()) {
                (Some(Isa::Avx512), _) => {
                    of("vdpbf16ps (AVX-512)", 64, &|count| {
                        // SAFETY: the machine was found to have the instruction.
                        unsafe { x86::dot_pairs(count) }
                    })
                }
                (None, Vectors::Avx512) => {
                    of("vfmadd231ps (AVX-512)", 32, &|count| {
                        // SAFETY: the machine was found to have the instruction.
                        unsafe { x86::multiply_add_512(count) }
                    })
                }
                (None, Vectors::Avx2) => {
                    of("vfmadd231ps (AVX2)", 16, &|count| {
                        // SAFETY: the machine was found to have the instruction.
                        unsafe { x86::multiply_add_256(count) }
                    })
                }
                _ => None,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

/// The best of some runs on all threads at once, of an instruction that does `flop` operations.
#[cfg(target_arch = "x86_64")]
fn measured(flop: usize, run: &(dyn Fn(usize) + Sync)) -> f64 {
    const COUNT: usize = 1 << 20;
    const RUNS: usize = 7;
    let of_thread = || {
        let start = Instant::now();
        run(COUNT);
        (COUNT * CHAINS * flop) as f64 / start.elapsed().as_secs_f64()
    };
    let rates = (0..RUNS).map(|_| rayon::broadcast(|_| of_thread()).into_iter().sum());
    rates.fold(0.0, f64::max)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::arch::asm;
    use std::arch::x86_64::{__m256, __m512, _mm256_setzero_ps, _mm512_setzero_ps};

    /// `$name(count)` runs an instruction `count` times on each of so many registers.
    macro_rules! chains {
        ($($name:ident: $instruction:literal, $features:literal, $class:ident, $type:ty, $zero:ident, $chains:expr;)*) => {$(
            /// # Safety
            /// For machines with the instruction.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(count: usize) {
                let (mut sums, factor) = ([$zero(); $chains], $zero());
                for _ in 0..count * CHAINS / $chains {
                    for i in 0..$chains {
                        let mut sum: $type = sums[i];
                        // SAFETY: registers only.
                        unsafe {
                            asm!(concat!($instruction, " {}, {}, {}"), inout($class) sum, in($class) factor,
                                in($class) factor, options(nomem, nostack, preserves_flags));
                        }
                        sums[i] = sum;
                    }
                }
            }
        )*};
    }

    chains! {
        dot_pairs: "vdpbf16ps", "avx512f", zmm_reg, __m512, _mm512_setzero_ps, CHAINS;
        multiply_add_512: "vfmadd231ps", "avx512f", zmm_reg, __m512, _mm512_setzero_ps, CHAINS;
        // Of sixteen registers.
        multiply_add_256: "vfmadd231ps", "avx2,fma", ymm_reg, __m256, _mm256_setzero_ps, CHAINS / 2;
    }
}
