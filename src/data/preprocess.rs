//! From a photo to the pixels CLIP was trained on: resize, centre crop, scale, normalise.
//!
//! Equal to Hugging Face's CLIP image processor in its Pillow form (`CLIPImageProcessorPil`, the "slow"
//! one) in every bit.

use super::DataError;
use super::decode::{self, Orientation};
use super::resize::{CHANNELS, RgbImage, Window, resize_window};
use crate::model_files::{has_images, of_images};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// CLIP's channel means, of pixels in 0..1.
pub const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// CLIP's channel standard deviations, of pixels in 0..1.
#[allow(clippy::excessive_precision, reason = "the digits of CLIP's own configuration")]
pub const CLIP_STD: [f32; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Pillow's number for bicubic interpolation.
const BICUBIC: u64 = 3;

/// A larger image size than any CLIP model's; keeps a damaged configuration from filling the memory.
const MAX_SIDE: u64 = 4096;

/// How a photo is brought to size before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resize {
    /// The short side becomes this long, the other keeps the aspect ratio (truncated).
    ShortSide(usize),
    /// Both sides become this long, whatever the aspect ratio.
    Square(usize),
}

impl Resize {
    fn side(self) -> usize {
        match self {
            Resize::ShortSide(side) | Resize::Square(side) => side,
        }
    }
}

/// The settings of an image processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    resize: Resize,
    crop: usize,
    mean: [f32; 3],
    std: [f32; 3],
    #[serde(default)]
    orientation: Orientation,
}

impl Preprocess {
    /// CLIP's own settings for a model whose images are `image_size` pixels wide.
    pub fn clip(image_size: usize) -> Preprocess {
        Preprocess {
            resize: Resize::ShortSide(image_size),
            crop: image_size,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            orientation: Orientation::Exif,
        }
    }

    /// The settings of the model directory `dir`: from the `image_processor` of `processor_config.json`, else
    /// from `preprocessor_config.json`, else CLIP's own. `image_size` is the model's.
    ///
    /// # Errors
    /// Settings that cannot be read, that this engine does not carry out (another interpolation, a
    /// missing step), or that give another image size than the model's.
    pub fn from_model_dir(dir: &Path, image_size: usize) -> Result<Preprocess, DataError> {
        let Some((path, config)) = of_images(dir)? else { return Ok(Preprocess::clip(image_size)) };
        let wrong = |problem: String| DataError::file(&path, problem);
        let config = config.map_err(|e| wrong(format!("not valid JSON ({e}); fetch the model again")))?;
        let preprocess = Preprocess::from_config(&config).map_err(wrong)?;
        if preprocess.crop != image_size {
            return Err(wrong(format!(
                "makes images of {} pixels, the model takes {image_size}; use the file that belongs to the model",
                preprocess.crop
            )));
        }
        Ok(preprocess)
    }

    /// Whether a file in `dir` has the settings, right or wrong; else they are CLIP's own.
    pub fn is_given(dir: &Path) -> bool {
        has_images(dir)
    }

    /// Replaces the size of the images by a larger one, to cut crops from: both the resize and the centre crop end
    /// at `side` pixels.
    ///
    /// # Errors
    /// A side below [`Preprocess::image_size`] or beyond what any model takes.
    pub fn enlarged(&self, side: usize) -> Result<Preprocess, DataError> {
        let (least, greatest) = (self.crop, MAX_SIDE as usize);
        if !(least..=greatest).contains(&side) {
            return Err(DataError::Augmentation(format!(
                "images of {side} pixels to cut crops from; give a size from {least} to {greatest}"
            )));
        }
        let resize = match self.resize {
            Resize::ShortSide(_) => Resize::ShortSide(side),
            Resize::Square(_) => Resize::Square(side),
        };
        Ok(Preprocess { resize, crop: side, ..self.clone() })
    }

    /// Reads the settings as Hugging Face's image processors write them; what is missing has CLIP's value.
    fn from_config(config: &Value) -> Result<Preprocess, String> {
        for flag in ["do_resize", "do_rescale", "do_normalize"] {
            if config.get(flag).is_some_and(|v| v.as_bool() != Some(true)) {
                return Err(format!("{flag} is not true, which is not supported; set it to true"));
            }
        }
        let bicubic = |v: &Value| v.as_u64() == Some(BICUBIC) || v.as_str() == Some("bicubic");
        if let Some(resample) = config.get("resample").filter(|v| !bicubic(v)) {
            return Err(format!("resample {resample} is not supported; only bicubic (3) is"));
        }
        let factor = config.get("rescale_factor").map_or(Some(1.0 / 255.0), Value::as_f64);
        if factor.is_none_or(|f| (f - 1.0 / 255.0).abs() > 1e-9) {
            return Err("rescale_factor is not 1/255, which is not supported; set it to 0.00392156862745098"
                .to_owned());
        }
        let resize = resize_setting(config.get("size"))?;
        let crop = match config.get("do_center_crop").map(Value::as_bool) {
            None | Some(Some(true)) => crop_setting(config.get("crop_size"))?,
            Some(Some(false)) if matches!(resize, Resize::Square(_)) => resize.side(),
            _ => return Err("do_center_crop is not true, which is not supported; set it to true".to_owned()),
        };
        if crop > resize.side() {
            return Err(format!(
                "crop_size {crop} is larger than size {}, which is not supported; make them equal",
                resize.side()
            ));
        }
        let mean = channels(config.get("image_mean"), "image_mean", CLIP_MEAN)?;
        let std = channels(config.get("image_std"), "image_std", CLIP_STD)?;
        if std.iter().any(|&s| s <= 0.0) {
            return Err("image_std must be positive; correct it".to_owned());
        }
        Ok(Preprocess { resize, crop, mean, std, orientation: Orientation::Exif })
    }

    /// Replaces whether photos are turned upright. By the settings of a model they are.
    pub fn with_orientation(&self, orientation: Orientation) -> Preprocess {
        Preprocess { orientation, ..self.clone() }
    }

    /// Whether photos are turned upright.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Side of the square images that come out, in pixels.
    pub fn image_size(&self) -> usize {
        self.crop
    }

    /// False for sizes that no constructor makes, as a damaged file may hold them.
    pub(super) fn is_sane(&self) -> bool {
        let side = self.resize.side();
        self.crop > 0 && self.crop <= side && side as u64 <= MAX_SIDE
    }

    /// How photos are brought to size.
    pub fn resize(&self) -> Resize {
        self.resize
    }

    /// Channel means, of pixels in 0..1.
    pub fn mean(&self) -> [f32; 3] {
        self.mean
    }

    /// Channel standard deviations, of pixels in 0..1.
    pub fn std(&self) -> [f32; 3] {
        self.std
    }

    /// Decodes the contents of an image file, resizes and crops it, and tells the largest value of 16-bit grey of which
    /// the upper 8 bits were kept, see [`decode::Photo::sixteen_bit`].
    ///
    /// # Errors
    /// Those of [`decode::decode_bytes`]; `path` is for messages only.
    pub fn read(&self, path: &Path, bytes: &[u8]) -> Result<(Vec<u8>, Option<u16>), DataError> {
        let photo = decode::decode_bytes(path, bytes, self.orientation)?;
        Ok((self.resize_crop(&photo.image), photo.sixteen_bit))
    }

    /// Resizes and crops: [S, S, 3] u8 with S = [`Preprocess::image_size`].
    pub fn resize_crop(&self, image: &RgbImage) -> Vec<u8> {
        let (width, height) = self.resized(image.width(), image.height());
        let side = self.crop;
        let window = Window { width, height, left: (width - side) / 2, top: (height - side) / 2, side };
        resize_window(image, &window)
    }

    /// Width and height after the resize.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        match self.resize {
            Resize::Square(side) => (side, side),
            Resize::ShortSide(side) => {
                let long = |long: usize, short: usize| ((side * long) as f64 / short as f64) as usize;
                if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
            }
        }
    }

    /// Scales and normalises pixels, [S, S, 3] u8 → [3, S, S] f32: (u8/255 − mean) / std, where u8/255
    /// is a product in f64 rounded to f32 and the rest is f32, as the reference computes it.
    ///
    /// Writes `values`, which has as many elements as `pixels`; a longer slice keeps its rest.
    pub fn normalise(&self, pixels: &[u8], values: &mut [f32]) {
        let tables = self.tables();
        let plane = pixels.len() / CHANNELS;
        for (channel, (values, table)) in values.chunks_exact_mut(plane.max(1)).zip(&tables).enumerate() {
            for (value, pixel) in values.iter_mut().zip(pixels.chunks_exact(CHANNELS)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }

    /// Undoes [`Preprocess::normalise`]: [3, S, S] → [S, S, 3] u8, rounded to nearest. Values that f16
    /// rounded give their pixels back too.
    pub fn denormalise(&self, values: &[f32]) -> Vec<u8> {
        let plane = values.len() / CHANNELS;
        let mut pixels = vec![0; plane * CHANNELS];
        for (channel, values) in values.chunks_exact(plane.max(1)).enumerate() {
            for (value, pixel) in values.iter().zip(pixels.chunks_exact_mut(CHANNELS)) {
                let scaled = value * self.std[channel] + self.mean[channel];
                pixel[channel] = (scaled * 255.0).round() as u8;
            }
        }
        pixels
    }

    /// The normalised value of every pixel value, per channel.
    pub fn tables(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|pixel| {
                let scaled = (pixel as f64 * (1.0 / 255.0)) as f32;
                (scaled - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

/// `size`: an integer or `{"shortest_edge": n}` for the short side, `{"height": n, "width": n}` for both.
fn resize_setting(size: Option<&Value>) -> Result<Resize, String> {
    match size {
        None => Ok(Resize::ShortSide(224)),
        Some(Value::Object(o)) if o.contains_key("shortest_edge") => {
            side(&o["shortest_edge"], "size").map(Resize::ShortSide)
        }
        Some(Value::Object(_)) => square(size, "size").map(Resize::Square),
        Some(n) => side(n, "size").map(Resize::ShortSide),
    }
}

/// `crop_size`: an integer or `{"height": n, "width": n}`.
fn crop_setting(crop: Option<&Value>) -> Result<usize, String> {
    match crop {
        None => Ok(224),
        Some(Value::Object(_)) => square(crop, "crop_size"),
        Some(n) => side(n, "crop_size"),
    }
}

fn square(value: Option<&Value>, name: &str) -> Result<usize, String> {
    let part = |key| value.and_then(|v| v.get(key)).unwrap_or(&Value::Null);
    let (height, width) = (side(part("height"), name)?, side(part("width"), name)?);
    if height == width {
        Ok(height)
    } else {
        Err(format!("{name} is not square; make height and width equal"))
    }
}

fn side(value: &Value, name: &str) -> Result<usize, String> {
    match value.as_u64() {
        Some(n @ 1..=MAX_SIDE) => Ok(n as usize),
        _ => Err(format!("{name} {value} is not a size in pixels; give a number from 1 to {MAX_SIDE}")),
    }
}

fn channels(value: Option<&Value>, name: &str, default: [f32; 3]) -> Result<[f32; 3], String> {
    let Some(value) = value else { return Ok(default) };
    let numbers: Option<Vec<f32>> =
        value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
    numbers
        .and_then(|n| <[f32; 3]>::try_from(n).ok())
        .filter(|n| n.iter().all(|v| v.is_finite()))
        .ok_or_else(|| format!("{name} is not a list of three numbers; correct it"))
}
