//! Bicubic resizing with antialiasing, equal to Pillow's `Image.resize(…, BICUBIC)` in every bit.
//!
//! Two passes of one-dimensional filtering, rows first, rounded to u8 in between, in fixed point with
//! 22 fractional bits. Every output pixel depends on its own row and column of weights only, so the
//! passes compute just the window that a crop keeps, and the result is the crop of the whole.

use std::ops::Range;

/// Channels per pixel.
pub const CHANNELS: usize = 3;

/// Fractional bits of the weights: 32 bits less 8 of the pixel and 2 for sums beyond one.
const FRACTION_BITS: u32 = 22;

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

    pub fn width(&self) -> usize {
        self.width
    }

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
    /// Size of the whole resized image.
    pub width: usize,
    pub height: usize,
    /// Upper left corner of the part.
    pub left: usize,
    pub top: usize,
    /// Side of the part, which is square and lies within the whole.
    pub side: usize,
}

/// Resizes `image` to `window.width` × `window.height` and returns the window, [side, side, 3].
pub fn resize_window(image: &RgbImage, window: &Window) -> Vec<u8> {
    let Window { left, top, side, .. } = *window;
    let down = Filter::new(image.height, window.height, top..top + side);
    let rows = down.source_range();
    let across = Filter::new(image.width, window.width, left..left + side);
    let stride = image.width * CHANNELS;
    let source = &image.pixels[rows.start * stride..rows.end * stride];
    let mut narrow = vec![0u8; rows.len() * side * CHANNELS];
    for (source, out) in source.chunks_exact(stride).zip(narrow.chunks_exact_mut(side * CHANNELS)) {
        across.along_row(source, out);
    }
    let mut out = vec![0u8; side * side * CHANNELS];
    down.down_columns(&narrow, rows.start, side * CHANNELS, &mut out);
    out
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

    /// Filters one row of pixels, [n_in, 3], into `out`, [positions, 3].
    fn along_row(&self, row: &[u8], out: &mut [u8]) {
        for (taps, out) in self.taps.iter().zip(out.chunks_exact_mut(CHANNELS)) {
            let weights = &self.weights[taps.weights.clone()];
            let pixels = &row[taps.first * CHANNELS..][..weights.len() * CHANNELS];
            let mut sums = [1i32 << (FRACTION_BITS - 1); CHANNELS];
            for (pixel, &weight) in pixels.chunks_exact(CHANNELS).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
        }
    }

    /// Filters columns: `rows` holds the source rows from `offset` on, `width` bytes each.
    fn down_columns(&self, rows: &[u8], offset: usize, width: usize, out: &mut [u8]) {
        let mut sums = vec![0i32; width];
        for (taps, out) in self.taps.iter().zip(out.chunks_exact_mut(width)) {
            sums.fill(1 << (FRACTION_BITS - 1));
            let source = rows[(taps.first - offset) * width..].chunks_exact(width);
            for (row, &weight) in source.zip(&self.weights[taps.weights.clone()]) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = to_u8(sum);
            }
        }
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
