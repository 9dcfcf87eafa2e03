//! `engine export`: folders for PEFT and for transformers, read back by the engine itself.
//! tools/peft_round_trip.py compares them with what PEFT and transformers compute.

use crate::command::{bytes, command, demo_model, engine, fail, json, model_copy, succeed, succeed_of};
use clip_engine::tensor::Tensor;
use clip_engine::train::tensor_files::{TensorFile, stage_tensors};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    data: String,
    model: String,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("flowers");
        for (split, count) in [("train", 2), ("val", 1), ("test", 1)] {
            for class in 0..3 {
                let folder = data.join(split).join(format!("class_{class}"));
                std::fs::create_dir_all(&folder).unwrap();
                for index in 0..count {
                    let value = |x: u32, y: u32, c: u32| x * (index + 2) + y * 3 + c * 60 + class * 80;
                    let pixel = |x, y| image::Rgb([0, 1, 2].map(|c| (value(x, y, c) % 256) as u8));
                    image::RgbImage::from_fn(64, 64, pixel)
                        .save(folder.join(format!("{index}.png")))
                        .unwrap();
                }
            }
        }
        Place { dir, data: data.display().to_string(), model: demo_model().display().to_string() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }
}

/// A short run, its name, and a place for the rest.
fn trained(more: &[&str]) -> (Place, String) {
    let place = Place::new();
    let run = place.at("run");
    let args = ["train", "--data", &place.data, "--model", &place.model, "--output", &run, "--epochs", "1"];
    succeed(
        &[&args[..], &["--batch-size", "2", "--template", "A photo of {}."], more].concat(),
        place.path(),
    );
    (place, run)
}

fn features(place: &Place, how: &[&str]) -> Tensor {
    let (images, out) = (format!("{}/test", place.data), place.at("features.safetensors"));
    let mut args = vec!["embed", "--images", &images, "--out", &out];
    args.extend(how);
    succeed(&args, place.path());
    TensorFile::read(Path::new(&out)).unwrap().tensors.remove("features").unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.typed::<f32>().unwrap().iter().zip(b.typed::<f32>().unwrap());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn text(dir: &str, file: &str) -> String {
    String::from_utf8(bytes(dir, file)).unwrap()
}

fn names(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_run_with_adapters() {
    let (place, run) = trained(&["--lr-lora", "0.01"]);
    let (plain, tuned) = (features(&place, &["--model", &place.model]), features(&place, &["--run", &run]));
    assert!(largest_difference(&plain, &tuned) > 1e-2, "training changed the features");

    let peft = place.at("peft");
    let done = succeed(&["export", "--run", &run, "--peft", &peft], place.path());
    assert!(done.out.contains(&peft), "{}", done.out);
    assert_eq!(names(&peft), ["README.md", "adapter", "head.safetensors"]);
    let again = features(&place, &["--model", &place.model, "--init-from", &peft]);
    assert_eq!(largest_difference(&again, &tuned), 0.0);
    assert_eq!(bytes(&peft, "head.safetensors"), bytes(&run, "head.safetensors"));
    // The run's own adapter is for this machine, the exported one for others.
    assert_eq!(json(&run, "adapter/adapter_config.json")["base_model_name_or_path"], place.model);
    let exported = json(&peft, "adapter/adapter_config.json");
    assert_eq!(exported["base_model_name_or_path"], "demo-clip");
    assert_eq!(exported["revision"], Value::Null);

    let merged = place.at("merged");
    succeed(&["export", "--run", &run, "--merged", &merged], place.path());
    for exported in [&peft, &merged] {
        assert!(
            bytes(exported, "head.safetensors") == bytes(&run, "head.safetensors"),
            "the temperature too"
        );
    }
    let expected = ["README.md", "config.json", "head.safetensors", "model.safetensors"];
    assert_eq!(names(&merged), [&expected[..], &["preprocessor_config.json", "tokenizer.json"]].concat());
    // The demo's weights are f16: merged in f32, nothing of the adapter is lost.
    assert_eq!(json(&merged, "config.json")["torch_dtype"], "float32");
    let error = largest_difference(&features(&place, &["--model", &merged]), &tuned);
    assert!(error < 1e-6, "{error}");
    let half = place.at("half");
    succeed(&["export", "--run", &run, "--merged", &half, "--dtype", "f16"], place.path());
    assert_eq!(json(&half, "config.json")["torch_dtype"], "float16");
    let error = largest_difference(&features(&place, &["--model", &half]), &tuned);
    assert!(error > 0.0 && error < 5e-3, "{error}");

    for (card, library) in [(text(&peft, "README.md"), "peft"), (text(&merged, "README.md"), "transformers")]
    {
        assert!(card.starts_with(&format!("---\nlibrary_name: {library}\n")), "{card}");
        let summary = json(&run, "summary.json");
        let top1 = format!("{:.2} %", 100.0 * summary["test"]["top1"].as_f64().unwrap());
        let temperature =
            format!("softmax(logits / {:.3})", summary["temperature"]["value"].as_f64().unwrap());
        assert!(card.contains(&temperature) && card.contains("(logits / temperature).softmax"), "{card}");
        let opened = "image = ImageOps.exif_transpose(Image.open(photo)).convert(\"RGBA\")";
        for part in [
            "flowers",
            "3 classes",
            "| test | 3 |",
            &top1,
            "head.safetensors",
            "q_proj",
            "# license",
            "from PIL import Image, ImageOps\n",
            opened,
        ] {
            assert!(card.contains(part), "{part:?} is not in\n{card}");
        }
        assert!(!card.contains(&place.path().display().to_string()), "no path of this machine:\n{card}");
    }

    // An adapter of fewer blocks is used, but not trained on.
    let adapter = Path::new(&peft).join("adapter");
    let mut config = json(&peft, "adapter/adapter_config.json");
    config["exclude_modules"] = r".*layers\.0\..*".into();
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let path = adapter.join("adapter_model.safetensors");
    let mut tensors = TensorFile::read(&path).unwrap().tensors;
    tensors.retain(|name, _| !name.contains("layers.0."));
    stage_tensors(&path, &tensors, HashMap::new()).unwrap().persist().unwrap();
    let partly = features(&place, &["--model", &place.model, "--init-from", &peft]);
    assert!(largest_difference(&partly, &tuned) > 1e-3 && largest_difference(&partly, &plain) > 1e-3);
    let from = ["train", "--data", &place.data, "--model", &place.model, "--init-from", &peft];
    fail(1, &[&from[..], &["--output", &place.at("on")]].concat(), place.path(), &["leaves out", "layers.0"]);

    // A folder that holds something.
    let args = ["export", "--run", &run, "--merged", &merged];
    fail(1, &args, place.path(), &[&merged, "not empty", "--overwrite"]);
    succeed(&[&args[..], &["--overwrite"]].concat(), place.path());
    fail(1, &["export", "--run", &run, "--peft", &run, "--overwrite"], place.path(), &["which is exported"]);
    let copy = model_copy(place.path()).display().to_string();
    let args = ["export", "--run", &run, "--merged", &copy, "--overwrite"];
    fail(1, &args, place.path(), &["no export"]);
    // Wrong usage.
    for wrong in [
        &["--run", &run][..],
        &["--run", &run, "--peft", "a", "--merged", "b"],
        &["--run", &run, "--peft", "a", "--dtype", "f16"],
        &["--peft", "a"],
    ] {
        let done = engine(&[&["export"], wrong].concat(), place.path());
        assert_eq!(done.code, 2, "{wrong:?}\n{}", done.err);
    }
}

/// The demo model as Hugging Face's tools keep `demo/clip` with the revision v2.
fn hub_cache(place: &Place) -> PathBuf {
    let (home, commit) = (place.path().join("huggingface"), "0123456789abcdef0123456789abcdef01234567");
    let repository = home.join("hub/models--demo--clip");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::fs::rename(model_copy(place.path()), &snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/v2"), commit).unwrap();
    home
}

#[test]
fn an_export_says_where_others_find_the_model_and_its_revision() {
    let (place, run) = trained(&[]);
    let home = hub_cache(&place);
    let config = Path::new(&run).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let to = place.at("out");
    let export = |more: &[&str]| {
        let args = [&["export", "--run", &run, "--peft", &to, "--overwrite"], more].concat();
        let mut export = command(&args, place.path());
        succeed_of(export.env("HF_HOME", &home).env("HF_HUB_OFFLINE", "1"));
        let config = json(&to, "adapter/adapter_config.json");
        let entry = |name: &str| config[name].as_str().map(String::from);
        ([entry("base_model_name_or_path"), entry("revision")], self::text(&to, "README.md"))
    };
    let own = |name: &str| std::fs::write(&config, text.replace(&place.model, name)).unwrap();
    let some = |name: &str| Some(name.to_string());
    own("demo/clip@v2");
    for more in [&[][..], &["--model", &place.model]] {
        let (found, card) = export(more);
        assert_eq!(found, [some("demo/clip"), some("v2")], "{more:?}");
        for part in ["\nbase_model: demo/clip\n", "`demo/clip`, revision `v2`", "(base, revision=\"v2\")"] {
            assert!(card.contains(part), "{part:?} is not in\n{card}");
        }
    }
    // A folder has no name that others know, unless the user has one for it.
    own(&place.model);
    for (name, expected) in [
        ("demo/clip", [some("demo/clip"), None]),
        ("demo/clip@main", [some("demo/clip"), None]),
        ("demo/clip@refs/pr/1", [some("demo/clip"), some("refs/pr/1")]),
        ("/models/clip", [some("/models/clip"), None]),
    ] {
        let (found, card) = export(&["--base-model", name]);
        assert_eq!(found, expected, "{name}");
        assert_eq!(card.contains("\nbase_model: demo/clip\n"), name.starts_with("demo"), "{card}");
    }
    // The model somewhere else, under its own name nowhere.
    own("/nowhere/clip");
    fail(1, &["export", "--run", &run, "--peft", &to, "--overwrite"], place.path(), &["/nowhere", "--model"]);
    assert_eq!(export(&["--model", &place.model]).0, [some("demo-clip"), None]);
}

#[test]
fn a_linear_run_is_plain_clip_and_a_head() {
    let (place, run) = trained(&["--recipe", "linear"]);
    let merged = place.at("merged");
    succeed(&["export", "--run", &run, "--merged", &merged], place.path());
    let plain = features(&place, &["--model", &place.model]);
    assert_eq!(largest_difference(&features(&place, &["--model", &merged]), &plain), 0.0);
    assert_eq!(bytes(&merged, "head.safetensors"), bytes(&run, "head.safetensors"));
    let peft = place.at("peft");
    succeed(&["export", "--run", &run, "--peft", &peft], place.path());
    assert_eq!(names(&peft), ["README.md", "head.safetensors"]);
    let card = text(&peft, "README.md");
    // There is nothing that transformers would load.
    assert!(card.contains("library_name: clip-engine") && !card.contains("pipeline_tag"), "{card}");
    // That of image classification would classify by a head of its own, at random.
    let card = text(&merged, "README.md");
    assert!(card.contains("\npipeline_tag: zero-shot-image-classification\n"), "{card}");
    assert!(!card.contains(" image-classification"), "{card}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode();
        let other = place.path().join("other");
        std::fs::write(&other, "").unwrap();
        for folder in [&merged, &peft] {
            for name in names(folder) {
                let path = Path::new(folder).join(&name);
                assert!(!path.is_file() || mode(path) == mode(other.clone()), "{name}");
            }
        }
    }
}

#[test]
fn an_onnx_model_has_its_classes_and_a_card_beside_it() {
    let (place, run) = trained(&["--lr-lora", "0.01"]);
    let to = place.at("onnx");
    let args = ["export", "--run", &run, "--onnx", &to];
    let done = succeed(&args, place.path());
    assert!(done.out.contains(&to), "{}", done.out);
    assert_eq!(names(&to), ["README.md", "labels.json", "model.onnx", "preprocessor_config.json"]);
    assert_eq!(json(&to, "labels.json"), serde_json::json!(["class_0", "class_1", "class_2"]));
    assert_eq!(json(&to, "preprocessor_config.json")["crop_size"]["height"], 64);
    let card = text(&to, "README.md");
    assert!(card.starts_with("---\nlibrary_name: onnx\ntags:\n"), "{card}");
    for part in [
        "| input `pixels` | uint8 [N, 64, 64, 3] |",
        "| output `probabilities` | float32 [N, 3] |",
        "onnxruntime.InferenceSession",
        "turned upright",
        "| test | 3 |",
    ] {
        assert!(card.contains(part), "{part:?} is not in\n{card}");
    }
    // Written for all to read, as any other file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode();
        let other = place.path().join("other");
        std::fs::write(&other, "").unwrap();
        for name in names(&to) {
            assert_eq!(mode(Path::new(&to).join(&name)), mode(other.clone()), "{name}");
        }
    }
    let before = bytes(&to, "model.onnx");
    fail(1, &args, place.path(), &[&to, "not empty", "--overwrite"]);
    succeed(&[&args[..], &["--overwrite"]].concat(), place.path());
    assert!(bytes(&to, "model.onnx") == before, "the same run is the same file");
    succeed(&[&args[..], &["--overwrite", "--onnx-input", "normalised"]].concat(), place.path());
    assert!(text(&to, "README.md").contains("| input `pixel_values` | float32 [N, 3, 64, 64] |"));
    for wrong in [
        &["--onnx", "a", "--peft", "b"][..],
        &["--onnx", "a", "--dtype", "f16"],
        &["--onnx", "a", "--onnx-input", "tensor"],
        &["--peft", "a", "--onnx-input", "pixels"],
    ] {
        let done = engine(&[&["export", "--run", &run], wrong].concat(), place.path());
        assert_eq!(done.code, 2, "{wrong:?}\n{}", done.err);
    }
    // Prompts are no obstacle here.
    let (place, run) = trained(&["--recipe", "vpt", "--with-lora"]);
    let to = place.at("onnx");
    succeed(&["export", "--run", &run, "--onnx", &to], place.path());
    assert!(text(&to, "README.md").contains("and prompts in front of its blocks"));
}

#[test]
fn prompts_go_along_but_cannot_be_merged() {
    let (place, run) = trained(&["--recipe", "vpt", "--with-lora"]);
    let merged = place.at("merged");
    let args = ["export", "--run", &run, "--merged", &merged];
    fail(2, &args, place.path(), &["--merged", "prompts", "--peft"]);
    assert!(!Path::new(&merged).exists());
    let peft = place.at("peft");
    succeed(&["export", "--run", &run, "--peft", &peft], place.path());
    assert_eq!(names(&peft), ["README.md", "adapter", "head.safetensors", "prompts.safetensors"]);
    let tuned = features(&place, &["--run", &run]);
    let again = features(&place, &["--model", &place.model, "--init-from", &peft]);
    assert_eq!(largest_difference(&again, &tuned), 0.0);
}

#[test]
fn runs_that_cannot_be_exported() {
    let (place, run) = trained(&["--lr-lora", "0.01"]);
    let to = place.at("out");
    let export = |parts: &[&str]| {
        fail(1, &["export", "--run", &run, "--merged", &to], place.path(), parts);
        assert!(!Path::new(&to).exists());
        assert!(names(&place.path().display().to_string()).iter().all(|name| !name.starts_with(".export")));
    };
    let config = Path::new(&run).join("adapter/adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("q_proj|", "")).unwrap();
    export(&["adapter_model.safetensors", "q_proj", "does not name"]);
    std::fs::write(&config, text).unwrap();
    std::fs::write(Path::new(&run).join("summary.json"), "{}").unwrap();
    export(&["summary.json", "not the summary of a run"]);
    std::fs::remove_file(Path::new(&run).join("head.safetensors")).unwrap();
    export(&["no head.safetensors"]);
    fail(1, &["export", "--run", &to, "--merged", &to], place.path(), &["no config.toml"]);
}

#[test]
fn a_demo_run_takes_the_bundled_model_along() {
    let (place, run) = trained(&["--recipe", "linear"]);
    // A demo run is slow to make here; to an export it is a run that names neither model nor data.
    let config = Path::new(&run).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("data = ") && !line.starts_with("model = "));
    let demo = lines.collect::<Vec<_>>().join("\n").replace("demo = false", "demo = true");
    std::fs::write(&config, demo).unwrap();
    let merged = place.at("merged");
    succeed(&["export", "--run", &run, "--merged", &merged], place.path());
    let plain = features(&place, &["--model", &place.model]);
    assert_eq!(largest_difference(&features(&place, &["--model", &merged]), &plain), 0.0);
    let card = std::fs::read_to_string(Path::new(&merged).join("README.md")).unwrap();
    assert!(card.contains("clip-engine/demo-clip") && card.contains("drawn flowers"), "{card}");
}
