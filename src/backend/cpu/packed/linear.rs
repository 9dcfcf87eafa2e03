//! Frozen linear layers over packed weights, with and without a low-rank update beside them.
//!
//! The update is part of the same product: u = x̃·Aᵀ of a strip of rows stands behind the strip, scale·Bᵀ behind Wᵀ.

use super::Packed;
use super::block::{Block, SIDE};
use super::isa::Isa;
use super::panels::{Factor, Panels};
use super::product::{Activated, Folded, Narrow, Nothing, Rounded, Sloped, Target, product, sums_over_rows};
use crate::backend::cpu::dropout::Mask;
use crate::backend::cpu::lora_linear::Parts;
use crate::backend::cpu::number::OnHost;
use crate::backend::{Activation, Lora, LoraLinear, LoraLinearBackward, Result};
use crate::tensor::{DType, Shape, Tensor, View};
use half::bf16;
use std::ops::Range;
use std::sync::OnceLock;

/// A frozen weight \[out, in\], packed.
pub struct Weight<E> {
    /// Wᵀ, for y = x·Wᵀ.
    forward: Panels<E>,
    /// W, for dx = dy·W; made when it is first asked for: who only evaluates has no use for it.
    backward: OnceLock<Panels<E>>,
}

impl<E: Packed> Weight<E> {
    pub fn new(source: View<'_>) -> Result<Self> {
        let rounded = source.to_tensor(E::DTYPE)?;
        let (values, inputs) = (rounded.typed::<E>()?, source.shape().columns());
        let outputs = source.shape().rows();
        let mut forward = Panels::new(inputs, outputs);
        forward.fill(|k, n| values[n * inputs + k]);
        Ok(Weight { forward, backward: OnceLock::new() })
    }

    pub fn shape(&self) -> Shape {
        [self.forward.columns(), self.forward.depth()].into()
    }

    pub fn values(&self) -> Result<Tensor> {
        let (inputs, outputs) = (self.forward.depth(), self.forward.columns());
        let mut values = Tensor::zeros([outputs, inputs], E::DTYPE);
        for (index, value) in values.typed_mut::<E>()?.iter_mut().enumerate() {
            *value = self.forward.get(index % inputs, index / inputs);
        }
        Ok(values)
    }

    pub fn bytes(&self) -> usize {
        self.forward.bytes()
    }

    /// Of the copy for the way back, until it is made.
    pub fn bytes_to_come(&self) -> usize {
        if self.backward.get().is_some() { 0 } else { self.forward.bytes() }
    }

    fn backward(&self) -> &Panels<E> {
        self.backward.get_or_init(|| self.forward.transposed())
    }
}

pub fn linear<E: Packed>(
    isa: Isa,
    x: &Tensor,
    weight: &Weight<E>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    forward(isa, x, weight, bias, residual, y, None)
}

pub fn linear_activation<E: Packed>(
    isa: Isa,
    x: &Tensor,
    weight: &Weight<E>,
    bias: Option<&Tensor>,
    kind: Activation,
    z: &mut Tensor,
    g: &mut Tensor,
) -> Result<()> {
    let (rows, inputs) = x.shape().matrix();
    let outputs = z.shape().columns();
    let bias = bias.map(|bias| bias.typed::<E>()).transpose()?;
    let y = Target::new(z.typed_mut()?, rows, outputs);
    let g = Target::new(g.typed_mut()?, rows, outputs);
    let output = Activated { z: Rounded { y, bias, residual: None }, g, kind };
    product(isa, Factor::new(x.typed()?, rows, inputs), Some(&weight.forward), None, &output);
    Ok(())
}

pub fn linear_activation_backward<E: Packed>(
    isa: Isa,
    dy: &Tensor,
    weight: &Weight<E>,
    kind: Activation,
    z: &Tensor,
    dz: &mut Tensor,
) -> Result<()> {
    let (rows, outputs) = dy.shape().matrix();
    let inputs = dz.shape().columns();
    let dz = Target::new(dz.typed_mut()?, rows, inputs);
    let output = Sloped { dz, z: z.typed()?, kind };
    product(isa, Factor::new(dy.typed()?, rows, outputs), Some(weight.backward()), None, &output);
    Ok(())
}

/// y = x·Wᵀ + b + residual, and what is narrow beside it.
fn forward<E: Packed>(
    isa: Isa,
    x: &Tensor,
    weight: &Weight<E>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
    narrow: Option<&Narrow<'_, E>>,
) -> Result<()> {
    let (rows, inputs) = x.shape().matrix();
    let outputs = y.shape().columns();
    let bias = bias.map(|bias| bias.typed::<E>()).transpose()?;
    let residual = residual.map(|residual| residual.typed::<E>()).transpose()?;
    let x = Factor::new(x.typed()?, rows, inputs);
    let y = Target::new(y.typed_mut()?, rows, outputs);
    product(isa, x, Some(&weight.forward), narrow, &Rounded { y, bias, residual });
    Ok(())
}

pub fn linear_backward<E: Packed>(isa: Isa, dy: &Tensor, weight: &Weight<E>, dx: &mut Tensor) -> Result<()> {
    backward(isa, dy, weight, dx, None)
}

/// dx = dy·W, and what is narrow beside it.
fn backward<E: Packed>(
    isa: Isa,
    dy: &Tensor,
    weight: &Weight<E>,
    dx: &mut Tensor,
    narrow: Option<&Narrow<'_, E>>,
) -> Result<()> {
    let (rows, outputs) = dy.shape().matrix();
    let inputs = dx.shape().columns();
    let dy = Factor::new(dy.typed()?, rows, outputs);
    let y = Target::new(dx.typed_mut()?, rows, inputs);
    product(isa, dy, Some(weight.backward()), narrow, &Rounded { y, bias: None, residual: None });
    Ok(())
}

impl Parts<'_, f32> {
    /// Aᵀ of all parts: \[in, n·r\].
    fn a_transposed<E: Packed>(&self) -> Panels<E> {
        let mut panels = Panels::new(self.inputs, self.width());
        panels.fill(|k, n| E::narrow(self.a[n * self.inputs + k]));
        panels
    }

    /// A of all parts: \[n·r, in\].
    fn a_packed<E: Packed>(&self) -> Panels<E> {
        let mut panels = Panels::new(self.width(), self.inputs);
        panels.fill(|k, n| E::narrow(self.a[k * self.inputs + n]));
        panels
    }

    /// Element (row of u, column of y) of scale·Bᵀ, with zeros where a part has no such column.
    fn b_at<E: Packed>(&self, of_u: usize, column: usize) -> E {
        let part = of_u / self.rank;
        let first = self.columns[part];
        match column.checked_sub(first).filter(|&row| row < self.outputs) {
            Some(row) => {
                E::narrow(self.scale * self.b[(part * self.outputs + row) * self.rank + of_u % self.rank])
            }
            None => E::default(),
        }
    }

    /// scale·Bᵀ of all parts, each at its columns of y: \[n·r, columns\].
    fn b_transposed<E: Packed>(&self, columns: usize) -> Panels<E> {
        let mut panels = Panels::new(self.width(), columns);
        panels.fill(|k, n| self.b_at(k, n));
        panels
    }

    /// scale·B of all parts, each at its columns of y: \[columns, n·r\].
    fn b_packed<E: Packed>(&self, columns: usize) -> Panels<E> {
        let mut panels = Panels::new(columns, self.width());
        panels.fill(|k, n| self.b_at(n, k));
        panels
    }
}

pub fn lora_linear<E: Packed, B: OnHost>(
    isa: Isa,
    weight: &Weight<E>,
    args: LoraLinear<'_, B>,
) -> Result<()> {
    let LoraLinear { x, seen, layer, lora, residual, u, y } = args;
    let (rows, inputs) = x.shape().matrix();
    let parts = Parts::<f32>::of(lora)?;
    let seen =
        seen.map(|seen| Ok::<_, crate::backend::BackendError>(Factor::new(seen.typed()?, rows, inputs)));
    let (a, b) = (parts.a_transposed(), parts.b_transposed(y.shape().columns()));
    let kept = Target::new(u.typed_mut()?, rows, parts.width());
    let narrow = Narrow { rows: seen.transpose()?, panels: &a, kept, wide: Some(&b), mask: None };
    forward(isa, x, weight, layer.bias.as_ref(), residual, y, Some(&narrow))
}

pub fn lora_linear_backward<E: Packed, B: OnHost>(
    isa: Isa,
    weight: &Weight<E>,
    args: LoraLinearBackward<'_, B>,
) -> Result<()> {
    let LoraLinearBackward { dy, x, dropout, u, lora, du, da, db, dx, .. } = args;
    let (rows, inputs) = x.shape().matrix();
    let columns = dy.shape().columns();
    let parts = Parts::<f32>::of(lora)?;
    let width = parts.width();
    let of_dy = Factor::new(dy.typed()?, rows, columns);
    let (a, b) = (parts.a_packed(), parts.b_packed(columns));
    let kept = Target::new(du.typed_mut()?, rows, width);
    let mask = dropout.map(Mask::of).transpose()?;
    let narrow = Narrow { rows: None, panels: &b, kept, wide: Some(&a), mask };
    match dx {
        None => product(isa, of_dy, None, Some(&narrow), &Nothing),
        Some(dx) => backward(isa, dy, weight, dx, Some(&narrow))?,
    }
    let da = Target::new(da.typed_mut::<f32>()?, width, inputs);
    let write = |block: &Block, rows: Range<usize>, columns: Range<usize>| {
        for (i, row) in rows.enumerate() {
            // SAFETY: a block is one task's.
            let to = unsafe { da.part(row, columns.clone()) };
            to.copy_from_slice(block.row(i, columns.len()));
        }
    };
    let (du, x) = (Factor::<E>::new(du.typed()?, rows, width), Factor::new(x.typed()?, rows, inputs));
    sums_over_rows(isa, du, x, &write);

    let (outputs, rank) = (parts.outputs, parts.rank);
    let db = Target::new(db.typed_mut::<f32>()?, parts.count * outputs, rank);
    let write = |block: &Block, of_u: Range<usize>, columns: Range<usize>| {
        for (i, of_u) in of_u.enumerate() {
            let (part, of_rank) = (of_u / rank, of_u % rank);
            let first = parts.columns[part];
            for column in columns.start.max(first)..columns.end.min(first + outputs) {
                let row = part * outputs + column - first;
                // SAFETY: a block is one task's, and so are its elements of dB.
                let to = unsafe { db.part(row, of_rank..of_rank + 1) };
                to[0] = parts.scale * block.0[i * SIDE + column - columns.start];
            }
        }
    };
    sums_over_rows(isa, Factor::<E>::new(u.typed()?, rows, width), of_dy, &write);
    Ok(())
}

/// Rounds the sum to bf16 again, which evaluation in bf16 does not want: it keeps adapters beside the weights.
pub fn fold_bf16<B: OnHost>(
    weight: &Weight<bf16>,
    lora: Lora<'_, B>,
    folded: &mut Weight<bf16>,
) -> Result<()> {
    let inputs = lora.a.shape().columns();
    let parts = Parts::<f32>::of(lora)?;
    let mut sums = weight.values()?.view().to_tensor(DType::F32)?;
    parts.fold_into(sums.typed_mut()?, inputs);
    *folded = Weight::new(sums.view())?;
    Ok(())
}

/// W + scale·B·A, written as W lies.
pub fn fold_f32<B: OnHost>(
    isa: Isa,
    weight: &Weight<f32>,
    lora: Lora<'_, B>,
    folded: &mut Weight<f32>,
) -> Result<()> {
    let parts = Parts::<f32>::of(lora)?;
    let (inputs, outputs, width) = (weight.forward.depth(), weight.forward.columns(), parts.width());
    let b = parts.b_transposed(outputs);
    let mut a = vec![0.0; inputs * width];
    for (of_u, row) in parts.a.chunks_exact(inputs).enumerate() {
        for (input, &value) in row.iter().enumerate() {
            a[input * width + of_u] = value;
        }
    }
    folded.backward = OnceLock::new();
    let output = Folded::new(&weight.forward, &mut folded.forward);
    product(isa, Factor::new(&a, inputs, width), Some(&b), None, &output);
    Ok(())
}
