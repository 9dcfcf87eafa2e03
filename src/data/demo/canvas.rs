//! A supersampled picture: shapes are painted hard-edged on a grid finer than the picture, and the
//! average over each pixel's samples gives the smooth edges. Coordinates run from 0 to 1, y downwards.

use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};

/// Red, green and blue, 0 to 1.
pub type Rgb = [f32; 3];

/// Samples per pixel along each axis.
const SAMPLES: usize = 3;

/// Paint and its opacity at one point; `None` leaves what is there.
pub(crate) type Paint = Option<(Rgb, f32)>;

/// `a` at t = 0, `b` at t = 1.
pub fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    std::array::from_fn(|channel| a[channel] + (b[channel] - a[channel]) * t)
}

/// Every channel times `gain`.
pub fn scale(colour: Rgb, gain: f32) -> Rgb {
    colour.map(|channel| channel * gain)
}

/// 0 below `low`, 1 above `high`, a smooth cubic between them.
pub(crate) fn smooth_step(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Value noise on a lattice of unit cells, 0 to 1, smooth; `seed` picks the field.
pub fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (cell_x, cell_y) = (x.floor(), y.floor());
    let corner = |dx: i32, dy: i32| {
        let mut hash = (cell_x as i32 + dx) as u32;
        hash =
            hash.wrapping_mul(0x9E37_79B1) ^ ((cell_y as i32 + dy) as u32).wrapping_mul(0x85EB_CA77) ^ seed;
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
        hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
        (hash ^ (hash >> 15)) as f32 / u32::MAX as f32
    };
    let (tx, ty) = (smooth_step(0.0, 1.0, x - cell_x), smooth_step(0.0, 1.0, y - cell_y));
    let top = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * tx;
    let bottom = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * tx;
    top + (bottom - top) * ty
}

/// The picture while it is painted.
pub(crate) struct Canvas {
    size: usize,
    samples: Vec<Rgb>,
}

impl Canvas {
    /// A black picture of `size` × `size` pixels.
    pub fn new(size: usize) -> Self {
        Self { size, samples: vec![[0.0; 3]; (size * SAMPLES).pow(2)] }
    }

    fn side(&self) -> usize {
        self.size * SAMPLES
    }

    /// Paints the part of the picture within `reach` of (x, y).
    pub(crate) fn paint_around(&mut self, x: f32, y: f32, reach: f32, paint: impl Fn(f32, f32) -> Paint) {
        let side = self.side();
        let first = |centre: f32| ((centre - reach) * side as f32).floor().clamp(0.0, side as f32) as usize;
        let last = |centre: f32| ((centre + reach) * side as f32).ceil().clamp(0.0, side as f32) as usize;
        for row in first(y)..last(y) {
            for column in first(x)..last(x) {
                let (px, py) = ((column as f32 + 0.5) / side as f32, (row as f32 + 0.5) / side as f32);
                if let Some((colour, opacity)) = paint(px, py) {
                    let sample = &mut self.samples[row * side + column];
                    *sample = mix(*sample, colour, opacity);
                }
            }
        }
    }

    pub(crate) fn paint_all(&mut self, paint: impl Fn(f32, f32) -> Rgb) {
        self.paint_around(0.5, 0.5, 0.5, |x, y| Some((paint(x, y), 1.0)));
    }

    /// A disc whose opacity falls off from `1 − softness` of the radius outwards.
    pub(crate) fn disc(&mut self, x: f32, y: f32, radius: f32, softness: f32, colour: Rgb, opacity: f32) {
        self.paint_around(x, y, radius, |px, py| {
            let distance = ((px - x).powi(2) + (py - y).powi(2)).sqrt() / radius;
            (distance < 1.0).then(|| {
                let edge = if softness > 0.0 { smooth_step(1.0, 1.0 - softness, distance) } else { 1.0 };
                (colour, opacity * edge)
            })
        });
    }

    /// A tapering stroke along the quadratic curve through `points` (start, control, end); `widths` are the
    /// half-widths at its ends.
    pub fn stroke(&mut self, points: [[f32; 2]; 3], widths: [f32; 2], colour: Rgb) {
        const SEGMENTS: usize = 10;
        let at = |t: f32| -> [f32; 2] {
            let weights = [(1.0 - t) * (1.0 - t), 2.0 * t * (1.0 - t), t * t];
            std::array::from_fn(|axis| (0..3).map(|i| weights[i] * points[i][axis]).sum())
        };
        for segment in 0..SEGMENTS {
            let (t0, t1) = (segment as f32 / SEGMENTS as f32, (segment + 1) as f32 / SEGMENTS as f32);
            let (a, b) = (at(t0), at(t1));
            let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
            let length_squared = (dx * dx + dy * dy).max(1e-9);
            let reach = length_squared.sqrt() / 2.0 + widths[0].max(widths[1]);
            self.paint_around((a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0, reach, |x, y| {
                let along = (((x - a[0]) * dx + (y - a[1]) * dy) / length_squared).clamp(0.0, 1.0);
                let (off_x, off_y) = (x - a[0] - along * dx, y - a[1] - along * dy);
                let half_width = widths[0] + (widths[1] - widths[0]) * (t0 + (t1 - t0) * along);
                let across = (off_x * dy - off_y * dx) / length_squared.sqrt() / half_width;
                (off_x * off_x + off_y * off_y < half_width * half_width)
                    .then(|| (scale(colour, 1.0 + 0.18 * across), 1.0))
            });
        }
    }

    /// A pointed leaf from `base`, `length` long in direction `angle`, with a lighter midrib and one half in
    /// shade.
    pub(crate) fn leaf(&mut self, base: [f32; 2], angle: f32, length: f32, half_width: f32, colour: Rgb) {
        let (sin, cos) = angle.sin_cos();
        let middle = [base[0] + cos * length / 2.0, base[1] + sin * length / 2.0];
        self.paint_around(middle[0], middle[1], length / 2.0 + half_width, |x, y| {
            let (dx, dy) = (x - base[0], y - base[1]);
            let along = (dx * cos + dy * sin) / length;
            let across = (dy * cos - dx * sin) / half_width;
            if !(0.0..1.0).contains(&along) {
                return None;
            }
            let edge = 2.6 * along.powf(0.8) * (1.0 - along).powf(0.9);
            (across.abs() < edge).then(|| {
                let ribs = 0.06 * (across.abs() * 9.0 - along * 26.0).sin();
                let shade = if across < 0.0 { 1.1 } else { 0.85 };
                let midrib = if across.abs() < 0.08 { 1.25 } else { shade + ribs };
                (scale(colour, midrib), 1.0)
            })
        });
    }

    /// The average over each pixel's samples, rows from the top, [size, size].
    pub fn pixels(&self) -> Picture {
        let side = self.side();
        let average = |index: usize| -> Rgb {
            let (row, column) = (index / self.size, index % self.size);
            let mut sum = [0.0f32; 3];
            for y in row * SAMPLES..(row + 1) * SAMPLES {
                for sample in &self.samples[y * side + column * SAMPLES..][..SAMPLES] {
                    sum = std::array::from_fn(|channel| sum[channel] + sample[channel]);
                }
            }
            scale(sum, 1.0 / (SAMPLES * SAMPLES) as f32)
        };
        Picture { size: self.size, pixels: (0..self.size * self.size).map(average).collect() }
    }
}

/// The finished picture, before it is stored: what a camera does to it happens here.
pub(crate) struct Picture {
    size: usize,
    pixels: Vec<Rgb>,
}

impl Picture {
    /// Pixels a side.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Recolours every pixel from its place and colour.
    pub(crate) fn recolour(&mut self, change: impl Fn(f32, f32, Rgb) -> Rgb) {
        let size = self.size;
        for (index, pixel) in self.pixels.iter_mut().enumerate() {
            let (x, y) = ((index % size) as f32 / size as f32, (index / size) as f32 / size as f32);
            *pixel = change(x, y, *pixel);
        }
    }

    /// Gaussian blur, `sigma` in pixels, edges repeated.
    pub(crate) fn blur(&mut self, sigma: f32) {
        if sigma < 0.05 {
            return;
        }
        let reach = (2.5 * sigma).ceil() as isize;
        let weight = |offset: isize| (-(offset as f32 / sigma).powi(2) / 2.0).exp();
        let total: f32 = (-reach..=reach).map(weight).sum();
        let weights: Vec<f32> = (-reach..=reach).map(|offset| weight(offset) / total).collect();
        let size = self.size as isize;
        for (step_x, step_y) in [(1, 0), (0, 1)] {
            let source = self.pixels.clone();
            for (index, pixel) in self.pixels.iter_mut().enumerate() {
                let (x, y) = (index as isize % size, index as isize / size);
                *pixel = [0.0; 3];
                for (tap, offset) in weights.iter().zip(-reach..=reach) {
                    let from_x = (x + step_x * offset).clamp(0, size - 1);
                    let from_y = (y + step_y * offset).clamp(0, size - 1);
                    let from = source[(from_y * size + from_x) as usize];
                    *pixel = std::array::from_fn(|channel| pixel[channel] + tap * from[channel]);
                }
            }
        }
    }

    /// Adds noise of standard deviation `sigma`: half of it common to the channels, as a sensor's is, half
    /// not.
    pub(crate) fn add_noise<R: Rng + ?Sized>(&mut self, sigma: f32, rng: &mut R) {
        for pixel in &mut self.pixels {
            let common: f32 = StandardNormal.sample(rng);
            for channel in pixel.iter_mut() {
                let own: f32 = StandardNormal.sample(rng);
                *channel += sigma * std::f32::consts::FRAC_1_SQRT_2 * (common + own);
            }
        }
    }

    /// RGB bytes, [size, size, 3].
    pub fn into_bytes(self) -> Vec<u8> {
        let byte = |channel: f32| (channel.clamp(0.0, 1.0) * 255.0).round() as u8;
        self.pixels.into_iter().flat_map(|pixel| pixel.map(byte)).collect()
    }
}

/// A number between the two bounds, which may be equal.
pub fn between<R: Rng + ?Sized>(rng: &mut R, bounds: [f32; 2]) -> f32 {
    bounds[0] + (bounds[1] - bounds[0]) * rng.random::<f32>()
}
