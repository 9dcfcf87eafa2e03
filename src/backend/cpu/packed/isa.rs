//! The instructions that packed products are made of, chosen when the backend is.

use super::Packed;
use half::bf16;
use std::fmt;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// How packed products are computed. Each sums in f32, in an order that is fixed; the sums of two differ in their last
/// bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isa {
    /// Loops that any processor runs, slower than the `gemm` crate: what the others are checked by.
    #[default]
    Plain,
    /// AVX-512: in bf16 `vdpbf16ps`, on AMD since Zen 4 and on Intel since Cooper Lake; in f32 multiply-add.
    Avx512,
    /// The tiles of AMX, on Intel since Sapphire Rapids; in bf16 alone.
    Amx,
}

/// What a processor and its operating system offer of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// AVX-512 F, BW, DQ and VL: what is around the products.
    pub avx512: bool,
    /// AVX512-BF16.
    pub avx512_bf16: bool,
    /// AMX with bf16, and the system's leave to use it.
    pub amx_bf16: bool,
}

impl Features {
    /// Those of this machine.
    pub fn found() -> Self {
        // A virtual machine takes its time to answer.
        static FOUND: LazyLock<Features> = LazyLock::new(Features::look);
        *FOUND
    }

    fn look() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let leaf = raw_cpuid::CpuId::new().get_extended_feature_info();
            let amx_bf16 = leaf.is_some_and(|leaf| leaf.has_amx_tile() && leaf.has_amx_bf16());
            let avx512_bf16 = is_x86_feature_detected!("avx512bf16");
            Features { avx512, avx512_bf16, amx_bf16: amx_bf16 && amx_is_allowed() }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Features::default()
    }
}

/// Asks Linux for the tiles' registers, which a process does not have before it asks.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_is_allowed() -> bool {
    false
}

impl Isa {
    /// All of them, the fastest last.
    pub const ALL: [Isa; 3] = [Isa::Plain, Isa::Avx512, Isa::Amx];

    /// Whether a machine with these features runs it in bf16.
    pub fn runs_with(self, features: Features) -> bool {
        match self {
            Isa::Plain => true,
            Isa::Avx512 => features.avx512 && features.avx512_bf16,
            Isa::Amx => features.avx512 && features.avx512_bf16 && features.amx_bf16,
        }
    }

    /// Whether a machine with these features runs it in f32.
    pub fn runs_f32_with(self, features: Features) -> bool {
        match self {
            Isa::Plain => true,
            Isa::Avx512 => features.avx512,
            Isa::Amx => false,
        }
    }

    /// What packs weights in f32, on a machine with these features; on others the `gemm` crate is faster.
    pub fn of_f32(features: Features) -> Option<Self> {
        Isa::Avx512.runs_f32_with(features).then_some(Isa::Avx512)
    }

    /// The fastest that a machine with these features runs in bf16.
    pub fn best(features: Features) -> Self {
        Isa::ALL.into_iter().rev().find(|isa| isa.runs_with(features)).unwrap_or_default()
    }

    /// Those that this machine runs in bf16.
    pub fn found() -> impl Iterator<Item = Isa> {
        let features = Features::found();
        Isa::ALL.into_iter().filter(move |isa| isa.runs_with(features))
    }
}

/// One that this machine was found to have for products of `E`.
#[derive(Debug)]
pub struct Ready<E = bf16>(Isa, PhantomData<E>);

impl<E> Clone for Ready<E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Ready<E> {}

impl Isa {
    /// # Panics
    /// Where the machine does not run it.
    pub fn ready<E: Packed>(self) -> Ready<E> {
        // Asking again is cheap: the answers are kept.
        assert!(self == Isa::Plain || E::runs(self, Features::found()), "this machine has no {self}");
        Ready(self, PhantomData)
    }
}

impl<E> Ready<E> {
    pub fn isa(self) -> Isa {
        self.0
    }

    /// Whether it has the registers of AVX-512, and for bf16 the instructions that round in them.
    #[inline(always)]
    pub fn wide(self) -> bool {
        self.0 != Isa::Plain
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Plain => "plain loops",
            Isa::Avx512 => "AVX512-BF16",
            Isa::Amx => "AMX",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_processor_lacks_is_never_chosen() {
        let all = Features { avx512: true, avx512_bf16: true, amx_bf16: true };
        assert_eq!(Isa::best(all), Isa::Amx);
        assert_eq!(Isa::best(Features { amx_bf16: false, ..all }), Isa::Avx512);
        // What is around both is AVX-512's.
        assert_eq!(Isa::best(Features { avx512_bf16: false, ..all }), Isa::Plain);
        assert_eq!(Isa::best(Features { avx512: false, ..all }), Isa::Plain);
        assert_eq!(Isa::best(Features::default()), Isa::Plain);
        // f32 asks for no more than AVX-512.
        assert_eq!(Isa::of_f32(Features { avx512: true, ..Features::default() }), Some(Isa::Avx512));
        assert_eq!(Isa::of_f32(Features { avx512: false, ..all }), None);
    }
}
