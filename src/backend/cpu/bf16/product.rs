//! Products of whole matrices: which blocks they are cut into, who computes which, and what becomes of the sums.

use super::block::{Block, Part, Rows, SIDE, Term, Unit};
use super::fetch;
use super::isa::{Isa, Ready};
use super::lanes::{Row, lanes, put};
use super::panels::{Factor, Lines, Panels, pack_panel, turn};
use crate::backend::Activation;
use crate::backend::cpu::activation::{activated, of_kind, sloped};
use crate::backend::cpu::dropout::Mask;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
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

impl Target<'_, bf16> {
    /// Fetches the cache line of an element that will be written.
    #[inline(always)]
    fn ahead(&self, row: usize, column: usize) {
        fetch::<false>(self.at.wrapping_add(row * self.columns + column));
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
pub struct Narrow<'a> {
    /// The rows, where they are others than those of the product.
    pub rows: Option<Factor<'a>>,
    pub panels: &'a Panels,
    pub kept: Target<'a, bf16>,
    /// Deep as `kept` is wide.
    pub wide: Option<&'a Panels>,
    /// What `wide` gives goes through dropout.
    pub mask: Option<Mask>,
}

/// Memory of a thread for the strips of a task.
#[derive(Default)]
struct Strips {
    rows: Vec<Lines>,
    seen: Lines,
    narrow: Vec<Lines>,
}

thread_local! {
    static STRIPS_OF_THREAD: RefCell<Strips> = RefCell::default();
    static PANEL: RefCell<Lines> = RefCell::default();
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
    fn new(strips: usize, depth: usize, panels: usize) -> Self {
        let threads = rayon::current_num_threads();
        let most = (ROWS / (SIDE * depth.max(1) * size_of::<bf16>())).max(1);
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
pub fn product(
    isa: Isa,
    rows: Factor<'_>,
    panels: Option<&Panels>,
    narrow: Option<&Narrow<'_>>,
    output: &impl Output,
) {
    let of_panels = panels.map_or(0, Panels::count);
    let work = Work::new(rows.rows.div_ceil(SIDE), rows.columns, of_panels);
    work.share(|| {
        let unit = Unit::new(isa);
        STRIPS_OF_THREAD.with_borrow_mut(|memory| {
            while let Some((strips, own_panels)) = work.take(of_panels) {
                multiply_strips(&unit, rows, panels, narrow, output, (strips, own_panels), memory);
            }
        });
    });
}

/// Strips by some of the panels.
fn multiply_strips(
    unit: &Unit,
    rows: Factor<'_>,
    panels: Option<&Panels>,
    narrow: Option<&Narrow<'_>>,
    output: &impl Output,
    (strips, own_panels): (Range<usize>, Range<usize>),
    memory: &mut Strips,
) {
    let columns = panels.map_or(0, Panels::columns);
    let (mut block, mut other) = (Block::ZERO, Block::ZERO);
    memory.rows.resize_with(memory.rows.len().max(strips.len()), Lines::default);
    memory.narrow.resize_with(memory.narrow.len().max(strips.len()), Lines::default);
    let mut of_strips: Vec<(Rows<'_>, Option<Rows<'_>>)> = Vec::with_capacity(strips.len());
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
fn narrow_strip<'s>(
    unit: &Unit,
    seen: Rows<'_>,
    narrow: &Narrow<'_>,
    (strip, keep): (usize, bool),
    block: &mut Block,
    rounded: &'s mut Lines,
) -> Rows<'s> {
    let (width, stride) = (narrow.panels.columns(), narrow.panels.count() * SIDE);
    rounded.grow(SIDE * stride);
    for panel in 0..narrow.panels.count() {
        let columns = (width - panel * SIDE).min(SIDE);
        unit.multiply(&[narrow.panels.term(seen, panel)], Part { rows: SIDE, columns }, block);
        round_rows(unit.isa(), block, 1.0, columns, &mut rounded[panel * SIDE..], stride);
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
pub trait Output: Sync {
    /// Fetches into the cache what the block will be written to, while it is being computed.
    fn ahead(&self, _rows: Range<usize>, _columns: &Range<usize>) {}
    fn write(&self, isa: Ready, block: &Block, rows: Range<usize>, columns: Range<usize>);
}

/// Where there are no panels, and nothing is written.
pub struct Nothing;

impl Output for Nothing {
    fn write(&self, _isa: Ready, _block: &Block, _rows: Range<usize>, _columns: Range<usize>) {}
}

/// Sums rounded, with what is added to them.
pub struct Rounded<'a> {
    pub y: Target<'a, bf16>,
    pub bias: Option<&'a [bf16]>,
    /// Of y's shape.
    pub residual: Option<&'a [bf16]>,
}

impl Rounded<'_> {
    fn residual(&self, row: usize, columns: &Range<usize>) -> Option<&[bf16]> {
        self.residual.map(|all| &all[row * self.y.columns + columns.start..][..columns.len()])
    }
}

impl Output for Rounded<'_> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            self.y.ahead(row, columns.start);
            if let Some(residual) = self.residual(row, columns) {
                fetch::<true>(residual.as_ptr());
            }
        }
    }

    fn write(&self, isa: Ready, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_rounded(isa, self, None, block, rows, columns);
    }
}

/// Sums rounded, and the activation of what they were rounded to.
pub struct Activated<'a> {
    pub z: Rounded<'a>,
    pub g: Target<'a, bf16>,
    pub kind: Activation,
}

impl Output for Activated<'_> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        self.z.ahead(rows.clone(), columns);
        rows.for_each(|row| self.g.ahead(row, columns.start));
    }

    fn write(&self, isa: Ready, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_rounded(isa, &self.z, Some((&self.g, self.kind)), block, rows, columns);
    }
}

lanes! {
    /// Rounds sums with what is added to them, and where it is asked for the activation of what they were rounded to.
    fn write_rounded[L](
        z: &Rounded<'_>,
        activation: Option<(&Target<'_, bf16>, Activation)>,
        block: &Block,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let start = Row::<L>::widened_part(z.bias.map_or(&[], |bias| &bias[columns.clone()]));
        for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
            let mut sums = Row::load(sums) + start;
            if let Some(residual) = z.residual(row, &columns) {
                sums = sums + Row::widened_part(residual);
            }
            let rounded = sums.rounded();
            // SAFETY: a block is one task's.
            put(&rounded, unsafe { z.y.part(row, columns.clone()) });
            if let Some((g, kind)) = activation {
                // SAFETY: as above.
                let g = unsafe { g.part(row, columns.clone()) };
                of_kind!(kind => {
                    activated(kind, Row::<L>::widened(&rounded)).round_to(g);
                })
            }
        }
    }
}

/// Sums times the slope of the activation at z, rounded.
pub struct Sloped<'a> {
    pub dz: Target<'a, bf16>,
    /// Of dz's shape.
    pub z: &'a [bf16],
    pub kind: Activation,
}

impl Sloped<'_> {
    fn z(&self, row: usize, columns: &Range<usize>) -> &[bf16] {
        &self.z[row * self.dz.columns + columns.start..][..columns.len()]
    }
}

impl Output for Sloped<'_> {
    #[inline(always)]
    fn ahead(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            self.dz.ahead(row, columns.start);
            fetch::<true>(self.z(row, columns).as_ptr());
        }
    }

    fn write(&self, isa: Ready, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        write_sloped(isa, self, block, rows, columns);
    }
}

lanes! {
    fn write_sloped[L](output: &Sloped<'_>, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        let kind = output.kind;
        of_kind!(kind => {
            for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
                let z = Row::<L>::widened_part(output.z(row, &columns));
                // As if the gradient had been written before: rounded.
                let d = Row::widened(&Row::<L>::load(sums).rounded());
                // SAFETY: a block is one task's.
                let dz = unsafe { output.dz.part(row, columns.clone()) };
                sloped(kind, z, d).round_to(dz);
            }
        })
    }
}

lanes! {
    /// Rounds the first columns of a block, times `scale`, to rows `stride` elements apart, with zeros up to the 32nd.
    pub fn round_rows[L](block: &Block, scale: f32, columns: usize, to: &mut [bf16], stride: usize) {
        let scale = Row::<L>::splat(scale);
        for (sums, to) in block.0.as_chunks::<SIDE>().0.iter().zip(to.chunks_mut(stride)) {
            let to = &mut to[..SIDE];
            (Row::load(sums) * scale).round_to(to);
            to[columns..].fill(bf16::ZERO);
        }
    }
}

/// The products of all columns of `left` with those of `right`, sums over their rows: block (i, j) has the columns of
/// `left` from 32·i on as rows, and the columns of `right` from 32·j on as columns.
pub fn sums_over_rows(
    isa: Isa,
    left: Factor<'_>,
    right: Factor<'_>,
    write: &(impl Fn(&Block, Range<usize>, Range<usize>) + Sync),
) {
    let (depth, stride) = (left.rows, left.rows.next_multiple_of(SIDE));
    let mut turned = Lines::default();
    turned.reset(left.columns.next_multiple_of(SIDE) * stride);
    turn(isa.ready(), left, &mut turned, stride);
    let turned = &turned;
    (0..right.columns.div_ceil(SIDE)).into_par_iter().for_each(|panel| {
        PANEL.with_borrow_mut(|packed| {
            let columns = panel * SIDE..right.columns.min((panel + 1) * SIDE);
            let steps = stride * SIDE;
            packed.grow(steps);
            let packed = &mut packed[..steps];
            let (unit, mut block) = (Unit::new(isa), Block::ZERO);
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
