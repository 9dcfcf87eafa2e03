//! The matrix products that cuBLASLt does on a GPU: the CPU backend's, in f32, rounded once; or sums as a device
//! forms them.

use super::Rounding;
use super::library::Machine;
use super::memory::Memory;
use crate::backend::cpu::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::{Address, Gemm, Result};
use crate::tensor::DType;
use half::{bf16, f16};

/// Bytes from the first element of the first row to the last of the last.
fn extent(rows: usize, columns: usize, stride: usize, dtype: DType) -> usize {
    if rows == 0 { 0 } else { ((rows - 1) * stride + columns) * dtype.size() }
}

/// Rows, columns and stride of w as it is stored.
fn stored(p: &Gemm) -> (usize, usize, usize) {
    if p.transposed { (p.n, p.k, p.w_stride) } else { (p.k, p.n, p.w_stride) }
}

/// Checks that all matrices lie in allocated memory.
pub fn check(memory: &Memory, p: &Gemm) -> Result<()> {
    if !matches!(p.dtype, DType::F16 | DType::BF16 | DType::F32) {
        return Err(CudaError::Twin(format!("a product in {}", p.dtype)));
    }
    if p.m == 0 || p.n == 0 || p.k == 0 {
        return Err(CudaError::Twin(format!("a product of m {}, n {}, k {}", p.m, p.n, p.k)));
    }
    let (rows, columns, stride) = stored(p);
    let matrix = |what: &str, at: Address, rows: usize, columns: usize, stride: usize| {
        if stride < columns {
            return Err(CudaError::Twin(format!("{what}: rows of {columns} only {stride} elements apart")));
        }
        if !at.0.is_multiple_of(p.dtype.size() as u64) {
            return Err(CudaError::Twin(format!("{what}: {:#x} is not aligned to {}", at.0, p.dtype)));
        }
        memory.check(at, extent(rows, columns, stride, p.dtype), what)
    };
    matrix("product's x", p.x, p.m, p.k, p.x_stride)?;
    matrix("product's w", p.w, rows, columns, stride)?;
    matrix("product's y", p.y, p.m, p.n, p.y_stride)?;
    if let Some(bias) = p.bias {
        matrix("product's bias", bias, 1, p.n, p.n)?;
    }
    if let Some(add) = p.add {
        matrix("product's add", add, p.m, p.n, p.y_stride)?;
    }
    Ok(())
}

/// Inputs are gathered before the output is written, so `add` may be `y`.
pub fn run(memory: &mut Memory, p: &Gemm, rounding: Rounding, machine: &Machine) -> Result<()> {
    let x = gather(memory, p.x, p.m, p.k, p.x_stride, p.dtype)?;
    let (rows, columns, stride) = stored(p);
    let w = gather(memory, p.w, rows, columns, stride, p.dtype)?;
    let mut y = match p.add {
        Some(add) => gather(memory, add, p.m, p.n, p.y_stride, p.dtype)?,
        None => vec![0.0; p.m * p.n],
    };
    if let Some(bias) = p.bias {
        let bias = gather(memory, bias, 1, p.n, p.n, p.dtype)?;
        for row in y.chunks_exact_mut(p.n) {
            row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
        }
    }
    if rounding == Rounding::EachOperation {
        let w = Matrix::new(&w, rows, columns);
        let w = if p.transposed { w.transposed() } else { w };
        gemm(
            MatrixMut::new(&mut y, p.m, p.n),
            if p.add.is_some() || p.bias.is_some() { Write::Add } else { Write::Replace },
            1.0f32,
            Matrix::new(&x, p.m, p.k),
            w,
            Threads::All,
        );
    } else {
        add_as_a_device(&mut y, &x, &w, p, machine);
    }
    scatter(memory, &y, p)
}

/// See [`Rounding::Device`].
fn add_as_a_device(y: &mut [f32], x: &[f32], w: &[f32], p: &Gemm, machine: &Machine) {
    let column = |j: usize| match p.transposed {
        true => w[j * p.k..][..p.k].to_vec(),
        false => w.iter().skip(j).step_by(p.n).copied().collect(),
    };
    for j in 0..p.n {
        let column: Vec<f32> = column(j);
        for (i, row) in x.chunks_exact(p.k).enumerate() {
            y[i * p.n + j] += match p.dtype {
                DType::F32 => row.iter().zip(&column).rev().fold(0.0, |sum, (a, b)| a.mul_add(*b, sum)),
                _ => machine.tensor_core_dot(row, &column),
            };
        }
    }
}

/// A dense copy in f32.
fn gather(
    memory: &Memory,
    at: Address,
    rows: usize,
    columns: usize,
    stride: usize,
    dtype: DType,
) -> Result<Vec<f32>> {
    let bytes = memory.bytes(at, extent(rows, columns, stride, dtype), "product")?;
    let size = dtype.size();
    let mut dense = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let row = &bytes[row * stride * size..][..columns * size];
        match dtype {
            DType::F16 => {
                dense.extend(row.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()))
            }
            DType::BF16 => {
                dense.extend(row.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()))
            }
            _ => dense.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
    }
    Ok(dense)
}

fn scatter(memory: &mut Memory, dense: &[f32], p: &Gemm) -> Result<()> {
    let size = p.dtype.size();
    let bytes = memory.bytes_mut(p.y, extent(p.m, p.n, p.y_stride, p.dtype), "product")?;
    for (i, values) in dense.chunks_exact(p.n).enumerate() {
        let row = &mut bytes[i * p.y_stride * size..][..p.n * size];
        for (to, &value) in row.chunks_exact_mut(size).zip(values) {
            match p.dtype {
                DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                DType::BF16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                _ => to.copy_from_slice(&value.to_le_bytes()),
            }
        }
    }
    Ok(())
}
