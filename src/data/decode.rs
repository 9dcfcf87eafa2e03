//! One image file to the 8-bit RGB that CLIP's image processor starts from: as Pillow's `Image.open(path)` and
//! transformers' `convert_to_rgb` give it.
//!
//! The format is told by the content, never by the file's name. Grey is repeated, palettes are looked up,
//! transparency is put on white, colour of 16 bits keeps the upper 8, an animation gives its first frame. JPEG
//! is decoded to the very bits of libjpeg-turbo, which Pillow uses.
//!
//! Not as Pillow has it, on purpose:
//! - Grey of 16 bits keeps the upper 8 too, unless no value is over 255; Pillow makes nearly all of it white.
//!   [`Photo::sixteen_bit`] tells of it.
//! - A file that ends early or is damaged anywhere before its end is refused, also where Pillow shows what it has.
//! - Other numbers than 8 and 16 bits (TIFF) are taken where they lie within 0 and 255, and not all within 0
//!   and 1; Pillow clips.
//! - What is rare and would take a decoder of its own is refused by its name: [`DataError::NotRead`].
//! - A file of fewer bytes than a thousandth of its pixels is refused, as it may be made to fill the memory.

mod exif;
mod finer;
mod gif;
mod lab;
mod tiff;

use super::resize::RgbImage;
use super::{DataError, listing};
use crate::files;
use crate::guard::{guarded, is_guarded};
use crate::words::one_line;
use image::metadata::Orientation as Turn;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use libjpeg_turbo_rs as jpeg;
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::path::{Path, PathBuf};

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

/// Bytes that a decoder may hold beside an image of 16 bits with alpha.
const WORK_BYTES: u64 = 1 << 26;

const JPEG_START: [u8; 3] = [0xff, 0xd8, 0xff];

/// Whether photos are turned upright as their cameras noted: by the EXIF orientation of a JPEG, PNG or WebP, and
/// the orientation of a TIFF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// They are turned, as by Pillow's `exif_transpose`.
    Exif,
    /// They stay as they are stored, which is how files from before there was a choice mean it.
    #[default]
    Ignore,
}

/// A decoded image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    /// Its pixels.
    pub image: RgbImage,
    /// The largest value of 16-bit grey of which the upper 8 bits were kept; none for all other images.
    pub sixteen_bit: Option<u16>,
}

/// The images of 16-bit grey among many, see [`Photo::sixteen_bit`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SixteenBit {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: PathBuf,
    /// The largest value in any of them.
    pub largest: u16,
}

impl SixteenBit {
    /// Counts one more, after those before it.
    pub fn add(&mut self, path: &Path, largest: u16) {
        if self.count == 0 {
            self.first = path.to_path_buf();
        }
        self.count += 1;
        self.largest = self.largest.max(largest);
    }

    /// One line to warn by; none where there is no such image.
    pub fn warning(&self) -> Option<String> {
        let SixteenBit { count, first, largest } = self;
        let images = if *count == 1 { "1 image" } else { &format!("{count} images") };
        (*count > 0).then(|| {
            format!(
                "of {images} of 16-bit grey the upper 8 bits are kept (the largest value is {largest} of 65535, and \
                 becomes {}); the first: {}",
                upper(*largest),
                first.display()
            )
        })
    }
}

/// Reads and decodes the image at `path`.
///
/// # Errors
/// A file that cannot be read, is no image of a known format, is damaged or cut short, or is larger
/// than [`MAX_PIXELS`].
pub fn decode(path: &Path, orientation: Orientation) -> Result<Photo, DataError> {
    let bytes = read(path)?;
    decode_bytes(path, &bytes, orientation)
}

/// Decodes the contents of an image file; `path` is for messages only.
pub fn decode_bytes(path: &Path, bytes: &[u8], orientation: Orientation) -> Result<Photo, DataError> {
    if bytes.is_empty() {
        return Err(bad(path, "the file is empty"));
    }
    let decoder = match bytes {
        _ if bytes.starts_with(&JPEG_START) => decode_jpeg,
        _ if bytes.starts_with(b"GIF8") => gif::decode,
        _ if tiff::is_tiff(bytes) => tiff::decode,
        _ => decode_other,
    };
    let photo = || {
        let mut raster = decoder(path, bytes)?;
        if orientation == Orientation::Exif {
            raster = raster.upright();
        }
        let Raster { width, height, rgb, sixteen_bit, .. } = raster;
        let image = RgbImage::new(width, height, rgb).ok_or_else(|| bad(path, "image of no size"))?;
        Ok(Photo { image, sixteen_bit })
    };
    guarded(photo).unwrap_or_else(|| Err(bad(path, "damaged in a way the decoder cannot handle")))
}

/// True on a thread that is inside a decoder or another parser of files from anywhere. A panic there becomes
/// that file's error, and a panic hook has no need to report it.
pub fn decoding() -> bool {
    is_guarded()
}

/// Pixels of a file as a decoder gives them.
struct Raster {
    width: usize,
    height: usize,
    /// [height, width, 3]
    rgb: Vec<u8>,
    /// How it would be turned upright.
    turn: Turn,
    sixteen_bit: Option<u16>,
}

impl Raster {
    fn upright(mut self) -> Raster {
        let (width, height) = (self.width as u32, self.height as u32);
        if self.turn == Turn::NoTransforms || self.rgb.len() != self.width * self.height * 3 {
            return self;
        }
        if let Some(stored) = image::RgbImage::from_raw(width, height, std::mem::take(&mut self.rgb)) {
            let mut image = DynamicImage::ImageRgb8(stored);
            image.apply_orientation(self.turn);
            (self.width, self.height) = (image.width() as usize, image.height() as usize);
            self.rgb = image.into_bytes();
            self.turn = Turn::NoTransforms;
        }
        self
    }
}

/// The bytes of the image file at `path`.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    // Opening a named pipe would wait for somebody to write to it.
    if let Some(obstacle) = listing::obstacle(path) {
        return Err(bad(path, &obstacle));
    }
    let bytes = files::read_up_to(path, MAX_FILE_BYTES).map_err(DataError::io(path, "read the image"))?;
    bytes.ok_or_else(|| bad(path, "the file is larger than 1 GiB"))
}

fn decode_jpeg(path: &Path, bytes: &[u8]) -> Result<Raster, DataError> {
    let image = jpeg_image(path, bytes, |width, height| check_size(path, width, height, bytes))?;
    let turn = image.exif_data.as_deref().and_then(exif::turn);
    Ok(Raster {
        width: image.width,
        height: image.height,
        rgb: image.data,
        turn: turn.unwrap_or(Turn::NoTransforms),
        sixteen_bit: None,
    })
}

/// A JPEG in RGB, once `check` has let its width and height pass.
fn jpeg_image(
    path: &Path,
    bytes: &[u8],
    check: impl Fn(u64, u64) -> Result<(), DataError>,
) -> Result<jpeg::Image, DataError> {
    let wrong = |error: jpeg::JpegError| bad_jpeg(path, &error);
    let decoder = jpeg_decoder(bytes).map_err(wrong)?;
    let (width, height) = (decoder.header().width, decoder.header().height);
    check(u64::from(width), u64::from(height))?;
    if is_uneven_cmyk(&decoder.header().components) {
        return Err(not_read(path, "a JPEG of CMYK in parts of unusual sizes", "PNG"));
    }
    if !finer::is_finer(&decoder) {
        return decoder.decode_image().map_err(wrong);
    }
    let bytes = finer::called_rgb(bytes);
    let decoder = jpeg_decoder(&bytes).map_err(wrong)?;
    let header = decoder.header();
    let is_same = (header.width, header.height) == (width, height);
    if !is_same || header.precision != 8 || decoder.jpeg_color_space() != jpeg::ColorSpace::Rgb {
        return Err(not_read(path, finer::NAME, "PNG"));
    }
    let mut image = decoder.decode_image().map_err(wrong)?;
    finer::to_rgb(&mut image.data);
    Ok(image)
}

/// Whether the decoder would take four parts for others, or widen them otherwise than libjpeg-turbo, without a word.
fn is_uneven_cmyk(parts: &[jpeg::ComponentInfo]) -> bool {
    let [first, second, third, fourth] = parts else { return false };
    let factors = |part: &jpeg::ComponentInfo| (part.horizontal_sampling, part.vertical_sampling);
    let (wide, high) = factors(second);
    let usual = [(wide, high), (2 * wide, high), (2 * wide, 2 * high)];
    factors(first) != factors(fourth) || factors(second) != factors(third) || !usual.contains(&factors(first))
}

fn jpeg_decoder(bytes: &[u8]) -> Result<jpeg::Decoder<'_>, jpeg::JpegError> {
    let limits = jpeg::DecodeLimits { max_scans: MAX_SCANS, ..Default::default() };
    let mut decoder = jpeg::Decoder::new_with_limits(bytes, limits)?;
    decoder.set_output_format(jpeg::PixelFormat::Rgb);
    // As libjpeg-turbo does by default where the scans of a progressive JPEG do not give all bits.
    decoder.set_block_smoothing(true);
    Ok(decoder)
}

fn bad_jpeg(path: &Path, error: &jpeg::JpegError) -> DataError {
    match error {
        jpeg::JpegError::UnexpectedEof => bad(path, "JPEG data cut short"),
        error => bad(path, &format!("damaged or unsupported JPEG ({error})")),
    }
}

fn decode_other(path: &Path, bytes: &[u8]) -> Result<Raster, DataError> {
    let wrong = |error: ImageError| match error {
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            bad(path, "the image is cut short")
        }
        error => bad(path, &one_line(&error)),
    };
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) => format,
        _ => match foreign(bytes) {
            Some((name, to)) => return Err(not_read(path, name, to)),
            None => {
                let reason = "not a JPEG, PNG, WebP, BMP, GIF or TIFF image, whatever its name says";
                return Err(bad(path, reason));
            }
        },
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(most_pixels(bytes) * 8 + WORK_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(path, u64::from(width), u64::from(height), bytes)?;
    let turn = match format {
        ImageFormat::Png => exif::of_png(bytes).and_then(exif::turn),
        // The decoder's own reader takes as much memory as the file says that there are.
        ImageFormat::WebP => exif::of_webp(bytes).and_then(exif::turn),
        _ => None,
    };
    // Depth and colour type in a PNG's header.
    let is_grey16 = format == ImageFormat::Png && bytes.get(24..26) == Some(&[16, 0]);
    let image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (mut rgb, sixteen_bit) = to_rgb(image, is_grey16);
    if format == ImageFormat::Bmp {
        round_down(bytes, &mut rgb);
    }
    Ok(Raster { width, height, rgb, turn: turn.unwrap_or(Turn::NoTransforms), sixteen_bit })
}

/// 8-bit RGB, and the largest value of 16-bit grey that lost its lower bits.
fn to_rgb(image: DynamicImage, is_grey16: bool) -> (Vec<u8>, Option<u16>) {
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => each(&rgba, on_white),
        DynamicImage::ImageLuma8(grey) => each(&grey, |[v]| [v; 3]),
        DynamicImage::ImageLumaA8(grey) => each(&grey, |[v, a]| on_white([v, v, v, a])),
        DynamicImage::ImageLuma16(grey) => {
            let largest = grey.iter().copied().max().unwrap_or(0);
            return (each(&grey, |[v]| [grey8(v, largest); 3]), scaled(largest));
        }
        DynamicImage::ImageLumaA16(grey) if is_grey16 => {
            // Grey with one transparent value.
            let largest = grey.pixels().map(|pixel| pixel.0[0]).max().unwrap_or(0);
            let rgb = each(&grey, |[v, a]| {
                let v = grey8(v, largest);
                on_white([v, v, v, upper(a)])
            });
            return (rgb, scaled(largest));
        }
        DynamicImage::ImageLumaA16(grey) => each(&grey, |[v, a]| on_white([v, v, v, a].map(upper))),
        DynamicImage::ImageRgb16(rgb) => each(&rgb, |pixel| pixel.map(upper)),
        DynamicImage::ImageRgba16(rgba) => each(&rgba, |pixel| on_white(pixel.map(upper))),
        other => other.into_rgb8().into_raw(),
    };
    (rgb, None)
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

/// 16-bit grey of an image whose largest value is known. Bytes that were stored in 16 bits stay what they are.
fn grey8(value: u16, largest: u16) -> u8 {
    if scaled(largest).is_some() { upper(value) } else { value as u8 }
}

fn scaled(largest: u16) -> Option<u16> {
    (largest > 255).then_some(largest)
}

/// A pixel with alpha before a white background, as Pillow's `alpha_composite` rounds it.
fn on_white([r, g, b, alpha]: [u8; 4]) -> [u8; 3] {
    const BITS: u32 = 7;
    let share = u32::from(alpha) << BITS;
    let white = 255 * ((255 << BITS) - share);
    [r, g, b].map(|v| (over_255(u32::from(v) * share + white + (0x80 << BITS)) >> BITS) as u8)
}

/// A 255th, of a value with one half of 255 added to round.
fn over_255(value: u32) -> u32 {
    ((value >> 8) + value) >> 8
}

/// Pillow rounds down where a BMP's 5 or 6 bits become 8; the `image` crate to nearest.
fn round_down(bytes: &[u8], rgb: &mut [u8]) {
    let u16_at = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let (header, bits, compression) = (u16_at(14), u16_at(28), u16_at(30));
    if header < 40 || bits != 16 {
        return;
    }
    // The masks, if any, follow the 40 bytes. Green has 6 bits or as many as the others.
    let greens = if compression == 3 && u16_at(58) == 0x07e0 { 63 } else { 31 };
    let down = |value: u8, most: u32| {
        let stored = (u32::from(value) * most + 127) / 255;
        (stored * 255 / most) as u8
    };
    for [r, g, b] in rgb.as_chunks_mut::<3>().0 {
        (*r, *g, *b) = (down(*r, 31), down(*g, greens), down(*b, 31));
    }
}

/// A format that others read, and what to convert it to.
fn foreign(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if let Some(b"ftyp") = bytes.get(4..8) {
        return match bytes.get(8..12)? {
            b"avif" | b"avis" => Some(("an AVIF image", "JPEG")),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                Some(("a HEIC image", "JPEG"))
            }
            _ => Some(("a film", "JPEG")),
        };
    }
    let starts: [(&[u8], &str, &str); 15] = [
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 image", "PNG"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 image", "PNG"),
        (b"\xff\x0a", "a JPEG XL image", "PNG"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL image", "PNG"),
        (b"8BPS", "a Photoshop image", "PNG"),
        (b"DDS ", "a DDS image", "PNG"),
        (b"qoif", "a QOI image", "PNG"),
        (b"icns", "an ICNS icon", "PNG"),
        (b"\0\0\x01\0", "an ICO icon", "PNG"),
        (b"%PDF", "a PDF document", "PNG"),
        (b"<svg", "an SVG drawing", "PNG"),
        (b"\x0a\x05\x01", "a PCX image", "PNG"),
        (b"farbfeld", "a farbfeld image", "PNG"),
        (b"#?RADIANCE", "a Radiance image", "PNG"),
        (b"\x76\x2f\x31\x01", "an OpenEXR image", "PNG"),
    ];
    if let [b'P', b'1'..=b'7', b' ' | b'\t' | b'\n' | b'\r', ..] = bytes {
        return Some(("a PBM, PGM, PPM or PAM image", "PNG"));
    }
    starts.iter().find(|(start, ..)| bytes.starts_with(start)).map(|&(_, name, to)| (name, to))
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
        let sparse = "so many from so few fill the memory and are not read; scale the image down";
        Err(DataError::file(path, format!("{width} x {height} pixels in {length} bytes, {sparse}")))
    } else {
        Ok(())
    }
}

fn bad(path: &Path, reason: &str) -> DataError {
    DataError::Decode { path: path.to_path_buf(), reason: reason.to_owned() }
}

fn not_read(path: &Path, what: &str, to: &'static str) -> DataError {
    DataError::NotRead { path: path.to_path_buf(), what: what.to_owned(), to }
}
