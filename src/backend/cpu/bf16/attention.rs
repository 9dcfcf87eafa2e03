//! Scaled dot-product attention in bf16: scores and softmax in f32, probabilities rounded for the product with v.
//!
//! Of the probabilities the logarithm of each row's sum is kept, and the backward pass makes them again.

use super::block::{Block, Rows, SIDE, Term, Unit};
use super::isa::Isa;
use super::panels::Panels;
use super::product::Target;
use super::round;
use crate::backend::cpu::number::OnHost;
use crate::backend::cpu::real::{Real, max_of, sum_of, vectorized};
use crate::backend::{
    AttentionExtents, AttentionGradient, AttentionInput, AttentionShape, BackendError, Result, expect_shape,
};
use crate::tensor::{Shape, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;

/// One number for each query of each head: log Σ exp of its scores.
pub fn saved(batch: usize, heads: usize, queries: usize) -> Shape {
    [batch, heads, queries].into()
}

/// A head's rows in a slice, `stride` elements apart.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [bf16],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Head<'a> {
    fn row(&self, row: usize) -> &'a [bf16] {
        &self.data[row * self.stride..][..self.width]
    }

    /// The rows as a second factor whose columns they are.
    fn as_columns(&self, panels: &mut Panels) {
        panels.reset(self.width, self.rows);
        panels.pack_transposed(self.data, self.stride);
    }

    /// The rows as a second factor whose rows they are.
    fn as_rows(&self, panels: &mut Panels) {
        panels.reset(self.rows, self.width);
        panels.pack(self.data, self.stride);
    }
}

/// Queries, keys and values of an image, of which a head is a few columns.
struct Image<'a> {
    e: AttentionExtents,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    q_stride: usize,
    kv_stride: usize,
}

impl<'a> Image<'a> {
    fn of<B: OnHost>(input: &AttentionInput<'a, B>, e: AttentionExtents, image: usize) -> Result<Self> {
        let d = e.width;
        Ok(match input {
            AttentionInput::Packed(qkv) => {
                let rows = &qkv.typed::<bf16>()?[image * e.keys * 3 * d..];
                Image { e, q: rows, k: &rows[d..], v: &rows[2 * d..], q_stride: 3 * d, kv_stride: 3 * d }
            }
            AttentionInput::Split { q, kv } => {
                let q = &q.typed::<bf16>()?[image * e.queries * d..];
                let kv = &kv.typed::<bf16>()?[image * e.keys * 2 * d..];
                Image { e, q, k: kv, v: &kv[d..], q_stride: d, kv_stride: 2 * d }
            }
        })
    }

    fn q(&self, head: usize) -> Head<'a> {
        self.head(self.q, head, self.e.queries, self.q_stride)
    }

    fn k(&self, head: usize) -> Head<'a> {
        self.head(self.k, head, self.e.keys, self.kv_stride)
    }

    fn v(&self, head: usize) -> Head<'a> {
        self.head(self.v, head, self.e.keys, self.kv_stride)
    }

    fn head(&self, data: &'a [bf16], head: usize, rows: usize, stride: usize) -> Head<'a> {
        Head { data: &data[head * self.e.head..], rows, width: self.e.head, stride }
    }
}

/// A first factor of whole strips, with zeros behind its rows and columns.
#[derive(Default)]
struct Strips {
    data: Vec<bf16>,
    stride: usize,
}

impl Strips {
    fn reset(&mut self, rows: usize, columns: usize) {
        self.stride = columns.next_multiple_of(SIDE);
        self.data.clear();
        self.data.resize(rows.next_multiple_of(SIDE) * self.stride, bf16::ZERO);
    }

    fn copy(&mut self, head: Head<'_>) {
        self.reset(head.rows, head.width);
        for (row, to) in self.data.chunks_exact_mut(self.stride).take(head.rows).enumerate() {
            to[..head.width].copy_from_slice(head.row(row));
        }
    }

    fn strip(&self, index: usize) -> Rows<'_> {
        Rows { data: &self.data[index * SIDE * self.stride..], stride: self.stride }
    }
}

/// Memory of a thread for one head.
#[derive(Default)]
struct Memory {
    rows: Strips,
    other: Strips,
    probabilities: Strips,
    gradients: Strips,
    turned: Strips,
    first: Panels,
    second: Panels,
    third: Panels,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    sums: Vec<f32>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// A strip of rows by all panels, times `scale`, as rows of f32, `panels` · 32 wide.
fn strip_of_scores(unit: &Unit, rows: Rows<'_>, panels: &Panels, scale: f32, scores: &mut Vec<f32>) {
    let stride = panels.count() * SIDE;
    scores.resize(SIDE * stride, 0.0);
    let mut block = Block::ZERO;
    for panel in 0..panels.count() {
        unit.multiply(&[Term { rows, steps: panels.panel(panel) }], &mut block);
        for (row, to) in scores.chunks_exact_mut(stride).enumerate() {
            let to = &mut to[panel * SIDE..][..SIDE];
            to.iter_mut().zip(block.row(row, SIDE)).for_each(|(to, &sum)| *to = scale * sum);
        }
    }
}

/// The first `rows` rows of strips by panels, rounded, to the columns of a head.
fn multiply_to(
    unit: &Unit,
    strips: &Strips,
    panels: &Panels,
    rows: usize,
    scale: f32,
    mut to: impl FnMut(usize, usize, &[f32], f32),
) {
    let mut block = Block::ZERO;
    for strip in 0..rows.div_ceil(SIDE) {
        for panel in 0..panels.count() {
            unit.multiply(&[Term { rows: strips.strip(strip), steps: panels.panel(panel) }], &mut block);
            let width = SIDE.min(panels.columns() - panel * SIDE);
            for row in 0..SIDE.min(rows - strip * SIDE) {
                to(strip * SIDE + row, panel * SIDE, block.row(row, width), scale);
            }
        }
    }
}

/// Rounds a row of sums into a row of some head.
#[inline(always)]
fn round_into(to: &mut [bf16], sums: &[f32], scale: f32) {
    to.iter_mut().zip(sums).for_each(|(to, &sum)| *to = round(scale * sum));
}

fn scale_of(e: AttentionExtents) -> f32 {
    (1.0 / (e.head as f64).sqrt()) as f32
}

pub fn attention<B: OnHost>(
    isa: Isa,
    input: AttentionInput<'_, B>,
    shape: AttentionShape,
    saved: &mut Tensor,
    o: &mut Tensor,
) -> Result<()> {
    let e = AttentionExtents::of("attention", &input, shape)?;
    expect_shape("attention", "saved", [e.batch, e.heads, e.queries], saved.shape())?;
    expect_shape("attention", "o", [e.batch, e.queries, e.width], o.shape())?;
    o.typed_mut::<bf16>()?
        .par_chunks_mut(e.queries * e.width)
        .zip(saved.typed_mut::<f32>()?.par_chunks_mut(e.heads * e.queries))
        .enumerate()
        .try_for_each(|(index, (o, saved))| {
            let image = Image::of(&input, e, index)?;
            MEMORY.with_borrow_mut(|memory| {
                let unit = Unit::new(isa);
                for (head, saved) in saved.chunks_exact_mut(e.queries).enumerate() {
                    head_forward(&unit, &image, head, saved, o, memory);
                }
            });
            Ok(())
        })
}

fn head_forward(unit: &Unit, image: &Image<'_>, head: usize, saved: &mut [f32], o: &mut [bf16], m: &mut Memory) {
    let e = image.e;
    m.rows.copy(image.q(head));
    image.k(head).as_columns(&mut m.first);
    image.v(head).as_rows(&mut m.second);
    m.probabilities.reset(e.queries, e.keys);
    let stride = m.probabilities.stride;
    for (strip, saved) in saved.chunks_mut(SIDE).enumerate() {
        strip_of_scores(unit, m.rows.strip(strip), &m.first, scale_of(e), &mut m.scores);
        let rows = m.probabilities.data[strip * SIDE * stride..].chunks_exact_mut(stride);
        vectorized(|| {
            for (row, ((scores, p), saved)) in m.scores.chunks_exact_mut(stride).zip(rows).zip(saved).enumerate() {
                let seen = if e.causal { strip * SIDE + row + 1 } else { e.keys };
                let scores = &mut scores[..seen];
                let max = max_of(scores);
                for s in scores.iter_mut() {
                    *s = Real::exp(*s - max);
                }
                let sum: f32 = sum_of(scores, scores, |s, _| s);
                *saved = max + sum.ln();
                round_into(&mut p[..seen], scores, 1.0 / sum);
            }
        });
    }
    let width = e.width;
    vectorized(|| {
        multiply_to(unit, &m.probabilities, &m.second, e.queries, 1.0, |row, column, sums, scale| {
            round_into(&mut o[row * width + head * e.head + column..][..sums.len()], sums, scale);
        });
    });
}

/// Where the gradients of an image's queries, keys and values go: a first element and a stride for each.
struct Gradients<'a> {
    q: Target<'a, bf16>,
    /// Keys and values; none where they stand beside the queries.
    kv: Option<Target<'a, bf16>>,
}

impl Gradients<'_> {
    /// Writes to row `row` of the queries' gradient, from column `column` of all heads on.
    fn q(&self, row: usize, column: usize, sums: &[f32], scale: f32) {
        // SAFETY: an image's gradient is one task's, which uses one part at a time.
        round_into(unsafe { self.q.part(row, column..column + sums.len()) }, sums, scale);
    }

    /// As [`Gradients::q`], for keys (`which` 0) and values (1) of `width` columns.
    fn kv(&self, which: usize, width: usize, row: usize, column: usize, sums: &[f32], scale: f32) {
        let (target, first) = match &self.kv {
            Some(kv) => (kv, which * width + column),
            None => (&self.q, (1 + which) * width + column),
        };
        // SAFETY: as above.
        round_into(unsafe { target.part(row, first..first + sums.len()) }, sums, scale);
    }
}

pub fn attention_backward<B: OnHost>(
    isa: Isa,
    d_o: &Tensor,
    o: &Tensor,
    input: AttentionInput<'_, B>,
    saved: &Tensor,
    shape: AttentionShape,
    gradient: AttentionGradient<'_, B>,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let e = AttentionExtents::of("attention", &input, shape)?;
    expect_shape(OP, "do", [e.batch, e.queries, e.width], d_o.shape())?;
    expect_shape(OP, "o", d_o.shape(), o.shape())?;
    expect_shape(OP, "saved", [e.batch, e.heads, e.queries], saved.shape())?;
    let outputs = d_o.typed::<bf16>()?.par_chunks(e.queries * e.width);
    let outputs = outputs.zip(o.typed::<bf16>()?.par_chunks(e.queries * e.width));
    let work = outputs.zip(saved.typed::<f32>()?.par_chunks(e.heads * e.queries)).enumerate();
    let backward = |index: usize, (d_o, o): (&[bf16], &[bf16]), saved: &[f32], gradients: Gradients<'_>| {
        let image = Image::of(&input, e, index)?;
        MEMORY.with_borrow_mut(|memory| {
            let unit = Unit::new(isa);
            for (head, saved) in saved.chunks_exact(e.queries).enumerate() {
                head_backward(&unit, &image, head, (d_o, o), saved, &gradients, memory);
            }
        });
        Ok(())
    };
    let of_one = |data, rows, columns| Target::new(data, rows, columns);
    match (gradient, &input) {
        (AttentionGradient::Packed(dqkv), AttentionInput::Packed(qkv)) => {
            expect_shape(OP, "dqkv", qkv.shape(), dqkv.shape())?;
            let dqkv = dqkv.typed_mut::<bf16>()?.par_chunks_mut(e.keys * 3 * e.width);
            work.zip(dqkv).try_for_each(|((index, (outputs, saved)), dqkv)| {
                let q = of_one(dqkv, e.keys, 3 * e.width);
                backward(index, outputs, saved, Gradients { q, kv: None })
            })
        }
        (AttentionGradient::Split { dq, dkv }, AttentionInput::Split { q, kv }) => {
            expect_shape(OP, "dq", q.shape(), dq.shape())?;
            expect_shape(OP, "dkv", kv.shape(), dkv.shape())?;
            let dq = dq.typed_mut::<bf16>()?.par_chunks_mut(e.queries * e.width);
            let dkv = dkv.typed_mut::<bf16>()?.par_chunks_mut(e.keys * 2 * e.width);
            work.zip(dq).zip(dkv).try_for_each(|(((index, (outputs, saved)), dq), dkv)| {
                let q = of_one(dq, e.queries, e.width);
                let kv = Some(of_one(dkv, e.keys, 2 * e.width));
                backward(index, outputs, saved, Gradients { q, kv })
            })
        }
        _ => Err(BackendError::Invalid {
            op: OP,
            problem: "input and gradient must both be packed or both be split".into(),
        }),
    }
}

/// The transposed of all matrices between queries and keys, so that probabilities and their gradients are rows for the
/// products that give dv and dk.
fn head_backward(
    unit: &Unit,
    image: &Image<'_>,
    head: usize,
    (d_o, o): (&[bf16], &[bf16]),
    saved: &[f32],
    gradients: &Gradients<'_>,
    m: &mut Memory,
) {
    let (e, scale) = (image.e, scale_of(image.e));
    let d_o = image.head(d_o, head, e.queries, e.width);
    let o = image.head(o, head, e.queries, e.width);
    let (q, k) = (image.q(head), image.k(head));
    m.rows.copy(k);
    m.other.copy(image.v(head));
    q.as_columns(&mut m.first);
    d_o.as_columns(&mut m.second);
    m.sums.clear();
    vectorized(|| {
        let sums = (0..e.queries).map(|row| sum_of(d_o.row(row), o.row(row), |a, b| a.to_f32() * b.to_f32()));
        m.sums.extend(sums);
    });
    m.probabilities.reset(e.keys, e.queries);
    m.gradients.reset(e.keys, e.queries);
    m.turned.reset(e.queries, e.keys);
    let stride = m.probabilities.stride;
    for strip in 0..e.keys.div_ceil(SIDE) {
        strip_of_scores(unit, m.rows.strip(strip), &m.first, scale, &mut m.scores);
        strip_of_scores(unit, m.other.strip(strip), &m.second, 1.0, &mut m.d_scores);
        let first = strip * SIDE;
        let p = m.probabilities.data[first * stride..].chunks_exact_mut(stride);
        let ds = m.gradients.data[first * stride..].chunks_exact_mut(stride);
        let rows = m.scores.chunks_exact(stride).zip(m.d_scores.chunks_exact(stride)).zip(p.zip(ds));
        vectorized(|| {
            for (key, ((scores, d_scores), (p, ds))) in (first..e.keys).zip(rows) {
                // A query sees no key behind it.
                let from = if e.causal { key } else { 0 };
                let of_queries = saved.iter().zip(&m.sums).zip(scores.iter().zip(d_scores)).zip(p.iter_mut().zip(ds));
                for (((&log_sum, &along), (&score, &d_score)), (p, ds)) in of_queries.skip(from) {
                    let probability = Real::exp(score - log_sum);
                    *p = round(probability);
                    *ds = round(probability * (d_score - along));
                }
            }
        });
        for key in first..e.keys.min(first + SIDE) {
            let ds = &m.gradients.data[key * stride..][..e.queries];
            for (query, &ds) in ds.iter().enumerate() {
                m.turned.data[query * m.turned.stride + key] = ds;
            }
        }
    }
    q.as_rows(&mut m.first);
    d_o.as_rows(&mut m.second);
    k.as_rows(&mut m.third);
    let (width, at) = (e.width, head * e.head);
    vectorized(|| {
        multiply_to(unit, &m.probabilities, &m.second, e.keys, 1.0, |row, column, sums, scale| {
            gradients.kv(1, width, row, at + column, sums, scale);
        });
        multiply_to(unit, &m.gradients, &m.first, e.keys, scale, |row, column, sums, scale| {
            gradients.kv(0, width, row, at + column, sums, scale);
        });
        multiply_to(unit, &m.turned, &m.third, e.queries, scale, |row, column, sums, scale| {
            gradients.q(row, at + column, sums, scale);
        });
    });
}
