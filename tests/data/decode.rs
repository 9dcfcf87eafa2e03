//! Image files become the same RGB bytes that Pillow makes of them.
//! The references come from tools/make_image_fixtures.py.

use clip_engine::data::DataError;
use clip_engine::data::decode::{decode, decode_bytes};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn photo(name: &str) -> PathBuf {
    fixtures().join("photos").join(name)
}

/// Largest difference and number of differing bytes.
fn difference(a: &[u8], b: &[u8]) -> (u8, usize) {
    assert_eq!(a.len(), b.len());
    let levels = a.iter().zip(b).map(|(x, y)| x.abs_diff(*y));
    (levels.clone().max().unwrap_or(0), levels.filter(|&d| d > 0).count())
}

#[test]
fn every_format_decodes_to_pillows_bytes() {
    let file = std::fs::read(fixtures().join("decoded.safetensors")).unwrap();
    let references = SafeTensors::deserialize(&file).unwrap();
    let mut names = references.names();
    names.sort();
    assert!(names.len() > 58, "{} references", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let reference = references.tensor(name).unwrap();
        match decode(&photo(name)) {
            Err(error) => wrong.push(error.to_string()),
            Ok(image) if [image.height(), image.width(), 3] != reference.shape() => {
                wrong.push(format!("{name}: {image:?} instead of {:?}", reference.shape()));
            }
            Ok(image) => {
                let (largest, count) = difference(image.pixels(), reference.data());
                if largest > 0 {
                    let total = reference.data().len();
                    wrong.push(format!("{name}: {count} of {total} bytes differ, by up to {largest}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_truncated_jpeg_is_an_error_wherever_it_is_cut() {
    for name in ["base_420_q95.jpg", "prog_444.jpg", "restart_420.jpg", "grey.jpg", "cmyk.jpg"] {
        let path = photo(name);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len() - 2).rev() {
            let error =
                decode_bytes(&path, &whole[..length]).expect_err(&format!("{name} cut to {length} bytes"));
            let message = error.to_string();
            assert!(message.contains(name) && !message.contains('\n'), "{message}");
        }
    }
}

#[test]
fn other_formats_cut_short_are_errors_too() {
    for name in ["rgb.png", "lossless.webp", "lossy.webp", "rgb.bmp", "palette.gif", "rgb.tif"] {
        let path = photo(name);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 7, 20, whole.len() / 2, whole.len() * 3 / 4] {
            let error =
                decode_bytes(&path, &whole[..length]).expect_err(&format!("{name} cut to {length} bytes"));
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn damaged_files_give_an_image_or_one_line() {
    let mut state = 1u64;
    for entry in std::fs::read_dir(fixtures().join("photos")).unwrap() {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] ^= (state >> 20) as u8;
            }
            if let Err(error) = decode_bytes(&path, &bytes) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

#[test]
fn content_decides_the_format_and_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disguised = folder.path().join("png_inside.jpg");
    std::fs::copy(photo("rgb.png"), &disguised).unwrap();
    assert_eq!(decode(&disguised).unwrap(), decode(&photo("rgb.png")).unwrap());

    let text = folder.path().join("notes.jpg");
    std::fs::write(&text, "these are not the pixels you are looking for").unwrap();
    let message = decode(&text).unwrap_err().to_string();
    assert!(message.contains("notes.jpg") && message.contains("not a JPEG"), "{message}");

    let empty = folder.path().join("empty.png");
    std::fs::write(&empty, "").unwrap();
    assert!(decode(&empty).unwrap_err().to_string().contains("empty.png: the file is empty"));
    assert!(matches!(decode(folder.path()), Err(DataError::Decode { .. } | DataError::Io { .. })));
    assert!(matches!(decode(&folder.path().join("none.jpg")), Err(DataError::Io { .. })));
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    // A PNG of 60,000 x 60,000 pixels: its header alone says so.
    let png = claimed_png(60_000, 60_000, 0);
    let error = decode_bytes(Path::new("bomb.png"), &png).unwrap_err();
    assert!(matches!(error, DataError::TooLarge { width: 60_000, .. }), "{error}");

    // A JPEG that claims 65,000 x 65,000: the frame header's height and width.
    let mut jpeg = std::fs::read(photo("base_444_q60.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&65_000u16.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&65_000u16.to_be_bytes());
    let error = decode_bytes(Path::new("bomb.jpg"), &jpeg).unwrap_err();
    assert!(error.to_string().contains("bomb.jpg: 65000 x 65000 pixels is over the limit"), "{error}");
}

/// A PNG that claims this size, with a header whose checksum is right; `tail` makes the file longer.
fn claimed_png(width: u32, height: u32, tail: usize) -> Vec<u8> {
    let mut png = std::fs::read(photo("rgb.png")).unwrap();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png.resize(png.len() + tail, 0);
    png
}

#[test]
fn sizes_that_no_photo_has_are_refused_before_anything_is_allocated() {
    let message = |png: &[u8]| decode_bytes(Path::new("odd.png"), png).unwrap_err().to_string();
    let bomb = claimed_png(5000, 5000, 0);
    let expected = format!("odd.png: 5000 x 5000 pixels in {} bytes, which no photo has", bomb.len());
    assert!(message(&bomb).starts_with(&expected), "{}", message(&bomb));
    for (width, height) in [(65_536, 16), (16, 65_536)] {
        let strip = message(&claimed_png(width, height, 0));
        assert!(strip.contains("sides over 65535 are not read"), "{strip}");
    }
    // These sizes are decoded, and the pixels are found to be missing.
    for png in [claimed_png(2048, 2048, 0), claimed_png(5000, 5000, 25_000), claimed_png(65_535, 16, 0)] {
        let message = message(&png);
        assert!(!message.contains("which no photo has") && !message.contains("are not read"), "{message}");
    }
}

#[test]
fn a_jpeg_of_endless_scans_is_refused() {
    let jpeg = std::fs::read(photo("prog_444.jpg")).unwrap();
    let last = jpeg.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let (start, scan) = (&jpeg[..last], &jpeg[last..jpeg.len() - 2]);
    let scans = |n: usize| [start, &scan.repeat(n), &[0xff, 0xd9]].concat();
    let error = decode_bytes(Path::new("scans.jpg"), &scans(501)).unwrap_err().to_string();
    assert!(error.starts_with("scans.jpg: damaged or unsupported JPEG") && error.contains("scan"), "{error}");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
