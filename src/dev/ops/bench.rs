//! The operations of a training step, at its sizes.

use super::Group;
use crate::backend::tally::{Tally, Work};
use crate::backend::{Backend, BackendError, LayerNorm, Linear, Lora, Mix, Result};
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
    /// Of one product of square matrices, `n` by `n`: the device's best.
    pub fn square(n: usize) -> Self {
        Sizes {
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
        }
    }

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

/// Groups of operations that can be measured apart from the rest.
pub fn benches() -> impl Iterator<Item = &'static str> {
    Group::ALL.into_iter().flat_map(Group::benches).copied()
}

/// Which operations are made.
#[derive(Debug, Clone, Copy)]
pub enum Made<'a> {
    All,
    /// Those of one of [`benches`]; none for another name.
    Group(&'a str),
    /// The linear layers with adapters alone.
    Lora,
    /// x·Wᵀ for the matrices of [`Sizes::square`].
    Product,
}

/// Makes one operation after the other, twice: where they only count, and then on `backend`, to hand it to `visit`.
///
/// # Errors
/// Of `backend`, and those that `visit` returns.
pub fn each<B: Backend>(
    backend: &B,
    sizes: &Sizes,
    made: Made<'_>,
    visit: &mut VisitCounted<'_>,
) -> Result<()> {
    let (tally, mut counts) = (Tally::of(backend), Vec::new());
    Bench { blank: true, ..Bench::new(&tally, sizes) }.make(made, &mut |mut op| {
        counts.push(tally.count(|| (op.run)())?);
        Ok(())
    })?;
    let mut counts = counts.into_iter();
    Bench::new(backend, sizes).make(made, &mut |Ready { name, at, run }| {
        let Some(Work { flop, bytes }) = counts.next() else {
            return Err(BackendError::Invalid { op: name, problem: "it was not counted".into() });
        };
        visit(Op { name, at, flop: flop as f64, bytes: bytes as f64, run })
    })
}

/// Blocks of the tower of which all layers are taken together.
const BLOCKS: usize = 12;

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

    fn make(&self, made: Made<'_>, visit: &mut Visit<'_>) -> Result<()> {
        for group in Group::ALL {
            for name in group.benches() {
                match made {
                    Made::All => group.bench(self, name, visit)?,
                    Made::Group(wanted) if wanted == *name => group.bench(self, name, visit)?,
                    _ => {}
                }
            }
        }
        match made {
            Made::Lora => self.lora(visit),
            Made::Product => self.linear(self.sizes.width, self.sizes.width, visit),
            Made::All | Made::Group(_) => Ok(()),
        }
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

    pub fn norm(&self, d: usize) -> Result<LayerNorm<B>> {
        let weight = self.numbers([d], self.backend.parameter_dtype(), 1.0, 0.1)?;
        Ok(LayerNorm { weight, bias: self.parameter([d], 0.1)?, eps: 1e-5 })
    }

    /// u8 images without a pattern.
    pub fn levels(&self, [batch, side]: [usize; 2]) -> Result<B::Tensor> {
        let levels: Vec<u8> =
            (0..batch * side * side * 3).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
        self.backend.upload(Tensor::from_slice([batch, side, side, 3], &levels)?.view(), DType::U8)
    }

    /// A seed and the number of a batch.
    pub fn draw(&self) -> Result<B::Tensor> {
        self.backend.upload(Tensor::from_slice([4], &[1u32, 2, 3, 0])?.view(), DType::U32)
    }

    /// Each image with the next.
    pub fn mix(&self) -> Result<Mix<B>> {
        let n = self.sizes.batch;
        let indices = |from: usize| -> Result<B::Tensor> {
            let indices: Vec<u32> = (0..n).map(|i| ((i + from) % n) as u32).collect();
            self.backend.upload(Tensor::from_slice([n], &indices)?.view(), DType::U32)
        };
        let lambda = self.numbers([n], self.backend.parameter_dtype(), 0.5, 0.1)?;
        Ok(Mix { partner: indices(1)?, inverse: indices(n - 1)?, lambda })
    }

    /// Shapes of the trained tensors of a tower of twelve blocks: the head, and A and B of q, k, v and of out.
    pub fn trained_shapes(&self) -> Vec<Shape> {
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let mut shapes = vec![Shape::from([self.sizes.classes, self.sizes.features])];
        for _ in 0..BLOCKS {
            shapes.extend([[3 * r, d], [3 * d, r], [r, d], [d, r]].map(Shape::from));
        }
        shapes
    }

    /// Queries, keys and values of as many blocks as a tower has, and the projections behind attention.
    pub fn adapted(&self) -> Result<Vec<Adapted<B::Tensor>>> {
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let layers = [3, 1].into_iter().cycle().take(2 * BLOCKS).map(|parts| {
            Ok(Adapted {
                a: self.parameter([parts * r, d], 1.0 / (d as f64).sqrt())?,
                b: self.parameter([parts, d, r], 0.02)?,
                columns: (0..parts).map(|i| i * d).collect(),
            })
        });
        layers.collect()
    }

    /// The adapters of `layer`.
    pub fn adapter<'l>(&self, layer: &'l Adapted<B::Tensor>) -> Lora<'l, B> {
        Lora { a: &layer.a, b: &layer.b, columns: &layer.columns, scale: 2.0 }
    }
}

/// A layer's adapters, of the tensors `T`.
pub(super) struct Adapted<T> {
    pub a: T,
    pub b: T,
    pub columns: Vec<usize>,
}
