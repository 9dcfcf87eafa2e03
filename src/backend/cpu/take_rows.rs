//! Picking single rows out of sequences.

use super::number::Number;
use super::real::Real;
use super::*;

/// The row to take of each sequence of `length`.
fn checked<'a>(op: &'static str, length: usize, rows: &'a Tensor) -> Result<&'a [u32]> {
    let rows = rows.typed::<u32>()?;
    match rows.iter().find(|&&row| row as usize >= length) {
        Some(row) => {
            Err(BackendError::Invalid { op, problem: format!("row {row} of a sequence of {length}") })
        }
        None => Ok(rows),
    }
}

impl<T: Real> TakeRowsOp for Cpu<T> {
    fn take_rows_checked(device: Checked<'_, Self>, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        in_type!(device, take_rows<>(x, rows, y))
    }

    fn take_rows_backward_checked(
        device: Checked<'_, Self>,
        dy: &Tensor,
        rows: &Tensor,
        dx: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, take_rows_backward<>(dy, rows, dx))
    }
}

fn take_rows<T: Number>(x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
    let (s, d) = (x.shape().dims()[1], x.shape().columns());
    let rows = checked("take_rows", s, rows)?;
    let x = x.typed::<T>()?.chunks_exact(s * d);
    for ((y, x), &row) in y.typed_mut::<T>()?.chunks_exact_mut(d).zip(x).zip(rows) {
        y.copy_from_slice(&x[row as usize * d..][..d]);
    }
    Ok(())
}

fn take_rows_backward<T: Number>(dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (s, d) = (dx.shape().dims()[1], dx.shape().columns());
    let rows = checked("take_rows_backward", s, rows)?;
    let dx = dx.typed_mut::<T>()?.chunks_exact_mut(s * d);
    for ((dx, dy), &row) in dx.zip(dy.typed::<T>()?.chunks_exact(d)).zip(rows) {
        for (dx, &dy) in dx[row as usize * d..][..d].iter_mut().zip(dy) {
            *dx = T::narrow(dx.widen() + dy.widen());
        }
    }
    Ok(())
}
