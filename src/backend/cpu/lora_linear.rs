//! Frozen linear layers, with and without a low-rank update beside them.

use super::Cpu;
use super::dropout::mask;
use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::real::{Real, vectorized};
use crate::backend::{Dropout, Linear, Lora, Result, expect_matrix, expect_shape};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Rows and columns of a tensor seen as a matrix.
fn matrix_shape(x: &Tensor) -> (usize, usize) {
    let columns = x.shape().columns();
    (x.elements() / columns.max(1), columns)
}

/// The weight of a layer as a matrix \[out, in\]; its rows may be padded.
fn weight_matrix<'a, T: Real>(
    op: &'static str,
    weight: &'a Tensor,
    outputs: usize,
    inputs: usize,
) -> Result<Matrix<'a, T>> {
    let stride = weight.shape().columns().max(inputs);
    expect_shape(op, "weight", [outputs, stride], weight.shape())?;
    Ok(Matrix::strided(weight.typed()?, outputs, inputs, stride))
}

pub fn linear<T: Real>(
    x: &Tensor,
    layer: &Linear<Cpu<T>>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    let outputs = y.shape().columns();
    let weight = weight_matrix("linear", &layer.weight, outputs, inputs)?;
    expect_matrix("linear", "y", rows, outputs, y.shape())?;
    let write = start_output(layer, residual, y)?;
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
fn start_output<T: Real>(layer: &Linear<Cpu<T>>, residual: Option<&Tensor>, y: &mut Tensor) -> Result<Write> {
    const ROWS: usize = 32;
    let columns = y.shape().columns();
    if let Some(residual) = residual {
        expect_shape("linear", "residual", y.shape(), residual.shape())?;
    }
    let bias = layer.bias.as_ref().map(|b| b.typed::<T>()).transpose()?;
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
                vectorized(|| {
                    for (y, r) in y.chunks_exact_mut(columns).zip(r.chunks_exact(columns)) {
                        for ((y, &r), &b) in y.iter_mut().zip(r).zip(bias) {
                            *y = r + b;
                        }
                    }
                })
            })
        }
    }
    Ok(Write::Add)
}

pub fn linear_backward<T: Real>(dy: &Tensor, layer: &Linear<Cpu<T>>, dx: &mut Tensor) -> Result<()> {
    let (rows, outputs) = matrix_shape(dy);
    let inputs = dx.shape().columns();
    let weight = weight_matrix("linear_backward", &layer.weight, outputs, inputs)?;
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
struct Parts<'a, T> {
    count: usize,
    rank: usize,
    inputs: usize,
    outputs: usize,
    a: &'a [T],
    b: &'a [T],
    columns: &'a [usize],
    scale: T,
}

impl<'a, T: Real> Parts<'a, T> {
    fn of(lora: Lora<'a, Cpu<T>>, inputs: usize) -> Result<Self> {
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
    fn width(&self) -> usize {
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
}

#[allow(clippy::too_many_arguments)]
pub fn lora_linear<T: Real>(
    x: &Tensor,
    seen: Option<&Tensor>,
    layer: &Linear<Cpu<T>>,
    lora: Lora<'_, Cpu<T>>,
    residual: Option<&Tensor>,
    u: &mut Tensor,
    y: &mut Tensor,
) -> Result<()> {
    linear(x, layer, residual, y)?;
    let (rows, inputs) = matrix_shape(x);
    let columns = y.shape().columns();
    let parts = Parts::of(lora, inputs)?;
    expect_matrix("lora_linear", "u", rows, parts.width(), u.shape())?;
    let x = seen.unwrap_or(x);
    expect_matrix("lora_linear", "seen", rows, inputs, x.shape())?;
    gemm(
        MatrixMut::new(u.typed_mut::<T>()?, rows, parts.width()),
        Write::Replace,
        T::ONE,
        Matrix::new(x.typed::<T>()?, rows, inputs),
        parts.a_all().transposed(),
        Threads::All,
    );
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

#[allow(clippy::too_many_arguments)]
pub fn lora_linear_backward<T: Real>(
    dy: &Tensor,
    x: &Tensor,
    dropout: Option<Dropout<'_, Cpu<T>>>,
    u: &Tensor,
    layer: &Linear<Cpu<T>>,
    lora: Lora<'_, Cpu<T>>,
    du: &mut Tensor,
    da: &mut Tensor,
    db: &mut Tensor,
    dx: Option<&mut Tensor>,
) -> Result<()> {
    let (rows, inputs) = matrix_shape(x);
    let columns = dy.shape().columns();
    let parts = Parts::of(lora, inputs)?;
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
    let Some(dx) = dx else { return Ok(()) };
    expect_matrix("lora_linear_backward", "dx", rows, inputs, dx.shape())?;
    let through_adapters =
        |to: MatrixMut<'_, T>, write| gemm(to, write, T::ONE, du, parts.a_all(), Threads::All);
    match dropout {
        None => {
            linear_backward(dy, layer, dx)?;
            through_adapters(MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Write::Add);
            Ok(())
        }
        Some(dropout) => {
            through_adapters(MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Write::Replace);
            mask(dx, dropout)?;
            let weight = weight_matrix("lora_linear_backward", &layer.weight, columns, inputs)?;
            let (dx, dy) =
                (MatrixMut::new(dx.typed_mut::<T>()?, rows, inputs), Matrix::new(dy_data, rows, columns));
            gemm(dx, Write::Add, T::ONE, dy, weight, Threads::All);
            Ok(())
        }
    }
}

pub fn lora_fold<T: Real>(weight: &Tensor, lora: Lora<'_, Cpu<T>>, folded: &mut Tensor) -> Result<()> {
    expect_shape("lora_fold", "folded", weight.shape(), folded.shape())?;
    let (inputs, stride) = (lora.a.shape().columns(), weight.shape().columns());
    let parts = Parts::of(lora, inputs)?;
    let folded = folded.typed_mut::<T>()?;
    folded.copy_from_slice(weight.typed::<T>()?);
    for (part, &row) in parts.columns.iter().enumerate() {
        gemm(
            MatrixMut::strided(&mut folded[row * stride..], parts.outputs, inputs, stride),
            Write::Add,
            parts.scale,
            parts.b(part),
            parts.a(part),
            Threads::All,
        );
    }
    Ok(())
}
