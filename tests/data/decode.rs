//! Image files become the same RGB bytes that Pillow and CLIP's image processor make of them.
//! The references come from tools/make_image_fixtures.py.

use clip_engine::data::DataError;
use clip_engine::data::decode;
use clip_engine::data::decode::{Orientation, SixteenBit};
use clip_engine::data::resize::RgbImage;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn photo(name: &str) -> PathBuf {
    fixtures().join("photos").join(name)
}

/// As by default.
fn decode(path: &Path) -> Result<RgbImage, DataError> {
    decode::decode(path, Orientation::Exif).map(|photo| photo.image)
}

fn decode_bytes(path: &Path, bytes: &[u8]) -> Result<RgbImage, DataError> {
    decode::decode_bytes(path, bytes, Orientation::Exif).map(|photo| photo.image)
}

/// Largest difference and number of differing bytes.
fn difference(a: &[u8], b: &[u8]) -> (u8, usize) {
    assert_eq!(a.len(), b.len());
    let levels = a.iter().zip(b).map(|(x, y)| x.abs_diff(*y));
    (levels.clone().max().unwrap_or(0), levels.filter(|&d| d > 0).count())
}

#[test]
fn every_format_decodes_to_the_processors_bytes() {
    let file = std::fs::read(fixtures().join("decoded.safetensors")).unwrap();
    let references = SafeTensors::deserialize(&file).unwrap();
    let mut names = references.names();
    names.sort();
    assert!(names.len() > 130, "{} references", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let reference = references.tensor(name).unwrap();
        let decoded = match name.strip_suffix(" as stored") {
            Some(file) => decode::decode(&photo(file), Orientation::Ignore).map(|photo| photo.image),
            None => decode(&photo(name)),
        };
        match decoded {
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
    for name in [
        "base_420_q95.jpg",
        "prog_444.jpg",
        "restart_420.jpg",
        "grey.jpg",
        "cmyk.jpg",
        "finer_mixed.jpg",
        "finer_5x2.jpg",
    ] {
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
    let expected = format!("odd.png: 5000 x 5000 pixels in {} bytes, so many from so few", bomb.len());
    assert!(message(&bomb).starts_with(&expected), "{}", message(&bomb));
    for (width, height) in [(65_536, 16), (16, 65_536)] {
        let strip = message(&claimed_png(width, height, 0));
        assert!(strip.contains("sides over 65535 are not read"), "{strip}");
    }
    // These sizes are decoded, and the pixels are found to be missing.
    for png in [claimed_png(2048, 2048, 0), claimed_png(5000, 5000, 25_000), claimed_png(65_535, 16, 0)] {
        let message = message(&png);
        assert!(!message.contains("so many from so few") && !message.contains("are not read"), "{message}");
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

#[test]
fn grey_of_sixteen_bits_keeps_the_upper_eight_and_says_so() {
    let sixteen_bit = |name: &str| {
        let path = photo(name);
        decode::decode(&path, Orientation::Exif).unwrap().sixteen_bit
    };
    let largest = sixteen_bit("grey_16.png").unwrap();
    assert!(largest > 60_000);
    for name in ["grey_16.tif", "grey_16_big_endian.tif"] {
        assert_eq!(sixteen_bit(name), Some(largest), "{name}");
    }
    // Bytes in 16 bits lose nothing, and colour is as in Pillow.
    for name in ["grey_16_low.png", "grey_16_low.tif", "rgb_16.png", "rgba_16.tif", "la_16.png", "grey.png"] {
        assert_eq!(sixteen_bit(name), None, "{name}");
    }
    let mut all = SixteenBit::default();
    assert_eq!(all.warning(), None);
    all.add(Path::new("first.png"), 4095);
    let one = all.warning().unwrap();
    assert!(
        one.contains("of 1 image of 16-bit grey") && one.contains("4095") && one.contains("becomes 15"),
        "{one}"
    );
    all.add(Path::new("second.png"), 9000);
    let two = all.warning().unwrap();
    assert!(two.contains("2 images") && two.contains("9000") && two.ends_with("first.png"), "{two}");
}

#[test]
fn grey_with_a_transparent_value_is_scaled_and_put_on_white() {
    // Grey of 16 bits whose value 0x1234 is transparent: 3 x 1 pixels.
    let mut png = claimed_png(3, 1, 0)[..33].to_vec();
    (png[24], png[25]) = (16, 0);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let rows = [0, 0x12, 0x34, 0x12, 0x35, 0xff, 0xff];
    let stored = [&[0x78, 1, 1, 7, 0, 0xf8, 0xff], &rows[..], &adler32(&rows).to_be_bytes()].concat();
    for (kind, data) in [(b"tRNS", &[0x12, 0x34][..]), (b"IDAT", &stored), (b"IEND", &[])] {
        let body = [&kind[..], data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc32(&body).to_be_bytes());
    }
    let photo = decode::decode_bytes(Path::new("x.png"), &png, Orientation::Exif).unwrap();
    assert_eq!(photo.image.pixels(), [255, 255, 255, 0x12, 0x12, 0x12, 255, 255, 255]);
    assert_eq!(photo.sixteen_bit, Some(65535));
}

#[test]
fn samples_apart_are_the_samples_together() {
    assert_eq!(decode(&photo("planes_16.tif")).unwrap(), decode(&photo("rgb_16.tif")).unwrap());
    assert_eq!(decode(&photo("lab_planes.tif")).unwrap(), decode(&photo("lab.tif")).unwrap());
}

#[test]
fn every_lab_colour_is_pillows() {
    const SIDE: u32 = 4096;
    // A TIFF's tags, then one strip.
    let strip = [8 + 2 + 9 * 12 + 4, 3 * SIDE * SIDE];
    let mut tiff = b"II\x2a\0\x08\0\0\0\x09\0".to_vec();
    let sizes = [(256, SIDE), (257, SIDE), (258, 8), (259, 1), (262, 8)];
    for (tag, value) in sizes.into_iter().chain([(273, strip[0]), (277, 3), (278, SIDE), (279, strip[1])]) {
        tiff.extend([tag, 4, 1, 0].map(u16::to_le_bytes).concat());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend([0; 4]);
    for lab in 0..1u32 << 24 {
        let [_, l, a, b] = lab.to_be_bytes();
        // a and b have a sign.
        tiff.extend([l, a ^ 128, b ^ 128]);
    }
    let rgb = decode_bytes(Path::new("lab.tif"), &tiff).unwrap();
    let hash: String = Sha256::digest(rgb.pixels()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hash, std::fs::read_to_string(fixtures().join("lab.sha256")).unwrap().trim());
}

#[test]
fn orientation_is_applied_or_not_as_asked() {
    let decode = |name: &str, orientation| decode::decode(&photo(name), orientation).unwrap().image;
    for o in 2..9 {
        for name in [format!("turned_{o}.jpg"), format!("turned_{o}.tif")] {
            let [turned, stored] = [Orientation::Exif, Orientation::Ignore].map(|how| decode(&name, how));
            assert_ne!(turned.pixels(), stored.pixels(), "{name}");
            let swapped =
                if o > 4 { (stored.height(), stored.width()) } else { (stored.width(), stored.height()) };
            assert_eq!((turned.width(), turned.height()), swapped, "{name}");
        }
    }
    for name in ["turned_5.png", "turned_late.png", "turned_5.webp", "turned_named.webp"] {
        let [turned, stored] = [Orientation::Exif, Orientation::Ignore].map(|how| decode(name, how));
        assert_eq!(stored, decode("rgb.png", Orientation::Exif), "{name}");
        assert_eq!(turned, decode("turned_5.tif", Orientation::Exif), "{name}");
    }
    // A number that is no orientation.
    assert_eq!(decode("turned_9.jpg", Orientation::Exif), decode("turned_2.jpg", Orientation::Ignore));
}

/// A fixture with other bytes at the first place of these.
fn patched(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(photo(name)).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap_or_else(|| panic!("{name}: {from:?}"));
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn what_is_not_read_is_named_with_what_to_do() {
    let refused = |bytes: &[u8], what: &str, to: &str| {
        let error = decode_bytes(Path::new("a.jpg"), bytes).unwrap_err();
        assert!(matches!(error, DataError::NotRead { .. }), "{what}: {error}");
        assert_eq!(error.to_string(), format!("a.jpg: {what} is not read; convert it to {to}"));
    };
    refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image", "JPEG");
    refused(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "an AVIF image", "JPEG");
    refused(b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", "PNG");
    refused(b"P6\n4 4\n255\n", "a PBM, PGM, PPM or PAM image", "PNG");
    refused(b"qoif\0\0\0\x04", "a QOI image", "PNG");

    // Values in the list of a small TIFF of Pillow's.
    let tag = |number: u16, value: u16| {
        [number.to_le_bytes(), [3, 0], [1, 0], [0, 0], value.to_le_bytes()].concat()
    };
    let png = "an 8-bit PNG";
    for (method, name) in
        [(3, "CCITT group 3"), (34925, "LZMA"), (50000, "ZSTD"), (50001, "WebP"), (999, "method 999")]
    {
        let tiff = patched("rgb.tif", &tag(259, 1), &tag(259, method));
        refused(&tiff, &format!("a TIFF compressed with {name}"), png);
    }
    for (kind, name) in [(9, "ICC's"), (10, "ITU's")] {
        let tiff = patched("rgb.tif", &tag(262, 2), &tag(262, kind));
        refused(&tiff, &format!("a TIFF of {name} L*a*b*"), png);
    }
    refused(&patched("rgb_16.tif", &tag(262, 2), &tag(262, 8)), "a TIFF of L*a*b* of 16 bits", png);
    refused(&patched("rgba.tif", &tag(262, 2), &tag(262, 8)), "a TIFF of L*a*b* with 4 samples a pixel", png);
    let ycbcr = patched("rgb.tif", &tag(262, 2), &tag(262, 6));
    refused(&ycbcr, "a TIFF of YCbCr that is not compressed with JPEG", png);
    let fractions = |change: fn(f32) -> f32| {
        let mut tiff = std::fs::read(photo("float.tif")).unwrap();
        for value in tiff[8..8 + 17 * 21 * 4].as_chunks_mut::<4>().0 {
            *value = change(f32::from_le_bytes(*value)).to_le_bytes();
        }
        decode_bytes(Path::new("a.tif"), &tiff).map_err(|e| e.to_string())
    };
    assert!(fractions(|v| v).is_ok());
    for (change, end) in [
        ((|v| v / 256.0) as fn(f32) -> f32, "not of 0 to 255, is not read; convert it to an 8-bit PNG"),
        (|v| v - 100.0, "not of 0 to 255, is not read; convert it to an 8-bit PNG"),
        (|v| v * 4.0, "not of 0 to 255, is not read; convert it to an 8-bit PNG"),
        (|_| f32::NAN, "not of 0 to 255, is not read; convert it to an 8-bit PNG"),
    ] {
        let message = fractions(change).unwrap_err();
        assert!(
            message.starts_with("a.tif: a TIFF of 32-bit numbers from") && message.ends_with(end),
            "{message}"
        );
    }
    for sizes in [[0x12, 0x11, 0x11, 0x12], [0x21, 0x11, 0x11, 0x11], [0x11, 0x21, 0x11, 0x11]] {
        let parts = |sizes: [u8; 4]| [0, 1, 2, 3].map(|i| [b"CMYK"[i], sizes[i], 0]).concat();
        let jpeg = patched("cmyk.jpg", &parts([0x11; 4]), &parts(sizes));
        refused(&jpeg, "a JPEG of CMYK in parts of unusual sizes", "PNG");
    }
}

#[test]
fn files_that_end_early_are_cut_short_also_where_all_pixels_are_there() {
    let png = std::fs::read(photo("rgb.png")).unwrap();
    let jpeg = std::fs::read(photo("base_420_q95.jpg")).unwrap();
    let early = [&jpeg[..jpeg.len() * 3 / 4], &[0xff, 0xd9]].concat();
    let (gif, tiff) =
        (std::fs::read(photo("palette.gif")).unwrap(), std::fs::read(photo("zip.tif")).unwrap());
    // Strips come last in this one.
    let strips = std::fs::read(photo("big.tif")).unwrap();
    for (bytes, end) in [
        (&png[..png.len() - 12], "the image is cut short"),
        (&png[..png.len() - 20], "the image is cut short"),
        (&early[..], "JPEG data cut short"),
        (&gif[..gif.len() / 2], "the GIF is cut short"),
        (&strips[..strips.len() - 9], "the TIFF is cut short"),
        (&tiff[..100], "TIFF cut short, or without a word on what its pixels mean"),
    ] {
        let message = decode_bytes(Path::new("a.png"), bytes).unwrap_err().to_string();
        assert_eq!(message, format!("a.png: {end}; repair or remove the file"));
    }
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    (b << 16) | a
}
