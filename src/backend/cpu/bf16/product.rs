//! Products of whole matrices: which blocks they are cut into, who computes which, and what becomes of the sums.

use super::block::{Block, Rows, SIDE, Term, Unit};
use super::isa::Isa;
use super::panels::{Factor, Lines, Panels, pack_panel};
use super::{round, widen};
use crate::backend::Activation;
use crate::backend::cpu::activation::{activated, of_kind, sloped};
use crate::backend::cpu::dropout::Mask;
use crate::backend::cpu::real::vectors;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

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

/// Row strips and panels of each task, of a product this deep.
fn tasks(strips: usize, depth: usize, panels: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let threads = rayon::current_num_threads();
    let most = (ROWS / (SIDE * depth.max(1) * size_of::<bf16>())).max(1);
    // As many for each thread.
    let blocks = strips.div_ceil(most).next_multiple_of(threads).min(strips).max(1);
    let groups = threads.div_ceil(blocks).min(panels).max(1);
    let each = |block| (0..groups).map(move |group| (cut(strips, blocks, block), cut(panels, groups, group)));
    (0..blocks).flat_map(each).collect()
}

/// y = rows·panels + bias + residual, and what is `narrow` beside it. Without `panels` only the narrow product.
pub fn product(
    isa: Isa,
    rows: Factor<'_>,
    panels: Option<&Panels>,
    narrow: Option<&Narrow<'_>>,
    output: &impl Output,
) {
    let columns = panels.map_or(0, Panels::columns);
    let of_panels = panels.map_or(0, Panels::count);
    tasks(rows.rows.div_ceil(SIDE), rows.columns, of_panels).into_par_iter().for_each(
        |(strips, own_panels)| {
            STRIPS_OF_THREAD.with_borrow_mut(|memory| {
                let (unit, mut block, mut other) = (Unit::new(isa), Block::ZERO, Block::ZERO);
                memory.rows.resize_with(memory.rows.len().max(strips.len()), Lines::default);
                memory.narrow.resize_with(memory.narrow.len().max(strips.len()), Lines::default);
                let mut of_strips: Vec<[Option<Rows<'_>>; 2]> = Vec::with_capacity(strips.len());
                let buffers = memory.rows.iter_mut().zip(&mut memory.narrow);
                for (strip, (padded, kept)) in strips.clone().zip(buffers) {
                    let own = rows.strip(strip, padded);
                    let below = narrow.map(|narrow| {
                        let seen = narrow.rows.map_or(own, |rows| rows.strip(strip, &mut memory.seen));
                        // Every group of panels needs it, and the first keeps it.
                        let keep = own_panels.start == 0;
                        narrow_strip(&unit, seen, narrow, (strip, keep), &mut block, kept)
                    });
                    of_strips.push([Some(own), below]);
                }
                let Some(panels) = panels else { return };
                for panel in own_panels {
                    let to = panel * SIDE..columns.min((panel + 1) * SIDE);
                    for (strip, &[own, below]) in strips.clone().zip(&of_strips) {
                        let Some(own) = own else { continue };
                        let from = strip * SIDE..rows.rows.min((strip + 1) * SIDE);
                        output.ahead(from.clone(), &to);
                        let first = Term { rows: own, steps: panels.panel(panel) };
                        let second = below.zip(narrow).and_then(|(rows, narrow)| {
                            Some((Term { rows, steps: narrow.wide?.panel(panel) }, narrow.mask))
                        });
                        match second {
                            None => unit.multiply(&[first], &mut block),
                            Some((second, None)) => unit.multiply(&[first, second], &mut block),
                            Some((second, Some(mask))) => {
                                unit.multiply(&[second], &mut other);
                                for (i, row) in from.clone().enumerate() {
                                    let sums = &mut other.0[i * SIDE..][..to.len()];
                                    mask.apply(row * columns + to.start, sums);
                                }
                                unit.multiply(&[first], &mut block);
                                block.0.iter_mut().zip(&other.0).for_each(|(sum, more)| *sum += more);
                            }
                        }
                        output.write(&block, from, to.clone());
                    }
                }
            });
        },
    );
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
        unit.multiply(&[Term { rows: seen, steps: narrow.panels.panel(panel) }], block);
        for (row, to) in rounded.chunks_exact_mut(stride).take(SIDE).enumerate() {
            let to = &mut to[panel * SIDE..][..SIDE];
            round_rows(block.row(row, SIDE), to);
        }
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
    fn write(&self, block: &Block, rows: Range<usize>, columns: Range<usize>);
}

/// Where there are no panels, and nothing is written.
pub struct Nothing;

impl Output for Nothing {
    fn write(&self, _block: &Block, _rows: Range<usize>, _columns: Range<usize>) {}
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

    #[inline(always)]
    fn write(&self, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        let mut start = [0.0f32; SIDE];
        if let Some(bias) = self.bias {
            start.iter_mut().zip(&bias[columns.clone()]).for_each(|(to, &bias)| *to = widen(bias));
        }
        // SAFETY: a block is one task's.
        let to = |row: usize| unsafe { self.y.part(row, columns.clone()) };
        write_rounded(block, &start, rows, to, |row| self.residual(row, &columns));
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

    fn write(&self, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        self.z.write(block, rows.clone(), columns.clone());
        // SAFETY: a block is one task's, of z as of g.
        let part =
            |row: usize| unsafe { (self.z.y.part(row, columns.clone()), self.g.part(row, columns.clone())) };
        activate_rows(self.kind, rows, part);
    }
}

vectors! {
    fn activate_rows['a, F: Fn(usize) -> (&'a mut [bf16], &'a mut [bf16])](
        kind: Activation,
        rows: Range<usize>,
        part: F,
    ) {
        of_kind!(kind => {
            for row in rows {
                let (z, g) = part(row);
                match (z.first_chunk::<SIDE>(), g.first_chunk_mut::<SIDE>()) {
                    (Some(z), Some(g)) => {
                        for i in 0..SIDE {
                            g[i] = round(activated(kind, widen(z[i])));
                        }
                    }
                    _ => g.iter_mut().zip(z).for_each(|(g, z)| *g = round(activated(kind, widen(*z)))),
                }
            }
        })
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

    fn write(&self, block: &Block, rows: Range<usize>, columns: Range<usize>) {
        // SAFETY: a block is one task's.
        let part = |row: usize| unsafe { (self.z(row, &columns), self.dz.part(row, columns.clone())) };
        write_sloped(block, self.kind, rows, part);
    }
}

vectors! {
    fn write_sloped['a, F: Fn(usize) -> (&'a [bf16], &'a mut [bf16])](
        block: &Block,
        kind: Activation,
        rows: Range<usize>,
        part: F,
    ) {
        of_kind!(kind => {
            for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
                let (z, dz) = part(row);
                // As if the gradient had been written before: rounded.
                let d = |i: usize| widen(round(sums[i]));
                match (z.first_chunk::<SIDE>(), dz.first_chunk_mut::<SIDE>()) {
                    (Some(z), Some(dz)) => {
                        for i in 0..SIDE {
                            dz[i] = round(sloped(kind, widen(z[i]), d(i)));
                        }
                    }
                    _ => {
                        for (i, (dz, z)) in dz.iter_mut().zip(z).enumerate() {
                            *dz = round(sloped(kind, widen(*z), d(i)));
                        }
                    }
                }
            }
        })
    }
}

/// Asks for the cache line at `at`, to read it or to write to it.
#[inline(always)]
fn fetch<const READ: bool>(at: *const bf16) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        if READ { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

vectors! {
    fn write_rounded['a, F: Fn(usize) -> &'a mut [bf16], R: Fn(usize) -> Option<&'a [bf16]>](
        block: &Block,
        start: &[f32; SIDE],
        rows: Range<usize>,
        to: F,
        residual: R,
    ) {
        for (row, sums) in rows.zip(block.0.as_chunks::<SIDE>().0) {
            let (to, residual) = (to(row), residual(row));
            let mut sums = *sums;
            for i in 0..SIDE {
                sums[i] += start[i];
            }
            if let Some(residual) = residual {
                match residual.first_chunk::<SIDE>() {
                    Some(residual) => {
                        for i in 0..SIDE {
                            sums[i] += widen(residual[i]);
                        }
                    }
                    None => sums.iter_mut().zip(residual).for_each(|(sum, &residual)| *sum += widen(residual)),
                }
            }
            match to.first_chunk_mut::<SIDE>() {
                Some(to) => {
                    for i in 0..SIDE {
                        to[i] = round(sums[i]);
                    }
                }
                None => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = round(sum)),
            }
        }
    }
}

vectors! {
    fn round_rows[](sums: &[f32], rounded: &mut [bf16]) {
        for (to, &sum) in rounded.iter_mut().zip(sums) {
            *to = round(sum);
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
    for (row, from) in left.data.chunks(left.stride).take(depth).enumerate() {
        for (column, &value) in from[..left.columns].iter().enumerate() {
            turned[column * stride + row] = value;
        }
    }
    (0..right.columns.div_ceil(SIDE)).into_par_iter().for_each(|panel| {
        PANEL.with_borrow_mut(|packed| {
            let columns = panel * SIDE..right.columns.min((panel + 1) * SIDE);
            let steps = stride * SIDE;
            packed.grow(steps);
            let packed = &mut packed[..steps];
            pack_panel(packed, &right.data[columns.start..], right.stride, columns.len(), depth);
            let (unit, mut block) = (Unit::new(isa), Block::ZERO);
            for first in (0..left.columns).step_by(SIDE) {
                let rows = Rows { data: &turned[first * stride..], stride };
                unit.multiply(&[Term { rows, steps: packed }], &mut block);
                write(&block, first..left.columns.min(first + SIDE), columns.clone());
            }
        });
    });
}
