//! Random resized crops of u8 images.

use super::*;
use rayon::prelude::*;

/// A rectangle of an image, and whether it is mirrored.
#[derive(Clone, Copy)]
struct Crop {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
    mirrored: bool,
}

impl Crop {
    fn new(fields: &[u32]) -> Self {
        let at = |i: usize| fields[i] as usize;
        Crop { top: at(0), left: at(1), height: at(2), width: at(3), mirrored: fields[4] != 0 }
    }

    fn fits(&self, height: usize, width: usize) -> bool {
        let (rows, columns) = (1..=height, 1..=width);
        rows.contains(&self.height)
            && columns.contains(&self.width)
            && self.top <= height - self.height
            && self.left <= width - self.width
    }
}

/// Filter taps of one output coordinate: weights of consecutive inputs from `first` on, which add up to 1.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// The taps of all `outputs` coordinates over `inputs` inputs.
fn taps(inputs: usize, outputs: usize) -> Vec<Taps> {
    let scale = inputs as f32 / outputs as f32;
    let reduction = scale.max(1.0);
    let support = 2.0 * reduction;
    (0..outputs)
        .map(|output| {
            let centre = (output as f32 + 0.5) * scale;
            let first = ((centre - support + 0.5) as isize).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(inputs);
            let weight = |input: usize| bicubic((input as f32 + 0.5 - centre) / reduction);
            let sum: f32 = (first..end).map(weight).sum();
            Taps { first, weights: (first..end).map(|input| weight(input) / sum).collect() }
        })
        .collect()
}

/// Keys' cubic convolution kernel with a = −0.5.
fn bicubic(x: f32) -> f32 {
    const A: f32 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((x - 5.0) * x + 8.0) * x * A - 4.0 * A
    } else {
        0.0
    }
}

impl<T: Real> CropResizeOp for Cpu<T> {
    fn crop_resize_checked(
        _device: Checked<'_, Self>,
        images: &Tensor,
        crops: &Tensor,
        y: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "crop_resize";
        let invalid = |problem: String| BackendError::Invalid { op: OP, problem };
        let (height, width, side) = (images.shape().dims()[1], images.shape().dims()[2], y.shape().dims()[1]);
        let crops: Vec<Crop> = crops.typed::<u32>()?.chunks_exact(CROP_FIELDS).map(Crop::new).collect();
        if !crops.iter().all(|crop| crop.fits(height, width)) {
            return Err(invalid(format!("a crop does not lie inside images of {height}x{width}")));
        }
        let sources = images.typed::<u8>()?.par_chunks(height * width * 3).zip(&crops);
        y.typed_mut::<u8>()?.par_chunks_mut(side * side * 3).zip(sources).for_each(|(y, (image, crop))| {
            one_image(image, width, *crop, side, y);
        });
        Ok(())
    }
}

/// The passes one after the other: rows of the crop become `side` columns, then columns become `side` rows.
fn one_image(image: &[u8], stride: usize, crop: Crop, side: usize, y: &mut [u8]) {
    let (across, down) = (taps(crop.width, side), taps(crop.height, side));
    let mut narrow = vec![0.0f32; crop.height * side * 3];
    for (row, narrow) in narrow.chunks_exact_mut(side * 3).enumerate() {
        let line = &image[((crop.top + row) * stride + crop.left) * 3..][..crop.width * 3];
        for (column, narrow) in narrow.chunks_exact_mut(3).enumerate() {
            let taps = &across[if crop.mirrored { side - 1 - column } else { column }];
            for (channel, value) in narrow.iter_mut().enumerate() {
                let inputs = line[taps.first * 3 + channel..].iter().step_by(3);
                *value = taps.weights.iter().zip(inputs).map(|(w, &p)| w * f32::from(p)).sum();
            }
        }
    }
    for (taps, y) in down.iter().zip(y.chunks_exact_mut(side * 3)) {
        for (column, y) in y.iter_mut().enumerate() {
            let inputs = narrow[taps.first * side * 3 + column..].iter().step_by(side * 3);
            let value: f32 = taps.weights.iter().zip(inputs).map(|(w, v)| w * v).sum();
            *y = (value + 0.5).clamp(0.0, 255.0) as u8;
        }
    }
}
