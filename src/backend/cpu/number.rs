//! The types that activations and frozen weights are kept in.

use super::real::Real;
use crate::backend::Backend;
use crate::tensor::{Element, Tensor};

/// f32, f64, or bf16, whose arithmetic is that of f32.
pub trait Number: Element {
    /// The type of the arithmetic, and of parameters, statistics and losses.
    type Real: Real;

    /// Exact.
    fn widen(self) -> Self::Real;
    /// Rounds to the nearest, halves to even.
    fn narrow(value: Self::Real) -> Self;
}

impl<T: Real> Number for T {
    type Real = T;

    #[inline(always)]
    fn widen(self) -> T {
        self
    }

    #[inline(always)]
    fn narrow(value: T) -> T {
        value
    }
}

/// Rounds all of `from`.
pub fn narrow<T: Number>(from: &[T::Real], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::narrow(from);
    }
}

/// A backend whose tensors lie in the host's memory.
pub trait OnHost: Backend<Tensor = Tensor> {}

impl<B: Backend<Tensor = Tensor>> OnHost for B {}
