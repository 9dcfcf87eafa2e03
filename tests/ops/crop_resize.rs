//! The crops of training against the resize of evaluation, which is Pillow's: the definition of `crop_resize`
//! equals it on the cut-out rectangle, but for the rounding between the passes that it does without.

use clip_engine::backend::prelude::*;

use clip_engine::backend::cpu::Cpu;
use clip_engine::data::resize::{CHANNELS, RgbImage, Window, resize_window};
use clip_engine::tensor::{DType, Tensor};

/// Where a crop lies in an image, and whether it is mirrored.
#[derive(Clone, Copy)]
struct Crop {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
    mirrored: bool,
}

impl Crop {
    fn new([top, left, height, width]: [usize; 4]) -> Self {
        Crop { top, left, height, width, mirrored: false }
    }
}

/// `height` rows of `width` pixels.
struct Image {
    height: usize,
    width: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// No pattern, and a contrast that no sum leaves 0 to 255 at: there Pillow cuts between its passes as
    /// well.
    fn noise(height: usize, width: usize) -> Self {
        let level = |i: u32| 72 + (i.wrapping_mul(2_654_435_761) >> 13) % 112;
        let pixels = (0..(height * width * CHANNELS) as u32).map(|i| level(i) as u8).collect();
        Image { height, width, pixels }
    }

    /// Slopes of another steepness in each channel, from black to white.
    fn slopes(height: usize, width: usize) -> Self {
        let mut pixels = Vec::with_capacity(height * width * CHANNELS);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let part = |at: usize, of: usize| (255 * at / of.max(1)) as u8;
            pixels.extend([part(y, height - 1), part(x, width - 1), part(x + y, height + width - 2)]);
        }
        Image { height, width, pixels }
    }

    /// The rectangle by itself.
    fn cut(&self, crop: Crop) -> RgbImage {
        let rows = self.pixels.chunks_exact(self.width * CHANNELS).skip(crop.top).take(crop.height);
        let columns = crop.left * CHANNELS..(crop.left + crop.width) * CHANNELS;
        let pixels = rows.flat_map(|row| row[columns.clone()].to_vec()).collect();
        RgbImage::new(crop.width, crop.height, pixels).unwrap()
    }

    fn crop_resize(&self, crops: &[Crop], side: usize) -> clip_engine::backend::Result<Vec<u8>> {
        let images = self.pixels.repeat(crops.len());
        let images = Tensor::from_slice([crops.len(), self.height, self.width, CHANNELS], &images)?;
        let field = |c: &Crop| [c.top, c.left, c.height, c.width, usize::from(c.mirrored)];
        let fields: Vec<u32> = crops.iter().flat_map(field).map(|field| field as u32).collect();
        let crops = Tensor::from_slice([crops.len(), 5], &fields)?;
        let mut y = Tensor::zeros([crops.shape().rows(), side, side, CHANNELS], DType::U8);
        Cpu::<f32>::new().crop_resize(&images, &crops, &mut y)?;
        Ok(y.typed::<u8>()?.to_vec())
    }
}

/// Larger, smaller, both at once, and as it is.
const CROPS: [([usize; 4], usize); 8] = [
    ([0, 0, 61, 47], 90),
    ([3, 5, 33, 19], 57),
    ([0, 1, 60, 45], 13),
    ([7, 0, 50, 9], 23),
    ([1, 2, 9, 44], 23),
    ([9, 4, 31, 31], 31),
    ([60, 46, 1, 1], 5),
    ([20, 20, 1, 21], 1),
];

#[test]
fn a_crop_is_the_resized_rectangle() {
    for image in [Image::noise(61, 47), Image::slopes(61, 47)] {
        for (place, side) in CROPS {
            let crop = Crop::new(place);
            let found = image.crop_resize(&[crop], side).unwrap();
            let whole = Window { width: side, height: side, left: 0, top: 0, side };
            let expected = resize_window(&image.cut(crop), &whole);
            assert_eq!(found.len(), expected.len());
            let largest = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(largest <= 1, "{place:?} to {side}: {largest} levels");
            // One that is not resized is copied.
            let same = [crop.height, crop.width] == [side, side];
            assert!(!same || found == expected, "{place:?} to {side}");
        }
    }
}

#[test]
fn each_image_has_its_own_crop() {
    let image = Image::noise(40, 50);
    let crops = [[0, 0, 40, 50], [11, 7, 20, 30], [3, 30, 37, 20]].map(Crop::new);
    let together = image.crop_resize(&crops, 17).unwrap();
    for (crop, found) in crops.iter().zip(together.chunks_exact(17 * 17 * CHANNELS)) {
        assert_eq!(image.crop_resize(&[*crop], 17).unwrap(), found);
    }
}

#[test]
fn a_mirrored_crop_is_the_crop_from_right_to_left() {
    let image = Image::noise(61, 47);
    for (place, side) in CROPS {
        let crop = Crop::new(place);
        let mut plain = image.crop_resize(&[crop], side).unwrap();
        let mirrored = image.crop_resize(&[Crop { mirrored: true, ..crop }], side).unwrap();
        assert!(side == 1 || place[3] == 1 || plain != mirrored, "{place:?} to {side}");
        for row in plain.chunks_exact_mut(side * CHANNELS) {
            row.reverse();
            row.chunks_exact_mut(CHANNELS).for_each(<[u8]>::reverse);
        }
        assert!(plain == mirrored, "{place:?} to {side}");
    }
}

#[test]
fn a_crop_outside_the_image_is_refused() {
    let image = Image::noise(8, 9);
    for place in [[0, 0, 9, 9], [1, 0, 8, 9], [0, 3, 8, 7], [0, 0, 0, 4], [0, 0, 4, 0], [9, 0, 1, 1]] {
        let text = image.crop_resize(&[Crop::new(place)], 4).unwrap_err().to_string();
        assert!(text.contains("crop") && text.contains("8x9"), "{text}");
    }
    assert!(image.crop_resize(&[Crop::new([0, 2, 8, 7])], 4).is_ok());
}
