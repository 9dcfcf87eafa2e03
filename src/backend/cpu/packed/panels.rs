//! Factors as the products read them: panels of 32 columns packed in steps of 32 rows, and rows that are padded to them.

use super::block::{Rows, SIDE, STEP, Term};
use super::isa::Ready;
use super::lanes::lanes;
use super::{Packed, fetch};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A cache line. What a tile loads of a row is one, and takes several times as long where it lies in two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Elements from the beginning of a cache line on, in whole lines.
#[derive(Clone, Default)]
pub struct Lines<E = bf16>(Vec<Line>, PhantomData<E>);

impl<E: Packed> Lines<E> {
    /// At least so many zeros, and nothing else, in the memory that is there.
    pub fn reset(&mut self, elements: usize) {
        self.0.clear();
        self.0.resize((elements * size_of::<E>()).div_ceil(64), Line([0; 64]));
    }

    /// At least so many elements, of which those that were there stay.
    pub fn grow(&mut self, elements: usize) {
        if elements > self.len() {
            self.0.resize((elements * size_of::<E>()).div_ceil(64), Line([0; 64]));
        }
    }
}

impl<E: Packed> Deref for Lines<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        bytemuck::cast_slice(&self.0)
    }
}

impl<E: Packed> DerefMut for Lines<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// A second factor \[depth, columns\], packed: for each 32 columns a panel, all its steps one after another. Beyond the
/// factor's edges there are zeros.
#[derive(Clone, Default)]
pub struct Panels<E = bf16> {
    data: Lines<E>,
    depth: usize,
    columns: usize,
}

impl<E: Packed> Panels<E> {
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
    pub fn panel(&self, index: usize) -> &[E] {
        let length = self.depth.div_ceil(SIDE) * STEP;
        &self.data[index * length..][..length]
    }

    /// Rows as deep as this factor by the columns of a panel.
    pub fn term<'a>(&'a self, rows: Rows<'a, E>, panel: usize) -> Term<'a, E> {
        Term { rows, steps: self.panel(panel), depth: self.depth }
    }

    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<E>()
    }

    /// Of all panels, one after another.
    pub fn steps_mut(&mut self) -> &mut [E] {
        &mut self.data
    }

    /// Element (k, n).
    pub fn get(&self, k: usize, n: usize) -> E {
        self.panel(n / SIDE)[k / SIDE * STEP + E::place(k % SIDE, n % SIDE)]
    }

    /// Sets element (k, n) to `value(k, n)` everywhere, several steps at a time.
    pub fn fill(&mut self, value: impl Fn(usize, usize) -> E + Sync) {
        let (depth, columns) = (self.depth, self.columns);
        let of_panel = depth.div_ceil(SIDE).max(1);
        self.data.par_chunks_exact_mut(STEP).enumerate().for_each(|(index, step)| {
            let (first, from) = (index / of_panel * SIDE, index % of_panel * SIDE);
            for n in first..columns.min(first + SIDE) {
                for k in from..depth.min(from + SIDE) {
                    step[E::place(k % SIDE, n % SIDE)] = value(k, n);
                }
            }
        });
    }

    /// The transposed factor, packed.
    pub fn transposed(&self) -> Self {
        let mut panels = Panels::new(self.columns, self.depth);
        let of_panel = self.count().max(1);
        panels.data.par_chunks_exact_mut(STEP).enumerate().for_each(|(index, step)| {
            let from = &self.panel(index % of_panel)[index / of_panel * STEP..][..STEP];
            for k in 0..SIDE {
                for n in 0..SIDE {
                    step[E::place(k, n)] = from[E::place(n, k)];
                }
            }
        });
        panels
    }
}

impl Panels {
    /// The extents of what is packed next. Zeros, unless they are those of what was packed before.
    pub fn extend_to(&mut self, depth: usize, columns: usize) {
        if (depth, columns) != (self.depth, self.columns) {
            self.reset(depth, columns);
        }
    }

    /// Packs the transposed of a matrix: columns of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack_transposed(&mut self, isa: Ready, rows: &[bf16], stride: usize) {
        let length = self.depth.div_ceil(SIDE) * STEP;
        for first in (0..self.columns).step_by(SIDE / 2) {
            let panel = &mut self.data[first / SIDE * length..][..length];
            let columns = (self.columns - first).min(SIDE / 2);
            pack_turned(
                isa,
                &mut panel[bf16::place(0, first % SIDE)..],
                &rows[first * stride..],
                stride,
                columns,
                self.depth,
            );
        }
    }

    /// Packs a matrix as it is: rows of the factor are rows of `rows`, `stride` elements apart.
    pub fn pack(&mut self, isa: Ready, rows: &[bf16], stride: usize) {
        let length = self.depth.div_ceil(SIDE) * STEP;
        for panel in 0..self.count() {
            let (first, width) = (panel * SIDE, SIDE.min(self.columns - panel * SIDE));
            let data = &mut self.data[panel * length..][..length];
            pack_panel(isa, data, &rows[first..], stride, width, self.depth);
        }
    }
}

lanes! {
    /// Packs up to 16 rows, `stride` elements apart, as columns of a panel; `panel` begins at the first of them.
    fn pack_turned[L](panel: &mut [bf16], rows: &[bf16], stride: usize, columns: usize, depth: usize) {
        for (k, step) in (0..depth).step_by(SIDE).zip(panel.chunks_mut(STEP)) {
            let mut tile = [[bf16::ZERO; SIDE]; SIDE / 2];
            for (row, to) in tile.iter_mut().enumerate().take(columns) {
                copy(&rows[row * stride + k..], to, depth - k);
            }
            step[..STEP / 2].copy_from_slice(L::turned(&tile).as_flattened());
        }
    }
}

lanes! {
    /// Packs a panel of `width` columns, up to 32, of a matrix of `depth` rows, `stride` elements apart.
    pub fn pack_panel[L, E](panel: &mut [E], rows: &[E], stride: usize, width: usize, depth: usize) {
        /// Rows that the cache is told of before they are read.
        const AHEAD: usize = 16;
        for (step, packed) in panel.chunks_exact_mut(STEP).enumerate() {
            let (left, right) = packed.split_at_mut(STEP / 2);
            let pairs = left.as_chunks_mut::<SIDE>().0.iter_mut().zip(right.as_chunks_mut::<SIDE>().0);
            for (pair, (left, right)) in pairs.enumerate() {
                let k = step * SIDE + 2 * pair;
                let mut both = [[E::default(); SIDE]; 2];
                for (row, both) in both.iter_mut().enumerate().take(depth.saturating_sub(k)) {
                    fetch::<true, E>(rows.as_ptr().wrapping_add((k + row + AHEAD) * stride));
                    copy(&rows[(k + row) * stride..], both, width);
                }
                [*left, *right] = E::interleaved::<L>([&both[0], &both[1]]);
            }
        }
    }
}

lanes! {
    /// The rows as columns, `stride` elements apart, with zeros up to a multiple of 32 of them.
    pub fn turn[L, E](from: Factor<'_, E>, to: &mut [E], stride: usize) {
        for row in (0..from.rows).step_by(SIDE) {
            for column in (0..from.columns).step_by(SIDE) {
                let mut halves = [[[E::default(); SIDE]; SIDE / 2]; 2];
                for pair in 0..SIDE / 2 {
                    let mut both = [[E::default(); SIDE]; 2];
                    for i in 0..2 {
                        let row = row + 2 * pair + i;
                        if row < from.rows {
                            copy(&from.data[row * from.stride + column..], &mut both[i], from.columns - column);
                        }
                    }
                    let both = E::interleaved::<L>([&both[0], &both[1]]);
                    (halves[0][pair], halves[1][pair]) = (both[0], both[1]);
                }
                for half in 0..2 {
                    let columns = E::turned::<L>(&halves[half]);
                    for i in 0..(from.columns - column).saturating_sub(half * SIDE / 2).min(SIDE / 2) {
                        let first = (column + half * SIDE / 2 + i) * stride + row;
                        to[first..first + SIDE].copy_from_slice(&columns[i]);
                    }
                }
            }
        }
    }
}

/// The first `count` elements, up to 32.
#[inline(always)]
fn copy<E: Copy>(from: &[E], to: &mut [E; SIDE], count: usize) {
    match from.first_chunk() {
        Some(from) if count >= SIDE => *to = *from,
        _ => {
            let count = count.min(SIDE);
            to[..count].copy_from_slice(&from[..count]);
        }
    }
}

/// A first factor somewhere in a slice.
#[derive(Clone, Copy)]
pub struct Factor<'a, E = bf16> {
    pub data: &'a [E],
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl<'a, E: Packed> Factor<'a, E> {
    pub fn new(data: &'a [E], rows: usize, columns: usize) -> Self {
        Factor { data, rows, columns, stride: columns }
    }

    /// Rows 32·`index` and on, to a depth that is a multiple of 32: as they lie, or where they end before, in `padded`
    /// with zeros behind them. So are rows that share the few sets of the first cache: they lie a multiple of 4 KiB apart.
    pub fn strip<'s>(&self, index: usize, padded: &'s mut Lines<E>) -> Rows<'s, E>
    where
        'a: 's,
    {
        let first = index * SIDE;
        let rows = SIDE.min(self.rows - first);
        let data = &self.data[first * self.stride..];
        let crowded = |stride: usize| (stride * size_of::<E>()).is_multiple_of(4096);
        if rows == SIDE && self.columns.is_multiple_of(SIDE) && !crowded(self.stride) {
            return Rows { data, stride: self.stride };
        }
        let mut stride = self.columns.next_multiple_of(SIDE);
        if crowded(stride) {
            stride += SIDE;
        }
        match rows == SIDE && self.columns.is_multiple_of(SIDE) {
            true => padded.grow(SIDE * stride),
            false => padded.reset(SIDE * stride),
        }
        for (to, row) in padded.chunks_exact_mut(stride).zip(0..rows) {
            to[..self.columns].copy_from_slice(&data[row * self.stride..][..self.columns]);
        }
        Rows { data: padded, stride }
    }
}
