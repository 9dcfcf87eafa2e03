//! Frozen linear layers with low-rank updates.
//!
//! A layer with an adapter beside it has two forms: [`gemm`], a kernel for the low-rank part and a cuBLASLt
//! product that adds to it, and [`fused`], one kernel of our own for all of it. Here is what they share:
//! which form computes what. Where adapters are folded into the weights, a layer is a plain product; [`folding`]
//! finds out whether that pays.

mod folding;
mod fused;
mod gemm;
pub mod gradients;
mod parts;

use super::choose::fastest;
use super::dropout::Dropped;
use super::linear::{Frozen, Sizes};
use super::*;
pub use parts::Parts;

impl LoraLinearOp for Cuda {
    fn lora_linear_checked(device: Checked<'_, Self>, args: LoraLinear<'_, Cuda>) -> Result<()> {
        let LoraLinear { x, seen, layer, lora, residual, u, y } = args;
        let sizes = Sizes::of(x.matrix(), y.shape.columns(), layer);
        let parts = Parts::of("lora_linear", lora, sizes.k, sizes.n)?;
        let frozen = Frozen::forward(&device, sizes, x, layer, residual, y)?;
        let seen = seen.map(|seen| seen.typed(device.real())).transpose()?;
        let work = Forward { frozen, seen: seen.unwrap_or(frozen.from), parts, u: u.typed(device.real())? };
        if sizes.m == 0 {
            return Ok(());
        }
        // The fused form reads one input for both products.
        if seen.is_some() {
            return gemm::forward(&device, &work);
        }
        let tiles = fused::forward_tiles(&device, &work);
        form(&device, "lora_linear", &work.frozen, &parts, tiles, &mut |form| match form {
            LoraKernel::Fused(tile) => fused::forward(&device, &work, tile),
            LoraKernel::Gemm => gemm::forward(&device, &work),
        })
    }

    fn lora_linear_backward_checked(
        device: Checked<'_, Self>,
        args: LoraLinearBackward<'_, Cuda>,
    ) -> Result<()> {
        let LoraLinearBackward { dy, x, dropout, u, layer, lora, du, da, db, dx } = args;
        let sizes = Sizes::of(x.matrix(), dy.shape.columns(), layer);
        let parts = Parts::of("lora_linear_backward", lora, sizes.k, sizes.n)?;
        let real = device.real();
        let (dy_at, du) = (dy.typed(real)?, du.typed(real)?);
        let dropped = dropout.map(Dropped::of).transpose()?;
        let frozen = dx.map(|dx| Frozen::backward(&device, sizes, dy, layer, dx)).transpose()?;
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
            _ if sizes.m == 0 => {}
            None => gemm::backward_start(&device, &parts, sizes, dy_at, du, None, None)?,
            Some(frozen) => input_gradient(&device, &Backward { frozen, parts, du, dropped })?,
        }
        gradients.launch(&device, &parts)
    }

    fn can_train_folded(&self) -> bool {
        match self.lora_form() {
            LoraForm::Auto => self.real() == DType::F16,
            // What the grid of bf16 leaves of a fold is too little.
            LoraForm::Folded => self.real() != DType::BF16,
            LoraForm::Beside | LoraForm::Fused | LoraForm::Gemm => false,
        }
    }

    fn trains_folded(&self, layers: &[LoraSite<'_, Cuda>]) -> Result<bool> {
        match self.lora_form() {
            _ if !self.can_train_folded() || layers.is_empty() => Ok(false),
            LoraForm::Auto => folding::folding_pays(self, layers),
            _ => Ok(true),
        }
    }
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
