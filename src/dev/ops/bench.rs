//! The operations of a training step, at its sizes.

use super::Group;
use crate::backend::tally::{Tally, Work};
use crate::backend::{Backend, BackendError, Linear, Result};
use crate::dev::bench::Op;
use crate::dev::check::difference::normal;
use crate::tensor::{DType, Shape, Tensor};

#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    /// Tokens of an image, the class token included: 50 for ViT-B/32 at 224 pixels.
    pub tokens: usize,
    pub width: usize,
    pub heads: usize,
    pub mlp: usize,
    pub features: usize,
    pub classes: usize,
    pub rank: usize,
    pub side: usize,
    pub patch: usize,
}

impl Sizes {
    pub(super) fn rows(&self) -> usize {
        self.batch * self.tokens
    }
}

/// An operation ready to run again and again.
pub(super) struct Ready<'a> {
    pub name: &'static str,
    /// Sizes of the operation, for people.
    pub at: String,
    /// Calls it once, on tensors that are there already; does not wait for a GPU.
    pub run: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// Who is handed operations as they are made.
pub(super) type Visit<'v> = dyn FnMut(Ready<'_>) -> Result<()> + 'v;

/// Who is handed operations that were counted.
pub type VisitCounted<'v> = dyn FnMut(Op<'_>) -> Result<()> + 'v;

/// Makes one operation after the other and hands it to `visit`: all of them, or those of each group whose
/// name `only` begins with ("attention" for "attention_backward 8x50").
pub fn each<B: Backend>(
    backend: &B,
    sizes: &Sizes,
    only: Option<&str>,
    visit: &mut VisitCounted<'_>,
) -> Result<()> {
    let mut wanted = benches().filter(|name| only.is_none_or(|only| only.starts_with(name)));
    wanted.try_for_each(|name| group(backend, sizes, name, visit))
}

/// The operations of one of [`benches`]; none for another name.
pub fn group<B: Backend>(backend: &B, sizes: &Sizes, name: &str, visit: &mut VisitCounted<'_>) -> Result<()> {
    Made::Group(name).counted(backend, sizes, visit)
}

/// Groups of operations that can be measured apart from the rest.
pub fn benches() -> impl Iterator<Item = &'static str> {
    Group::ALL.into_iter().flat_map(Group::benches).copied()
}

/// The linear layers with adapters alone.
pub fn lora<B: Backend>(backend: &B, sizes: &Sizes, visit: &mut VisitCounted<'_>) -> Result<()> {
    Made::Lora.counted(backend, sizes, visit)
}

/// x·Wᵀ for square matrices: the device's best product.
pub fn square_gemm<B: Backend>(backend: &B, n: usize, visit: &mut VisitCounted<'_>) -> Result<()> {
    let sizes = Sizes {
        batch: n,
        tokens: 1,
        width: n,
        heads: 1,
        mlp: n,
        features: 1,
        classes: 1,
        rank: 1,
        side: 1,
        patch: 1,
    };
    Made::Square(n).counted(backend, &sizes, visit)
}

/// What is made.
#[derive(Clone, Copy)]
enum Made<'a> {
    Group(&'a str),
    Lora,
    Square(usize),
}

impl Made<'_> {
    fn make<B: Backend>(self, b: &Bench<'_, B>, visit: &mut Visit<'_>) -> Result<()> {
        match self {
            Made::Group(name) => {
                let group = Group::ALL.into_iter().find(|group| group.benches().contains(&name));
                group.map_or(Ok(()), |group| group.bench(b, name, visit))
            }
            Made::Lora => b.lora(visit),
            Made::Square(n) => b.linear(n, n, visit),
        }
    }

    /// Makes them twice: where they only count, and then on `backend`.
    fn counted<B: Backend>(self, backend: &B, sizes: &Sizes, visit: &mut VisitCounted<'_>) -> Result<()> {
        let (tally, mut counts) = (Tally::of(backend), Vec::new());
        self.make(&Bench { blank: true, ..Bench::new(&tally, sizes) }, &mut |mut op| {
            counts.push(tally.count(|| (op.run)())?);
            Ok(())
        })?;
        let mut counts = counts.into_iter();
        self.make(&Bench::new(backend, sizes), &mut |Ready { name, at, run }| {
            let Some(Work { flop, bytes }) = counts.next() else {
                return Err(BackendError::Invalid { op: name, problem: "it was not counted".into() });
            };
            visit(Op { name, at, flop: flop as f64, bytes: bytes as f64, run })
        })
    }
}

pub(super) struct Bench<'a, B: Backend> {
    pub backend: &'a B,
    pub sizes: &'a Sizes,
    /// Type of activations.
    pub real: DType,
    /// Whether tensors hold zeros.
    blank: bool,
}

impl<'a, B: Backend> Bench<'a, B> {
    fn new(backend: &'a B, sizes: &'a Sizes) -> Self {
        Bench { backend, sizes, real: backend.compute_dtype(), blank: false }
    }

    /// Normal numbers of the given deviation around `mean`. Large tensors repeat a part of themselves.
    pub fn numbers(
        &self,
        shape: impl Into<Shape>,
        dtype: DType,
        mean: f64,
        deviation: f64,
    ) -> Result<B::Tensor> {
        const DISTINCT: usize = 1 << 20;
        let shape = shape.into();
        if self.blank {
            return self.backend.zeros(shape, dtype);
        }
        let distinct = normal(shape.elements().min(DISTINCT), shape.elements() as u64);
        let values: Vec<f32> = (0..shape.elements())
            .map(|i| (mean + deviation * distinct[(i + i / DISTINCT * 7) % distinct.len().max(1)]) as f32)
            .collect();
        self.backend.upload(Tensor::from_slice(shape, &values)?.view(), dtype)
    }

    pub fn random(&self, shape: impl Into<Shape>) -> Result<B::Tensor> {
        self.numbers(shape, self.real, 0.0, 1.0)
    }

    pub fn parameter(&self, shape: impl Into<Shape>, deviation: f64) -> Result<B::Tensor> {
        self.numbers(shape, self.backend.parameter_dtype(), 0.0, deviation)
    }

    pub fn empty(&self, shape: impl Into<Shape>) -> Result<B::Tensor> {
        self.backend.empty(shape, self.real)
    }

    pub fn layer(&self, inputs: usize, outputs: usize) -> Result<Linear<B>> {
        Ok(Linear { weight: self.weight(inputs, outputs)?, bias: Some(self.random([outputs])?) })
    }

    pub fn weight(&self, inputs: usize, outputs: usize) -> Result<B::Weight> {
        let values = self.numbers([outputs, inputs], self.real, 0.0, 1.0 / (inputs as f64).sqrt())?;
        self.backend.weight(self.backend.download(&values)?.view())
    }
}
