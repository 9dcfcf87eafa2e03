//! JPEGs whose chroma has more samples than their luma. `libjpeg_turbo_rs` refuses to make RGB of their YCbCr, but reads
//! such samples where they are RGB, by libjpeg-turbo's filters. So they are called RGB, and converted here.

use super::jpeg;

/// The name of such a JPEG, where it is not read.
pub(super) const NAME: &str = "a JPEG whose colour is finer than its brightness";

const JFIF: u8 = 0xe0;
const ADOBE: u8 = 0xee;
/// A marker that no one reads.
const UNREAD: u8 = 0xec;
const START_OF_SCAN: u8 = 0xda;

/// Adobe's marker, which says that the colours are RGB.
const IS_RGB: &[u8] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";

/// Whether the JPEG is such a one.
pub(super) fn is_finer(decoder: &jpeg::Decoder) -> bool {
    match &decoder.header().components[..] {
        [luma, chroma @ ..] if decoder.jpeg_color_space() == jpeg::ColorSpace::YCbCr => {
            chroma.iter().any(|part| {
                part.horizontal_sampling > luma.horizontal_sampling
                    || part.vertical_sampling > luma.vertical_sampling
            })
        }
        _ => false,
    }
}

/// The file with a word that its YCbCr are RGB, and none that they are not.
pub(super) fn called_rgb(jpeg: &[u8]) -> Vec<u8> {
    let (start, rest) = jpeg.split_at(2.min(jpeg.len()));
    let mut file = [start, IS_RGB, rest].concat();
    let mut at = start.len() + IS_RGB.len();
    // Bytes between the segments are passed over, as by the decoder.
    while let Some(found) =
        file[at..].windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))
    {
        let marker = at + found + 1;
        match file[marker] {
            START_OF_SCAN => break,
            JFIF | ADOBE => file[marker] = UNREAD,
            _ => {}
        }
        at = match file[marker] {
            // These have no length.
            0x01 | 0xd0..=0xd9 => marker + 1,
            _ => match file.get(marker + 1..marker + 3) {
                Some(&[high, low]) => marker + 1 + usize::from(u16::from_be_bytes([high, low])),
                _ => break,
            },
        };
        at = at.min(file.len());
    }
    file
}

/// YCbCr to RGB in place, as libjpeg-turbo rounds it.
pub(super) fn to_rgb(pixels: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let [y, cb, cr] = pixel.map(i32::from);
        let (cb, cr) = (cb - 128, cr - 128);
        let parts = [91881 * cr, -22554 * cb - 46802 * cr, 116130 * cb];
        *pixel = parts.map(|part| (y + ((part + HALF) >> 16)).clamp(0, 255) as u8);
    }
}
