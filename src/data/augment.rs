//! Random resized crops and horizontal flips: which part of a larger image a training step sees.
//!
//! Only the boxes are chosen here; [`CropResizeOp::crop_resize`](crate::backend::CropResizeOp::crop_resize) cuts them
//! out on the device. The images come from a second cache of the train split alone, at a larger size than the
//! model's: [`larger_side`], [`Preprocess::enlarged`](super::Preprocess::enlarged) and
//! [`Dataset::only`](super::Dataset::only).

use super::DataError;
use crate::random;
use crate::tensor::{DType, Tensor};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// How often a box that does not fit the image is drawn again.
const TRIES: usize = 10;

/// Which crops are drawn, as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` draw them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Augmentation {
    /// Least and greatest share of the image's area, uniform between them.
    pub scale: [f64; 2],
    /// Least and greatest width over height, log-uniform between them.
    pub ratio: [f64; 2],
    /// Probability of a mirrored image.
    pub flip: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Augmentation { scale: [0.5, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.5 }
    }
}

/// The side of the images that crops are cut from, for a model whose images are `image_size` wide: 256/224
/// of it, as is usual for CLIP's 224 pixels.
pub fn larger_side(image_size: usize) -> usize {
    (image_size as f64 * 256.0 / 224.0).round() as usize
}

/// Top, left, height and width in pixels.
type CropBox = [usize; 4];

fn out_of_range(setting: &str, value: String, expected: &str) -> DataError {
    DataError::Augmentation(format!("{setting} {value} is out of range; give {expected}"))
}

impl Augmentation {
    /// Refuses settings that describe no crop.
    ///
    /// # Errors
    /// Bounds that are no shares, no aspect ratios or the wrong way round; a flip that is no probability.
    pub fn check(&self) -> Result<(), DataError> {
        let wrong = |setting: &str, [least, greatest]: [f64; 2], expected: &str| {
            Err(out_of_range(setting, format!("{least} to {greatest}"), expected))
        };
        let [least, greatest] = self.scale;
        if !(0.0 < least && least <= greatest && greatest <= 1.0) {
            return wrong(
                "scale",
                self.scale,
                "two shares of the area above 0 and up to 1, the lesser first",
            );
        }
        let [least, greatest] = self.ratio;
        if !(0.0 < least && least <= greatest && greatest.is_finite()) {
            return wrong("ratio", self.ratio, "two ratios of width to height above 0, the lesser first");
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(out_of_range("flip", self.flip.to_string(), "a probability"));
        }
        Ok(())
    }

    /// The crops of the images `indices` of a split in `epoch`: u32 [B, 5], of each image top, left, height,
    /// width, and 1 for mirrored. The images are `height` × `width` pixels.
    ///
    /// An image's crop depends on `seed`, `epoch` and its index alone: neither the order of the images nor
    /// the batch they are in matters, so a resumed run sees what an uninterrupted one would.
    ///
    /// # Errors
    /// Those of [`Augmentation::check`], and images without pixels.
    pub fn crops(
        &self,
        seed: u64,
        epoch: u32,
        indices: &[usize],
        height: usize,
        width: usize,
    ) -> Result<Tensor, DataError> {
        self.check()?;
        if height == 0 || width == 0 {
            return Err(out_of_range("image size", format!("{height} x {width}"), "at least 1 x 1"));
        }
        let mut crops = Tensor::zeros([indices.len(), 5], DType::U32);
        for (crop, &index) in crops.typed_mut::<u32>()?.chunks_exact_mut(5).zip(indices) {
            let mut rng = random::of_purpose("augment", &[seed, u64::from(epoch)], index as u64);
            let place = self.crop_box(height, width, &mut rng).map(|pixels| pixels as u32);
            crop[..4].copy_from_slice(&place);
            crop[4] = u32::from(rng.random_bool(self.flip));
        }
        Ok(crops)
    }

    /// The first of some random boxes that fits the image, or else its middle.
    fn crop_box<R: Rng + ?Sized>(&self, height: usize, width: usize, rng: &mut R) -> CropBox {
        let area = (height * width) as f64;
        let [least, greatest] = self.ratio.map(f64::ln);
        for _ in 0..TRIES {
            let target = area * rng.random_range(self.scale[0]..=self.scale[1]);
            let ratio = rng.random_range(least..=greatest).exp();
            let down = (target / ratio).sqrt().round() as usize;
            let across = (target * ratio).sqrt().round() as usize;
            if (1..=height).contains(&down) && (1..=width).contains(&across) {
                let top = rng.random_range(0..=height - down);
                let left = rng.random_range(0..=width - across);
                return [top, left, down, across];
            }
        }
        self.central_box(height, width)
    }

    /// The largest box in the middle whose aspect ratio is allowed, whatever its area.
    fn central_box(&self, height: usize, width: usize) -> CropBox {
        let ratio = width as f64 / height as f64;
        let nearest = ratio.clamp(self.ratio[0], self.ratio[1]);
        let pixels = |length: f64, limit: usize| (length.round() as usize).clamp(1, limit);
        let (down, across) = if ratio < nearest {
            (pixels(width as f64 / nearest, height), width)
        } else {
            (height, pixels(height as f64 * nearest, width))
        };
        [(height - down) / 2, (width - across) / 2, down, across]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// Draws for `count` images and checks that every box lies inside.
    fn draw(augmentation: &Augmentation, count: usize, height: usize, width: usize) -> Vec<[u32; 5]> {
        let indices: Vec<usize> = (0..count).collect();
        let crops = augmentation.crops(42, 0, &indices, height, width).unwrap();
        assert_eq!((crops.shape().dims(), crops.dtype()), (&[count, 5][..], DType::U32));
        let crops = crops.typed::<u32>().unwrap().chunks_exact(5).map(|c| [c[0], c[1], c[2], c[3], c[4]]);
        let inside = |[top, left, down, across, mirrored]: [u32; 5]| {
            let (bottom, right) = (top + down, left + across);
            down > 0 && across > 0 && bottom <= height as u32 && right <= width as u32 && mirrored <= 1
        };
        crops.inspect(|&crop| assert!(inside(crop), "{crop:?} in {height} x {width}")).collect()
    }

    fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = values.len() as f64;
        values.sum::<f64>() / count
    }

    #[test]
    fn area_and_aspect_ratio_have_the_distributions_asked_for() {
        // Boxes of at most 0.6 of the area always fit at these ratios, so that none is drawn again.
        let augmentation = Augmentation { scale: [0.2, 0.6], ..Augmentation::default() };
        let side = 1000;
        let crops = draw(&augmentation, 20_000, side, side);
        let area = |c: &[u32; 5]| f64::from(c[2]) * f64::from(c[3]) / (side * side) as f64;
        let log_ratio = |c: &[u32; 5]| (f64::from(c[3]) / f64::from(c[2])).ln();
        // Uniform: mean (a + b) / 2, variance (b − a)² / 12; five deviations of a mean of 20,000.
        assert_abs_diff_eq!(mean(crops.iter().map(area)), 0.4, epsilon = 0.0041);
        let limit = (4.0f64 / 3.0).ln();
        assert_abs_diff_eq!(mean(crops.iter().map(log_ratio)), 0.0, epsilon = 0.0059);
        let square = |c: &[u32; 5]| log_ratio(c).powi(2);
        assert_abs_diff_eq!(mean(crops.iter().map(square)), limit * limit / 3.0, epsilon = 0.0009);
        // Whole pixels move the bounds by less than 0.3 %.
        assert!(crops.iter().all(|c| (0.1985..0.6015).contains(&area(c))));
        assert!(crops.iter().all(|c| log_ratio(c).abs() < limit + 0.003));
        let extremes = |f: &dyn Fn(&[u32; 5]) -> f64| {
            crops.iter().map(f).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
        };
        let ((small, large), (tall, wide)) = (extremes(&area), extremes(&log_ratio));
        assert!(small < 0.202 && large > 0.598 && tall < 0.01 - limit && wide > limit - 0.01);
    }

    #[test]
    fn the_ratio_is_that_of_width_to_height_and_boxes_that_do_not_fit_are_drawn_again() {
        let wide = Augmentation { scale: [0.4, 0.5], ratio: [1.5, 2.0], flip: 0.5 };
        for [_, _, down, across, _] in draw(&wide, 1000, 300, 300) {
            assert!((1.48..2.02).contains(&(f64::from(across) / f64::from(down))), "{across} x {down}");
        }
        // A quarter of the default's boxes do not fit; hardly one in 20,000 is the whole image.
        let crops = draw(&Augmentation::default(), 20_000, 1000, 1000);
        let whole = crops.iter().filter(|crop| crop[..4] == [0, 0, 1000, 1000]).count();
        assert!(whole < 5, "{whole}");
    }

    #[test]
    fn boxes_lie_anywhere_in_the_image_and_half_are_mirrored() {
        let crops = draw(&Augmentation::default(), 20_000, 73, 73);
        let place = |start: u32, length: u32| f64::from(start) / f64::from(73 - length);
        for axis in 0..2 {
            let free: Vec<f64> =
                crops.iter().filter(|c| c[axis + 2] < 73).map(|c| place(c[axis], c[axis + 2])).collect();
            assert_abs_diff_eq!(mean(free.iter().copied()), 0.5, epsilon = 0.02);
            assert!(free.contains(&0.0) && free.contains(&1.0));
        }
        // The default's smallest share; whole pixels of a small image move it.
        let area = |c: &[u32; 5]| f64::from(c[2] * c[3]) / (73.0 * 73.0);
        assert!(crops.iter().all(|c| (0.48..=1.0).contains(&area(c))));
        assert_abs_diff_eq!(mean(crops.iter().map(|c| f64::from(c[4]))), 0.5, epsilon = 0.018);
        let never = Augmentation { flip: 0.0, ..Augmentation::default() };
        let always = Augmentation { flip: 1.0, ..Augmentation::default() };
        assert!(draw(&never, 100, 73, 73).iter().all(|c| c[4] == 0));
        assert!(draw(&always, 100, 73, 73).iter().all(|c| c[4] == 1));
    }

    #[test]
    fn a_crop_depends_on_seed_epoch_and_image_alone() {
        let augmentation = Augmentation::default();
        let crops = |seed, epoch, indices: &[usize]| -> Vec<u32> {
            let crops = augmentation.crops(seed, epoch, indices, 73, 73).unwrap();
            crops.typed::<u32>().unwrap().to_vec()
        };
        let all = crops(1, 2, &(0..64).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<&[u32]> = all.chunks_exact(5).collect();
        assert!(distinct.len() > 60, "every image has its own");
        // Another order, another batch, an image twice.
        for (crop, index) in crops(1, 2, &[63, 5, 17, 5]).chunks_exact(5).zip([63, 5, 17, 5]) {
            assert_eq!(crop, &all[index * 5..][..5]);
        }
        for (seed, epoch) in [(1, 3), (2, 2), (2, 1)] {
            let other = crops(seed, epoch, &(0..64).collect::<Vec<_>>());
            let same = other.chunks_exact(5).zip(all.chunks_exact(5)).filter(|(a, b)| a == b).count();
            assert!(same < 4, "{same} crops of seed 1, epoch 2 again in seed {seed}, epoch {epoch}");
        }
    }

    #[test]
    fn an_image_that_no_box_fits_gives_its_middle() {
        // At least half of the area at no more than 4:3 does not fit into 1:10.
        let augmentation = Augmentation::default();
        for crop in draw(&augmentation, 50, 100, 1000) {
            assert_eq!(crop[..4], [0, (1000 - 133) / 2, 100, 133]);
        }
        for crop in draw(&augmentation, 50, 1000, 100) {
            assert_eq!(crop[..4], [(1000 - 133) / 2, 0, 133, 100]);
        }
        // A ratio within the bounds keeps the whole image.
        let whole = Augmentation { scale: [1.0, 1.0], ratio: [0.5, 2.0], flip: 0.0 };
        assert_eq!(whole.central_box(30, 40), [0, 0, 30, 40]);
        // Never nothing, however thin the box would be.
        let thin = Augmentation { scale: [1.0, 1.0], ratio: [0.01, 0.02], flip: 0.0 };
        assert_eq!(thin.central_box(3, 3), [0, 1, 3, 1]);
        for (height, width) in [(1, 1), (1, 7), (7, 1), (2, 3)] {
            draw(&augmentation, 200, height, width);
            draw(&thin, 20, height, width);
        }
    }

    #[test]
    fn settings_that_describe_no_crop_are_refused() {
        let default = Augmentation::default();
        let cases = [
            (Augmentation { scale: [0.0, 1.0], ..default }, "scale 0 to 1"),
            (Augmentation { scale: [0.8, 0.5], ..default }, "scale 0.8 to 0.5"),
            (Augmentation { scale: [0.5, 1.5], ..default }, "scale 0.5 to 1.5"),
            (Augmentation { scale: [f64::NAN, 1.0], ..default }, "scale NaN"),
            (Augmentation { ratio: [0.0, 1.0], ..default }, "ratio 0 to 1"),
            (Augmentation { ratio: [2.0, 1.0], ..default }, "ratio 2 to 1"),
            (Augmentation { ratio: [1.0, f64::INFINITY], ..default }, "ratio 1 to inf"),
            (Augmentation { flip: 1.1, ..default }, "flip 1.1"),
            (Augmentation { flip: f64::NAN, ..default }, "flip NaN"),
        ];
        for (augmentation, text) in cases {
            let message = augmentation.crops(0, 0, &[0], 8, 8).unwrap_err().to_string();
            assert!(message.contains(text), "{message:?} does not mention {text:?}");
        }
        assert!(default.crops(0, 0, &[0], 0, 8).unwrap_err().to_string().contains("0 x 8"));
        assert!(default.check().is_ok());
    }

    #[test]
    fn the_larger_side_is_that_of_clip() {
        assert_eq!([224, 336, 64, 1].map(larger_side), [256, 384, 73, 1]);
    }
}
