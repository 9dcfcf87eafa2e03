//! TIFF: the raw samples by the `tiff` crate, their meaning by Pillow's rules.

use super::{
    Raster, Turn, WORK_BYTES, bad, check_size, each, grey8, jpeg_image, lab, most_pixels, not_read, on_white,
    over_255, scaled, upper,
};
use crate::data::DataError;
use crate::words::one_line;
use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use tiff::TiffError;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

/// The number of the tag that says what the samples mean.
const PHOTOMETRIC: u16 = 262;

// Its values.
const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;
const YCBCR: u16 = 6;
const LAB: u16 = 8;

/// Compression by JPEG.
const JPEG: u16 = 7;

// Meanings of a sample beside the colour.
const ASSOCIATED: u16 = 1;
const UNASSOCIATED: u16 = 2;
/// Value that Corel Draw writes for unassociated alpha.
const UNASSOCIATED_TOO: u16 = 999;

/// The most samples of a pixel that Pillow knows.
const MAX_SAMPLES: usize = 6;

/// Format to convert TIFFs to that are not read.
const TO: &str = "an 8-bit PNG";

pub(super) fn is_tiff(bytes: &[u8]) -> bool {
    [b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b"].iter().any(|&start| bytes.starts_with(start))
}

pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Raster, DataError> {
    let wrong = |error: TiffError| match error {
        TiffError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => bad(path, "the TIFF is cut short"),
        error => bad(path, &format!("damaged or unsupported TIFF ({})", one_line(&error))),
    };
    let photometric = Photometric::find(bytes)
        .ok_or_else(|| bad(path, "TIFF cut short, or without a word on what its pixels mean"))?;
    let mut decoder = Decoder::new(RawSamples::new(bytes, &photometric)).map_err(wrong)?;
    let (width, height) = decoder.dimensions().map_err(wrong)?;
    check_size(path, u64::from(width), u64::from(height), bytes)?;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = most_pixels(bytes) as usize * 8;
    limits.intermediate_buffer_size = limits.decoding_buffer_size + WORK_BYTES as usize;
    limits.ifd_value_size = WORK_BYTES as usize;
    decoder = decoder.with_limits(limits);

    let mut number = |tag: Tag, usual: u16| {
        let value: Option<u16> = decoder.find_tag_unsigned(tag).map_err(wrong)?;
        Ok::<_, DataError>(value.unwrap_or(usual))
    };
    let compression = number(Tag::Compression, 1)?;
    let fill_order = number(Tag::FillOrder, 1)?;
    let turn = number(Tag::Orientation, 1)?.min(255) as u8;
    let samples = usize::from(number(Tag::SamplesPerPixel, 1)?);
    let mut numbers = |tag: Tag| {
        let values: Option<Vec<u16>> = decoder.find_tag_unsigned_vec(tag).map_err(wrong)?;
        Ok::<_, DataError>(values.unwrap_or_default())
    };
    let bits = numbers(Tag::BitsPerSample)?.first().copied().unwrap_or(1);
    let extra = numbers(Tag::ExtraSamples)?.first().copied();
    let colours = if photometric.value == PALETTE { numbers(Tag::ColorMap)? } else { Vec::new() };

    if let Some(name) = compression_not_read(compression) {
        return Err(not_read(path, &format!("a TIFF compressed with {name}"), TO));
    }
    if fill_order != 1 {
        return Err(not_read(path, "a TIFF whose bits stand in reverse order", TO));
    }
    let image = Image { path, width: width as usize, height: height as usize, samples, bits };
    let (rgb, sixteen_bit) = if compression == JPEG {
        (image.of_jpegs(bytes, &mut decoder, photometric.value)?, None)
    } else {
        let meaning = image.meaning(photometric.value, extra, &colours)?;
        let mut data = DecodingResult::U8(Vec::new());
        let layout = decoder.read_image_to_buffer(&mut data).map_err(wrong)?;
        if data.as_buffer(0).as_bytes().len() < layout.complete_len {
            return Err(bad(path, "a TIFF that takes more memory than its size tells"));
        }
        image.rgb(data, layout.planes, &meaning)?
    };
    let turn = Turn::from_exif(turn).unwrap_or(Turn::NoTransforms);
    Ok(Raster { width: image.width, height: image.height, rgb, turn, sixteen_bit })
}

/// The name of a compression that takes a decoder of its own.
fn compression_not_read(number: u16) -> Option<String> {
    let name = match number {
        1 | 4 | 5 | JPEG | 8 | 32773 | 32946 => return None,
        2 => "CCITT RLE",
        3 => "CCITT group 3",
        6 => "JPEG of the old kind",
        34712 | 33003 | 33005 => "JPEG 2000",
        34925 => "LZMA",
        34887 => "LERC",
        50000 => "ZSTD",
        50001 => "WebP",
        50002 | 52546 => "JPEG XL",
        _ => return Some(format!("method {number}")),
    };
    Some(name.into())
}

/// The tag [`PHOTOMETRIC`] of the first image.
struct Photometric {
    value: u16,
    /// Where its two bytes are in the file.
    at: u64,
}

impl Photometric {
    fn find(bytes: &[u8]) -> Option<Photometric> {
        let little = bytes.starts_with(b"I");
        let number = |at: u64, length: u64| {
            let part = bytes.get(usize::try_from(at).ok()?..)?.get(..length as usize)?;
            let digit = |number: u64, &byte: &u8| (number << 8) | u64::from(byte);
            Some(if little { part.iter().rev().fold(0, digit) } else { part.iter().fold(0, digit) })
        };
        // The second is BigTIFF: where the list is, how long its length and its entries are, where their values.
        let (list, count, entry, value): (u64, u64, u64, u64) = match number(2, 2)? {
            42 => (number(4, 4)?, 2, 12, 8),
            _ => (number(8, 8)?, 8, 20, 12),
        };
        let mut at = list.checked_add(count)?;
        for _ in 0..number(list, count)? {
            if number(at, 2)? == u64::from(PHOTOMETRIC) {
                let at = at.checked_add(value)?;
                return Some(Photometric { value: number(at, 2)? as u16, at });
            }
            at = at.checked_add(entry)?;
        }
        None
    }
}

/// The file as if all samples were shades of grey, which is what the crate hands out as they are.
struct RawSamples<'a> {
    bytes: Cursor<&'a [u8]>,
    at: u64,
    value: [u8; 2],
}

impl<'a> RawSamples<'a> {
    fn new(bytes: &'a [u8], photometric: &Photometric) -> RawSamples<'a> {
        let little = bytes.starts_with(b"I");
        let value = if little { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
        RawSamples { bytes: Cursor::new(bytes), at: photometric.at, value }
    }
}

impl Read for RawSamples<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let start = self.bytes.position();
        let count = self.bytes.read(buffer)?;
        for (at, byte) in (self.at..).zip(self.value) {
            let place = at.checked_sub(start).and_then(|place| usize::try_from(place).ok());
            if let Some(place) = place.filter(|&place| place < count) {
                buffer[place] = byte;
            }
        }
        Ok(count)
    }
}

impl Seek for RawSamples<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Meaning of the samples of a pixel.
enum Meaning {
    Grey {
        white_is_zero: bool,
    },
    GreyAlpha(Alpha),
    Rgb,
    Rgba(Alpha),
    Palette(Vec<[u8; 3]>),
    PaletteAlpha(Vec<[u8; 3]>),
    Cmyk,
    /// a and b have a sign.
    Lab,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Alpha {
    Straight,
    /// The colours are multiplied by it.
    Associated,
}

impl Alpha {
    /// As Pillow divides the colours.
    fn on_white(self, [r, g, b, alpha]: [u8; 4]) -> [u8; 3] {
        if self == Alpha::Straight || alpha == 0 || alpha == 255 {
            return on_white([r, g, b, alpha]);
        }
        let straight = |v: u8| (u32::from(v) * 255 / u32::from(alpha)).min(255) as u8;
        on_white([straight(r), straight(g), straight(b), alpha])
    }
}

impl Meaning {
    /// A pixel of 8-bit samples, of which the rest is 0.
    fn pixel(&self, samples: [u8; MAX_SAMPLES]) -> [u8; 3] {
        let [a, b, c, d, ..] = samples;
        let colour = |palette: &[[u8; 3]]| palette.get(usize::from(a)).copied().unwrap_or_default();
        match self {
            Meaning::Grey { white_is_zero: false } => [a; 3],
            Meaning::Grey { white_is_zero: true } => [255 - a; 3],
            Meaning::GreyAlpha(alpha) => alpha.on_white([a, a, a, b]),
            Meaning::Rgb => [a, b, c],
            Meaning::Rgba(alpha) => alpha.on_white([a, b, c, d]),
            Meaning::Palette(palette) => colour(palette),
            Meaning::PaletteAlpha(palette) => {
                let [r, g, blue] = colour(palette);
                on_white([r, g, blue, b])
            }
            Meaning::Cmyk => {
                let light = 255 - u32::from(d);
                [a, b, c].map(|ink| (light - over_255(u32::from(ink) * light + 128)) as u8)
            }
            Meaning::Lab => lab::to_rgb([a, b ^ 128, c ^ 128]),
        }
    }
}

/// The image that the first directory tells of.
struct Image<'a> {
    path: &'a Path,
    width: usize,
    height: usize,
    samples: usize,
    bits: u16,
}

impl Image<'_> {
    fn not_read(&self, what: &str) -> DataError {
        not_read(self.path, what, TO)
    }

    fn meaning(&self, photometric: u16, extra: Option<u16>, colours: &[u16]) -> Result<Meaning, DataError> {
        let alpha = match extra {
            Some(ASSOCIATED) => Some(Alpha::Associated),
            Some(UNASSOCIATED | UNASSOCIATED_TOO) => Some(Alpha::Straight),
            _ => None,
        };
        if !matches!(self.bits, 1 | 2 | 4 | 8 | 16 | 32) {
            return Err(self.not_read(&format!("a TIFF of {} bits a sample", self.bits)));
        }
        let (colour, name) = match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO => (1, "grey"),
            RGB => (3, "RGB"),
            PALETTE => (1, "a palette"),
            CMYK => (4, "CMYK"),
            YCBCR => return Err(self.not_read("a TIFF of YCbCr that is not compressed with JPEG")),
            LAB if self.bits == 8 => (3, "L*a*b*"),
            LAB => return Err(self.not_read(&format!("a TIFF of L*a*b* of {} bits", self.bits))),
            9 => return Err(self.not_read("a TIFF of ICC's L*a*b*")),
            10 => return Err(self.not_read("a TIFF of ITU's L*a*b*")),
            other => return Err(self.not_read(&format!("a TIFF of colours of kind {other}"))),
        };
        let unusual = || self.not_read(&format!("a TIFF of {name} with {} samples a pixel", self.samples));
        if !(colour..=MAX_SAMPLES).contains(&self.samples) || (self.bits < 8 && self.samples != 1) {
            return Err(unusual());
        }
        let alpha = alpha.filter(|_| self.samples > colour);
        Ok(match (photometric, alpha) {
            (RGB, Some(alpha)) => Meaning::Rgba(alpha),
            // Some programs do not say what the fourth is.
            (RGB, None) if self.samples == 4 && extra.is_none() => Meaning::Rgba(Alpha::Straight),
            (RGB, None) => Meaning::Rgb,
            (CMYK, None) => Meaning::Cmyk,
            (PALETTE, alpha) => {
                let palette = self.palette(colours)?;
                match alpha {
                    None => Meaning::Palette(palette),
                    Some(_) => Meaning::PaletteAlpha(palette),
                }
            }
            (LAB, None) if self.samples == 3 => Meaning::Lab,
            (LAB, _) => return Err(unusual()),
            (BLACK_IS_ZERO, Some(alpha)) => Meaning::GreyAlpha(alpha),
            (_, None) => Meaning::Grey { white_is_zero: photometric == WHITE_IS_ZERO },
            _ => return Err(unusual()),
        })
    }

    fn palette(&self, colours: &[u16]) -> Result<Vec<[u8; 3]>, DataError> {
        if self.bits > 8 {
            return Err(self.not_read(&format!("a TIFF of a palette with {} bits", self.bits)));
        }
        let count = 1 << self.bits;
        if colours.len() < 3 * count {
            return Err(bad(self.path, "damaged TIFF (its palette is too short)"));
        }
        let colour = |i: usize| [i, count + i, 2 * count + i].map(|at| upper(colours[at]));
        Ok((0..count).map(colour).collect())
    }

    /// 8-bit RGB, and the largest value of 16-bit grey that lost its lower bits.
    fn rgb(
        &self,
        data: DecodingResult,
        planes: usize,
        meaning: &Meaning,
    ) -> Result<(Vec<u8>, Option<u16>), DataError> {
        let rgb = match data {
            DecodingResult::U8(data) if self.bits < 8 => {
                let most = (1 << self.bits) - 1;
                let factor = if matches!(meaning, Meaning::Grey { .. }) { 255 / most } else { 1 };
                each(&self.unpacked(&data), |[v]| meaning.pixel([v * factor, 0, 0, 0, 0, 0]))
            }
            DecodingResult::U8(data)
                if matches!(meaning, Meaning::Rgb) && self.samples == 3 && planes == 1 =>
            {
                data
            }
            DecodingResult::U8(data) => self.each(&data, planes, |pixel| meaning.pixel(pixel)),
            // Pillow takes them for bytes without a sign.
            DecodingResult::I8(data) if !matches!(meaning, Meaning::Lab) => {
                self.each(&data, planes, |pixel| meaning.pixel(pixel.map(|v| v as u8)))
            }
            DecodingResult::U16(mut data) => {
                if let (Meaning::Grey { white_is_zero }, 1) = (meaning, self.samples) {
                    if *white_is_zero {
                        data.iter_mut().for_each(|v| *v = u16::MAX - *v);
                    }
                    let largest = data.iter().copied().max().unwrap_or(0);
                    return Ok((each(&data, |[v]| [grey8(v, largest); 3]), scaled(largest)));
                }
                self.each(&data, planes, |pixel| meaning.pixel(pixel.map(upper)))
            }
            DecodingResult::I16(data) => self.numbers(&data, meaning, false)?,
            DecodingResult::U32(data) => self.numbers(&data, meaning, false)?,
            DecodingResult::I32(data) => self.numbers(&data, meaning, false)?,
            DecodingResult::F32(data) => self.numbers(&data, meaning, true)?,
            _ => return Err(self.not_read(&format!("a TIFF of {}-bit numbers of this kind", self.bits))),
        };
        Ok((rgb, None))
    }

    /// Samples of less than a byte, each in one. Rows start at whole bytes.
    fn unpacked(&self, data: &[u8]) -> Vec<u8> {
        let (bits, width) = (usize::from(self.bits), self.width);
        let mask = (1u8 << bits) - 1;
        let mut samples = Vec::with_capacity(width * self.height);
        for row in data.chunks_exact((width * bits).div_ceil(8)).take(self.height) {
            samples.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
        }
        samples
    }

    /// Converts pixel by pixel, whether the samples stand pixel after pixel or plane after plane.
    fn each<T: Copy + Default>(
        &self,
        data: &[T],
        planes: usize,
        convert: impl Fn([T; MAX_SAMPLES]) -> [u8; 3],
    ) -> Vec<u8> {
        let count = self.width * self.height;
        let (next, step) = if planes > 1 { (count, 1) } else { (1, self.samples) };
        let mut rgb = vec![0; count * 3];
        for (i, rgb) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let mut pixel = [T::default(); MAX_SAMPLES];
            for (s, sample) in pixel.iter_mut().enumerate().take(self.samples) {
                *sample = data[i * step + s * next];
            }
            *rgb = convert(pixel);
        }
        rgb
    }

    /// Grey in numbers that have no brightest value: taken where they are bytes by all appearances.
    fn numbers<T: Copy + Into<f64>>(
        &self,
        data: &[T],
        meaning: &Meaning,
        fractions: bool,
    ) -> Result<Vec<u8>, DataError> {
        let bits = self.bits;
        if self.samples != 1 || !matches!(meaning, Meaning::Grey { white_is_zero: false }) {
            return Err(self.not_read(&format!("a TIFF of {bits}-bit numbers that are not shades of grey")));
        }
        let (mut least, mut greatest, mut known) = (f64::INFINITY, f64::NEG_INFINITY, true);
        for &value in data {
            let value: f64 = value.into();
            (least, greatest, known) = (least.min(value), greatest.max(value), known && !value.is_nan());
        }
        if !known || least < 0.0 || greatest > 255.0 || (fractions && greatest <= 1.0) {
            let range = format!("a TIFF of {bits}-bit numbers from {least} to {greatest}, not of 0 to 255,");
            return Err(self.not_read(&range));
        }
        Ok(each(data, |[v]| [v.into() as u8; 3]))
    }

    /// The image as a grid of JPEGs, which share their tables.
    fn of_jpegs(
        &self,
        bytes: &[u8],
        decoder: &mut Decoder<RawSamples<'_>>,
        photometric: u16,
    ) -> Result<Vec<u8>, DataError> {
        let wrong = |reason: &str| bad(self.path, &format!("damaged TIFF ({reason})"));
        let unread = |error: TiffError| wrong(&one_line(&error));
        let planar = decoder.find_tag_unsigned(Tag::PlanarConfiguration).map_err(unread)?.unwrap_or(1u16);
        let transform = match (photometric, self.samples) {
            (BLACK_IS_ZERO, 1) => None,
            (RGB, 3) if planar == 1 => Some(0),
            (YCBCR, 3) if planar == 1 => Some(1),
            _ => {
                return Err(
                    self.not_read("a TIFF compressed with JPEG that is neither grey nor RGB nor YCbCr")
                );
            }
        };
        let [offsets, lengths] = match decoder.find_tag(Tag::TileOffsets).map_err(unread)? {
            Some(_) => [Tag::TileOffsets, Tag::TileByteCounts],
            None => [Tag::StripOffsets, Tag::StripByteCounts],
        };
        let mut list = |tag: Tag| {
            let values: Option<Vec<u64>> = decoder.find_tag_unsigned_vec(tag).map_err(unread)?;
            values.ok_or_else(|| wrong("it does not say where its pixels are"))
        };
        let (offsets, lengths) = (list(offsets)?, list(lengths)?);
        let tables = match decoder.find_tag(Tag::JPEGTables).map_err(unread)? {
            Some(tables) => tables.into_u8_vec().map_err(unread)?,
            None => Vec::new(),
        };
        // The start of an image, and what says the colours of one without.
        let mut start = vec![0xff, 0xd8];
        if let Some(transform) = transform {
            start.extend_from_slice(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0");
            start.push(transform);
        }
        start.extend_from_slice(tables.get(2..tables.len().max(4) - 2).unwrap_or_default());

        let (columns, rows) = decoder.chunk_dimensions();
        let (columns, rows) = (columns as usize, rows as usize);
        let across = self.width.div_ceil(columns);
        let mut rgb = vec![0; self.width * self.height * 3];
        let places = (0..self.height).step_by(rows).flat_map(|y| (0..across).map(move |i| (i * columns, y)));
        let mut chunks = offsets.iter().zip(&lengths);
        for (x, y) in places {
            let chunk = chunks.next().and_then(|(&offset, &length)| {
                let data = bytes.get(usize::try_from(offset).ok()?..)?;
                data.get(..usize::try_from(length).ok()?)?.get(2..)
            });
            let chunk = chunk.ok_or_else(|| bad(self.path, "the TIFF is cut short"))?;
            let chunk = [&start, chunk].concat();
            let (wide, high) = (columns.min(self.width - x), rows.min(self.height - y));
            let part = jpeg_image(self.path, &chunk, |width, height| {
                let fits =
                    |found: u64, least: usize, most: usize| (least as u64..=most as u64).contains(&found);
                if !fits(width, wide, columns) || !fits(height, high, rows) {
                    return Err(wrong("a part of it is of another size"));
                }
                check_size(self.path, width, height, bytes)
            })?;
            let lines = part.data.chunks_exact(part.width * 3).take(high);
            let places = rgb.chunks_exact_mut(self.width * 3).skip(y);
            for (line, place) in lines.zip(places) {
                place[x * 3..][..wide * 3].copy_from_slice(&line[..wide * 3]);
            }
        }
        Ok(rgb)
    }
}
