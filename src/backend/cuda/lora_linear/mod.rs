//! Frozen linear layers, with and without a low-rank update beside them.
//!
//! A layer with an adapter beside it has two forms: [`gemm`], a kernel for the low-rank part and a cuBLASLt
//! product that adds to it, and [`fused`], one kernel of our own for all of it. Here is what they share: the
//! checks of shapes, and which form computes what. Where adapters are [`folded`] into the weights, a layer is a
//! plain product.

mod folded;
mod fused;
mod gemm;
mod gradients;
mod parts;

use super::choose::fastest;
use super::driver::Gemm;
use super::dropout::Dropped;
use super::*;
pub use folded::{folding_pays, lora_fold, lora_gradients};
use parts::Parts;

pub fn linear(
    cuda: &Cuda,
    x: &CudaTensor,
    layer: &Linear<Cuda>,
    residual: Option<&CudaTensor>,
    y: &mut CudaTensor,
) -> Result<()> {
    let sizes = Sizes::of("linear", x.matrix(), y.shape.columns(), layer)?;
    let frozen = Frozen::forward("linear", cuda, sizes, x, layer, residual, y)?;
    frozen.gemm(cuda)
}

pub fn linear_backward(
    cuda: &Cuda,
    dy: &CudaTensor,
    layer: &Linear<Cuda>,
    dx: &mut CudaTensor,
) -> Result<()> {
    let (m, n) = dy.matrix();
    let sizes = Sizes::of("linear_backward", (m, dx.shape.columns()), n, layer)?;
    Frozen::backward("linear_backward", cuda, sizes, dy, layer, dx)?.gemm(cuda)
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    cuda: &Cuda,
    x: &CudaTensor,
    seen: Option<&CudaTensor>,
    layer: &Linear<Cuda>,
    lora: Lora<'_, Cuda>,
    residual: Option<&CudaTensor>,
    u: &mut CudaTensor,
    y: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "lora_linear";
    let sizes = Sizes::of(OP, x.matrix(), y.shape.columns(), layer)?;
    let parts = Parts::of(OP, lora, sizes.k, sizes.n)?;
    expect_matrix(OP, "u", sizes.m, parts.width, u.shape)?;
    let frozen = Frozen::forward(OP, cuda, sizes, x, layer, residual, y)?;
    if let Some(seen) = seen {
        expect_matrix(OP, "seen", sizes.m, sizes.k, seen.shape)?;
    }
    let seen = seen.map(|seen| seen.typed(cuda.real())).transpose()?;
    let work = Forward { frozen, seen: seen.unwrap_or(frozen.from), parts, u: u.typed(cuda.real())? };
    if sizes.m == 0 {
        return Ok(());
    }
    // The fused form reads one input for both products.
    if seen.is_some() {
        return gemm::forward(cuda, &work);
    }
    let tiles = fused::forward_tiles(cuda, &work);
    form(cuda, OP, &work.frozen, &parts, tiles, &mut |form| match form {
        LoraKernel::Fused(tile) => fused::forward(cuda, &work, tile),
        LoraKernel::Gemm => gemm::forward(cuda, &work),
    })
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear_backward(
    cuda: &Cuda,
    dy: &CudaTensor,
    x: &CudaTensor,
    dropout: Option<Dropout<'_, Cuda>>,
    u: &CudaTensor,
    layer: &Linear<Cuda>,
    lora: Lora<'_, Cuda>,
    du: &mut CudaTensor,
    da: &mut CudaTensor,
    db: &mut CudaTensor,
    dx: Option<&mut CudaTensor>,
) -> Result<()> {
    const OP: &str = "lora_linear_backward";
    let sizes = Sizes::of(OP, x.matrix(), dy.shape.columns(), layer)?;
    let Sizes { m, k, n, .. } = sizes;
    let parts = Parts::of(OP, lora, k, n)?;
    expect_matrix(OP, "dy", m, n, dy.shape)?;
    expect_matrix(OP, "u", m, parts.width, u.shape)?;
    expect_matrix(OP, "du", m, parts.width, du.shape)?;
    expect_shape(OP, "da", lora.a.shape, da.shape)?;
    expect_shape(OP, "db", lora.b.shape, db.shape)?;
    let real = cuda.real();
    let (dy_at, du) = (dy.typed(real)?, du.typed(real)?);
    let dropped = dropout.map(|dropout| Dropped::of(OP, dropout)).transpose()?;
    let frozen = dx.map(|dx| Frozen::backward(OP, cuda, sizes, dy, layer, dx)).transpose()?;
    let gradients = gradients::Gradients {
        du,
        x: x.typed(real)?,
        u: u.typed(real)?,
        dy: dy_at,
        da: da.typed(DType::F32)?,
        db: db.typed(DType::F32)?,
        sizes,
    };
    match frozen {
        _ if m == 0 => {}
        None => gemm::backward_start(cuda, &parts, sizes, dy_at, du, None, None)?,
        Some(frozen) => input_gradient(cuda, &Backward { frozen, parts, du, dropped })?,
    }
    gradients.launch(cuda, &parts)
}

/// du and dx, in the form that is the faster one.
fn input_gradient(cuda: &Cuda, work: &Backward) -> Result<()> {
    // The fused form adds du·A to the product as it is.
    if work.dropped.is_some() {
        return gemm::backward(cuda, work);
    }
    let tiles = fused::backward_tiles(cuda, work);
    form(cuda, "lora_linear_backward", &work.frozen, &work.parts, tiles, &mut |form| match form {
        LoraKernel::Fused(tile) => fused::backward(cuda, work, tile),
        LoraKernel::Gemm => gemm::backward(cuda, work),
    })
}

/// Rows, inputs and outputs of a layer, and elements from one row of its weight to the next.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    k: usize,
    n: usize,
    weight_stride: usize,
}

impl Sizes {
    /// `x`: the rows and columns of the input or of its gradient.
    fn of(op: &'static str, x: (usize, usize), outputs: usize, layer: &Linear<Cuda>) -> Result<Self> {
        let weight_stride = layer.weight.shape.columns().max(x.1);
        expect_shape(op, "weight", [outputs, weight_stride], layer.weight.shape)?;
        Ok(Sizes { m: x.0, k: x.1, n: outputs, weight_stride })
    }
}

/// A frozen layer's product, forward (y from x) or backward (dx from dy), without a low-rank update.
#[derive(Clone, Copy)]
struct Frozen {
    sizes: Sizes,
    forward: bool,
    from: Address,
    weight: Address,
    bias: Option<Address>,
    residual: Option<Address>,
    to: Address,
    dtype: DType,
}

impl Frozen {
    fn forward(
        op: &'static str,
        cuda: &Cuda,
        sizes: Sizes,
        x: &CudaTensor,
        layer: &Linear<Cuda>,
        residual: Option<&CudaTensor>,
        y: &mut CudaTensor,
    ) -> Result<Self> {
        let real = cuda.real();
        expect_matrix(op, "y", sizes.m, sizes.n, y.shape)?;
        if let Some(residual) = residual {
            expect_shape(op, "residual", y.shape, residual.shape)?;
        }
        if let Some(bias) = &layer.bias {
            expect_shape(op, "bias", [sizes.n], bias.shape)?;
        }
        Ok(Frozen {
            sizes,
            forward: true,
            from: x.typed(real)?,
            weight: layer.weight.typed(real)?,
            bias: layer.bias.as_ref().map(|b| b.typed(real)).transpose()?,
            residual: residual.map(|r| r.typed(real)).transpose()?,
            to: y.typed(real)?,
            dtype: real,
        })
    }

    fn backward(
        op: &'static str,
        cuda: &Cuda,
        sizes: Sizes,
        dy: &CudaTensor,
        layer: &Linear<Cuda>,
        dx: &mut CudaTensor,
    ) -> Result<Self> {
        let real = cuda.real();
        expect_matrix(op, "dx", sizes.m, sizes.k, dx.shape)?;
        Ok(Frozen {
            sizes,
            forward: false,
            from: dy.typed(real)?,
            weight: layer.weight.typed(real)?,
            bias: None,
            residual: None,
            to: dx.typed(real)?,
            dtype: real,
        })
    }

    /// Columns of the result, and of what it is computed from.
    fn columns(&self) -> (usize, usize) {
        if self.forward { (self.sizes.n, self.sizes.k) } else { (self.sizes.k, self.sizes.n) }
    }

    /// Enqueues it as one product.
    fn gemm(&self, cuda: &Cuda) -> Result<()> {
        if self.sizes.m == 0 {
            return Ok(());
        }
        cuda.gemm(&self.as_gemm())
    }

    fn as_gemm(&self) -> Gemm {
        let (n, k) = self.columns();
        Gemm {
            m: self.sizes.m,
            n,
            k,
            x: self.from,
            x_stride: k,
            w: self.weight,
            w_stride: self.sizes.weight_stride,
            transposed: self.forward,
            bias: self.bias,
            add: self.residual,
            y: self.to,
            y_stride: n,
            dtype: self.dtype,
        }
    }
}

/// A layer with an adapter, forward.
#[derive(Clone, Copy)]
struct Forward {
    frozen: Frozen,
    /// Input of the adapters: the layer's, or what dropout left of it.
    seen: Address,
    parts: Parts,
    u: Address,
}

/// du and dx of a layer with an adapter.
#[derive(Clone, Copy)]
struct Backward {
    frozen: Frozen,
    parts: Parts,
    du: Address,
    /// Dropout between the input and the adapters.
    dropped: Option<Dropped>,
}

/// [`LoraForm`] without the open question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoraKernel {
    Fused(fused::Tile),
    Gemm,
}

impl LoraKernel {
    /// Under which it is remembered.
    fn name(self) -> &'static str {
        match self {
            LoraKernel::Fused(tile) => tile.kernel,
            LoraKernel::Gemm => "product",
        }
    }
}

/// Enqueues the work in the form asked for (fused only where there is such a kernel), else in the one
/// remembered, else in the fastest by the clock. `run` enqueues one form; as it only writes what it also
/// overwrites the next time, timing leaves nothing behind.
fn form(
    cuda: &Cuda,
    op: &'static str,
    frozen: &Frozen,
    parts: &Parts,
    tiles: fused::Tiles,
    run: &mut dyn FnMut(LoraKernel) -> Result<()>,
) -> Result<()> {
    let fused = tiles[0].map(LoraKernel::Fused);
    match (cuda.lora_form(), fused) {
        (_, None) | (LoraForm::Gemm, _) => return run(LoraKernel::Gemm),
        (LoraForm::Fused, Some(fused)) => return run(fused),
        (LoraForm::Auto | LoraForm::Folded | LoraForm::Beside, Some(_)) => {}
    }
    let (Sizes { m, k, n, .. }, dtype) = (frozen.sizes, frozen.dtype);
    let extra = (frozen.bias.is_some(), frozen.residual.is_some());
    let Parts { count, rank, part_of_segment, .. } = *parts;
    let key = format!("{op} {dtype} {m}x{k} to {n}, {count} of {rank} at {part_of_segment:x}, {extra:?}");
    let fused = tiles.into_iter().flatten().map(LoraKernel::Fused);
    let forms: Vec<_> = fused.chain([LoraKernel::Gemm]).map(|form| (form.name(), form)).collect();
    let form = fastest(cuda, &key, &forms, run)?;
    run(form)
}
