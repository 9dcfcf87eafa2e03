//! What is named as a model and is none, or is damaged: one line says what it is and what to do, and nothing is
//! written.

use crate::command::*;
use clip_engine::train::tensor_files::{TensorFile, stage_tensors};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

fn write(path: impl AsRef<Path>, text: &str) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn what_is_no_model_is_called_what_it_is() {
    let place = Place::new([2, 1, 1]);
    let at = |name: &str| place.at(name);
    let run = at("run");
    succeed(&place.train(&run, &["--recipe", "linear", "--epochs", "1"]), place.path());
    let export = at("export");
    succeed(&["export", "--run", &run, "--peft", &export], place.path());
    write(at("adapter/adapter_config.json"), r#"{"base_model_name_or_path": "some/clip"}"#);
    write(
        at("open/open_clip_config.json"),
        r#"{"model_cfg": {"embed_dim": 512, "vision_cfg": {"layers": 12}}}"#,
    );
    write(at("resnet/open_clip_config.json"), r#"{"model_cfg": {"vision_cfg": {"layers": [3, 4, 6, 3]}}}"#);
    write(at("weights/open_clip_model.safetensors"), "");
    write(at("openai/ViT-B-32.pt"), "");
    write(at("timm/config.json"), r#"{"architecture": "vit_base_patch32_clip_224"}"#);
    write(at("siglip/config.json"), r#"{"model_type": "siglip"}"#);
    write(at("vision/config.json"), r#"{"model_type": "clip_vision_model"}"#);
    let classifier = json!({ "architectures": ["CLIPForImageClassification"], "model_type": "clip" });
    write(at("classifier/config.json"), &classifier.to_string());
    write(at("bare/model.safetensors"), "");
    let weights = format!("{}/model.safetensors", place.model);
    for (model, expected) in [
        (run.as_str(), &["a run", place.model.as_str(), "--init-from"][..]),
        (&export, &["a head without the model", "--init-from"]),
        (&at("adapter"), &["an adapter", "--model some/clip", "--init-from"]),
        (&at("open"), &["open_clip's format", "docs/python.md"]),
        (&at("weights"), &["open_clip's format", "docs/python.md"]),
        (&at("resnet"), &["ResNet", "openai/clip-vit-base-patch32"]),
        (&at("openai"), &["ViT-B-32.pt", "a pickle", "docs/python.md"]),
        (&at("openai/ViT-B-32.pt"), &["a file", "a pickle", "docs/python.md"]),
        (&at("timm"), &["of timm"]),
        (&at("siglip"), &["a SigLIP"]),
        (&at("vision"), &["one tower", "the whole model"]),
        (&at("classifier"), &["CLIPForImageClassification", "docs/python.md"]),
        (&at("bare"), &["without config.json"]),
        (&weights, &["a file", "the folder that it is in"]),
        (&place.data, &["a folder of photos", "--data"]),
        ("ViT-B/32", &["openai/clip-vit-base-patch32"]),
        ("ViT-L-14", &["openai/clip-vit-large-patch14"]),
        ("RN50", &["ResNet"]),
    ] {
        let out = at("features.safetensors");
        fail(1, &["embed", "--model", model, "--images", &place.data, "--out", &out], place.path(), expected);
        assert!(!Path::new(&out).exists(), "{model}");
    }
}

/// A checkpoint with one element that is not finite ends all that reads the tensor.
#[test]
fn weights_that_are_no_numbers_end_every_command() {
    const TENSOR: &str = "vision_model.encoder.layers.0.mlp.fc1.weight";
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    succeed(&place.train(&run, &["--recipe", "linear", "--epochs", "1"]), place.path());
    let model = model_copy(place.path());
    let path = model.join("model.safetensors");
    let mut file = TensorFile::read(&path).unwrap();
    file.tensors.get_mut(TENSOR).unwrap().typed_mut::<f32>().unwrap()[5] = f32::INFINITY;
    stage_tensors(&path, &file.tensors, HashMap::new()).unwrap().persist().unwrap();
    let (name, out, data) = (model.display().to_string(), place.at("out"), place.data.as_str());
    let photo = format!("{data}/test");
    for args in [
        &["zero-shot", "--model", &name, "--data", data][..],
        &["eval", "--run", &run, "--model", &name, "--data", data],
        &["embed", "--model", &name, "--images", data, "--out", &out],
        &["predict", &photo, "--run", &run, "--model", &name],
        &["train", "--model", &name, "--data", data, "--output", &out],
        &["export", "--run", &run, "--model", &name, "--merged", &out],
    ] {
        fail(1, args, place.path(), &["model.safetensors", TENSOR, "inf at element 5", "convert it anew"]);
        assert!(!Path::new(&out).exists(), "{args:?}");
    }
}

/// A head or features beyond all numbers, from weights that are finite.
#[test]
fn results_that_are_no_numbers_name_the_photo() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    succeed(&place.train(&run, &["--recipe", "linear", "--epochs", "1"]), place.path());
    let model = model_copy(place.path());
    let path = model.join("model.safetensors");
    let mut file = TensorFile::read(&path).unwrap();
    let norm = file.tensors.get_mut("vision_model.post_layernorm.weight").unwrap();
    norm.typed_mut::<f32>().unwrap().fill(3e38);
    stage_tensors(&path, &file.tensors, HashMap::new()).unwrap().persist().unwrap();
    let (name, out, data) = (model.display().to_string(), place.at("out"), place.data.as_str());
    for (args, what) in [
        (&["zero-shot", "--model", &name, "--data", data][..], "logits"),
        (&["embed", "--model", &name, "--images", data, "--out", &out], "features"),
        (&["train", "--model", &name, "--data", data, "--output", &place.at("other")], "logits"),
    ] {
        fail(1, args, place.path(), &[".png", what, "not numbers", "check the weights"]);
    }
    assert!(!Path::new(&out).exists());
    let head = Path::new(&run).join("head.safetensors");
    let mut file = TensorFile::read(&head).unwrap();
    file.tensors.get_mut("head.bias").unwrap().typed_mut::<f32>().unwrap()[0] = f32::NAN;
    stage_tensors(&head, &file.tensors, file.metadata.clone()).unwrap().persist().unwrap();
    fail(1, &["eval", "--run", &run], place.path(), &["head.safetensors", "head.bias", "not finite"]);
}

#[test]
fn a_model_can_be_brought_where_there_is_no_network() {
    let place = tempfile::tempdir().unwrap();
    let args = ["embed", "--model", "owner/clip", "--images", ".", "--out", "features.safetensors"];
    let mut engine = command(&args, place.path());
    engine.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HOME", place.path()).current_dir(place.path());
    let by_hand = "hf download owner/clip --local-dir clip, and give --model that folder";
    fail_of(&mut engine, 1, &["--model owner/clip", "check the network", by_hand]);
}
