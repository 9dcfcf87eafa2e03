//! Element types.

use bytemuck::Pod;
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// Used by the gradient checks only.
    F64,
    /// Trained tensors and what training keeps of them, and all other numbers on the CPU.
    F32,
    /// Activations and frozen weights on a GPU: 5 bits of exponent, 10 of mantissa.
    F16,
    /// Where F16 could be too: 8 bits of exponent, as many as f32 has, 7 of mantissa.
    BF16,
    /// Class indices and row numbers.
    U32,
    /// Pixels.
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// The name used on the command line, in file headers and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::U8 => "u8",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: Pod + Send + Sync {
    /// The element type of its tensors.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, u32 => U32, u8 => U8);
