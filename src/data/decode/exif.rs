//! The orientation in EXIF data.

use image::metadata::Orientation;

/// Marker before the data in a JPEG, and by mistake in other formats.
const START: &[u8] = b"Exif\0\0";

/// How EXIF data say that the image is turned upright; none where they do not say.
pub(super) fn turn(mut exif: &[u8]) -> Option<Orientation> {
    while let Some(rest) = exif.strip_prefix(START) {
        exif = rest;
    }
    Orientation::from_exif_chunk(exif)
}

/// The EXIF data of a WebP; none where they are longer than the file.
pub(super) fn of_webp(webp: &[u8]) -> Option<&[u8]> {
    let mut rest = webp.get(12..)?;
    loop {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        if kind == b"EXIF" {
            return after.get(..length);
        }
        rest = after.get(length.checked_next_multiple_of(2)?..)?;
    }
}

/// The EXIF data of a PNG, which may stand before its pixels or behind them.
pub(super) fn of_png(png: &[u8]) -> Option<&[u8]> {
    let mut rest = png.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        match kind {
            b"eXIf" => return after.get(..length),
            b"IEND" => return None,
            _ => rest = after.get(length.checked_add(4)?..)?,
        }
    }
}
