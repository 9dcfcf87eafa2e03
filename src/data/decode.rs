//! One image file to 8-bit RGB, as Pillow's `Image.open(path).convert("RGB")` gives it.
//!
//! The format is told by the content, never by the file's name. Grey is repeated, palettes are looked
//! up, alpha is dropped (colours under transparent pixels stay), 16-bit colour keeps its upper byte while
//! 16-bit grey is clipped at 255, an animation gives its first frame, and an EXIF orientation is not applied. JPEG is decoded to the very
//! bits of libjpeg-turbo, which Pillow uses.

use super::resize::RgbImage;
use super::{DataError, listing};
use crate::guard::{guarded, is_guarded};
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use libjpeg_turbo_rs as jpeg;
use std::io::{Cursor, Read};
use std::path::Path;

/// The largest image that is decoded: where Pillow calls an image a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// The longest side that is read: what JPEG and GIF can store. The weights of a resize grow with it.
const MAX_SIDE: u64 = 65_535;

/// Images up to this size are decoded whatever their files' size.
const SMALL_PIXELS: u64 = 1 << 22;

/// Larger ones need a byte of file for so many pixels. Photos have one for every few, baseline JPEG cannot
/// have less than one for 512; what has less is a drawing of one colour, or made to fill the memory.
const PIXELS_PER_BYTE: u64 = 1000;

/// Real progressive JPEGs have about ten scans, and each takes time that grows with the pixels.
const MAX_SCANS: usize = 500;

/// What a decoder may hold beside an image of 16 bits with alpha.
const WORK_BYTES: u64 = 1 << 26;

const JPEG_START: [u8; 3] = [0xff, 0xd8, 0xff];

/// Reads and decodes the image at `path`.
///
/// # Errors
/// A file that cannot be read, is no image of a known format, is damaged or cut short, or is larger
/// than [`MAX_PIXELS`].
pub fn decode(path: &Path) -> Result<RgbImage, DataError> {
    let bytes = read(path)?;
    decode_bytes(path, &bytes)
}

/// Decodes the contents of an image file; `path` is for messages only.
pub fn decode_bytes(path: &Path, bytes: &[u8]) -> Result<RgbImage, DataError> {
    if bytes.is_empty() {
        return Err(bad(path, "the file is empty"));
    }
    let decoder = if bytes.starts_with(&JPEG_START) { decode_jpeg } else { decode_other };
    guarded(|| decoder(path, bytes))
        .unwrap_or_else(|| Err(bad(path, "damaged in a way the decoder cannot handle")))
}

/// True on a thread that is inside a decoder or another parser of files from anywhere. A panic there becomes
/// that file's error, and a panic hook has no need to report it.
pub fn decoding() -> bool {
    is_guarded()
}

/// The bytes of the image file at `path`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    const ACTION: &str = "read the image";
    // Opening a named pipe would wait for somebody to write to it.
    if let Some(obstacle) = listing::obstacle(path) {
        return Err(bad(path, &obstacle));
    }
    let file = std::fs::File::open(path).map_err(DataError::io(path, ACTION))?;
    let metadata = file.metadata().map_err(DataError::io(path, ACTION))?;
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_FILE_BYTES) as usize);
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(DataError::io(path, ACTION))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(bad(path, "the file is larger than 1 GiB"));
    }
    Ok(bytes)
}

fn decode_jpeg(path: &Path, bytes: &[u8]) -> Result<RgbImage, DataError> {
    let wrong = |error: jpeg::JpegError| match error {
        jpeg::JpegError::UnexpectedEof => bad(path, "JPEG data cut short"),
        error => bad(path, &format!("damaged or unsupported JPEG ({error})")),
    };
    let limits = jpeg::DecodeLimits { max_scans: MAX_SCANS, ..Default::default() };
    let mut decoder = jpeg::Decoder::new_with_limits(bytes, limits).map_err(wrong)?;
    let (width, height) = (decoder.header().width, decoder.header().height);
    check_size(path, u64::from(width), u64::from(height), bytes)?;
    decoder.set_output_format(jpeg::PixelFormat::Rgb);
    let image = decoder.decode_image().map_err(wrong)?;
    RgbImage::new(image.width, image.height, image.data).ok_or_else(|| bad(path, "JPEG of no size"))
}

fn decode_other(path: &Path, bytes: &[u8]) -> Result<RgbImage, DataError> {
    let wrong = |error: ImageError| bad(path, &one_line(&error));
    let format = image::guess_format(bytes)
        .map_err(|_| bad(path, "not a JPEG, PNG, WebP, BMP, GIF or TIFF image, whatever its name says"))?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(most_pixels(bytes) * 8 + WORK_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(path, u64::from(width), u64::from(height), bytes)?;
    let image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    RgbImage::new(width, height, to_rgb(image)).ok_or_else(|| bad(path, "image of no size"))
}

/// 8-bit RGB by Pillow's rules.
fn to_rgb(image: DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => each(&rgba, |[r, g, b, _]| [r, g, b]),
        DynamicImage::ImageLuma8(grey) => each(&grey, |[v]| [v; 3]),
        DynamicImage::ImageLumaA8(grey) => each(&grey, |[v, _]| [v; 3]),
        // Pillow clips 16-bit grey instead of scaling it.
        DynamicImage::ImageLuma16(grey) => each(&grey, |[v]| [v.min(255) as u8; 3]),
        DynamicImage::ImageLumaA16(grey) => each(&grey, |[v, _]| [upper(v); 3]),
        DynamicImage::ImageRgb16(rgb) => each(&rgb, |pixel| pixel.map(upper)),
        DynamicImage::ImageRgba16(rgba) => each(&rgba, |[r, g, b, _]| [r, g, b].map(upper)),
        other => other.into_rgb8().into_raw(),
    }
}

/// Converts pixels of N samples one by one, in no more memory than the result.
fn each<T: Copy, const N: usize>(samples: &[T], convert: impl Fn([T; N]) -> [u8; 3]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<N>();
    let mut rgb = vec![0; pixels.len() * 3];
    for (rgb, &pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *rgb = convert(pixel);
    }
    rgb
}

fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

/// The most pixels that a file may decode to.
fn most_pixels(file: &[u8]) -> u64 {
    (file.len() as u64 * PIXELS_PER_BYTE).clamp(SMALL_PIXELS, MAX_PIXELS)
}

fn check_size(path: &Path, width: u64, height: u64, file: &[u8]) -> Result<(), DataError> {
    if width * height > MAX_PIXELS {
        return Err(DataError::TooLarge { path: path.to_path_buf(), width, height, limit: MAX_PIXELS });
    }
    let length = file.len();
    if width.max(height) > MAX_SIDE {
        Err(bad(path, &format!("{width} x {height} pixels, sides over {MAX_SIDE} are not read")))
    } else if width * height > most_pixels(file) {
        Err(bad(path, &format!("{width} x {height} pixels in {length} bytes, which no photo has")))
    } else {
        Ok(())
    }
}

fn bad(path: &Path, reason: &str) -> DataError {
    DataError::Decode { path: path.to_path_buf(), reason: reason.to_owned() }
}

/// The message of an error from the `image` crate on one line.
fn one_line(error: &ImageError) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
