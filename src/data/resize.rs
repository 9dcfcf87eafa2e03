//! Bicubic resizing with antialiasing, equal to Pillow's `Image.resize(…, BICUBIC)` in every bit.
//!
//! Two passes of one-dimensional filtering, along the rows and down the columns, rounded to u8 in between, in fixed
//! point with 22 fractional bits. Every output pixel depends on its own row and column of weights only, so the passes
//! compute just the window that a crop keeps, and the result is the crop of the whole.

use std::ops::Range;

/// Channels per pixel.
pub const CHANNELS: usize = 3;

/// Fractional bits of the weights: 32 bits less 8 of the pixel and 2 for sums beyond one.
const FRACTION_BITS: u32 = 22;

/// One half, where every sum starts, so that cutting the fraction rounds.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Radius of the cubic kernel at scale 1, in pixels.
const SUPPORT: f64 = 2.0;

/// An image of 8-bit RGB pixels, [height, width, 3], row-major.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// Wraps `pixels`; None unless there are 3·width·height of them and at least one.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Option<RgbImage> {
        let expected = width.checked_mul(height)?.checked_mul(CHANNELS)?;
        (expected > 0 && pixels.len() == expected).then_some(RgbImage { width, height, pixels })
    }

    /// Pixels in a row; at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows; at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, [height, width, 3].
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({} x {})", self.width, self.height)
    }
}

/// The part of a resized image that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Pixels in a row of the whole resized image.
    pub width: usize,
    /// Its rows.
    pub height: usize,
    /// First column of the part.
    pub left: usize,
    /// Its first row.
    pub top: usize,
    /// Side of the part, which is square and lies within the whole.
    pub side: usize,
}

/// Resizes `image` to `window.width` × `window.height` and returns the window, [side, side, 3].
pub fn resize_window(image: &RgbImage, window: &Window) -> Vec<u8> {
    let Window { left, top, side, .. } = *window;
    let across = Filter::new(image.width, window.width, left..left + side);
    let down = Filter::new(image.height, window.height, top..top + side);
    if columns_first(image, window) {
        let columns = across.source_range();
        let low = down.columns(&image.pixels, image.width, 0, &columns);
        let mut out = vec![0u8; side * side * CHANNELS];
        across.rows(&low, columns.len(), columns.start, &mut out);
        out
    } else {
        let rows = down.source_range();
        let stride = image.width * CHANNELS;
        let mut narrow = vec![0u8; rows.len() * side * CHANNELS];
        across.rows(&image.pixels[rows.start * stride..rows.end * stride], image.width, 0, &mut narrow);
        down.columns(&narrow, side, rows.start, &(0..side))
    }
}

/// Whether columns are filtered before rows, which changes the rounding in between. Pillow does so since
/// version 13, and only when the height shrinks by more than twice what the width shrinks by.
fn columns_first(image: &RgbImage, window: &Window) -> bool {
    window.height < image.height && image.height + 2 * window.width > window.height + 2 * image.width
}

/// The taps of one output position: `first` source position and as many weights as there are.
struct Taps {
    first: usize,
    weights: Range<usize>,
}

/// One-dimensional resampling of `n_in` positions to some of `n_out`.
struct Filter {
    taps: Vec<Taps>,
    /// Weights of all positions, in fixed point.
    weights: Vec<i32>,
}

impl Filter {
    /// The filter for the output positions `wanted` of `0..n_out`.
    fn new(n_in: usize, n_out: usize, wanted: Range<usize>) -> Filter {
        let mut filter = Filter { taps: Vec::with_capacity(wanted.len()), weights: Vec::new() };
        let scale = n_in as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let support = SUPPORT * stretch;
        let mut exact = Vec::new();
        for position in wanted {
            let start = filter.weights.len();
            if n_in == n_out {
                // An unchanged size is copied, as if the pass were left out.
                filter.weights.push(1 << FRACTION_BITS);
                filter.taps.push(Taps { first: position, weights: start..start + 1 });
                continue;
            }
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(n_in);
            exact.clear();
            // The product with the reciprocal, and this order of operations, decide the last bits.
            exact.extend((first..end).map(|k| cubic((k as f64 - centre + 0.5) * (1.0 / stretch))));
            let total: f64 = exact.iter().sum();
            filter.weights.extend(exact.iter().map(|w| fixed(w / total)));
            filter.taps.push(Taps { first, weights: start..filter.weights.len() });
        }
        filter
    }

    /// The source positions that any tap reads.
    fn source_range(&self) -> Range<usize> {
        let start = self.taps.iter().map(|t| t.first).min().unwrap_or(0);
        let end = self.taps.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
        start..end
    }

    /// Filters the rows of `source`, `width` pixels each, into `out`. Pixel 0 of a row stands at source
    /// position `offset`.
    fn rows(&self, source: &[u8], width: usize, offset: usize, out: &mut [u8]) {
        let out = out.chunks_exact_mut(self.taps.len() * CHANNELS);
        for (row, out) in source.chunks_exact(width * CHANNELS).zip(out) {
            for (taps, out) in self.taps.iter().zip(out.chunks_exact_mut(CHANNELS)) {
                let pixels = row[(taps.first - offset) * CHANNELS..].chunks_exact(CHANNELS);
                let mut sums = [HALF; CHANNELS];
                for (pixel, &weight) in pixels.zip(&self.weights[taps.weights.clone()]) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * weight;
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = to_u8(sum);
                }
            }
        }
    }

    /// Filters the columns `columns` of `source`, whose rows are `width` pixels; row 0 stands at source
    /// position `offset`. Returns [positions, columns, 3].
    fn columns(&self, source: &[u8], width: usize, offset: usize, columns: &Range<usize>) -> Vec<u8> {
        let stride = columns.len() * CHANNELS;
        let mut out = vec![0u8; self.taps.len() * stride];
        let mut sums = vec![0i32; stride];
        for (taps, out) in self.taps.iter().zip(out.chunks_exact_mut(stride)) {
            sums.fill(HALF);
            let rows = source[(taps.first - offset) * width * CHANNELS..].chunks_exact(width * CHANNELS);
            for (row, &weight) in rows.zip(&self.weights[taps.weights.clone()]) {
                for (sum, &value) in sums.iter_mut().zip(&row[columns.start * CHANNELS..]) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = to_u8(sum);
            }
        }
        out
    }
}

/// Keys' cubic convolution kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// A weight in fixed point, halves rounded away from zero.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << FRACTION_BITS) + 0.5f64.copysign(weight)) as i32
}

/// A sum, which started at one half, rounded to a pixel.
fn to_u8(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}
