//! The orientation in EXIF data.

use image::metadata::Orientation;

/// What stands before the data in a JPEG, and by mistake in other formats.
const START: &[u8] = b"Exif\0\0";

/// How EXIF data say that the image is turned upright; none where they do not say.
pub(super) fn turn(mut exif: &[u8]) -> Option<Orientation> {
    while let Some(rest) = exif.strip_prefix(START) {
        exif = rest;
    }
    Orientation::from_exif_chunk(exif)
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
