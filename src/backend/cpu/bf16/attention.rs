//! Scaled dot-product attention in bf16: scores and softmax in f32, probabilities rounded for the product with v.
//!
//! Of the probabilities the logarithm of each row's sum is kept, and the backward pass makes them again.

use super::block::{Block, Rows, SIDE, Term, Unit};
use super::isa::Isa;
use super::panels::{Lines, Panels};
use super::product::Target;
use super::{round, widen};
use crate::backend::cpu::number::OnHost;
use crate::backend::cpu::real::{Real, max_of, sum_of, vectors};
use crate::backend::{AttentionBackward, AttentionExtents, AttentionGradient, AttentionInput, Result};
use crate::tensor::Tensor;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

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
        panels.extend_to(self.width, self.rows);
        panels.pack_transposed(self.data, self.stride);
    }

    /// The rows as a second factor whose rows they are.
    fn as_rows(&self, panels: &mut Panels) {
        panels.extend_to(self.rows, self.width);
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
    data: Lines,
    extents: (usize, usize),
    stride: usize,
}

impl Strips {
    /// The extents of what is written next. Zeros, unless they are those of what was written before.
    fn extend_to(&mut self, rows: usize, columns: usize) {
        if (rows, columns) != self.extents {
            self.extents = (rows, columns);
            self.stride = columns.next_multiple_of(SIDE);
            self.data.reset(rows.next_multiple_of(SIDE) * self.stride);
        }
    }

    fn copy(&mut self, head: Head<'_>) {
        self.extend_to(head.rows, head.width);
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
        scaled_columns(&block, scale, &mut scores[panel * SIDE..], stride);
    }
}

vectors! {
    /// The block's rows times `scale`, `stride` numbers apart.
    fn scaled_columns[](block: &Block, scale: f32, to: &mut [f32], stride: usize) {
        for (to, row) in to.chunks_mut(stride).zip(block.0.as_chunks::<SIDE>().0) {
            if let Some(to) = to.first_chunk_mut::<SIDE>() {
                for i in 0..SIDE {
                    to[i] = scale * row[i];
                }
            }
        }
    }
}

/// The first `rows` rows of strips by panels, times `scale`, rounded: row r from column c on to `to(r, c, width)`.
fn multiply_to<'a>(
    unit: &Unit,
    strips: &Strips,
    panels: &Panels,
    rows: usize,
    scale: f32,
    mut to: impl FnMut(usize, usize, usize) -> &'a mut [bf16],
) {
    let mut block = Block::ZERO;
    for strip in 0..rows.div_ceil(SIDE) {
        for panel in 0..panels.count() {
            unit.multiply(&[Term { rows: strips.strip(strip), steps: panels.panel(panel) }], &mut block);
            let (column, width) = (panel * SIDE, SIDE.min(panels.columns() - panel * SIDE));
            round_into(&block, scale, strip * SIDE..rows.min((strip + 1) * SIDE), |row| {
                to(row, column, width)
            });
        }
    }
}

vectors! {
    /// Rounds the first rows of a block, times `scale`, to as many rows of some head.
    fn round_into['a, F: FnMut(usize) -> &'a mut [bf16]](block: &Block, scale: f32, rows: Range<usize>, to: F) {
        let mut to = to;
        for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
            let to = to(row);
            match to.first_chunk_mut::<SIDE>() {
                Some(to) => {
                    for i in 0..SIDE {
                        to[i] = round(scale * sums[i]);
                    }
                }
                None => to.iter_mut().zip(sums).for_each(|(to, &sum)| *to = round(scale * sum)),
            }
        }
    }
}

vectors! {
    /// Softmax of the rows of a strip, the queries from `first` on: rounded to `p`, the logarithms of its sums to `saved`.
    fn softmax_strip[](e: AttentionExtents, first: usize, scores: &mut [f32], p: &mut [bf16], saved: &mut [f32]) {
        let stride = e.keys.next_multiple_of(SIDE);
        let rows = scores.chunks_exact_mut(stride).zip(p.chunks_exact_mut(stride)).zip(saved);
        for (row, ((scores, p), saved)) in rows.enumerate() {
            let seen = if e.causal { first + row + 1 } else { e.keys };
            let scores = &mut scores[..seen];
            let max = max_of(scores);
            for s in scores.iter_mut() {
                *s = Real::exp(*s - max);
            }
            let sum: f32 = sum_of(scores, scores, |s, _| s);
            *saved = max + sum.ln();
            let inverse = 1.0 / sum;
            for (p, &s) in p.iter_mut().zip(scores.iter()) {
                *p = round(s * inverse);
            }
            p[seen..].fill(bf16::ZERO);
        }
    }
}

vectors! {
    /// Of a strip of keys from `first` on: probabilities from scores, and from their gradients those of the scores, both
    /// rounded. `of_queries` has log Σ exp and Σ do·o of each query.
    fn softmax_strip_backward[](
        e: AttentionExtents,
        first: usize,
        scores: &[f32],
        d_scores: &[f32],
        of_queries: [&[f32]; 2],
        p: &mut [bf16],
        ds: &mut [bf16],
    ) {
        let stride = e.queries.next_multiple_of(SIDE);
        let rows = scores.chunks_exact(stride).zip(d_scores.chunks_exact(stride));
        let rows = rows.zip(p.chunks_exact_mut(stride).zip(ds.chunks_exact_mut(stride)));
        for (key, ((scores, d_scores), (p, ds))) in (first..e.keys).zip(rows) {
            // A query sees no key behind it.
            let from = if e.causal { key } else { 0 };
            let of = from..e.queries;
            let (scores, d_scores) = (&scores[of.clone()], &d_scores[of.clone()]);
            let (log_sums, along) = (&of_queries[0][of.clone()], &of_queries[1][of.clone()]);
            p[..from].fill(bf16::ZERO);
            ds[..from].fill(bf16::ZERO);
            let (p, ds) = (&mut p[of.clone()], &mut ds[of]);
            for i in 0..scores.len() {
                let probability = Real::exp(scores[i] - log_sums[i]);
                p[i] = round(probability);
                ds[i] = round(probability * (d_scores[i] - along[i]));
            }
        }
    }
}

vectors! {
    fn dot[](a: &[bf16], b: &[bf16]) -> f32 {
        sum_of(a, b, |a, b| widen(a) * widen(b))
    }
}

fn scale_of(e: AttentionExtents) -> f32 {
    (1.0 / (e.head as f64).sqrt()) as f32
}

/// `saved` keeps one number for each query of each head: log Σ exp of its scores.
pub fn attention<B: OnHost>(
    isa: Isa,
    input: AttentionInput<'_, B>,
    e: AttentionExtents,
    saved: &mut Tensor,
    o: &mut Tensor,
) -> Result<()> {
    o.typed_mut::<bf16>()?
        .par_chunks_mut(e.queries * e.width)
        .zip(saved.typed_mut::<f32>()?.par_chunks_mut(e.heads * e.queries))
        .enumerate()
        .try_for_each(|(index, (o, saved))| {
            let (image, o) = (Image::of(&input, e, index)?, Target::new(o, e.queries, e.width));
            MEMORY.with_borrow_mut(|memory| {
                let unit = Unit::new(isa);
                for (head, saved) in saved.chunks_exact_mut(e.queries).enumerate() {
                    head_forward(&unit, &image, head, saved, &o, memory);
                }
            });
            Ok(())
        })
}

fn head_forward(
    unit: &Unit,
    image: &Image<'_>,
    head: usize,
    saved: &mut [f32],
    o: &Target<'_, bf16>,
    m: &mut Memory,
) {
    let e = image.e;
    m.rows.copy(image.q(head));
    image.k(head).as_columns(&mut m.first);
    image.v(head).as_rows(&mut m.second);
    m.probabilities.extend_to(e.queries, e.keys);
    let stride = m.probabilities.stride;
    for (strip, saved) in saved.chunks_mut(SIDE).enumerate() {
        strip_of_scores(unit, m.rows.strip(strip), &m.first, scale_of(e), &mut m.scores);
        let p = &mut m.probabilities.data[strip * SIDE * stride..];
        softmax_strip(e, strip * SIDE, &mut m.scores, p, saved);
    }
    let first = head * e.head;
    multiply_to(unit, &m.probabilities, &m.second, e.queries, 1.0, |row, column, width| {
        // SAFETY: an image is one task's, which uses one part at a time.
        unsafe { o.part(row, first + column..first + column + width) }
    });
}

/// Where the gradients of an image's queries, keys and values go: a first element and a stride for each.
struct Gradients<'a> {
    q: Target<'a, bf16>,
    /// Keys and values; none where they stand beside the queries.
    kv: Option<Target<'a, bf16>>,
}

impl<'a> Gradients<'a> {
    /// Part of row `row` of the queries' gradient.
    fn q(&self, row: usize, columns: Range<usize>) -> &'a mut [bf16] {
        // SAFETY: an image's gradient is one task's, which uses one part at a time.
        unsafe { self.q.part(row, columns) }
    }

    /// As [`Gradients::q`], for keys (`which` 0) and values (1) of `width` columns.
    fn kv(&self, which: usize, width: usize, row: usize, columns: Range<usize>) -> &'a mut [bf16] {
        let (target, first) = match &self.kv {
            Some(kv) => (kv, which * width),
            None => (&self.q, (1 + which) * width),
        };
        // SAFETY: as above.
        unsafe { target.part(row, first + columns.start..first + columns.end) }
    }
}

pub fn attention_backward<B: OnHost>(
    isa: Isa,
    args: AttentionBackward<'_, B>,
    e: AttentionExtents,
) -> Result<()> {
    let AttentionBackward { d_o, o, input, saved, gradient, .. } = args;
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
    match gradient {
        AttentionGradient::Packed(dqkv) => {
            let dqkv = dqkv.typed_mut::<bf16>()?.par_chunks_mut(e.keys * 3 * e.width);
            work.zip(dqkv).try_for_each(|((index, (outputs, saved)), dqkv)| {
                let q = of_one(dqkv, e.keys, 3 * e.width);
                backward(index, outputs, saved, Gradients { q, kv: None })
            })
        }
        AttentionGradient::Split { dq, dkv } => {
            let dq = dq.typed_mut::<bf16>()?.par_chunks_mut(e.queries * e.width);
            let dkv = dkv.typed_mut::<bf16>()?.par_chunks_mut(e.keys * 2 * e.width);
            work.zip(dq).zip(dkv).try_for_each(|(((index, (outputs, saved)), dq), dkv)| {
                let q = of_one(dq, e.queries, e.width);
                let kv = Some(of_one(dkv, e.keys, 2 * e.width));
                backward(index, outputs, saved, Gradients { q, kv })
            })
        }
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
    m.sums.extend((0..e.queries).map(|row| dot(d_o.row(row), o.row(row))));
    m.probabilities.extend_to(e.keys, e.queries);
    m.gradients.extend_to(e.keys, e.queries);
    m.turned.extend_to(e.queries, e.keys);
    let stride = m.probabilities.stride;
    for strip in 0..e.keys.div_ceil(SIDE) {
        strip_of_scores(unit, m.rows.strip(strip), &m.first, scale, &mut m.scores);
        strip_of_scores(unit, m.other.strip(strip), &m.second, 1.0, &mut m.d_scores);
        let first = strip * SIDE;
        let p = &mut m.probabilities.data[first * stride..];
        let ds = &mut m.gradients.data[first * stride..];
        softmax_strip_backward(e, first, &m.scores, &m.d_scores, [saved, &m.sums], p, ds);
    }
    turn(&m.gradients, e.keys, e.queries, &mut m.turned);
    q.as_rows(&mut m.first);
    d_o.as_rows(&mut m.second);
    k.as_rows(&mut m.third);
    let (width, at) = (e.width, head * e.head);
    let columns = |column: usize, width: usize| at + column..at + column + width;
    multiply_to(unit, &m.probabilities, &m.second, e.keys, 1.0, |row, column, part| {
        gradients.kv(1, width, row, columns(column, part))
    });
    multiply_to(unit, &m.gradients, &m.first, e.keys, scale, |row, column, part| {
        gradients.kv(0, width, row, columns(column, part))
    });
    multiply_to(unit, &m.turned, &m.third, e.queries, scale, |row, column, part| {
        gradients.q(row, columns(column, part))
    });
}

/// The first `rows` rows of `columns` columns as columns, 16 by 16 for the cache's sake.
fn turn(from: &Strips, rows: usize, columns: usize, to: &mut Strips) {
    const TILE: usize = 16;
    for first in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for row in first..rows.min(first + TILE) {
                let values = &from.data[row * from.stride + column..][..TILE.min(columns - column)];
                for (i, &value) in values.iter().enumerate() {
                    to.data[(column + i) * to.stride + row] = value;
                }
            }
        }
    }
}
