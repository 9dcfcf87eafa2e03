//! One function per kind of file that comes from elsewhere: reads any bytes as such a file and checks what
//! was handed out. The fuzz crate and the test `fuzz_corpus` run them. Each says whether anything was.
//!
//! Where a reader takes two files, the bytes hold both, parted at the first zero byte: the first of them is
//! always text.

use clip_engine::clip::config::{ClipConfig, TextConfig, TowerConfig};
use clip_engine::clip::tokenizer::ClipTokenizer;
use clip_engine::clip::weights::{Weights, expected_tensors};
use clip_engine::data::decode::{MAX_PIXELS, Orientation, Photo, decode_bytes};
use clip_engine::data::resize::RgbImage;
use clip_engine::data::{Cache, DataError, Dataset, DatasetOptions, Groups, Preprocess, Split, flowers102};
use clip_engine::tensor::{DType, Shape, View};
use clip_engine::train::adapter::{Adapter, HeadFile, load_prompts, prompt_spec};
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::tensor_files::TensorFile;
use clip_engine::tune::LoraInit;
use clip_engine::tune::Site;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Reads any bytes; true when something was handed out.
pub type Target = fn(&[u8]) -> bool;

/// The targets by their names, which are also those of their folders in fuzz/corpus.
pub const ALL: [(&str, Target); 8] = [
    ("adapter", adapter),
    ("cache", cache),
    ("checkpoint", checkpoint),
    ("image", image),
    ("list", list),
    ("mat", mat),
    ("run", run),
    ("tokenizer", tokenizer),
];

/// `config.json` and `model.safetensors`, or the index of shards where the second part starts as JSON does.
pub fn checkpoint(data: &[u8]) -> bool {
    let (config, weights) = two_files(data);
    let sharded = weights.starts_with(b"{");
    let whole = (!sharded).then_some(weights);
    let dir = folder(&[
        ("config.json", Some(config)),
        ("model.safetensors", whole),
        ("model.safetensors.index.json", sharded.then_some(weights)),
        ("shard.safetensors", Some(&EMPTY_SAFETENSORS)),
    ]);
    let config = ClipConfig::load(&dir).ok();
    let weights_file = whole.unwrap_or_default();
    if let Some(config) = &config {
        check_config(config);
    }
    let Ok(weights) = Weights::open(&dir) else { return config.is_some() };
    for name in weights.names() {
        check_tensor(&weights, name, weights_file);
    }
    if let Some(config) = config {
        let tensors = expected_tensors(&config);
        let all = tensors.iter().all(|(name, shape)| weights.get(name, shape.dims()).is_ok());
        assert_eq!(weights.check(&config).is_ok(), all);
    }
    true
}

/// A safetensors file without a tensor.
const EMPTY_SAFETENSORS: [u8; 10] = *b"\x02\0\0\0\0\0\0\0{}";

fn check_config(config: &ClipConfig) {
    let check_tower = |tower: &TowerConfig| {
        assert!(tower.heads > 0 && tower.layers > 0 && tower.mlp > 0);
        assert!(tower.width > 0 && tower.width.is_multiple_of(tower.heads));
        assert!(tower.norm_eps as f32 > 0.0 && tower.norm_eps <= 1.0);
    };
    check_tower(&config.vision.tower);
    check_tower(&config.text.tower);
    assert!(config.vision.patches() > 0 && config.projection > 0);
    assert!((config.text.eos as usize) < config.text.vocabulary);
    assert!(config.logit_scale_init.is_finite());
    for (name, shape) in expected_tensors(config) {
        assert!(Shape::try_from(shape.dims()).is_ok(), "{name} {shape}");
    }
}

/// Compares a tensor with what the header of `file` says about it, and its bytes with those of the file.
fn check_tensor(weights: &Weights, name: &str, file: &[u8]) {
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return };
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).expect("a header that was accepted is JSON");
    let entry = &header[name];
    let whole = |v: &Value| v.as_u64().expect("a number that was accepted is whole") as usize;
    let numbers = |key: &str| entry[key].as_array().into_iter().flatten().map(whole).collect::<Vec<_>>();
    let (dims, place) = (numbers("shape"), numbers("data_offsets"));
    let longer: Vec<usize> = dims.iter().copied().chain([1]).collect();
    assert!(weights.get(name, &longer).is_err());
    if let Ok(view) = weights.get(name, &dims) {
        assert_eq!(view.bytes(), &data[place[0]..place[1]]);
        check_view(view);
        let wide = view.to_tensor(DType::F64).expect("floats widen");
        assert_eq!(wide.elements(), view.shape().elements());
    }
}

fn check_view(view: View<'_>) {
    let elements = view.shape().dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    assert_eq!(Some(view.bytes().len()), elements.map(|n| n * view.dtype().size()));
}

/// The tower that adapters, heads and prompts are read for.
const LAYERS: usize = 2;
const WIDTH: usize = 8;

/// `adapter_config.json` and tensors, which are read as an adapter's, as a head and as prompts.
pub fn adapter(data: &[u8]) -> bool {
    let (config, tensors) = two_files(data);
    let dir = folder(&[("adapter_config.json", Some(config)), ("adapter_model.safetensors", Some(tensors))]);
    let path = dir.join("adapter_model.safetensors");
    let mut any = check_tensor_file(&path);
    if let Ok(mut adapter) = Adapter::load(&dir) {
        any = true;
        let rank = adapter.spec.rank;
        assert!((1..=1024).contains(&rank) && !adapter.spec.targets.is_empty());
        assert!((adapter.spec.alpha as f32).is_finite());
        let config = small_config();
        if adapter.check(&config).is_ok() {
            let spec = adapter.spec.clone();
            let sites = spec.towers.iter().flat_map(|&tower| {
                let targets = spec.targets.iter().copied();
                (0..LAYERS)
                    .flat_map(move |layer| targets.clone().map(move |target| Site { tower, layer, target }))
            });
            for site in sites {
                let (inputs, outputs) = site.target.sizes(WIDTH, config.vision.tower.mlp);
                let (a, b) = adapter.start(site, inputs, outputs);
                assert_eq!([a.shape(), b.shape()], [[rank, inputs].into(), [outputs, rank].into()]);
            }
        }
    }
    if let Ok(head) = HeadFile::load(&path, WIDTH) {
        let classes = head.class_names.len();
        assert!(classes > 0);
        assert_eq!([head.weight.shape(), head.bias.shape()], [[classes, WIDTH].into(), [classes].into()]);
    }
    if let Ok(spec) = prompt_spec(&path) {
        assert!(spec.count > 0);
        if let Ok(prompts) = load_prompts(&path, &spec, LAYERS, WIDTH) {
            assert_eq!(prompts.shape(), [spec.sets(LAYERS), spec.count, WIDTH].into());
        }
    }
    any
}

fn check_tensor_file(path: &Path) -> bool {
    let Ok(file) = TensorFile::read(path) else { return false };
    for tensor in file.tensors.values() {
        check_view(tensor.view());
        assert!(matches!(tensor.dtype(), DType::F32 | DType::F64));
    }
    true
}

/// Two towers of the sizes that the seeds have.
fn small_config() -> ClipConfig {
    let mut config = ClipConfig::vit_b_32();
    for tower in [&mut config.vision.tower, &mut config.text.tower] {
        (tower.layers, tower.width, tower.mlp) = (LAYERS, WIDTH, 2 * WIDTH);
    }
    config
}

/// `config.toml` and `state.safetensors` of a run.
pub fn run(data: &[u8]) -> bool {
    let (config, state) = two_files(data);
    let dir = folder(&[("config.toml", Some(config)), ("state.safetensors", Some(state))]);
    let run = RunDir::at(&dir);
    let state = check_tensor_file(&run.state());
    if let Ok(settings) = run.read_settings() {
        settings.validate().expect("settings that were read can be trained");
        run.write_settings(&settings).expect("settings that were read can be written");
        assert_eq!(run.read_settings().expect("and read again"), settings);
        return true;
    }
    state
}

/// A MATLAB file, read as labels and as splits.
pub fn mat(data: &[u8]) -> bool {
    const PHOTOS: usize = 8189;
    let path = Path::new("fuzz.mat");
    let mut any = false;
    if let Ok(labels) = flowers102::parse_labels(path, data) {
        any = true;
        assert!(labels.iter().all(|&label| (label as usize) < flowers102::CLASS_NAMES.len()));
    }
    for split in Split::ALL {
        match flowers102::parse_split(path, data, split, PHOTOS) {
            Ok(photos) => {
                any = true;
                assert!(!photos.is_empty() && photos.is_sorted() && photos.iter().all(|&p| p < PHOTOS));
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
    any
}

/// A list of photos, read as a table, as JSON lines and as CoOp's, and a file of class names or groups.
pub fn list(data: &[u8]) -> bool {
    let (list, other) = two_files(data);
    let dir = folder(&[("list", Some(list)), ("names", Some(other)), ("0.jpg", Some(b"photo"))]);
    let (path, names) = (dir.join("list"), dir.join("names"));
    let one_line = |error: DataError| assert!(!error.to_string().contains('\n'), "{error}");
    let groups = Groups::open(&names.display().to_string()).map_err(one_line).ok();
    let plain = DatasetOptions::from(1);
    let named = DatasetOptions { class_names: Some(names), ..plain.clone() };
    let grouped = DatasetOptions { groups, ..plain.clone() };
    let mut any = false;
    for options in [plain, named, grouped] {
        match Dataset::open(&path, options) {
            Ok(source) => {
                any = true;
                assert!(!source.train.is_empty() && source.class_names.len() > 1);
                let shown = |name: &String| !name.is_empty() && !name.chars().any(char::is_control);
                assert!(source.class_names.iter().all(shown), "{:?}", source.class_names);
                assert!(source.items().all(|item| (item.label as usize) < source.class_names.len()));
            }
            Err(error) => one_line(error),
        }
    }
    any
}

/// An image cache, as it is and with its first 64 bytes made to fit, which no mutation brings about: they
/// hold a hash.
pub fn cache(data: &[u8]) -> bool {
    let mut contents = vec![data.to_vec()];
    contents.extend(repair_cache(data));
    let opened = contents
        .iter()
        .map(|bytes| check_cache(&folder(&[("images.cache", Some(bytes))]).join("images.cache")));
    opened.fold(false, |any, opened| any | opened)
}

const CACHE_START: usize = 64;

/// Writes the start of a cache anew: the header is what follows the pixels, whose length is kept.
fn repair_cache(data: &[u8]) -> Option<Vec<u8>> {
    let pixels = usize::try_from(u64::from_le_bytes(*data.get(16..24)?.first_chunk()?)).ok()?;
    let header = data.get(CACHE_START..)?.get(pixels..)?;
    let mut whole = data.to_vec();
    whole[..16].copy_from_slice(b"CLIPPIX\n\x02\0\0\0\0\0\0\0");
    whole[24..32].copy_from_slice(&(header.len() as u64).to_le_bytes());
    whole[32..CACHE_START].copy_from_slice(&Sha256::digest(header));
    Some(whole)
}

fn check_cache(path: &Path) -> bool {
    let Ok(cache) = Cache::open(path) else { return false };
    let splits = Split::ALL.map(|split| cache.split(split));
    assert_eq!(splits.iter().map(|split| split.len()).sum::<usize>(), cache.len());
    for split in splits {
        assert_eq!(split.labels().len(), split.len());
        assert!(split.labels().iter().all(|&label| (label as usize) < cache.class_names().len()));
        let _ = split.require_every_class();
        assert!(split.image(split.len()).is_err() && split.path(split.len()).is_none());
        let Some(last) = split.len().checked_sub(1) else { continue };
        let image = split.image(last).expect("the last image is there");
        assert_eq!(image.shape(), cache.image_shape());
        check_view(image);
        let rgb = split.rgb(last).expect("the last image can be looked at");
        assert_eq!(rgb.len(), image.shape().elements());
        assert!(split.path(last).is_some());
        assert_eq!(split.images(&[0, last]).expect("both are there")[1], image.bytes());
    }
    true
}

/// A photo.
pub fn image(data: &[u8]) -> bool {
    const SIDE: usize = 32;
    match decode_bytes(Path::new("fuzz.jpg"), data, Orientation::Exif) {
        Ok(Photo { image, .. }) => {
            assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
            assert!(image.width() > 0 && image.height() > 0);
            assert!((image.width() * image.height()) as u64 <= MAX_PIXELS);
            assert_eq!(Preprocess::clip(SIDE).resize_crop(&image).len(), SIDE * SIDE * 3);
            // Turning moves pixels and does nothing else.
            let stored =
                decode_bytes(Path::new("fuzz.jpg"), data, Orientation::Ignore).expect("the same file").image;
            let sides = |image: &RgbImage| {
                image.width().min(image.height()) * 65_536 + image.width().max(image.height())
            };
            assert_eq!(sides(&stored), sides(&image));
            let sum = |image: &RgbImage| image.pixels().iter().map(|&v| u64::from(v)).sum::<u64>();
            assert_eq!(sum(&stored), sum(&image));
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            false
        }
    }
}

/// `tokenizer.json` and `preprocessor_config.json`.
pub fn tokenizer(data: &[u8]) -> bool {
    const SIDE: usize = 32;
    let (tokenizer, preprocessor) = two_files(data);
    let preprocessor = (!preprocessor.is_empty()).then_some(preprocessor);
    let dir = folder(&[("tokenizer.json", Some(tokenizer)), ("preprocessor_config.json", preprocessor)]);
    let mut config = ClipConfig::vit_b_32().text;
    config.eos = TextConfig::LEGACY_EOS;
    config.vocabulary = 1000;
    let mut any = false;
    if let Ok(tokenizer) = ClipTokenizer::load(&dir, &config) {
        any = true;
        let texts =
            ["", "a photo of a cat", "Ünï\u{301}çødé 猫 🌸 \u{0}\u{feff}", &"don't 1234  ".repeat(30)];
        if let Ok(batch) = tokenizer.encode_batch(&texts.map(str::to_owned)) {
            assert_eq!([batch.rows, batch.eos_rows.len()], [texts.len(); 2]);
            assert_eq!(batch.ids.len(), batch.rows * batch.len);
            assert!(batch.len <= config.max_tokens);
            assert!(batch.eos_rows.iter().all(|&row| (row as usize) < batch.len));
            assert!(batch.ids.iter().all(|&id| (id as usize) < config.vocabulary));
        }
    }
    if let Ok(preprocess) = Preprocess::from_model_dir(&dir, SIDE) {
        any = true;
        assert_eq!(preprocess.image_size(), SIDE);
        let image = RgbImage::new(5, 3, (0..45).collect()).expect("45 bytes are 5 x 3 pixels");
        let pixels = preprocess.resize_crop(&image);
        let mut values = vec![f32::NAN; SIDE * SIDE * 3];
        preprocess.normalise(&pixels, &mut values);
        assert!(values.iter().all(|v| !v.is_nan()));
    }
    any
}

/// The bytes before and after the first zero byte.
fn two_files(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|&byte| byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

thread_local! {
    static SCRATCH: TempDir = TempDir::new().expect("a temporary folder can be made");
}

/// A folder with these files and, of these names, no others.
fn folder(files: &[(&str, Option<&[u8]>)]) -> PathBuf {
    SCRATCH.with(|dir| {
        for (name, bytes) in files {
            let path = dir.path().join(name);
            match bytes {
                Some(bytes) => fs::write(&path, bytes).expect("a temporary file can be written"),
                None => drop(fs::remove_file(&path)),
            }
        }
        dir.path().to_path_buf()
    })
}
