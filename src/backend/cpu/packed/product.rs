//! Products of whole matrices: which blocks they are cut into, who computes which, and what becomes of the sums.

use super::block::{Block, Part, Rows, SIDE, STEP, Term, Unit};
use super::isa::{Isa, Ready};
use super::lanes::{Row, lanes};
use super::panels::{Factor, Lines, Panels, pack_panel, turn};
use super::{Packed, fetch};
use crate::backend::Activation;
use crate::backend::cpu::activation::{activated, of_kind, sloped};
use crate::backend::cpu::dropout::Mask;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of rows that a task goes through for each panel: what a core's second cache has room for beside the panel.
const ROWS: usize = 1 << 20;

/// A matrix that several tasks write to, each to a part of its own.
pub struct Target<'a, T> {
    at: *mut T,
    rows: usize,
    columns: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever asks for a part says that nobody else has it.
unsafe impl<T: Send> Sync for Target<'_, T> {}

impl<E: Packed> Target<'_, E> {
    /// Fetches the cache lines of the 32 elements that will be written.
    #[inline(always)]
    fn ahead(&self, row: usize, column: usize) {
        fetch_row::<false, E>(self.at.wrapping_add(row * self.columns + column));
    }
}

impl<'a, T> Target<'a, T> {
    /// A dense matrix.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        assert!(data.len() >= rows * columns, "{} elements for {rows}x{columns}", data.len());
        Target { at: data.as_mut_ptr(), rows, columns, of: PhantomData }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// While the part is used nobody else asks for an element of it.
    #[allow(clippy::mut_from_ref, reason = "parts do not overlap")]
    #[inline(always)]
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &'a mut [T] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        // SAFETY: it lies within the slice that `new` took, and is the caller's alone.
        unsafe {
            let first = self.at.add(row * self.columns + columns.start);
            std::slice::from_raw_parts_mut(first, columns.len())
        }
    }
}

/// A narrow product of the same rows, which is kept, and multiplied by `wide` goes into the sums: x·Aᵀ and then ·Bᵀ.
pub struct Narrow<'a, E> {
    /// The rows, where they are others than those of the product.
    pub rows: Option<Factor<'a, E>>,
    pub panels: &'a Panels<E>,
    pub kept: Target<'a, E>,
    /// Deep as `kept` is wide.
    pub wide: Option<&'a Panels<E>>,
    /// What `wide` gives goes through dropout.
    pub mask: Option<Mask>,
}

/// The cache lines of 32 elements.
#[inline(always)]
fn fetch_row<const READ: bool, E>(at: *const E) {
    for line in 0..SIDE * size_of::<E>() / 64 {
        fetch::<READ, u8>(at.cast::<u8>().wrapping_add(64 * line));
    }
}

/// Memory of a thread for the strips of a task.
#[derive(Default)]
pub struct Strips<E> {
    rows: Vec<Lines<E>>,
    seen: Lines<E>,
    narrow: Vec<Lines<E>>,
    /// A panel of `sums_over_rows`.
    panel: Lines<E>,
}

/// Part `index` of `count` parts of 0 to `length`, of about the same length.
fn cut(length: usize, count: usize, index: usize) -> Range<usize> {
    length * index / count..length * (index + 1) / count
}

/// The blocks of a product, handed out to whoever has time: at first as many strips of rows as the cache holds, towards
/// the end fewer and fewer, so that all threads end together though one of them was held up.
struct Work {
    strips: usize,
    /// Of one strip, where there are fewer strips than threads: parts of its panels.
    groups: usize,
    most: usize,
    threads: usize,
    /// Strips, or groups of them, that were handed out.
    taken: AtomicUsize,
}

impl Work {
    /// Of a product of so many strips and panels, this deep.
    fn new<E>(strips: usize, depth: usize, panels: usize) -> Self {
        let threads = rayon::current_num_threads();
        let most = (ROWS / (SIDE * depth.max(1) * size_of::<E>())).max(1);
        let groups = threads.div_ceil(strips.max(1)).min(panels).max(1);
        Work { strips, groups, most, threads, taken: AtomicUsize::new(0) }
    }

    /// Strips and the part of the panels to multiply them by, of `panels`.
    fn take(&self, panels: usize) -> Option<(Range<usize>, Range<usize>)> {
        let all = self.strips * self.groups;
        let size = |left: usize| match self.groups {
            1 => (left / (2 * self.threads)).clamp(1, self.most),
            _ => 1,
        };
        let next = |taken: usize| (taken < all).then(|| taken + size(all - taken));
        let taken = self.taken.fetch_update(Relaxed, Relaxed, next).ok()?;
        let strips = taken / self.groups..next(taken)?.div_ceil(self.groups);
        Some((strips, cut(panels, self.groups, taken % self.groups)))
    }

    /// Runs `body` on all threads.
    fn share(&self, body: impl Fn() + Sync) {
        (0..self.threads).into_par_iter().with_max_len(1).for_each(|_| body());
    }
}

/// y = rows·panels + bias + residual, and what is `narrow` beside it. Without `panels` only the narrow product.
pub fn product<E: Packed>(
    isa: Isa,
    rows: Factor<'_, E>,
    panels: Option<&Panels<E>>,
    narrow: Option<&Narrow<'_, E>>,
    output: &impl Output<E>,
) {
    let of_panels = panels.map_or(0, Panels::count);
    let work = Work::new::<E>(rows.rows.div_ceil(SIDE), rows.columns, of_panels);
    work.share(|| {
        let unit = Unit::new(isa);
        E::strips().with_borrow_mut(|memory| {
            while let Some((strips, own_panels)) = work.take(of_panels) {
                multiply_strips(&unit, rows, panels, narrow, output, (strips, own_panels), memory);
            }
        });
    });
}

/// Strips by some of the panels.
fn multiply_strips<E: Packed>(
    unit: &Unit<E>,
    rows: Factor<'_, E>,
    panels: Option<&Panels<E>>,
    narrow: Option<&Narrow<'_, E>>,
    output: &impl Output<E>,
    (strips, own_panels): (Range<usize>, Range<usize>),
    memory: &mut Strips<E>,
) {
    let columns = panels.map_or(0, Panels::columns);
    let (mut block, mut other) = (Block::ZERO, Block::ZERO);
    memory.rows.resize_with(memory.rows.len().max(strips.len()), Lines::default);
    memory.narrow.resize_with(memory.narrow.len().max(strips.len()), Lines::default);
    let mut of_strips: Vec<(Rows<'_, E>, Option<Rows<'_, E>>)> = Vec::with_capacity(strips.len());
    let buffers = memory.rows.iter_mut().zip(&mut memory.narrow);
    for (strip, (padded, kept)) in strips.clone().zip(buffers) {
        let own = rows.strip(strip, padded);
        let below = narrow.map(|narrow| {
            let seen = narrow.rows.map_or(own, |rows| rows.strip(strip, &mut memory.seen));
            // Every group of panels needs it, and the first keeps it.
            let keep = own_panels.start == 0;
            narrow_strip(unit, seen, narrow, (strip, keep), &mut block, kept)
        });
        of_strips.push((own, below));
    }
    let Some(panels) = panels else { return };
    for panel in own_panels {
        let to = panel * SIDE..columns.min((panel + 1) * SIDE);
        for (strip, &(own, below)) in strips.clone().zip(&of_strips) {
            let from = strip * SIDE..rows.rows.min((strip + 1) * SIDE);
            output.ahead(from.clone(), &to);
            let part = Part { rows: from.len(), columns: to.len() };
            let first = panels.term(own, panel);
            let second = below
                .zip(narrow)
                .and_then(|(rows, narrow)| Some((narrow.wide?.term(rows, panel), narrow.mask)));
            match second {
                None => unit.multiply(&[first], part, &mut block),
                Some((second, None)) => unit.multiply(&[first, second], part, &mut block),
                Some((second, Some(mask))) => {
                    unit.multiply(&[second], part, &mut other);
                    for (i, row) in from.clone().enumerate() {
                        let sums = &mut other.0[i * SIDE..][..to.len()];
                        mask.apply(row * columns + to.start, sums);
                    }
                    unit.multiply(&[first], part, &mut block);
                    block.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
                }
            }
            output.write(unit.isa(), &block, from, to.clone());
        }
    }
}

/// The narrow product of a strip, rounded, as rows for the next product.
fn narrow_strip<'s, E: Packed>(
    unit: &Unit<E>,
    seen: Rows<'_, E>,
    narrow: &Narrow<'_, E>,
    (strip, keep): (usize, bool),
    block: &mut Block,
    rounded: &'s mut Lines<E>,
) -> Rows<'s, E> {
    let (width, stride) = (narrow.panels.columns(), narrow.panels.count() * SIDE);
    rounded.grow(SIDE * stride);
    for panel in 0..narrow.panels.count() {
        let columns = (width - panel * SIDE).min(SIDE);
        unit.multiply(&[narrow.panels.term(seen, panel)], Part { rows: SIDE, columns }, block);
        round_rows(unit.isa(), block, columns, &mut rounded[panel * SIDE..], stride);
    }
    if keep {
        let first = strip * SIDE;
        for (row, from) in rounded.chunks_exact(stride).enumerate().take(SIDE.min(narrow.kept.rows - first)) {
            // SAFETY: of all tasks, one keeps this strip.
            let to = unsafe { narrow.kept.part(first + row, 0..width) };
            to.copy_from_slice(&from[..width]);
        }
    }
    Rows { data: rounded, stride }
}

/// What becomes of blocks of sums. A block has the first of its columns at each of its rows.
pub trait Output<E>: Sync {
    /// Fetches into the cache what the block will be written to, while it is being computed.
    fn ahead(&self, _rows: Range<usize>, _columns: &Range<usize>) {}
    fn write(&self, isa: Ready<E>, block: &Block, rows: Range<usize>, columns: Range<usize>);
}

/// Where there are no panels, and nothing is written.
pub struct Nothing;

impl<E> Output<E> for Nothing {
    fn write(&self, _isa: Ready<E>, _block: &Block, _rows: Range<usize>, _columns: Range<usize>) {}
}

/// Sums rounded, with what is added to them.
pub struct Rounded<'a, E> {
    pub y: Target<'a, E>,
    pub bias: Option<&'a [E]>,
    /// Of y's shape.
    pub residual: Option<&'a [E]>,
}

impl<E: Packed> Rounded<'_, E> {
    fn residual(&self, row: usize, columns: &Range<usize>) -> Option<&[E]> {
        self.residual.map(|all| &all[row * self.y.columns + columns.start..][..columns.len()])
    }
}

impl<E: Packed> Output<E> for Rounded<'_, E> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            self.y.ahead(row, columns.start);
            if let Some(residual) = self.residual(row, columns) {
                fetch_row::<true, E>(residual.as_ptr());
            }
        }
    }

    fn write(&self, isa: Ready<E>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_rounded(isa, self, None, block, rows, columns);
    }
}

/// Sums rounded, and the activation of what they were rounded to.
pub struct Activated<'a, E> {
    pub z: Rounded<'a, E>,
    pub g: Target<'a, E>,
    pub kind: Activation,
}

impl<E: Packed> Output<E> for Activated<'_, E> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        self.z.ahead(rows.clone(), columns);
        rows.for_each(|row| self.g.ahead(row, columns.start));
    }

    fn write(&self, isa: Ready<E>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_rounded(isa, &self.z, Some((&self.g, self.kind)), block, rows, columns);
    }
}

lanes! {
    /// Rounds sums with what is added to them, and where it is asked for the activation of what they were rounded to.
    fn write_rounded[L, E](
        z: &Rounded<'_, E>,
        activation: Option<(&Target<'_, E>, Activation)>,
        block: &Block,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let bias: &[E] = match z.bias {
            Some(bias) => &bias[columns.clone()],
            None => &[],
        };
        let start = Row::<L>::widened_part(bias);
        for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
            let mut sums = Row::load(sums) + start;
            if let Some(residual) = z.residual(row, &columns) {
                sums = sums + Row::widened_part(residual);
            }
            // SAFETY: a block is one task's.
            sums.round_to(unsafe { z.y.part(row, columns.clone()) });
            if let Some((g, kind)) = activation {
                // SAFETY: as above.
                let g = unsafe { g.part(row, columns.clone()) };
                of_kind!(kind => {
                    activated(kind, E::kept(sums)).round_to(g);
                })
            }
        }
    }
}

/// Sums times the slope of the activation at z, rounded.
pub struct Sloped<'a, E> {
    pub dz: Target<'a, E>,
    /// Of dz's shape.
    pub z: &'a [E],
    pub kind: Activation,
}

impl<E: Packed> Sloped<'_, E> {
    fn z(&self, row: usize, columns: &Range<usize>) -> &[E] {
        &self.z[row * self.dz.columns + columns.start..][..columns.len()]
    }
}

impl<E: Packed> Output<E> for Sloped<'_, E> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            self.dz.ahead(row, columns.start);
            fetch_row::<true, E>(self.z(row, columns).as_ptr());
        }
    }

    fn write(&self, isa: Ready<E>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_sloped(isa, self, block, rows, columns);
    }
}

lanes! {
    fn write_sloped[L, E](output: &Sloped<'_, E>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        let kind = output.kind;
        of_kind!(kind => {
            for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
                let z = Row::<L>::widened_part(output.z(row, &columns));
                // As if the gradient had been written before: rounded.
                let d = E::kept(Row::<L>::load(sums));
                // SAFETY: a block is one task's.
                let dz = unsafe { output.dz.part(row, columns.clone()) };
                sloped(kind, z, d).round_to(dz);
            }
        })
    }
}

/// Sums added to a factor, in panels as packed as its own: rows are as deep, and columns its columns.
pub struct Folded<'a> {
    source: &'a Panels<f32>,
    /// A row for each step.
    to: Target<'a, f32>,
}

impl<'a> Folded<'a> {
    pub fn new(source: &'a Panels<f32>, to: &'a mut Panels<f32>) -> Self {
        assert!((source.depth(), source.columns()) == (to.depth(), to.columns()), "panels of other extents");
        let steps = to.steps_mut();
        let count = steps.len() / STEP;
        Folded { source, to: Target::new(steps, count, STEP) }
    }
}

impl Output<f32> for Folded<'_> {
    fn write(&self, isa: Ready<f32>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        let (panel, step) = (columns.start / SIDE, rows.start / SIDE);
        let from = self.source.panel(panel);
        let first = panel * (from.len() / STEP) + step;
        // SAFETY: a block is one task's, and this step its place.
        let to = unsafe { self.to.part(first, 0..STEP) };
        add_step(isa, block, rows.len(), &from[step * STEP..][..STEP], to);
    }
}

lanes! {
    /// to = from + the first rows of a block; beyond them there are zeros. Columns beyond the factor's have sums of 0.
    fn add_step[L, E](block: &Block, rows: usize, from: &[f32], to: &mut [f32]) {
        let (left, right) = from.split_at(STEP / 2);
        let (left, right) = (left.as_chunks::<16>().0, right.as_chunks::<16>().0);
        let (to_left, to_right) = to.split_at_mut(STEP / 2);
        let (to_left, to_right) = (to_left.as_chunks_mut::<16>().0, to_right.as_chunks_mut::<16>().0);
        for row in 0..rows {
            let sums = block.0[row * SIDE..][..SIDE].as_chunks::<16>().0;
            (L::load(&sums[0]) + L::load(&left[row])).store(&mut to_left[row]);
            (L::load(&sums[1]) + L::load(&right[row])).store(&mut to_right[row]);
        }
    }
}

lanes! {
    /// Rounds the first columns of a block to rows `stride` elements apart, with zeros up to the 32nd.
    fn round_rows[L, E](block: &Block, columns: usize, to: &mut [E], stride: usize) {
        for (sums, to) in block.0.as_chunks::<SIDE>().0.iter().zip(to.chunks_mut(stride)) {
            let to = &mut to[..SIDE];
            Row::<L>::load(sums).round_to(to);
            to[columns..].fill(E::default());
        }
    }
}

/// The products of all columns of `left` with those of `right`, sums over their rows: block (i, j) has the columns of
/// `left` from 32·i on as rows, and the columns of `right` from 32·j on as columns.
pub fn sums_over_rows<E: Packed>(
    isa: Isa,
    left: Factor<'_, E>,
    right: Factor<'_, E>,
    write: &(impl Fn(&Block, Range<usize>, Range<usize>) + Sync),
) {
    let (depth, stride) = (left.rows, left.rows.next_multiple_of(SIDE));
    let mut turned = Lines::<E>::default();
    turned.reset(left.columns.next_multiple_of(SIDE) * stride);
    turn(isa.ready(), left, &mut turned, stride);
    let turned = &turned;
    (0..right.columns.div_ceil(SIDE)).into_par_iter().for_each(|panel| {
        E::strips().with_borrow_mut(|memory| {
            let packed = &mut memory.panel;
            let columns = panel * SIDE..right.columns.min((panel + 1) * SIDE);
            let steps = stride * SIDE;
            packed.grow(steps);
            let packed = &mut packed[..steps];
            let (unit, mut block) = (Unit::<E>::new(isa), Block::ZERO);
            pack_panel(unit.isa(), packed, &right.data[columns.start..], right.stride, columns.len(), depth);
            for first in (0..left.columns).step_by(SIDE) {
                let rows = Rows { data: &turned[first * stride..], stride };
                let of_left = first..left.columns.min(first + SIDE);
                let part = Part { rows: of_left.len(), columns: columns.len() };
                unit.multiply(&[Term { rows, steps: packed, depth }], part, &mut block);
                write(&block, of_left, columns.clone());
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_handed_out_once() {
        for (strips, panels, threads) in
            [(50, 24, 2), (1, 96, 16), (3, 2, 8), (7, 1, 1), (200, 3, 5), (0, 4, 2), (4, 0, 3)]
        {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let work = pool.install(|| Work::new::<f32>(strips, 768, panels));
            let mut times = vec![0; strips * panels];
            let mut largest = 0;
            while let Some((of_strips, of_panels)) = work.take(panels) {
                largest = largest.max(of_strips.len());
                assert!(!of_strips.is_empty(), "{strips}, {threads}");
                of_strips
                    .for_each(|strip| of_panels.clone().for_each(|panel| times[strip * panels + panel] += 1));
            }
            assert!(times.iter().all(|&times| times == 1), "{strips} by {panels} on {threads}: {times:?}");
            assert!(largest * threads <= strips.max(threads), "{largest} of {strips} on {threads}");
        }
    }
}
