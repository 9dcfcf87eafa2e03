//! The first frame of a GIF, as Pillow shows it.

use super::{Raster, Turn, bad, check_size, on_white};
use crate::data::DataError;
use crate::words::one_line;
use std::path::Path;

/// Pillow has no rule for what a frame leaves open of the screen but this: the transparent index if there is
/// one, else the first. A frame that reaches beyond the screen makes it larger.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Raster, DataError> {
    let wrong = |error: gif::DecodingError| match error {
        gif::DecodingError::UnexpectedEof => bad(path, "the GIF is cut short"),
        error => bad(path, &format!("damaged GIF ({})", one_line(&error))),
    };
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    // The sizes are looked at here, before anything is allocated.
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(wrong)?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    check_size(path, screen.0 as u64, screen.1 as u64, bytes)?;
    let frame =
        decoder.next_frame_info().map_err(wrong)?.ok_or_else(|| bad(path, "a GIF without a picture"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let (width, height) = (screen.0.max(left + columns), screen.1.max(top + rows));
    check_size(path, width as u64, height as u64, bytes)?;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(wrong)?;

    let palette = decoder.palette().map_err(wrong)?.as_chunks::<3>().0;
    let colour = |index: u8| match palette.get(usize::from(index)) {
        _ if transparent == Some(index) => on_white([0; 4]),
        Some(&rgb) => rgb,
        None => [index; 3],
    };
    let mut rgb = colour(transparent.unwrap_or(0)).repeat(width * height);
    for (y, row) in indices.chunks_exact(columns.max(1)).enumerate().take(rows) {
        let start = (top + y) * width + left;
        let pixels = &mut rgb[start * 3..][..columns * 3];
        for (pixel, &index) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(row) {
            *pixel = colour(index);
        }
    }
    Ok(Raster { width, height, rgb, turn: Turn::NoTransforms, sixteen_bit: None })
}
