//! Frozen linear layers with low-rank updates.

use super::dropout::mask;
use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::linear::{Padded, by_layout, linear, linear_backward};
use super::number::OnHost;
use super::real::Real;
use super::*;

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
    pub fn of<B: OnHost>(lora: Lora<'a, B>) -> Result<Self> {
        let count = lora.columns.len();
        let shape = lora.b.shape();
        let (outputs, rank) = (shape.row_elements() / shape.columns(), shape.columns());
        Ok(Parts {
            count,
            rank,
            inputs: lora.a.shape().columns(),
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

impl<T: Real> LoraLinearOp for Cpu<T> {
    fn lora_linear_checked(device: Checked<'_, Self>, args: LoraLinear<'_, Self>) -> Result<()> {
        by_layout!(device, args.layer, "lora_linear",
            weight => lora_linear::<T, Self>(weight, args),
            isa => packed::linear::lora_linear(isa, weight, args))
    }

    fn lora_linear_backward_checked(
        device: Checked<'_, Self>,
        args: LoraLinearBackward<'_, Self>,
    ) -> Result<()> {
        by_layout!(device, args.layer, "lora_linear_backward",
            weight => lora_linear_backward::<T, Self>(weight, args),
            isa => packed::linear::lora_linear_backward(isa, weight, args))
    }
}

fn lora_linear<T: Real, B: OnHost>(weight: &Padded, args: LoraLinear<'_, B>) -> Result<()> {
    let LoraLinear { x, seen, layer, lora, residual, u, y } = args;
    let bias = layer.bias.as_ref();
    linear::<T>(x, weight, bias, residual, y)?;
    let (rows, _) = x.shape().matrix();
    let columns = y.shape().columns();
    let parts = Parts::<T>::of(lora)?;
    let x = seen.unwrap_or(x);
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
pub fn narrow_product<T: Real>(x: &Tensor, parts: &Parts<'_, T>, u: &mut [T]) -> Result<()> {
    let (rows, inputs) = x.shape().matrix();
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

fn lora_linear_backward<T: Real, B: OnHost>(weight: &Padded, args: LoraLinearBackward<'_, B>) -> Result<()> {
    let LoraLinearBackward { dy, x, dropout, u, lora, du, da, db, dx, .. } = args;
    let (rows, inputs) = x.shape().matrix();
    let columns = dy.shape().columns();
    let parts = Parts::<T>::of(lora)?;
    let width = parts.width();
    gradients::<T, B>(dy, x, u, lora, du, da, db)?;
    let (dy_data, du) = (dy.typed::<T>()?, Matrix::new(du.typed::<T>()?, rows, width));
    let Some(dx) = dx else { return Ok(()) };
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
pub fn gradients<T: Real, B: OnHost>(
    dy: &Tensor,
    x: &Tensor,
    u: &Tensor,
    lora: Lora<'_, B>,
    du: &mut Tensor,
    da: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    let (rows, inputs) = x.shape().matrix();
    let columns = dy.shape().columns();
    let parts = Parts::<T>::of(lora)?;
    let width = parts.width();
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
