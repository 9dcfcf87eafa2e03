//! Frozen linear layers.

use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::real::{Real, vectors};
use super::*;
use rayon::prelude::*;

/// A product by a layer's weight as it lies there: by the `gemm` crate, or by `$isa`.
macro_rules! by_layout {
    ($device:ident, $layer:expr, $op:literal, $weight:ident => $real:expr, $isa:ident => $packed:expr) => {
        match (&$layer.weight.0, $device.bf16, $device.f32) {
            (Layout::Real($weight), None, None) => $real,
            (Layout::F32($weight), None, Some($isa)) => $packed,
            (Layout::Bf16($weight), Some($isa), _) => $packed,
            _ => Err(foreign($op)),
        }
    };
}
pub(super) use by_layout;

impl<T: Real> LinearOp for Cpu<T> {
    fn linear_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        layer: &Linear<Self>,
        residual: Option<&Tensor>,
        y: &mut Tensor,
    ) -> Result<()> {
        let bias = layer.bias.as_ref();
        by_layout!(device, layer, "linear",
            weight => linear::<T>(x, weight, bias, residual, y),
            isa => packed::linear::linear(isa, x, weight, bias, residual, y))
    }

    fn linear_backward_checked(
        device: Checked<'_, Self>,
        dy: &Tensor,
        layer: &Linear<Self>,
        dx: &mut Tensor,
    ) -> Result<()> {
        by_layout!(device, layer, "linear_backward",
            weight => linear_backward::<T>(dy, weight, dx),
            isa => packed::linear::linear_backward(isa, dy, weight, dx))
    }

    fn linear_activation_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &mut Tensor,
        g: &mut Tensor,
    ) -> Result<Kept> {
        by_layout!(device, layer, "linear_activation",
            weight => {
                linear::<T>(x, weight, layer.bias.as_ref(), None, z)?;
                Self::activation_checked(device, kind, z, None, g)
            },
            isa => packed::linear::linear_activation(isa, x, weight, layer.bias.as_ref(), kind, z, g))?;
        Ok(Kept::Sum)
    }

    fn linear_activation_backward_checked(
        device: Checked<'_, Self>,
        dy: &Tensor,
        layer: &Linear<Self>,
        kind: Activation,
        z: &Tensor,
        bias: Option<&Tensor>,
        dz: &mut Tensor,
    ) -> Result<()> {
        if bias.is_some() {
            Self::linear_backward_checked(device, dy, layer, dz)?;
            return Self::activation_backward_checked(device, kind, z, bias, dz);
        }
        by_layout!(device, layer, "linear_activation_backward",
            weight => {
                linear_backward::<T>(dy, weight, dz)?;
                Self::activation_backward_checked(device, kind, z, None, dz)
            },
            isa => packed::linear::linear_activation_backward(isa, dy, weight, kind, z, dz))
    }
}

/// A frozen weight \[out, in\] in rows that may be padded.
pub struct Padded {
    pub values: Tensor,
    inputs: usize,
}

impl Padded {
    /// Rows a multiple of 4 KiB apart share a few cache sets, and packing W for x·Wᵀ then runs at three quarters of
    /// its speed (docs/performance.md): such rows get a cache line of padding.
    pub fn new<T: Real>(source: View<'_>) -> Result<Self> {
        let (inputs, size) = (source.shape().columns(), size_of::<T>());
        let stride = if (inputs * size).is_multiple_of(4096) { inputs + 64 / size } else { inputs };
        let dense = source.to_tensor(T::DTYPE)?;
        let mut values = Tensor::zeros([dense.shape().rows(), stride], T::DTYPE);
        let rows = values.typed_mut::<T>()?.chunks_exact_mut(stride.max(1));
        rows.zip(dense.typed::<T>()?.chunks_exact(inputs.max(1))).for_each(|(to, row)| {
            to[..inputs].copy_from_slice(row);
        });
        Ok(Padded { values, inputs })
    }

    pub fn shape(&self) -> Shape {
        [self.values.shape().rows(), self.inputs].into()
    }

    pub fn values<T: Real>(&self) -> Result<Tensor> {
        let mut dense = Tensor::zeros(self.shape(), T::DTYPE);
        let rows = self.values.typed::<T>()?.chunks_exact(self.values.shape().columns().max(1));
        dense.typed_mut::<T>()?.chunks_exact_mut(self.inputs.max(1)).zip(rows).for_each(|(to, row)| {
            to.copy_from_slice(&row[..self.inputs]);
        });
        Ok(dense)
    }

    pub fn bytes(&self) -> usize {
        self.values.bytes().len()
    }

    pub fn matrix<T: Real>(&self, op: &'static str, outputs: usize, inputs: usize) -> Result<Matrix<'_, T>> {
        expect_shape(op, "weight", [outputs, inputs], self.shape())?;
        Ok(Matrix::strided(self.values.typed()?, outputs, inputs, self.values.shape().columns()))
    }
}

pub fn linear<T: Real>(
    x: &Tensor,
    weight: &Padded,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let (rows, inputs) = x.shape().matrix();
    let outputs = y.shape().columns();
    let weight = weight.matrix::<T>("linear", outputs, inputs)?;
    let write = start_output::<T>(bias, residual, y)?;
    gemm(
        MatrixMut::new(y.typed_mut::<T>()?, rows, outputs),
        write,
        T::ONE,
        Matrix::new(x.typed::<T>()?, rows, inputs),
        weight.transposed(),
        Threads::All,
    );
    Ok(())
}

/// Fills y with bias and residual, so that the product can be added; says whether there was anything.
fn start_output<T: Real>(bias: Option<&Tensor>, residual: Option<&Tensor>, y: &mut Tensor) -> Result<Write> {
    const ROWS: usize = 32;
    let columns = y.shape().columns();
    let bias = bias.map(|b| b.typed::<T>()).transpose()?;
    let residual = residual.map(|r| r.typed::<T>()).transpose()?;
    let y = y.typed_mut::<T>()?;
    match (bias, residual) {
        (None, None) => return Ok(Write::Replace),
        (None, Some(residual)) => y.copy_from_slice(residual),
        (Some(bias), None) => y
            .par_chunks_mut(ROWS * columns)
            .for_each(|y| y.chunks_exact_mut(columns).for_each(|y| y.copy_from_slice(bias))),
        (Some(bias), Some(residual)) => {
            y.par_chunks_mut(ROWS * columns).zip(residual.par_chunks(ROWS * columns)).for_each(|(y, r)| {
                add_bias(y, r, bias);
            })
        }
    }
    Ok(Write::Add)
}

vectors! {
    /// y = residual + bias, row by row.
    fn add_bias[T: Real](y: &mut [T], residual: &[T], bias: &[T]) {
        for (y, r) in y.chunks_exact_mut(bias.len()).zip(residual.chunks_exact(bias.len())) {
            for ((y, &r), &b) in y.iter_mut().zip(r).zip(bias) {
                *y = r + b;
            }
        }
    }
}

pub fn linear_backward<T: Real>(dy: &Tensor, weight: &Padded, dx: &mut Tensor) -> Result<()> {
    let (rows, outputs) = dy.shape().matrix();
    let inputs = dx.shape().columns();
    let weight = weight.matrix::<T>("linear_backward", outputs, inputs)?;
    gemm(
        MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs),
        Write::Replace,
        T::ONE,
        Matrix::new(dy.typed::<T>()?, rows, outputs),
        weight,
        Threads::All,
    );
    Ok(())
}
