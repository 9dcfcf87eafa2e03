//! Factors as the products read them: panels of 32 columns packed in steps of 32 rows, and rows that are padded to them.

use super::block::{Rows, SIDE, STEP, place};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;
use std::ops::{Deref, DerefMut};

/// A cache line. What a tile loads of a row is one, and takes several times as long where it lies in two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([bf16; SIDE]);

/// Elements from the beginning of a cache line on, in whole lines.
#[derive(Clone, Default)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// At least so many zeros, and nothing else, in the memory that is there.
    pub fn reset(&mut self, elements: usize) {
        self.0.clear();
        self.0.resize(elements.div_ceil(SIDE), Line([bf16::ZERO; SIDE]));
    }

    /// At least so many elements, of which those that were there stay.
    pub fn grow(&mut self, elements: usize) {
        if elements > self.len() {
            self.0.resize(elements.div_ceil(SIDE), Line([bf16::ZERO; SIDE]));
        }
    }
}

impl Deref for Lines {
    type Target = [bf16];

    fn deref(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [bf16] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// A second factor \[depth, columns\], packed: for each 32 columns a panel, all its steps one after another. Beyond the
/// factor's edges there are zeros.
#[derive(Clone, Default)]
pub struct Panels {
    data: Lines,
    depth: usize,
    columns: usize,
}

impl Panels {
    /// Zeros.
    pub fn new(depth: usize, columns: usize) -> Self {
        let mut panels = Panels::default();
        panels.reset(depth, columns);
        panels
    }

    /// Zeros of these extents, in the memory that is there.
    pub fn reset(&mut self, depth: usize, columns: usize) {
        self.data.reset(columns.div_ceil(SIDE) * depth.div_ceil(SIDE) * STEP);
        (self.depth, self.columns) = (depth, columns);
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of 32 columns.
    pub fn count(&self) -> usize {
        self.columns.div_ceil(SIDE)
    }

    /// The steps of a panel.
    pub fn panel(&self, index: usize) -> &[bf16] {
        let length = self.depth.div_ceil(SIDE) * STEP;
        &self.data[index * length..][..length]
    }

    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<bf16>()
    }

    /// Element (k, n).
    pub fn get(&self, k: usize, n: usize) -> bf16 {
        self.panel(n / SIDE)[k / SIDE * STEP + place(k % SIDE, n % SIDE)]
    }

    /// Sets element (k, n) to `value(k, n)` everywhere, several panels at a time.
    pub fn fill(&mut self, value: impl Fn(usize, usize) -> bf16 + Sync) {
        let (depth, columns) = (self.depth, self.columns);
        let length = depth.div_ceil(SIDE) * STEP;
        self.data.par_chunks_mut(length.max(1)).enumerate().for_each(|(panel, data)| {
            let first = panel * SIDE;
            for n in first..columns.min(first + SIDE) {
                for (k, step) in (0..depth).step_by(SIDE).zip(data.chunks_exact_mut(STEP)) {
                    for k in k..depth.min(k + SIDE) {
                        step[place(k % SIDE, n % SIDE)] = value(k, n);
                    }
                }
            }
        });
    }

    /// The transposed factor, packed.
    pub fn transposed(&self) -> Self {
        let mut panels = Panels::new(self.columns, self.depth);
        panels.fill(|k, n| self.get(n, k));
        panels
    }

    /// Packs the transposed of a matrix: columns of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack_transposed(&mut self, rows: &[bf16], stride: usize) {
        let steps = self.depth.div_ceil(SIDE);
        for n in 0..self.columns {
            let panel = &mut self.data[n / SIDE * steps * STEP..][..steps * STEP];
            let row = &rows[n * stride..][..self.depth];
            for (step, part) in panel.chunks_exact_mut(STEP).zip(row.chunks(SIDE)) {
                let column = &mut step[place(0, n % SIDE)..];
                let (pairs, rest) = part.as_chunks::<2>();
                for (to, pair) in column.chunks_mut(SIDE).zip(pairs) {
                    to[0] = pair[0];
                    to[1] = pair[1];
                }
                if let [last] = rest {
                    column[pairs.len() * SIDE] = *last;
                }
            }
        }
    }

    /// Packs a matrix as it is: rows of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack(&mut self, rows: &[bf16], stride: usize) {
        for panel in 0..self.count() {
            let steps = self.depth.div_ceil(SIDE);
            let (first, width) = (panel * SIDE, SIDE.min(self.columns - panel * SIDE));
            let data = &mut self.data[panel * steps * STEP..][..steps * STEP];
            pack_panel(data, |k| &rows[k * stride + first..][..width], self.depth);
        }
    }
}

/// Packs a panel whose row k, of up to 32 elements, is `row(k)`.
#[inline]
pub fn pack_panel<'a>(panel: &mut [bf16], row: impl Fn(usize) -> &'a [bf16], depth: usize) {
    const NONE: [bf16; SIDE] = [bf16::ZERO; SIDE];
    for (step, packed) in panel.chunks_exact_mut(STEP).enumerate() {
        for pair in 0..SIDE / 2 {
            let k = step * SIDE + 2 * pair;
            let upper = if k < depth { row(k) } else { &NONE };
            let lower = if k + 1 < depth { row(k + 1) } else { &NONE };
            let (left, right) = packed.split_at_mut(STEP / 2);
            let (left, right) = (&mut left[pair * SIDE..][..SIDE], &mut right[pair * SIDE..][..SIDE]);
            if let (Some(upper), Some(lower)) = (upper.first_chunk::<SIDE>(), lower.first_chunk::<SIDE>()) {
                interleave(left, &upper[..16], &lower[..16]);
                interleave(right, &upper[16..], &lower[16..]);
            } else {
                for n in 0..SIDE {
                    let to = if n < 16 { &mut left[2 * n..] } else { &mut right[2 * (n - 16)..] };
                    to[0] = upper.get(n).copied().unwrap_or_default();
                    to[1] = lower.get(n).copied().unwrap_or_default();
                }
            }
        }
    }
}

#[inline(always)]
fn interleave(to: &mut [bf16], a: &[bf16], b: &[bf16]) {
    for ((to, &a), &b) in to.as_chunks_mut::<2>().0.iter_mut().zip(a).zip(b) {
        *to = [a, b];
    }
}

/// A first factor somewhere in a slice.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    pub data: &'a [bf16],
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl<'a> Factor<'a> {
    pub fn new(data: &'a [bf16], rows: usize, columns: usize) -> Self {
        Factor { data, rows, columns, stride: columns }
    }

    /// Rows 32·`index` and on, to a depth that is a multiple of 32: as they lie, or where they end before, in `padded`
    /// with zeros behind them.
    pub fn strip<'s>(&self, index: usize, padded: &'s mut Lines) -> Rows<'s>
    where
        'a: 's,
    {
        let first = index * SIDE;
        let rows = SIDE.min(self.rows - first);
        let data = &self.data[first * self.stride..];
        if rows == SIDE && self.columns.is_multiple_of(SIDE) {
            return Rows { data, stride: self.stride };
        }
        let stride = self.columns.next_multiple_of(SIDE);
        padded.reset(SIDE * stride);
        for (to, row) in padded.chunks_exact_mut(stride).zip(0..rows) {
            to[..self.columns].copy_from_slice(&data[row * self.stride..][..self.columns]);
        }
        Rows { data: padded, stride }
    }
}
