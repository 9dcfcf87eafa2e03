//! Factors as the products read them: panels of 32 columns packed in steps of 32 rows, and rows that are padded to them.

use super::block::{Rows, SIDE, STEP, place};
use crate::backend::cpu::real::vectors;
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

    /// The extents of what is packed next. Zeros, unless they are those of what was packed before.
    pub fn extend_to(&mut self, depth: usize, columns: usize) {
        if (depth, columns) != (self.depth, self.columns) {
            self.reset(depth, columns);
        }
    }

    /// Packs the transposed of a matrix: columns of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack_transposed(&mut self, rows: &[bf16], stride: usize) {
        let length = self.depth.div_ceil(SIDE) * STEP;
        for n in 0..self.columns {
            let panel = &mut self.data[n / SIDE * length..][..length];
            let row = &rows[n * stride..][..self.depth];
            let (pairs, rest) = row.as_chunks::<2>();
            // Pair i of a step is a line further than pair i - 1.
            for (step, pairs) in panel.chunks_exact_mut(STEP).zip(pairs.chunks(SIDE / 2)) {
                let column = &mut step.as_chunks_mut::<2>().0[place(0, n % SIDE) / 2..];
                for (to, &pair) in column.iter_mut().step_by(SIDE / 2).zip(pairs) {
                    *to = pair;
                }
            }
            if let [last] = rest {
                let k = self.depth - 1;
                panel[k / SIDE * STEP + place(k % SIDE, n % SIDE)] = *last;
            }
        }
    }

    /// Packs a matrix as it is: rows of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack(&mut self, rows: &[bf16], stride: usize) {
        let length = self.depth.div_ceil(SIDE) * STEP;
        for panel in 0..self.count() {
            let (first, width) = (panel * SIDE, SIDE.min(self.columns - panel * SIDE));
            let data = &mut self.data[panel * length..][..length];
            pack_panel(data, &rows[first..], stride, width, self.depth);
        }
    }
}

vectors! {
    /// Packs a panel of `width` columns, up to 32, of a matrix of `depth` rows, `stride` elements apart.
    pub fn pack_panel[](panel: &mut [bf16], rows: &[bf16], stride: usize, width: usize, depth: usize) {
        for (step, packed) in panel.chunks_exact_mut(STEP).enumerate() {
            let (left, right) = packed.split_at_mut(STEP / 2);
            let pairs = left.as_chunks_mut::<SIDE>().0.iter_mut().zip(right.as_chunks_mut::<SIDE>().0);
            for (pair, (left, right)) in pairs.enumerate() {
                let k = step * SIDE + 2 * pair;
                let mut both = [[bf16::ZERO; SIDE]; 2];
                for (row, both) in both.iter_mut().enumerate().take(depth.saturating_sub(k)) {
                    let from = &rows[(k + row) * stride..];
                    match from.first_chunk::<SIDE>() {
                        Some(from) if width == SIDE => *both = *from,
                        _ => both[..width].copy_from_slice(&from[..width]),
                    }
                }
                for n in 0..SIDE / 2 {
                    left[2 * n] = both[0][n];
                    left[2 * n + 1] = both[1][n];
                    right[2 * n] = both[0][SIDE / 2 + n];
                    right[2 * n + 1] = both[1][SIDE / 2 + n];
                }
            }
        }
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
