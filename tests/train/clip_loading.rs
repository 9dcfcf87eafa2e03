//! Configurations resolve as `transformers` resolves them; weights load whole, in shards and in half
//! precision; damaged files of either kind are named, never a panic. Fixtures: tools/loading_fixtures.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clip_engine::clip::ClipError;
use clip_engine::clip::config::{Activation, ClipConfig, TowerConfig};
use clip_engine::clip::weights::{Weights, expected_tensors};
use clip_engine::tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn parse(config: &Value) -> Result<ClipConfig, ClipError> {
    ClipConfig::parse(&config.to_string(), Path::new("M/config.json"))
}

// ---- configuration

fn tower_json(tower: &TowerConfig) -> Value {
    let activation = match tower.activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    };
    json!({
        "width": tower.width, "mlp": tower.mlp, "layers": tower.layers, "heads": tower.heads,
        "activation": activation, "norm_eps": tower.norm_eps,
    })
}

fn resolved_json(config: &ClipConfig) -> Value {
    let (v, t) = (&config.vision, &config.text);
    let mut vision = tower_json(&v.tower);
    vision["image_size"] = json!(v.image_size);
    vision["patch_size"] = json!(v.patch_size);
    vision["tokens"] = json!(v.tokens());
    let mut text = tower_json(&t.tower);
    text["vocabulary"] = json!(t.vocabulary);
    text["max_tokens"] = json!(t.max_tokens);
    text["bos"] = json!(t.bos);
    text["eos"] = json!(t.eos);
    json!({
        "projection": config.projection, "logit_scale_init": config.logit_scale_init,
        "vision": vision, "text": text,
    })
}

#[test]
fn configurations_resolve_as_transformers_resolves_them() {
    let text = fs::read_to_string(fixtures().join("clip-config/cases.json")).unwrap();
    let mut cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut published = 0;
    assert_eq!(cases[0]["name"], "defaults");
    for case in &mut cases {
        let expected = &mut case["resolved"];
        // Python writes a whole number without a fraction.
        expected["logit_scale_init"] = json!(expected["logit_scale_init"].as_f64());
        let config = parse(&case["config"]).unwrap();
        assert_eq!(resolved_json(&config), case["resolved"], "{}", case["name"]);
        // The published checkpoints: every weight of theirs is expected, and in its size.
        let Some(parameters) = case["parameters"].as_u64() else { continue };
        let expected: usize = expected_tensors(&config).iter().map(|(_, shape)| shape.elements()).sum();
        assert_eq!(expected as u64, parameters, "{}", case["name"]);
        published += 1;
    }
    assert!(published >= 9);
    assert_eq!(resolved_json(&ClipConfig::vit_b_32()), cases[0]["resolved"]);
}

#[test]
fn impossible_configurations_are_named_by_their_key() {
    let vision = |values: Value| json!({"model_type": "clip", "vision_config": values});
    let text = |values: Value| json!({"model_type": "clip", "text_config": values});
    let cases = [
        (json!({}), "model_type"),
        (json!({"model_type": "siglip"}), "model_type"),
        (json!({"model_type": "clip", "projection_dim": 0}), "projection_dim"),
        (json!({"model_type": "clip", "projection_dim": null}), "projection_dim"),
        (json!({"model_type": "clip", "logit_scale_init_value": "2"}), "logit_scale_init_value"),
        (json!({"model_type": "clip", "vision_config": 3}), "vision_config"),
        (json!({"model_type": "clip", "text_config_dict": []}), "text_config_dict"),
        (vision(json!({"hidden_size": -768})), "vision_config.hidden_size"),
        (vision(json!({"hidden_size": 768.5})), "vision_config.hidden_size"),
        (vision(json!({"hidden_size": u64::MAX})), "vision_config.hidden_size"),
        (vision(json!({"num_hidden_layers": 1_000_000})), "vision_config.num_hidden_layers"),
        (vision(json!({"intermediate_size": 1u64 << 40})), "vision_config.intermediate_size"),
        (vision(json!({"num_attention_heads": 7})), "vision_config.num_attention_heads"),
        (vision(json!({"hidden_act": "relu"})), "vision_config.hidden_act"),
        (vision(json!({"layer_norm_eps": 0.0})), "vision_config.layer_norm_eps"),
        (vision(json!({"layer_norm_eps": null})), "vision_config.layer_norm_eps"),
        (vision(json!({"layer_norm_eps": 1e-50})), "vision_config.layer_norm_eps"),
        (text(json!({"layer_norm_eps": 1.5})), "text_config.layer_norm_eps"),
        (vision(json!({"num_channels": 1})), "vision_config.num_channels"),
        (vision(json!({"image_size": 16})), "vision_config.patch_size"),
        (vision(json!({"image_size": [224, 336]})), "vision_config.image_size"),
        (vision(json!({"image_size": 16_000, "patch_size": 1})), "vision_config.patch_size"),
        (text(json!({"vocab_size": 1u64 << 33})), "text_config.vocab_size"),
        (text(json!({"vocab_size": 600})), "text_config.eos_token_id"),
        (text(json!({"eos_token_id": null})), "text_config.eos_token_id"),
        (text(json!({"eos_token_id": [1, 2]})), "text_config.eos_token_id"),
        (text(json!({"max_position_embeddings": 2})), "text_config.max_position_embeddings"),
    ];
    for (config, key) in cases {
        let Err(error) = parse(&config) else { panic!("{config} was accepted") };
        let message = error.to_string();
        assert!(message.starts_with(&format!("M/config.json: {key} ")), "{config}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    for text in ["", "[]", "{\"model_type\": NaN}", "\u{0}"] {
        let error = ClipConfig::parse(text, Path::new("M/config.json")).unwrap_err();
        assert!(matches!(error, ClipError::Json { .. }), "{text:?}: {error}");
    }
    assert!(matches!(ClipConfig::load(Path::new("no/such/dir")), Err(ClipError::Read { .. })));
}

// ---- weights

fn open(name: &str) -> (Weights, ClipConfig) {
    let dir = fixtures().join(name);
    let (weights, config) = (Weights::open(&dir).unwrap(), ClipConfig::load(&dir).unwrap());
    weights.check(&config).unwrap();
    (weights, config)
}

fn values(weights: &Weights, name: &str, dims: &[usize], dtype: DType) -> Tensor {
    weights.get(name, dims).unwrap().to_tensor(dtype).unwrap()
}

#[test]
fn the_expected_tensors_are_exactly_those_that_transformers_saves() {
    let (weights, config) = open("clip-single");
    let mut names: Vec<String> = expected_tensors(&config).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, weights.names().collect::<Vec<_>>());
    assert_eq!(expected_tensors(&ClipConfig::vit_b_32()).len(), 398);
}

#[test]
fn shards_hold_the_same_tensors_as_one_file() {
    let ((single, config), (sharded, _)) = (open("clip-single"), open("clip-sharded"));
    assert_eq!(single.names().collect::<Vec<_>>(), sharded.names().collect::<Vec<_>>());
    for (name, shape) in expected_tensors(&config) {
        let (a, b) = (single.get(&name, shape.dims()).unwrap(), sharded.get(&name, shape.dims()).unwrap());
        assert_eq!((a.dtype(), a.bytes()), (DType::F32, b.bytes()), "{name}");
    }
}

#[test]
fn half_precision_files_hold_the_rounded_weights() {
    let (single, config) = open("clip-single");
    for (directory, dtype) in [("clip-f16", DType::F16), ("clip-bf16", DType::BF16)] {
        let (half, _) = open(directory);
        for (name, shape) in expected_tensors(&config) {
            let stored = half.get(&name, shape.dims()).unwrap();
            let rounded = values(&single, &name, shape.dims(), dtype);
            assert_eq!((stored.dtype(), stored.bytes()), (dtype, rounded.bytes()), "{directory} {name}");
        }
    }
}

#[test]
fn models_of_awkward_sizes_have_every_tensor() {
    for (name, tokens, activation, eos) in [
        ("tiny", 17, Activation::QuickGelu, 199),
        ("odd", 26, Activation::QuickGelu, 150),
        ("gelu", 10, Activation::Gelu, 2),
    ] {
        let (_, config) = open(&format!("reference/{name}"));
        let found = (config.vision.tokens(), config.vision.tower.activation, config.text.eos);
        assert_eq!(found, (tokens, activation, eos), "{name}");
    }
}

/// Name to element type, extents and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A directory with `model.safetensors` made of `tensors`.
fn saved(tensors: &Tensors) -> TempDir {
    let views = tensors
        .iter()
        .map(|(name, (dtype, dims, bytes))| (name, TensorView::new(*dtype, dims.clone(), bytes).unwrap()));
    directory(&[("model.safetensors", serialize(views, None).unwrap())])
}

fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// The tensors of the smallest model, to be changed and saved again.
fn tensors() -> (Tensors, ClipConfig) {
    let (weights, config) = open("clip-single");
    let copy = |(name, shape): (String, clip_engine::tensor::Shape)| {
        let bytes = weights.get(&name, shape.dims()).unwrap().bytes().to_vec();
        (name, (Dtype::F32, shape.dims().to_vec(), bytes))
    };
    (expected_tensors(&config).into_iter().map(copy).collect(), config)
}

fn check(dir: &TempDir, config: &ClipConfig) -> Result<(), ClipError> {
    Weights::open(dir.path()).and_then(|weights| weights.check(config))
}

#[test]
fn surplus_tensors_are_fine_and_missing_or_misshapen_ones_are_named() {
    let (mut tensors, config) = tensors();
    let position_ids = "text_model.embeddings.position_ids";
    tensors.insert(position_ids.into(), (Dtype::I64, vec![1, 9], vec![0; 72]));
    let dir = saved(&tensors);
    check(&dir, &config).unwrap();
    let error = Weights::open(dir.path()).unwrap().get(position_ids, &[1, 9]).unwrap_err();
    assert!(matches!(error, ClipError::TensorType { .. }), "{error}");

    let norm = "vision_model.pre_layrnorm.weight";
    let whole = tensors.insert(norm.into(), (Dtype::F32, vec![4, 4], vec![0; 64])).unwrap();
    let error = check(&saved(&tensors), &config).unwrap_err().to_string();
    assert!(error.contains(norm) && error.contains("[4, 4]") && error.contains("[16]"), "{error}");

    tensors.insert(norm.into(), (Dtype::I32, whole.1.clone(), whole.2.clone()));
    let error = check(&saved(&tensors), &config).unwrap_err();
    assert!(matches!(error, ClipError::TensorType { .. }), "{error}");

    tensors.remove(norm);
    tensors.remove("visual_projection.weight");
    let error = check(&saved(&tensors), &config).unwrap_err().to_string();
    assert!(error.contains("visual_projection.weight [8, 16] is missing (2 of "), "{error}");
}

#[test]
fn double_precision_weights_are_read() {
    let (mut tensors, config) = tensors();
    tensors.insert("logit_scale".into(), (Dtype::F64, vec![], 2.5f64.to_le_bytes().to_vec()));
    let dir = saved(&tensors);
    check(&dir, &config).unwrap();
    let scale = values(&Weights::open(dir.path()).unwrap(), "logit_scale", &[], DType::F32);
    assert_eq!(scale.typed::<f32>().unwrap(), [2.5]);
}

/// A file with the given header text and `data` bytes after it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn damaged_files_are_named_in_one_line() {
    let whole = fs::read(fixtures().join("clip-single/model.safetensors")).unwrap();
    let tensor = |shape: &str, from: &str, to: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let mut longer = whole.clone();
    longer.push(0);
    let cases = [
        ("empty", Vec::new()),
        ("three bytes", vec![1, 2, 3]),
        ("cut in the header", whole[..200].to_vec()),
        ("cut in the data", whole[..whole.len() - 1].to_vec()),
        ("longer than it says", longer),
        ("header of 2^64 - 1 bytes", vec![0xff; 64]),
        ("header longer than the file", [1000u64.to_le_bytes().as_slice(), b"{}"].concat()),
        ("header is no JSON", with_header("<html>not found</html>", 0)),
        ("header is no text", with_header("{\"\u{0}", 4)),
        ("end beyond the file", with_header(&tensor("[4]", "0", "16"), 8)),
        ("end before start", with_header(&tensor("[1]", "8", "4"), 8)),
        ("start not at the data", with_header(&tensor("[1]", "4", "8"), 8)),
        ("shape larger than the bytes", with_header(&tensor("[1000000]", "0", "8"), 8)),
        ("shape overflows", with_header(&tensor("[4294967296,4294967296,4294967296]", "0", "8"), 8)),
        ("negative extent", with_header(&tensor("[-1]", "0", "4"), 4)),
        ("extent is not a number", with_header(&tensor("[NaN]", "0", "4"), 4)),
        ("offset is not a number", with_header(&tensor("[1]", "NaN", "4"), 4)),
    ];
    for (what, content) in cases {
        let dir = directory(&[("model.safetensors", content)]);
        let Err(error) = Weights::open(dir.path()) else { panic!("{what}: accepted") };
        let message = error.to_string();
        assert!(matches!(error, ClipError::Safetensors { .. } | ClipError::Read { .. }), "{what}: {error:?}");
        assert!(message.contains("model.safetensors: "), "{what}: {message}");
        assert!(!message.contains('\n'), "{what}: {message}");
    }
}

#[test]
fn every_truncation_of_a_file_is_an_error() {
    let whole = fs::read(fixtures().join("clip-bf16/model.safetensors")).unwrap();
    let dir = TempDir::new().unwrap();
    for length in (0..whole.len()).step_by(97) {
        fs::write(dir.path().join("model.safetensors"), &whole[..length]).unwrap();
        assert!(Weights::open(dir.path()).is_err(), "{length} of {} bytes were accepted", whole.len());
    }
}

#[test]
fn shards_stay_inside_the_directory_and_hold_what_the_index_says() {
    let shard = fs::read(fixtures().join("clip-single/model.safetensors")).unwrap();
    let outside = directory(&[("a.safetensors", shard.clone())]);
    let inside = |map: Value| {
        let index = json!({"weight_map": map}).to_string().into_bytes();
        directory(&[("model.safetensors.index.json", index), ("a.safetensors", shard.clone())])
    };
    assert!(Weights::open(inside(json!({"logit_scale": "a.safetensors"})).path()).is_ok());
    let absolute = outside.path().join("a.safetensors");
    let relative = format!("../{}/a.safetensors", outside.path().file_name().unwrap().to_str().unwrap());
    let cases = [
        (json!({"logit_scale": absolute.to_str().unwrap()}), "plain file name"),
        (json!({"logit_scale": relative}), "plain file name"),
        (json!({"logit_scale": ".."}), "plain file name"),
        (json!({"logit_scale": ""}), "plain file name"),
        (json!({"no.such.tensor": "a.safetensors"}), "says that a.safetensors holds no.such.tensor"),
        (json!({"logit_scale": "b.safetensors"}), "b.safetensors: cannot be read"),
        (json!({}), "lists no tensor"),
        (json!({"logit_scale": 3}), "invalid type"),
    ];
    for (map, problem) in cases {
        let dir = inside(map);
        let Err(error) = Weights::open(dir.path()) else { panic!("{problem}: accepted") };
        assert!(error.to_string().contains(problem), "{problem}: {error}");
    }
}

#[test]
fn a_directory_without_safetensors_says_what_to_do() {
    let error = Weights::open(directory(&[]).path()).err().unwrap();
    assert!(matches!(error, ClipError::NoWeights { .. }), "{error}");
    let pickled = directory(&[("pytorch_model.bin", vec![0; 8])]);
    let message = Weights::open(pickled.path()).err().unwrap().to_string();
    assert!(
        message.contains("pytorch_model.bin: only pickled") && message.contains("save_pretrained"),
        "{message}"
    );
}
