//! Frozen linear layers, with and without a low-rank update beside them.

use super::dropout::mask;
use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::number::OnHost;
use super::real::{Real, vectors};
use crate::backend::{Dropout, Lora, LoraGradients, Result, expect_matrix, expect_shape};
use crate::tensor::{Shape, Tensor, View};
use rayon::prelude::*;

/// Rows and columns of a tensor seen as a matrix.
pub fn matrix_shape(x: &Tensor) -> (usize, usize) {
    let columns = x.shape().columns();
    (x.elements() / columns.max(1), columns)
}

/// A frozen weight \[out, in\] in rows that may be padded.
pub struct Padded {
    values: Tensor,
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

    fn matrix<T: Real>(&self, op: &'static str, outputs: usize, inputs: usize) -> Result<Matrix<'_, T>> {
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
    let (rows, inputs) = matrix_shape(x);
    let outputs = y.shape().columns();
    let weight = weight.matrix::<T>("linear", outputs, inputs)?;
    expect_matrix("linear", "y", rows, outputs, y.shape())?;
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
    if let Some(residual) = residual {
        expect_shape("linear", "residual", y.shape(), residual.shape())?;
    }
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
    let (rows, outputs) = matrix_shape(dy);
    let inputs = dx.shape().columns();
    let weight = weight.matrix::<T>("linear_backward", outputs, inputs)?;
    expect_matrix("linear_backward", "dx", rows, inputs, dx.shape())?;
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

/// The sizes of a low-rank update and its parts as matrices.
pub struct Parts<'a, T> {
    pub count: usize,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub a: &'a [T],
    pub b: &'a [T],
    pub columns: &'a [usize],
    pub scale: T,
}

impl<'a, T: Real> Parts<'a, T> {
    pub fn of<B: OnHost>(lora: Lora<'a, B>, inputs: usize) -> Result<Self> {
        let count = lora.columns.len();
        let shape = lora.b.shape();
        let (outputs, rank) = (shape.row_elements() / shape.columns(), shape.columns());
        expect_shape("lora", "b", [count, outputs, rank], shape)?;
        expect_shape("lora", "a", [count * rank, inputs], lora.a.shape())?;
        Ok(Parts {
            count,
            rank,
            inputs,
            outputs,
            a: lora.a.typed()?,
            b: lora.b.typed()?,
            columns: lora.columns,
            scale: T::from_f64(lora.scale),
        })
    }

    /// Width of u: the ranks of all parts side by side.
    pub fn width(&self) -> usize {
        self.count * self.rank
    }

    /// A of all parts: [n·r, in].
    fn a_all(&self) -> Matrix<'a, T> {
        Matrix::new(self.a, self.width(), self.inputs)
    }

    fn a(&self, part: usize) -> Matrix<'a, T> {
        Matrix::new(&self.a[part * self.rank * self.inputs..], self.rank, self.inputs)
    }

    fn b(&self, part: usize) -> Matrix<'a, T> {
        Matrix::new(&self.b[part * self.outputs * self.rank..], self.outputs, self.rank)
    }

    /// Adds scale·B·A of each part to its rows of a weight, `stride` elements apart.
    pub fn fold_into(&self, weight: &mut [T], stride: usize) {
        for (part, &row) in self.columns.iter().enumerate() {
            gemm(
                MatrixMut::strided(&mut weight[row * stride..], self.outputs, self.inputs, stride),
                Write::Add,
                self.scale,
                self.b(part),
                self.a(part),
                Threads::All,
            );
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear<T: Real, B: OnHost>(
    x: &Tensor,
    seen: Option<&Tensor>,
    weight: &Padded,
    bias: Option<&Tensor>,
    lora: Lora<'_, B>,
    residual: Option<&Tensor>,
    u: &mut Tensor,
    y: &mut Tensor,
) -> Result<()> {
    linear::<T>(x, weight, bias, residual, y)?;
    let (rows, inputs) = matrix_shape(x);
    let columns = y.shape().columns();
    let parts = Parts::<T>::of(lora, inputs)?;
    expect_matrix("lora_linear", "u", rows, parts.width(), u.shape())?;
    let x = seen.unwrap_or(x);
    expect_matrix("lora_linear", "seen", rows, inputs, x.shape())?;
    narrow_product(x, &parts, u.typed_mut::<T>()?)?;
    let (u, y) = (u.typed::<T>()?, y.typed_mut::<T>()?);
    for (part, &column) in parts.columns.iter().enumerate() {
        gemm(
            MatrixMut::strided(&mut y[column..], rows, parts.outputs, columns),
            Write::Add,
            parts.scale,
            Matrix::strided(&u[part * parts.rank..], rows, parts.rank, parts.width()),
            parts.b(part).transposed(),
            Threads::All,
        );
    }
    Ok(())
}

/// u = x·Aᵀ.
fn narrow_product<T: Real>(x: &Tensor, parts: &Parts<'_, T>, u: &mut [T]) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    gemm(
        MatrixMut::new(u, rows, parts.width()),
        Write::Replace,
        T::ONE,
        Matrix::new(x.typed::<T>()?, rows, inputs),
        parts.a_all().transposed(),
        Threads::All,
    );
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear_backward<T: Real, B: OnHost>(
    dy: &Tensor,
    x: &Tensor,
    dropout: Option<Dropout<'_, B>>,
    u: &Tensor,
    weight: &Padded,
    lora: Lora<'_, B>,
    du: &mut Tensor,
    da: &mut Tensor,
    db: &mut Tensor,
    dx: Option<&mut Tensor>,
) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    let columns = dy.shape().columns();
    let parts = Parts::<T>::of(lora, inputs)?;
    let width = parts.width();
    gradients::<T, B>(dy, x, u, lora, du, da, db)?;
    let (dy_data, du) = (dy.typed::<T>()?, Matrix::new(du.typed::<T>()?, rows, width));
    let Some(dx) = dx else { return Ok(()) };
    expect_matrix("lora_linear_backward", "dx", rows, inputs, dx.shape())?;
    let through_adapters =
        |to: MatrixMut<'_, T>, write| gemm(to, write, T::ONE, du, parts.a_all(), Threads::All);
    match dropout {
        None => {
            linear_backward::<T>(dy, weight, dx)?;
            through_adapters(MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Write::Add);
            Ok(())
        }
        Some(dropout) => {
            through_adapters(MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Write::Replace);
            mask::<T, B>(dx, dropout)?;
            let weight = weight.matrix::<T>("lora_linear_backward", columns, inputs)?;
            let (dx, dy) =
                (MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Matrix::new(dy_data, rows, columns));
            gemm(dx, Write::Add, T::ONE, dy, weight, Threads::All);
            Ok(())
        }
    }
}

/// du = scale·dy·B, dA = duᵀ·x and dB = scale·dyᵀ·u.
fn gradients<T: Real, B: OnHost>(
    dy: &Tensor,
    x: &Tensor,
    u: &Tensor,
    lora: Lora<'_, B>,
    du: &mut Tensor,
    da: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    let columns = dy.shape().columns();
    let parts = Parts::<T>::of(lora, inputs)?;
    let width = parts.width();
    expect_matrix("lora_linear_backward", "u", rows, width, u.shape())?;
    expect_matrix("lora_linear_backward", "du", rows, width, du.shape())?;
    expect_shape("lora_linear_backward", "da", lora.a.shape(), da.shape())?;
    expect_shape("lora_linear_backward", "db", lora.b.shape(), db.shape())?;
    let (dy_data, u, du_data) = (dy.typed::<T>()?, u.typed::<T>()?, du.typed_mut::<T>()?);
    let db = db.typed_mut::<T>()?;
    for (part, &column) in parts.columns.iter().enumerate() {
        let dy = Matrix::strided(&dy_data[column..], rows, parts.outputs, columns);
        let first = part * parts.rank;
        gemm(
            MatrixMut::strided(&mut du_data[first..], rows, parts.rank, width),
            Write::Replace,
            parts.scale,
            dy,
            parts.b(part),
            Threads::All,
        );
        gemm(
            MatrixMut::new(&mut db[first * parts.outputs..], parts.outputs, parts.rank),
            Write::Replace,
            parts.scale,
            dy.transposed(),
            Matrix::strided(&u[first..], rows, parts.rank, width),
            Threads::All,
        );
    }
    let du = Matrix::new(du_data, rows, width);
    gemm(
        MatrixMut::new(da.typed_mut::<T>()?, width, inputs),
        Write::Replace,
        T::ONE,
        du.transposed(),
        Matrix::new(x.typed::<T>()?, rows, inputs),
        Threads::All,
    );
    Ok(())
}

/// Copies x and dy, and makes u and du for itself: no step of this backend's own takes its gradients in this form.
pub fn lora_gradients<T: Real, B: OnHost>(
    x: &Tensor,
    dy: &Tensor,
    LoraGradients { lora, da, db, .. }: &mut LoraGradients<'_, B>,
) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    let parts = Parts::<T>::of(*lora, inputs)?;
    let [mut u, mut du] = [(); 2].map(|()| Tensor::zeros([rows, parts.width()], T::DTYPE));
    narrow_product(x, &parts, u.typed_mut::<T>()?)?;
    gradients::<T, B>(dy, x, &u, *lora, &mut du, da, db)
}

pub fn lora_fold<T: Real, B: OnHost>(weight: &Padded, lora: Lora<'_, B>, folded: &mut Padded) -> Result<()> {
    expect_shape("lora_fold", "folded", weight.shape(), folded.shape())?;
    let parts = Parts::<T>::of(lora, lora.a.shape().columns())?;
    let stride = weight.values.shape().columns();
    let folded = folded.values.typed_mut::<T>()?;
    folded.copy_from_slice(weight.values.typed::<T>()?);
    parts.fold_into(folded, stride);
    Ok(())
}
