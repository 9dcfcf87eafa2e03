//! The minimal tensor layer: a shape, an element type and memory, owned or borrowed. No autograd.
//!
//! Tensors are dense and row-major. [`Tensor`] owns 64-byte aligned memory; [`View`] borrows bytes that
//! live elsewhere, such as a memory-mapped weight file, at any alignment.

mod dtype;
mod shape;
mod source;

pub use dtype::{DType, Element};
pub use shape::{Shape, ShapeError};
pub use source::{Rows, Source};

use bytemuck::{Pod, Zeroable};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use thiserror::Error;

/// Why a tensor cannot be used as asked: its shape, its length or its element type.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TensorError {
    /// The memory holds another element type than the caller asked for.
    #[error("expected a {expected} tensor, found {found}")]
    DType { expected: DType, found: DType },
    /// The number of bytes does not fit the shape.
    #[error("shape {shape} of {dtype} takes {expected} bytes, found {found}")]
    Length { shape: Shape, dtype: DType, expected: usize, found: usize },
    #[error("{what}: expected shape {}, found {}", shapes[0], shapes[1])]
    Shape {
        what: &'static str,
        /// Expected shape, then found shape; boxed to keep results small.
        shapes: Box<[Shape; 2]>,
    },
    #[error("cannot convert {from} to {to}")]
    Convert { from: DType, to: DType },
}

impl TensorError {
    /// Two shapes that must agree and do not.
    pub fn shape(what: &'static str, expected: Shape, found: Shape) -> Self {
        TensorError::Shape { what, shapes: Box::new([expected, found]) }
    }
}

/// One cache line; the unit of allocation, so that every tensor starts on a 64-byte boundary.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A dense row-major tensor that owns its memory.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    memory: Vec<Line>,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let lines = (shape.elements() * dtype.size()).div_ceil(64);
        Tensor { shape, dtype, memory: vec![Line([0; 64]); lines] }
    }

    /// A tensor that copies `values`; their number must be that of `shape`.
    pub fn from_slice<T: Element>(shape: impl Into<Shape>, values: &[T]) -> Result<Self, TensorError> {
        let view = View::new(shape.into(), T::DTYPE, bytemuck::cast_slice(values))?;
        let mut tensor = Tensor::zeros(view.shape, view.dtype);
        tensor.bytes_mut().copy_from_slice(view.bytes);
        Ok(tensor)
    }

    /// The extents at present; [`Tensor::set_shape`] changes them.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of the elements, which never changes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Shrinks or grows the leading dimension within the memory allocated at the start, so that a
    /// last, smaller batch runs in the same buffers. Contents of kept rows stay.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), TensorError> {
        self.set_shape(self.shape.with_rows(rows))
    }

    /// Takes another shape within the memory allocated at the start.
    pub fn set_shape(&mut self, shape: impl Into<Shape>) -> Result<(), TensorError> {
        let shape = shape.into();
        let (expected, found) = (shape.elements() * self.dtype.size(), self.memory.len() * 64);
        if expected > found {
            return Err(TensorError::Length { shape, dtype: self.dtype, expected, found });
        }
        self.shape = shape;
        Ok(())
    }

    /// Gives the elements another shape of the same size.
    pub fn reshape(mut self, shape: impl Into<Shape>) -> Result<Self, TensorError> {
        let shape = shape.into();
        if shape.elements() != self.shape.elements() {
            return Err(TensorError::shape("reshape", self.shape, shape));
        }
        self.shape = shape;
        Ok(self)
    }

    /// The elements as they lie in memory: row-major, in the machine's byte order, from a 64-byte boundary
    /// on.
    pub fn bytes(&self) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory);
        &bytes[..self.shape.elements() * self.dtype.size()]
    }

    /// The bytes of [`Tensor::bytes`], for writing. Any bytes are elements of some value.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let used = self.shape.elements() * self.dtype.size();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        &mut bytes[..used]
    }

    /// The elements, row-major; an error when they are of another type.
    pub fn typed<T: Element>(&self) -> Result<&[T], TensorError> {
        self.expect_dtype(T::DTYPE)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements for writing; an error when they are of another type.
    pub fn typed_mut<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        self.expect_dtype(T::DTYPE)?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// A borrowed view of the whole tensor.
    pub fn view(&self) -> View<'_> {
        View { shape: self.shape, dtype: self.dtype, bytes: self.bytes() }
    }

    fn expect_dtype(&self, expected: DType) -> Result<(), TensorError> {
        if self.dtype == expected { Ok(()) } else { Err(TensorError::DType { expected, found: self.dtype }) }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}

/// A dense row-major tensor in borrowed memory, of any alignment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    shape: Shape,
    dtype: DType,
    bytes: &'a [u8],
}

/// Bytes that are looked through at a time.
const SCANNED: usize = 1 << 18;

/// How many elements of `N` bytes are of a kind.
fn count<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> u32 {
    bytes.as_chunks::<N>().0.iter().map(|&element| u32::from(is(element))).sum()
}

impl<'a> View<'a> {
    /// Wraps `bytes`; their number must be that of `shape`.
    pub fn new(shape: impl Into<Shape>, dtype: DType, bytes: &'a [u8]) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = shape.elements() * dtype.size();
        if bytes.len() != expected {
            return Err(TensorError::Length { shape, dtype, expected, found: bytes.len() });
        }
        Ok(View { shape, dtype, bytes })
    }

    /// The first element that is NaN or infinite, and its value; none of whole numbers.
    pub fn first_not_finite(&self) -> Option<(usize, f64)> {
        // Exponents of ones alone. Sums, as a search that may end anywhere is not done several at a time.
        let any = |part: &[u8]| match self.dtype {
            DType::F64 => count(part, |v: [u8; 8]| u64::from_ne_bytes(v) << 1 >= 0x7ff << 53),
            DType::F32 => count(part, |v: [u8; 4]| u32::from_ne_bytes(v) << 1 >= 0xff << 24),
            DType::F16 => count(part, |v: [u8; 2]| u16::from_ne_bytes(v) << 1 >= 0x1f << 11),
            DType::BF16 => count(part, |v: [u8; 2]| u16::from_ne_bytes(v) << 1 >= 0xff << 8),
            DType::U32 | DType::U8 => 0,
        };
        let part = self.bytes.par_chunks(SCANNED).position_first(|part| any(part) > 0)?;
        let (size, first) = (self.dtype.size(), part * SCANNED);
        let end = self.bytes.len().min(first + SCANNED);
        let place = (first..end).step_by(size).find(|&at| any(&self.bytes[at..at + size]) > 0)?;
        let one = View { shape: [1].into(), dtype: self.dtype, bytes: &self.bytes[place..place + size] };
        let value = one.to_tensor(DType::F64).ok()?.typed::<f64>().ok()?[0];
        Some((place / size, value))
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements as they lie in memory: row-major, in the machine's byte order.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Rows `start..start + rows` of the leading dimension.
    pub fn rows(&self, start: usize, rows: usize) -> Result<View<'a>, TensorError> {
        let shape = self.shape.with_rows(rows);
        let row = self.shape.row_elements() * self.dtype.size();
        let (from, to) = (start * row, (start + rows) * row);
        let bytes = self.bytes.get(from..to).ok_or(TensorError::Length {
            shape,
            dtype: self.dtype,
            expected: to,
            found: self.bytes.len(),
        })?;
        View::new(shape, self.dtype, bytes)
    }

    /// An owned copy with the elements converted to `dtype`. Floats convert among each other, rounding
    /// to nearest even; the integer types only to themselves.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor, TensorError> {
        let mut out = Tensor::zeros(self.shape, dtype);
        self.convert_into(&mut out)?;
        Ok(out)
    }

    /// Writes the elements into `out`, which has the same shape, converting as [`View::to_tensor`] does.
    pub fn convert_into(&self, out: &mut Tensor) -> Result<(), TensorError> {
        if out.shape != self.shape {
            return Err(TensorError::shape("copy", out.shape, self.shape));
        }
        let bytes = self.bytes;
        match (self.dtype, out.dtype) {
            (a, b) if a == b => out.bytes_mut().copy_from_slice(bytes),
            (DType::F16, DType::F32) => {
                widen::<f16>(bytes, out.typed_mut()?, |from, to| from.convert_to_f32_slice(to))
            }
            (DType::BF16, DType::F32) => {
                widen::<bf16>(bytes, out.typed_mut()?, |from, to| from.convert_to_f32_slice(to))
            }
            (DType::F16, DType::F64) => each(bytes, out.typed_mut()?, f16::to_f64),
            (DType::BF16, DType::F64) => each(bytes, out.typed_mut()?, bf16::to_f64),
            (DType::F32, DType::F64) => each(bytes, out.typed_mut()?, |v: f32| f64::from(v)),
            (DType::F64, DType::F32) => each(bytes, out.typed_mut()?, |v: f64| v as f32),
            (DType::F32, DType::F16) => each(bytes, out.typed_mut()?, f16::from_f32),
            (DType::F32, DType::BF16) => each(bytes, out.typed_mut()?, bf16::from_f32),
            (DType::F64, DType::F16) => each(bytes, out.typed_mut()?, f16::from_f64),
            (DType::F64, DType::BF16) => each(bytes, out.typed_mut()?, bf16::from_f64),
            (DType::F16, DType::BF16) => each(bytes, out.typed_mut()?, |v: f16| bf16::from_f32(v.to_f32())),
            (DType::BF16, DType::F16) => each(bytes, out.typed_mut()?, |v: bf16| f16::from_f32(v.to_f32())),
            (from, to) => return Err(TensorError::Convert { from, to }),
        }
        Ok(())
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} {})", self.dtype, self.shape)
    }
}

/// Converts element by element; reads without assuming alignment.
fn each<A: Pod, B: Pod>(bytes: &[u8], out: &mut [B], convert: impl Fn(A) -> B) {
    for (chunk, value) in bytes.chunks_exact(size_of::<A>()).zip(out) {
        *value = convert(bytemuck::pod_read_unaligned(chunk));
    }
}

/// Converts a half-precision slice to f32 with the processor's own instructions where it has them;
/// misaligned input goes through a small aligned buffer.
fn widen<H: Element>(bytes: &[u8], out: &mut [f32], convert: impl Fn(&[H], &mut [f32])) {
    if let Ok(values) = bytemuck::try_cast_slice(bytes) {
        convert(values, out);
        return;
    }
    let mut buffer = [H::zeroed(); 256];
    for (bytes, out) in bytes.chunks(256 * size_of::<H>()).zip(out.chunks_mut(256)) {
        let buffer = &mut buffer[..out.len()];
        bytemuck::cast_slice_mut::<H, u8>(buffer).copy_from_slice(bytes);
        convert(buffer, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_found_wherever_it_is() {
        let many = 3 * SCANNED / 4 + 7;
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let mut values: Vec<f64> = (0..many).map(|i| (i % 100) as f64 - 50.0).collect();
            values[5] = -60_000.0;
            values[6] = 1e-40;
            let found = |values: &[f64]| {
                let tensor = Tensor::from_slice([values.len()], values).unwrap();
                tensor.view().to_tensor(dtype).unwrap().view().first_not_finite()
            };
            assert_eq!(found(&values), None, "{dtype}");
            values[many - 1] = f64::NEG_INFINITY;
            assert_eq!(found(&values), Some((many - 1, f64::NEG_INFINITY)), "{dtype}");
            values[many / 2] = f64::NAN;
            let (index, value) = found(&values).unwrap();
            assert!(index == many / 2 && value.is_nan(), "{dtype}: {value} at {index}");
        }
        let whole = Tensor::from_slice([3], &[u32::MAX; 3]).unwrap();
        assert_eq!(whole.view().first_not_finite(), None);
    }

    #[test]
    fn conversions_round_and_widen_exactly() {
        let values = [0.0f32, -1.5, 65504.0, 1.0009766, 2.7172354, -0.0];
        let tensor = Tensor::from_slice([2, 3], &values).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let narrow = tensor.view().to_tensor(dtype).unwrap();
            let wide = narrow.view().to_tensor(DType::F32).unwrap();
            let exact = narrow.view().to_tensor(DType::F64).unwrap();
            for ((&a, &b), &v) in
                wide.typed::<f32>().unwrap().iter().zip(exact.typed::<f64>().unwrap()).zip(&values)
            {
                assert_eq!(f64::from(a), b);
                let bound = if dtype == DType::F16 { 1.0 / 2048.0 } else { 1.0 / 256.0 };
                assert!((a - v).abs() <= v.abs() * bound, "{dtype}: {v} became {a}");
            }
        }
    }

    #[test]
    fn unaligned_half_precision_reads_equal_aligned_ones() {
        let values: Vec<f16> = (0..1000).map(|i| f16::from_f32(i as f32 * 0.37 - 90.0)).collect();
        let mut bytes = vec![0u8];
        bytes.extend_from_slice(bytemuck::cast_slice(&values));
        let odd = View::new([1000], DType::F16, &bytes[1..]).unwrap().to_tensor(DType::F32).unwrap();
        let even = Tensor::from_slice([1000], &values).unwrap().view().to_tensor(DType::F32).unwrap();
        assert_eq!(odd.typed::<f32>().unwrap(), even.typed::<f32>().unwrap());
    }

    #[test]
    fn rows_move_within_the_allocation_only() {
        let mut tensor = Tensor::from_slice([4, 32], &[1.0f32; 128]).unwrap();
        tensor.set_rows(2).unwrap();
        assert_eq!(tensor.typed::<f32>().unwrap().len(), 64);
        tensor.set_rows(4).unwrap();
        assert!(matches!(tensor.set_rows(5), Err(TensorError::Length { .. })));
        assert!(tensor.view().rows(3, 2).is_err());
        assert_eq!(tensor.view().rows(1, 2).unwrap().shape(), Shape::from([2, 32]));
    }

    #[test]
    fn wrong_types_and_sizes_are_errors() {
        let tensor = Tensor::zeros([3], DType::U8);
        assert!(tensor.typed::<f32>().is_err());
        assert!(tensor.view().to_tensor(DType::F32).is_err());
        assert!(View::new([2, 2], DType::F32, &[0; 15]).is_err());
        assert!(tensor.reshape([2, 2]).is_err());
    }
}
