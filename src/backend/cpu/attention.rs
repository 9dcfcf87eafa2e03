//! Scaled dot-product attention. Images are the parallel unit; the probabilities are kept for the
//! backward pass (they are small beside the other activations).

use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::number::OnHost;
use super::real::{Real, max_of, sum_of, vectors};
use super::*;
use rayon::prelude::*;

type Extents = AttentionExtents;

impl Extents {
    /// Probabilities of one image.
    fn scores(&self) -> usize {
        self.heads * self.queries * self.keys
    }

    fn scale<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.head as f64).sqrt())
    }
}

/// Queries, keys and values of one image: where each begins and how far apart its rows are.
struct Image<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    q_stride: usize,
    kv_stride: usize,
}

impl<'a, T: Real> Image<'a, T> {
    fn of<B: OnHost>(input: &AttentionInput<'a, B>, e: Extents, image: usize) -> Result<Self> {
        let d = e.width;
        Ok(match input {
            AttentionInput::Packed(qkv) => {
                let rows = &qkv.typed::<T>()?[image * e.keys * 3 * d..];
                Image { q: rows, k: &rows[d..], v: &rows[2 * d..], q_stride: 3 * d, kv_stride: 3 * d }
            }
            AttentionInput::Split { q, kv } => {
                let q = &q.typed::<T>()?[image * e.queries * d..];
                let kv = &kv.typed::<T>()?[image * e.keys * 2 * d..];
                Image { q, k: kv, v: &kv[d..], q_stride: d, kv_stride: 2 * d }
            }
        })
    }

    fn q(&self, e: Extents, head: usize) -> Matrix<'a, T> {
        Matrix::strided(&self.q[head * e.head..], e.queries, e.head, self.q_stride)
    }

    fn k(&self, e: Extents, head: usize) -> Matrix<'a, T> {
        Matrix::strided(&self.k[head * e.head..], e.keys, e.head, self.kv_stride)
    }

    fn v(&self, e: Extents, head: usize) -> Matrix<'a, T> {
        Matrix::strided(&self.v[head * e.head..], e.keys, e.head, self.kv_stride)
    }
}

impl<T: Real> AttentionOp for Cpu<T> {
    fn attention_checked(
        device: Checked<'_, Self>,
        input: AttentionInput<'_, Self>,
        e: AttentionExtents,
        saved: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        match device.bf16 {
            None => attention::<T, Self>(input, e, saved, o),
            Some(isa) => bf16::attention::attention(isa, input, e, saved, o),
        }
    }

    fn attention_backward_checked(
        device: Checked<'_, Self>,
        args: AttentionBackward<'_, Self>,
        e: AttentionExtents,
    ) -> Result<()> {
        match device.bf16 {
            None => attention_backward::<T, Self>(args, e),
            Some(isa) => bf16::attention::attention_backward(isa, args, e),
        }
    }

    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Shape {
        match self.bf16 {
            None => [batch, heads, queries, keys].into(),
            Some(_) => [batch, heads, queries].into(),
        }
    }
}

fn attention<T: Real, B: OnHost>(
    input: AttentionInput<'_, B>,
    e: Extents,
    saved: &mut Tensor,
    o: &mut Tensor,
) -> Result<()> {
    o.typed_mut::<T>()?
        .par_chunks_mut(e.queries * e.width)
        .zip(saved.typed_mut::<T>()?.par_chunks_mut(e.scores()))
        .enumerate()
        .try_for_each(|(index, (o, probabilities))| {
            let image = Image::<T>::of(&input, e, index)?;
            for (head, p) in probabilities.chunks_exact_mut(e.queries * e.keys).enumerate() {
                gemm(
                    MatrixMut::new(p, e.queries, e.keys),
                    Write::Replace,
                    e.scale(),
                    image.q(e, head),
                    image.k(e, head).transposed(),
                    Threads::One,
                );
                softmax_rows(p, e);
                gemm(
                    MatrixMut::strided(&mut o[head * e.head..], e.queries, e.head, e.width),
                    Write::Replace,
                    T::ONE,
                    Matrix::new(p, e.queries, e.keys),
                    image.v(e, head),
                    Threads::One,
                );
            }
            Ok(())
        })
}

vectors! {
    /// Softmax of each row in place; with a causal mask, row i over its first i + 1 entries.
    fn softmax_rows[T: Real](scores: &mut [T], e: Extents) {
        for (i, row) in scores.chunks_exact_mut(e.keys).enumerate() {
            let seen = if e.causal { i + 1 } else { e.keys };
            let (row, masked) = row.split_at_mut(seen);
            masked.fill(T::ZERO);
            let max = max_of(row);
            for s in row.iter_mut() {
                *s = (*s - max).exp();
            }
            let inverse = T::ONE / sum_of(row, row, |v, _| v);
            for s in row.iter_mut() {
                *s = *s * inverse;
            }
        }
    }
}

vectors! {
    /// ds = p∘(ds − rowsum(p∘ds)).
    fn softmax_backward[T: Real](p: &[T], ds: &mut [T], keys: usize) {
        for (p, ds) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)) {
            let mean = sum_of(p, ds, |p, dp| p * dp);
            for (&p, ds) in p.iter().zip(ds) {
                *ds = p * (*ds - mean);
            }
        }
    }
}

/// Gradients of one image's queries, keys and values, laid out as [`Image`].
struct ImageGradient<'a, T> {
    /// Queries, and in the packed form keys and values too.
    q: &'a mut [T],
    kv: Option<&'a mut [T]>,
}

impl<T: Real> ImageGradient<'_, T> {
    fn q(&mut self, e: Extents, head: usize) -> MatrixMut<'_, T> {
        let stride = if self.kv.is_some() { e.width } else { 3 * e.width };
        MatrixMut::strided(&mut self.q[head * e.head..], e.queries, e.head, stride)
    }

    fn k(&mut self, e: Extents, head: usize) -> MatrixMut<'_, T> {
        self.key_or_value(e, 0, head)
    }

    fn v(&mut self, e: Extents, head: usize) -> MatrixMut<'_, T> {
        self.key_or_value(e, 1, head)
    }

    fn key_or_value(&mut self, e: Extents, which: usize, head: usize) -> MatrixMut<'_, T> {
        let column = which * e.width + head * e.head;
        match &mut self.kv {
            Some(kv) => MatrixMut::strided(&mut kv[column..], e.keys, e.head, 2 * e.width),
            None => MatrixMut::strided(&mut self.q[e.width + column..], e.keys, e.head, 3 * e.width),
        }
    }
}

fn attention_backward<T: Real, B: OnHost>(args: AttentionBackward<'_, B>, e: Extents) -> Result<()> {
    let AttentionBackward { d_o, input, saved, scratch, gradient, .. } = args;
    let d_o = d_o.typed::<T>()?.par_chunks(e.queries * e.width);
    let work = d_o
        .zip(saved.typed::<T>()?.par_chunks(e.scores()))
        .zip(scratch.typed_mut::<T>()?.par_chunks_mut(e.scores()));
    match gradient {
        AttentionGradient::Packed(dqkv) => {
            let gradients = dqkv.typed_mut::<T>()?.par_chunks_mut(e.keys * 3 * e.width);
            work.zip(gradients).enumerate().try_for_each(|(index, (((d_o, p), ds), dqkv))| {
                let image = Image::<T>::of(&input, e, index)?;
                image_backward(e, &image, d_o, p, ds, ImageGradient { q: dqkv, kv: None });
                Ok(())
            })
        }
        AttentionGradient::Split { dq, dkv } => {
            let dq = dq.typed_mut::<T>()?.par_chunks_mut(e.queries * e.width);
            let dkv = dkv.typed_mut::<T>()?.par_chunks_mut(e.keys * 2 * e.width);
            work.zip(dq).zip(dkv).enumerate().try_for_each(|(index, ((((d_o, p), ds), dq), dkv))| {
                let image = Image::<T>::of(&input, e, index)?;
                image_backward(e, &image, d_o, p, ds, ImageGradient { q: dq, kv: Some(dkv) });
                Ok(())
            })
        }
    }
}

fn image_backward<T: Real>(
    e: Extents,
    image: &Image<'_, T>,
    d_o: &[T],
    probabilities: &[T],
    scratch: &mut [T],
    mut gradient: ImageGradient<'_, T>,
) {
    let size = e.queries * e.keys;
    for head in 0..e.heads {
        let p = &probabilities[head * size..][..size];
        let ds = &mut scratch[head * size..][..size];
        let d_o = Matrix::strided(&d_o[head * e.head..], e.queries, e.head, e.width);
        let one = T::ONE;
        let p_matrix = Matrix::new(p, e.queries, e.keys);
        gemm(gradient.v(e, head), Write::Replace, one, p_matrix.transposed(), d_o, Threads::One);
        let v = image.v(e, head).transposed();
        gemm(MatrixMut::new(ds, e.queries, e.keys), Write::Replace, one, d_o, v, Threads::One);
        softmax_backward(p, ds, e.keys);
        let ds = Matrix::new(ds, e.queries, e.keys);
        gemm(gradient.q(e, head), Write::Replace, e.scale(), ds, image.k(e, head), Threads::One);
        let q = image.q(e, head);
        gemm(gradient.k(e, head), Write::Replace, e.scale(), ds.transposed(), q, Threads::One);
    }
}
