//! Scaled dot-product attention in bf16: scores and softmax in f32, probabilities rounded for the product with v.
//!
//! Of the probabilities the logarithm of each row's sum is kept, and the backward pass makes them again.

use crate::backend::cpu::number::OnHost;
use crate::backend::cpu::packed::block::{Block, Part, Rows, SIDE, Unit};
use crate::backend::cpu::packed::isa::{Isa, Ready};
use crate::backend::cpu::packed::lanes::{Row, lanes};
use crate::backend::cpu::packed::panels::{Factor, Lines, Panels, turn};
use crate::backend::cpu::packed::product::Target;
use crate::backend::cpu::real::Arithmetic;
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
    fn as_columns(&self, isa: Ready, panels: &mut Panels) {
        panels.extend_to(self.width, self.rows);
        panels.pack_transposed(isa, self.data, self.stride);
    }

    /// The rows as a second factor whose rows they are.
    fn as_rows(&self, isa: Ready, panels: &mut Panels) {
        panels.extend_to(self.rows, self.width);
        panels.pack(isa, self.data, self.stride);
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

    /// A strip, and how many of its rows there are.
    fn strip(&self, index: usize) -> (Rows<'_>, usize) {
        let first = index * SIDE;
        (
            Rows { data: &self.data[first * self.stride..], stride: self.stride },
            (self.extents.0 - first).min(SIDE),
        )
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
    log_sums: Vec<f32>,
    along: Vec<f32>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Multiplies a strip of rows by all panels, and hands on each block with its first column and its part.
fn strip_by_panels(
    unit: &Unit,
    (rows, count): (Rows<'_>, usize),
    panels: &Panels,
    mut to: impl FnMut(&Block, usize, Part),
) {
    let mut block = Block::ZERO;
    for panel in 0..panels.count() {
        let column = panel * SIDE;
        let part = Part { rows: count, columns: (panels.columns() - column).min(SIDE) };
        unit.multiply(&[panels.term(rows, panel)], part, &mut block);
        to(&block, column, part);
    }
}

/// A strip of rows by all panels, times `scale`, as rows of f32, `panels` · 32 wide.
fn strip_of_scores(
    unit: &Unit,
    strip: (Rows<'_>, usize),
    panels: &Panels,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    let stride = panels.count() * SIDE;
    scores.resize(SIDE * stride, 0.0);
    strip_by_panels(unit, strip, panels, |block, column, part| {
        scale_rows(unit.isa(), block, scale, part.rows, &mut scores[column..], stride);
    });
}

lanes! {
    /// The block's first rows times `scale`, `stride` numbers apart.
    fn scale_rows[L](block: &Block, scale: f32, rows: usize, to: &mut [f32], stride: usize) {
        let scale = Row::<L>::splat(scale);
        for (to, row) in to.chunks_mut(stride).zip(block.0.as_chunks::<SIDE>().0).take(rows) {
            if let Some(to) = to.first_chunk_mut::<SIDE>() {
                (Row::load(row) * scale).store(to);
            }
        }
    }
}

/// All strips by panels, times `scale`, rounded to part of `to` whose columns begin at `first`.
fn multiply_to(
    unit: &Unit,
    strips: &Strips,
    panels: &Panels,
    scale: f32,
    to: &Target<'_, bf16>,
    first: usize,
) {
    for strip in 0..strips.extents.0.div_ceil(SIDE) {
        strip_by_panels(unit, strips.strip(strip), panels, |block, column, part| {
            let column = first + column;
            let rows = strip * SIDE..strip * SIDE + part.rows;
            round_to(unit.isa(), block, scale, rows, column..column + part.columns, to);
        });
    }
}

lanes! {
    /// Rounds part of a block, times `scale`.
    fn round_to[L](block: &Block, scale: f32, rows: Range<usize>, columns: Range<usize>, to: &Target<'_, bf16>) {
        let scale = Row::<L>::splat(scale);
        for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
            // SAFETY: an image's rows are one task's, which uses one part at a time.
            let to = unsafe { to.part(row, columns.clone()) };
            (Row::load(sums) * scale).round_to(to);
        }
    }
}

lanes! {
    /// Softmax of the rows of a strip, the queries from `first` on: rounded to `p`, the logarithms of its sums to `saved`.
    fn softmax_strip[L](e: AttentionExtents, first: usize, scores: &mut [f32], p: &mut [bf16], saved: &mut [f32]) {
        let stride = e.keys.next_multiple_of(SIDE);
        let rows = scores.chunks_exact_mut(stride).zip(p.chunks_exact_mut(stride)).zip(saved);
        for (row, ((scores, p), saved)) in rows.enumerate() {
            let seen = if e.causal { first + row + 1 } else { e.keys };
            scores[seen..].fill(f32::NEG_INFINITY);
            let scores = scores.as_chunks_mut::<SIDE>().0;
            let mut most = Row::<L>::splat(f32::NEG_INFINITY);
            for scores in &*scores {
                most = most.larger(Row::load(scores));
            }
            let max = most.largest();
            let (of_max, mut sums) = (Row::splat(max), Row::splat(0.0));
            for scores in &mut *scores {
                let power = (Row::<L>::load(scores) - of_max).exp();
                power.store(scores);
                sums = sums + power;
            }
            let sum = sums.sum();
            *saved = max + sum.ln();
            let inverse = Row::splat(1.0 / sum);
            let p_rows = p.as_chunks_mut::<SIDE>().0;
            for i in 0..scores.len() {
                p_rows[i] = (Row::<L>::load(&scores[i]) * inverse).rounded();
            }
            p[seen..].fill(bf16::ZERO);
        }
    }
}

lanes! {
    /// Of a strip of keys from `first` on: probabilities from scores, and from their gradients those of the scores, both
    /// rounded. `log_sums` has log Σ exp of each query and `along` Σ do·o, both in whole rows.
    fn softmax_strip_backward[L](
        e: AttentionExtents,
        first: usize,
        scores: &[f32],
        d_scores: &[f32],
        log_sums: &[[f32; SIDE]],
        along: &[[f32; SIDE]],
        p: &mut [bf16],
        ds: &mut [bf16],
    ) {
        let stride = e.queries.next_multiple_of(SIDE);
        let rows = scores.chunks_exact(stride).zip(d_scores.chunks_exact(stride));
        let rows = rows.zip(p.chunks_exact_mut(stride).zip(ds.chunks_exact_mut(stride)));
        for (key, ((scores, d_scores), (p, ds))) in (first..e.keys).zip(rows) {
            let [scores, d_scores] = [scores, d_scores].map(|of| of.as_chunks::<SIDE>().0);
            let (p_rows, ds_rows) = (p.as_chunks_mut::<SIDE>().0, ds.as_chunks_mut::<SIDE>().0);
            for i in 0..scores.len() {
                let probability = (Row::<L>::load(&scores[i]) - Row::load(&log_sums[i])).exp();
                p_rows[i] = probability.rounded();
                let difference = Row::<L>::load(&d_scores[i]) - Row::load(&along[i]);
 ds_rows[i] = (probability * difference).rounded();
            }
            // A query sees no key behind it.
            let unseen = if e.causal { 0..key } else { 0..0 };
            for part in [unseen, e.queries..stride] {
                p[part.clone()].fill(bf16::ZERO);
                ds[part].fill(bf16::ZERO);
            }
        }
    }
}

lanes! {
    fn dot[L](a: &[bf16], b: &[bf16]) -> f32 {
        let mut sum = Row::<L>::splat(0.0);
        for at in (0..a.len()).step_by(SIDE) {
            sum = sum + Row::widened_part(&a[at..]) * Row::widened_part(&b[at..]);
        }
        sum.sum()
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
    let (e, isa) = (image.e, unit.isa());
    m.rows.copy(image.q(head));
    image.k(head).as_columns(isa, &mut m.first);
    image.v(head).as_rows(isa, &mut m.second);
    m.probabilities.extend_to(e.queries, e.keys);
    let stride = m.probabilities.stride;
    for (strip, saved) in saved.chunks_mut(SIDE).enumerate() {
        strip_of_scores(unit, m.rows.strip(strip), &m.first, scale_of(e), &mut m.scores);
        let p = &mut m.probabilities.data[strip * SIDE * stride..];
        softmax_strip(isa, e, strip * SIDE, &mut m.scores, p, saved);
    }
    multiply_to(unit, &m.probabilities, &m.second, 1.0, o, head * e.head);
}

/// Where the gradients of an image's queries, keys and values go: a first element and a stride for each.
struct Gradients<'a> {
    q: Target<'a, bf16>,
    /// Keys and values; none where they stand beside the queries.
    kv: Option<Target<'a, bf16>>,
}

impl<'a> Gradients<'a> {
    /// Where those of keys (0) or values (1) go, and their first column.
    fn kv(&self, which: usize, width: usize) -> (&Target<'a, bf16>, usize) {
        match &self.kv {
            Some(kv) => (kv, which * width),
            None => (&self.q, (1 + which) * width),
        }
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
    let (e, scale, isa) = (image.e, scale_of(image.e), unit.isa());
    let d_o = image.head(d_o, head, e.queries, e.width);
    let o = image.head(o, head, e.queries, e.width);
    let (q, k) = (image.q(head), image.k(head));
    m.rows.copy(k);
    m.other.copy(image.v(head));
    q.as_columns(isa, &mut m.first);
    d_o.as_columns(isa, &mut m.second);
    let whole = e.queries.next_multiple_of(SIDE);
    m.along.clear();
    m.along.extend((0..e.queries).map(|row| dot(isa, d_o.row(row), o.row(row))));
    m.along.resize(whole, 0.0);
    m.log_sums.clear();
    m.log_sums.extend_from_slice(saved);
    m.log_sums.resize(whole, 0.0);
    let [log_sums, along] = [&m.log_sums, &m.along].map(|of| of.as_chunks::<SIDE>().0);
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
        softmax_strip_backward(isa, e, first, &m.scores, &m.d_scores, log_sums, along, p, ds);
    }
    let Strips { data, extents: (rows, columns), stride } = &m.gradients;
    turn(
        isa,
        Factor { data, rows: *rows, columns: *columns, stride: *stride },
        &mut m.turned.data,
        m.turned.stride,
    );
    q.as_rows(isa, &mut m.first);
    d_o.as_rows(isa, &mut m.second);
    k.as_rows(isa, &mut m.third);
    let (width, at) = (e.width, head * e.head);
    for (which, rows, panels, scale) in
        [(1, &m.probabilities, &m.second, 1.0), (0, &m.gradients, &m.first, scale)]
    {
        let (to, first) = gradients.kv(which, width);
        multiply_to(unit, rows, panels, scale, to, first + at);
    }
    multiply_to(unit, &m.turned, &m.third, scale, &gradients.q, at);
}
