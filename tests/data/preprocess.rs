//! Resize, crop and normalise equal Pillow and the Hugging Face CLIP processor, bit by bit.
//! The references come from tools/make_image_fixtures.py.

use clip_engine::data::Preprocess;
use clip_engine::data::decode::{Orientation, decode};
use clip_engine::data::preprocess::{CLIP_MEAN, CLIP_STD, Resize};
use clip_engine::data::resize::{RgbImage, Window, resize_window};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// The pattern of tools/make_image_fixtures.py: noise, ramps, extremes, black.
fn pattern(width: usize, height: usize) -> RgbImage {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height as u32 {
        for x in 0..width as u32 {
            for c in 0..3u32 {
                let mut h = x
                    .wrapping_mul(0x9E37_79B1)
                    .wrapping_add(y.wrapping_mul(0x85EB_CA77))
                    .wrapping_add(c.wrapping_mul(0xC2B2_AE3D));
                h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
                h = (h ^ (h >> 13)) & 255;
                let value = match (x / 13 + y / 17 + c) % 4 {
                    0 => h,
                    1 => (3 * x + 2 * y + 40 * c) % 256,
                    2 => 255 * (h & 1),
                    _ => 0,
                };
                pixels.push(value as u8);
            }
        }
    }
    RgbImage::new(width, height, pixels).unwrap()
}

#[test]
fn resize_and_crop_equal_pillow_at_every_size() {
    let text = std::fs::read_to_string(fixtures().join("resize.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 20);
    let mut wrong = Vec::new();
    for case in cases {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let (width, height, size) = (number("width"), number("height"), number("size"));
        let pixels = Preprocess::clip(size).resize_crop(&pattern(width, height));
        let hash: String = Sha256::digest(&pixels).iter().map(|b| format!("{b:02x}")).collect();
        if hash != case["sha256"] {
            wrong.push(format!("{width} x {height} to {size}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn small_crops_and_their_values_equal_the_references() {
    let file = std::fs::read(fixtures().join("pixels.safetensors")).unwrap();
    let references = SafeTensors::deserialize(&file).unwrap();
    for (width, height, size) in [(61, 47, 32), (47, 61, 32), (2, 3, 32), (100, 80, 32), (224, 250, 24)] {
        let preprocess = Preprocess::clip(size);
        let pixels = preprocess.resize_crop(&pattern(width, height));
        let name = format!("{width}x{height}_{size}");
        assert_eq!(pixels, references.tensor(&format!("{name}.crop")).unwrap().data(), "{name}");
        let mut values = vec![0.0f32; pixels.len()];
        preprocess.normalise(&pixels, &mut values);
        let reference: Vec<f32> =
            bytemuck::pod_collect_to_vec(references.tensor(&format!("{name}.values")).unwrap().data());
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&reference), "{name}");
    }
}

#[test]
fn a_window_is_the_same_pixels_as_the_whole() {
    let image = pattern(97, 60);
    let (width, height) = (53, 53);
    let whole = resize_window(&image, &Window { width, height, left: 0, top: 0, side: 53 });
    for (left, top, side) in [(0, 0, 1), (52, 52, 1), (7, 20, 30), (23, 1, 30)] {
        let part = resize_window(&image, &Window { width, height, left, top, side });
        for y in 0..side {
            let row = ((top + y) * width + left) * 3;
            assert_eq!(part[y * side * 3..(y + 1) * side * 3], whole[row..row + side * 3]);
        }
    }
}

/// Writes a processor configuration into a fresh model directory and loads it.
fn load(file: &str, config: &str, image_size: usize) -> Result<Preprocess, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file), config).unwrap();
    Preprocess::from_model_dir(dir.path(), image_size).map_err(|e| e.to_string())
}

#[test]
fn every_form_of_a_processor_configuration_is_read() {
    const FILE: &str = "preprocessor_config.json";
    let old = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}"#;
    assert_eq!(load(FILE, old, 224).unwrap(), Preprocess::clip(224));
    let new = r#"{"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 350},
        "do_rescale": true, "rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.25, 0.125]}"#;
    let preprocess = load(FILE, new, 336).unwrap();
    assert_eq!((preprocess.resize(), preprocess.image_size()), (Resize::ShortSide(350), 336));
    assert_eq!((preprocess.mean(), preprocess.std()), ([0.5, 0.25, 0.125], CLIP_STD));
    let square = r#"{"size": {"height": 32, "width": 32}, "do_center_crop": false}"#;
    assert_eq!(load(FILE, square, 32).unwrap().resize(), Resize::Square(32));
    let nested = format!(r#"{{"image_processor": {old}, "processor_class": "CLIPProcessor"}}"#);
    assert_eq!(load("processor_config.json", &nested, 224).unwrap(), Preprocess::clip(224));
    let none = load("config.json", "{}", 64).unwrap();
    assert_eq!((none.image_size(), none.mean()), (64, CLIP_MEAN));
}

#[test]
fn nested_settings_win_over_the_older_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let mean = || Preprocess::from_model_dir(dir.path(), 224).map(|settings| settings.mean());
    assert!(!Preprocess::is_given(dir.path()));
    write("preprocessor_config.json", r#"{"image_mean": [0.5, 0.5, 0.5]}"#);
    assert!(Preprocess::is_given(dir.path()));
    // Releases of transformers before 5 write nothing of images into it.
    for none in [r#"{"processor_class": "CLIPProcessor"}"#, r#"{"image_processor": null}"#] {
        write("processor_config.json", none);
        assert_eq!(mean().unwrap(), [0.5; 3]);
    }
    write("processor_config.json", r#"{"image_processor": {"image_mean": [0.25, 0.25, 0.25]}}"#);
    assert_eq!(mean().unwrap(), [0.25; 3]);
    write("processor_config.json", r#"{"image_processor": {"resample": 2}}"#);
    let message = mean().unwrap_err().to_string();
    assert!(message.contains("processor_config.json") && !message.contains("preprocessor"), "{message}");
    std::fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
    write("processor_config.json", "{}");
    assert!(!Preprocess::is_given(dir.path()));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (config, expected) in [
        (r#"{"resample": 2}"#, "resample 2"),
        (r#"{"do_resize": false}"#, "do_resize"),
        (r#"{"do_normalize": false}"#, "do_normalize"),
        (r#"{"do_center_crop": false}"#, "do_center_crop"),
        (r#"{"rescale_factor": 1.0}"#, "rescale_factor"),
        (r#"{"crop_size": 225}"#, "larger than size"),
        (r#"{"crop_size": {"height": 224, "width": 200}}"#, "not square"),
        (r#"{"crop_size": 100}"#, "the model takes 224"),
        (r#"{"size": -1}"#, "size -1"),
        (r#"{"image_mean": [1, 2]}"#, "image_mean"),
        (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
        ("{", "not valid JSON"),
    ] {
        let message = load("preprocessor_config.json", config, 224).unwrap_err();
        assert!(message.contains(expected), "{config}: {message}");
        assert!(message.contains("preprocessor_config.json") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn an_upright_photo_and_a_square_resize_keep_their_whole() {
    let path = fixtures().join("photos/rgb.png");
    let image = decode(&path, Orientation::Exif).unwrap().image;
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"size": {"height": 32, "width": 32}, "crop_size": 32}"#;
    std::fs::write(dir.path().join("preprocessor_config.json"), config).unwrap();
    let square = Preprocess::from_model_dir(dir.path(), 32).unwrap().resize_crop(&image);
    let window = Window { width: 32, height: 32, left: 0, top: 0, side: 32 };
    assert_eq!(square, resize_window(&image, &window));
    assert_ne!(square, Preprocess::clip(32).resize_crop(&image));
}

#[test]
fn enlarged_settings_differ_in_the_size_alone() {
    let means = r#""image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]"#;
    for (size, resize, larger) in [
        (r#"{"shortest_edge": 36}"#, Resize::ShortSide(36), Resize::ShortSide(40)),
        (r#"{"height": 36, "width": 36}"#, Resize::Square(36), Resize::Square(40)),
    ] {
        let config = format!(r#"{{"size": {size}, "crop_size": 32, {means}}}"#);
        let preprocess = load("preprocessor_config.json", &config, 32).unwrap();
        assert_eq!(preprocess.resize(), resize);
        let enlarged = preprocess.enlarged(40).unwrap();
        assert_eq!((enlarged.image_size(), enlarged.resize()), (40, larger));
        assert_eq!((enlarged.mean(), enlarged.std()), (preprocess.mean(), preprocess.std()));
        assert_eq!(preprocess.enlarged(32).unwrap().image_size(), 32);
        for side in [0, 31, 4097, usize::MAX] {
            let message = preprocess.enlarged(side).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{side} pixels")) && message.contains("32 to 4096"),
                "{message}"
            );
        }
    }
}

#[test]
fn every_pixel_value_comes_back_from_its_normalised_one() {
    let preprocess = Preprocess::clip(16);
    // All values, in another order in each channel.
    let pixels: Vec<u8> = (0..=255).flat_map(|v: u8| [v, 255 - v, v.wrapping_mul(7)]).collect();
    let mut values = vec![0.0; pixels.len()];
    preprocess.normalise(&pixels, &mut values);
    assert_eq!(preprocess.denormalise(&values), pixels);
    for value in &mut values {
        *value = half::f16::from_f32(*value).to_f32();
    }
    assert_eq!(preprocess.denormalise(&values), pixels);
    assert_eq!(preprocess.denormalise(&[-9.0, 9.0, 0.0]), [0, 255, 104], "what no pixel gives is clamped");
}
