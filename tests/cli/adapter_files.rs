//! Adapters that peft wrote, read here: every way of naming layers, every option that is refused, and files
//! that do not say the same as their configuration.

use crate::command::{engine, fail, succeed};
use clip_engine::TrainError;
use clip_engine::clip::config::ClipConfig;
use clip_engine::files::write_atomic;
use clip_engine::tensor::{DType, Tensor};
use clip_engine::train::adapter::{Adapter, stage};
use clip_engine::train::base_model::BaseModel;
use clip_engine::train::export::merged_tensors;
use clip_engine::train::model::Model;
use clip_engine::train::tensor_files::{TensorFile, stage_tensors};
use clip_engine::tune::{LoraSpec, Site, Target, Tower};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What peft wrote for these is read and run.
const ACCEPTED: [&str; 12] = [
    "list",
    "regex",
    "rslora",
    "mlp",
    "text",
    "both",
    "uneven",
    "exclude",
    "blocks",
    "patterns",
    "vision_only",
    "text_only",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft")
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/tiny")
}

fn adapter(case: &str) -> PathBuf {
    fixtures().join(case).join("adapter")
}

/// Reads an adapter and holds it against the tiny model.
fn read(dir: &Path) -> Result<Adapter, TrainError> {
    let adapter = Adapter::load(dir)?;
    adapter.check(&ClipConfig::load(&tiny())?)?;
    Ok(adapter)
}

fn refusal(dir: &Path) -> String {
    let text = read(dir).expect_err("refused").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

/// The pictures of tools/peft_fixtures.py.
fn pictures(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..2u32 {
        let value = |x: u32, y: u32, c: u32| ((x * 7 + y * 13 + c * 31 + i * 57 + x * y) % 256) as u8;
        let picture = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([0, 1, 2].map(|c| value(x, y, c))));
        picture.save(dir.join(format!("{i}.png"))).unwrap();
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.typed::<f32>().unwrap().iter().zip(b.typed::<f32>().unwrap());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn features_are_those_that_peft_computes() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    pictures(Path::new(&at("photos")));
    let model = tiny().display().to_string();
    for case in ACCEPTED {
        let (from, out) = (fixtures().join(case).display().to_string(), at("features.safetensors"));
        succeed(
            &["embed", "--model", &model, "--init-from", &from, "--images", &at("photos"), "--out", &out],
            place.path(),
        );
        let found = TensorFile::read(Path::new(&out)).unwrap();
        let expected = TensorFile::read(&fixtures().join(case).join("expected.safetensors")).unwrap();
        let error = largest_difference(&found.tensors["features"], &expected.tensors["features"]);
        assert!(error < 2e-6, "{case}: {error}");
    }
}

#[test]
fn merged_weights_are_those_that_peft_computes() {
    let model = Model::open(&tiny()).unwrap();
    for case in ACCEPTED {
        let merged = merged_tensors(&model, Some(&read(&adapter(case)).unwrap()), DType::F32).unwrap();
        let expected = TensorFile::read(&fixtures().join(case).join("expected.safetensors")).unwrap();
        let mut compared = 0;
        for (name, rows) in expected.tensors {
            let Some(name) = name.strip_prefix("merged.") else { continue };
            let found =
                merged[name].view().rows(0, rows.shape().rows()).unwrap().to_tensor(DType::F32).unwrap();
            let error = largest_difference(&found, &rows);
            assert!(error < 1e-6, "{case} {name}: {error}");
            compared += 1;
        }
        assert!(compared > 0, "{case}");
    }
}

#[test]
fn the_specification_is_what_peft_was_asked_for() {
    use Target::{Contract, Expand, Key, Output, Query, Value};
    let spec = |case: &str| read(&adapter(case)).unwrap().spec;
    assert_eq!(spec("list"), LoraSpec::new(2, 4.0, &[Query, Value]));
    assert_eq!(spec("regex"), LoraSpec::new(2, 4.0, &Target::ATTENTION));
    assert_eq!(spec("rslora"), LoraSpec { rslora: true, ..LoraSpec::new(2, 3.0, &[Query]) });
    assert_eq!(spec("mlp"), LoraSpec { dropout: 0.25, ..LoraSpec::new(2, 4.0, &[Expand, Contract]) });
    let both = LoraSpec { towers: Tower::ALL.to_vec(), ..LoraSpec::new(2, 4.0, &Target::ALL) };
    assert_eq!(spec("both"), both);
    let text = |targets: &[Target]| LoraSpec { towers: vec![Tower::Text], ..LoraSpec::new(2, 4.0, targets) };
    assert_eq!(spec("text"), text(&[Query, Expand]));
    assert_eq!(spec("text_only"), text(&[Value]));
    assert_eq!(spec("patterns"), LoraSpec::new(3, 5.0, &[Output]));
    assert_eq!(spec("blocks").targets, [Key]);
}

#[test]
fn layers_that_an_adapter_leaves_out_are_known() {
    let config = ClipConfig::load(&tiny()).unwrap();
    let gap = |case: &str| read(&adapter(case)).unwrap().first_gap(&config);
    for case in ["list", "regex", "mlp", "text", "both", "exclude", "vision_only"] {
        assert_eq!(gap(case), None, "{case}");
    }
    assert_eq!(gap("blocks"), Some(Site { tower: Tower::Vision, layer: 0, target: Target::Key }));
    assert_eq!(gap("uneven"), Some(Site { tower: Tower::Vision, layer: 0, target: Target::Contract }));
}

/// An adapter that a test may damage.
struct Copy {
    dir: TempDir,
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Copy {
    fn of(case: &str) -> Copy {
        let text = std::fs::read(adapter(case).join("adapter_config.json")).unwrap();
        let file = TensorFile::read(&adapter(case).join("adapter_model.safetensors")).unwrap();
        let config = serde_json::from_slice(&text).unwrap();
        Copy { dir: TempDir::new().unwrap(), config, tensors: file.tensors }
    }

    fn with(mut self, option: &str, value: Value) -> Copy {
        self.config[option] = value;
        self
    }

    fn write(&self) {
        let config = self.config.to_string();
        write_atomic(&self.dir.path().join("adapter_config.json"), config.as_bytes()).unwrap();
        let path = self.dir.path().join("adapter_model.safetensors");
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        stage_tensors(&path, &self.tensors, metadata).unwrap().persist().unwrap();
    }

    fn refusal(&self) -> String {
        self.write();
        refusal(self.dir.path())
    }

    #[track_caller]
    fn expect(&self, parts: &[&str]) {
        let text = self.refusal();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}

#[test]
fn an_undamaged_copy_is_read() {
    let copy = Copy::of("both");
    copy.write();
    read(copy.dir.path()).unwrap();
}

#[test]
fn every_option_without_support_is_refused_by_its_name() {
    let text = std::fs::read_to_string(fixtures().join("refused.json")).unwrap();
    let refused: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(refused.len() > 20);
    for (case, config) in refused {
        let option = case.split(' ').next().unwrap();
        let copy = Copy { config, ..Copy::of("list") };
        copy.expect(&["adapter_config.json", option]);
    }
}

#[test]
fn layers_outside_the_blocks_are_refused() {
    for (case, layer) in [
        ("projection", "visual_projection"),
        ("all_linear", "text_projection"),
        ("embedding", "token_embedding"),
        ("convolution", "patch_embedding"),
    ] {
        let text = refusal(&adapter(case));
        assert!(text.contains(layer), "{case}: {text}");
    }
    // Named and not there.
    Copy::of("both")
        .with(
            "target_modules",
            json!(["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection"]),
        )
        .expect(&["adapter_config.json", "visual_projection"]);
    Copy::of("both").with("target_modules", json!("all-linear")).expect(&["visual_projection"]);
}

#[test]
fn options_that_nobody_knows_are_refused_unless_they_are_off() {
    Copy::of("list").with("use_new_thing", json!(true)).expect(&["use_new_thing", "does not know"]);
    Copy::of("list").with("new_scale", json!(2.0)).expect(&["new_scale"]);
    for off in [json!(null), json!(false), json!([]), json!({})] {
        let copy = Copy::of("list").with("use_new_thing", off);
        copy.write();
        read(copy.dir.path()).unwrap();
    }
}

#[test]
fn a_later_release_may_have_numbers_and_words_that_nobody_knows() {
    let later = |version: &str| Copy::of("list").with("peft_version", json!(version));
    for version in ["0.21.3.dev0@abc", "0.22.0", "0.22", "1.0.0rc1"] {
        let copy = later(version).with("new_scale", json!(2.5)).with("new_mode", json!("plain"));
        copy.write();
        let found = read(copy.dir.path()).unwrap();
        assert_eq!(found.ignored_options(), ["new_mode \"plain\"", "new_scale 2.5"], "{version}");
    }
    for value in [json!(true), json!({"a": 1}), json!([0]), json!([[]])] {
        later("0.22.0").with("new_thing", value).expect(&["new_thing", "does not know"]);
    }
    // What is known is known.
    later("0.22.0").with("use_dora", json!(true)).expect(&["use_dora"]);
    later("0.22.0").with("megatron_config", json!("on")).expect(&["megatron_config"]);
    for version in ["0.21.2", "0.21.2@abc", "0.9.0", "", "new"] {
        later(version).with("new_scale", json!(2.5)).expect(&["new_scale", "does not know"]);
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let config = |option: &str, value: Value| Copy::of("list").with(option, value);
    config("peft_type", json!("IA3")).expect(&["peft_type", "IA3"]);
    config("r", json!(0)).expect(&["r is 0"]);
    config("r", json!("eight")).expect(&["r is \"eight\""]);
    config("lora_alpha", json!(null)).expect(&["lora_alpha"]);
    config("lora_dropout", json!(1.0)).expect(&["lora_dropout"]);
    config("use_rslora", json!("yes")).expect(&["use_rslora"]);
    config("target_modules", json!(null)).expect(&["target_modules"]);
    config("target_modules", json!("(q_proj")).expect(&["target_modules", "(q_proj"]);
    config("target_modules", json!(7)).expect(&["target_modules"]);
    config("exclude_modules", json!({"q_proj": 1})).expect(&["exclude_modules"]);
    config("layers_to_transform", json!(["last"])).expect(&["layers_to_transform"]);
    config("layers_to_transform", json!(-1)).expect(&["layers_to_transform"]);
    config("rank_pattern", json!({"q_proj": -2})).expect(&["rank_pattern", "q_proj"]);
    config("rank_pattern", json!([2])).expect(&["rank_pattern"]);
    config("alpha_pattern", json!({"(": 2})).expect(&["alpha_pattern"]);
    config("auto_mapping", json!({"base_model_class": "SiglipModel"})).expect(&["SiglipModel", "CLIPModel"]);
    let regex = Copy::of("regex").with("layers_to_transform", json!([0]));
    regex.expect(&["layers_to_transform", "list of target_modules"]);
    let list = Copy::of("list");
    list.write();
    std::fs::write(list.dir.path().join("adapter_config.json"), "{\"r\": 2,").unwrap();
    assert!(refusal(list.dir.path()).contains("not valid JSON"));
}

#[test]
fn one_rank_and_alpha_for_all_layers() {
    Copy::of("list").with("alpha_pattern", json!({"v_proj": 8})).expect(&["alpha_pattern", "v_proj", "8"]);
    Copy::of("list").with("r", json!(3)).expect(&["rank 3", "q_proj", "rank 2"]);
    Copy::of("list").with("rank_pattern", json!({"v_proj": 3})).expect(&["rank 3", "v_proj"]);
}

#[test]
fn missing_and_surplus_tensors_are_named() {
    let key = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight";
    let half = key.replace("lora_A", "lora_B");
    let mut copy = Copy::of("list");
    let tensor = copy.tensors.remove(key).unwrap();
    copy.expect(&["has no tensor", key]);
    copy.tensors.remove(&half).unwrap();
    copy.expect(&["has no tensor", key]);
    // A whole kind of layer, then a tower.
    let mut copy = Copy::of("both");
    copy.tensors.retain(|name, _| !name.contains("fc2"));
    copy.expect(&["has no tensor", "mlp.fc2"]);
    let mut copy = Copy::of("both");
    copy.tensors.retain(|name, _| !name.contains("text_model"));
    copy.expect(&["has no tensor", "text_model"]);
    let mut copy = Copy::of("list");
    copy.tensors.clear();
    copy.expect(&["holds no adapter"]);
    // Tensors that the configuration does not name.
    Copy::of("list").with("target_modules", json!(["q_proj"])).expect(&["does not name", "v_proj"]);
    Copy::of("both").with("layers_to_transform", json!([0])).expect(&["does not name", "layers.1"]);
    Copy::of("both").with("exclude_modules", json!(["fc1"])).expect(&["does not name", "fc1"]);
    let vision = json!({"base_model_class": "CLIPVisionModelWithProjection"});
    Copy::of("both").with("auto_mapping", vision).expect(&["text_model"]);
    for name in [
        "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.bias",
        "base_model.model.vision_model.encoder.layers.01.self_attn.q_proj.lora_A.weight",
        "base_model.model.vision_model.encoder.layers.1.mlp.q_proj.lora_A.weight",
        "vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight",
        "base_model.model.head.weight",
    ] {
        let mut copy = Copy::of("list");
        copy.tensors.insert(name.to_string(), tensor.clone());
        copy.expect(&[name]);
    }
}

#[test]
fn shapes_and_values_are_those_of_the_model() {
    let key = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight";
    let put = |tensor: Tensor| {
        let mut copy = Copy::of("list");
        copy.tensors.insert(key.to_string(), tensor);
        copy
    };
    put(Tensor::zeros([2, 65], DType::F32)).expect(&[key, "[2, 64]", "another model"]);
    put(Tensor::zeros([3, 64], DType::F32)).expect(&["q_proj", "rank 3"]);
    put(Tensor::zeros([128], DType::F32)).expect(&[key, "matrix"]);
    put(Tensor::zeros([2, 64], DType::U8)).expect(&[key, "U8"]);
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tensor = Tensor::zeros([2, 64], DType::F32);
        tensor.typed_mut::<f32>().unwrap()[77] = wrong;
        put(tensor).expect(&[key, "not finite"]);
    }
    // Beyond f32.
    put(Tensor::from_slice([2, 64], &[1e300f64; 128]).unwrap()).expect(&[key, "not finite"]);
    // Of a model with more blocks.
    let mut copy = Copy::of("list");
    for half in ["lora_A", "lora_B"] {
        let name = key.replace("lora_A", half);
        copy.tensors.insert(name.replace("layers.1", "layers.3"), copy.tensors[&name].clone());
    }
    copy.expect(&["layers.3", "3 layers"]);
}

#[test]
fn names_without_a_tower_need_the_class() {
    let copy = Copy::of("vision_only").with("auto_mapping", json!(null));
    copy.expect(&["CLIPVisionModel or CLIPTextModel", "auto_mapping"]);
    Copy::of("vision_only")
        .with("auto_mapping", json!({"base_model_class": "CLIPModel"}))
        .expect(&["CLIPTextModel"]);
    // Where names say it, a class is not needed.
    let copy = Copy::of("list").with("auto_mapping", json!(null));
    copy.write();
    assert_eq!(read(copy.dir.path()).unwrap().spec.towers, [Tower::Vision]);
}

#[test]
fn pickled_adapters_are_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    std::fs::copy(adapter("list").join("adapter_config.json"), dir.path().join("adapter_config.json"))
        .unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), "pickle").unwrap();
    let text = refusal(dir.path());
    assert!(text.contains("safe_serialization=True"), "{text}");
}

#[test]
fn the_command_says_it_in_one_line() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    pictures(Path::new(&at("photos")));
    let model = tiny().display().to_string();
    let copy = Copy::of("list").with("use_dora", json!(true));
    let from = at("from");
    std::fs::create_dir(&from).unwrap();
    copy.write();
    std::fs::rename(copy.dir.path(), Path::new(&from).join("adapter")).unwrap();
    let args =
        ["embed", "--model", &model, "--init-from", &from, "--images", &at("photos"), "--out", &at("f")];
    fail(1, &args, place.path(), &["adapter_config.json", "use_dora", "merge_and_unload"]);
    assert!(!Path::new(&at("f")).exists());
}

#[test]
fn the_command_warns_of_options_that_it_leaves_out_and_takes_a_folder_as_peft_saves_it() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    pictures(Path::new(&at("photos")));
    let model = tiny().display().to_string();
    let copy = Copy::of("list").with("peft_version", json!("0.22.0")).with("new_scale", json!(2));
    copy.write();
    let from = at("saved");
    std::fs::rename(copy.dir.path(), &from).unwrap();
    let embed = ["embed", "--model", &model, "--images", &at("photos"), "--out", &at("f"), "--init-from"];
    let done = succeed(&[&embed[..], &[&from, "--log-level", "warn"]].concat(), place.path());
    // Beside it, that the model does not say how images are prepared.
    let doubts: Vec<_> = done.err.lines().filter(|line| !line.contains("processor_config.json")).collect();
    let [doubt] = doubts[..] else { panic!("{}", done.err) };
    let warned = doubt.starts_with("warning: ") && doubt.contains("adapter_config.json");
    assert!(warned && doubt.contains("new_scale 2"), "{doubt}");
    let found = TensorFile::read(Path::new(&at("f"))).unwrap();
    let expected = TensorFile::read(&fixtures().join("list/expected.safetensors")).unwrap();
    let error = largest_difference(&found.tensors["features"], &expected.tensors["features"]);
    assert!(error < 2e-6, "{error}");
    // Two adapters in one folder.
    std::fs::create_dir(Path::new(&from).join("adapter")).unwrap();
    fail(1, &[&embed[..], &[&from]].concat(), place.path(), &["saved", "two adapters"]);
    fail(1, &[&embed[..], &[&at("photos")]].concat(), place.path(), &["photos", "adapter_config.json"]);
}

#[test]
fn training_starts_from_adapters_without_gaps_and_names_what_differs() {
    let place = TempDir::new().unwrap();
    for folder in ["train/a", "train/b", "val/a", "val/b"] {
        pictures(&place.path().join("photos").join(folder));
    }
    let (model, data) = (tiny().display().to_string(), place.path().join("photos").display().to_string());
    let start = |from: &Path, flags: &[&str]| {
        let from = from.display().to_string();
        let dry = ["train", "--dry-run", "--model", &model, "--data", &data, "--init-from", &from];
        engine(&[&dry[..], flags].concat(), place.path())
    };
    // The tiny model has no tokenizer, which training of the text tower would need.
    let vision = |case: &&str| read(&adapter(case)).unwrap().spec.towers == [Tower::Vision];
    for case in ACCEPTED.into_iter().filter(vision) {
        let (from, spec) = (fixtures().join(case), read(&adapter(case)).unwrap().spec);
        let (rank, alpha) = (spec.rank.to_string(), spec.alpha.to_string());
        let targets = spec.targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(",");
        let mut flags = vec!["--alpha", &alpha, "--targets", &targets];
        flags.extend(spec.rslora.then_some("--rslora"));
        let done = start(&from, &[&flags[..], &["--rank", &rank]].concat());
        assert_eq!(done.code, 0, "{case}: {}", done.err);
        let done = start(&from, &[&flags[..], &["--rank", "7"]].concat());
        let named = done.err.contains(&format!("rank {rank}, not 7; set --rank {rank}\n"));
        assert!(done.code == 1 && named, "{case}: {}", done.err);
    }
    let mut partial = Copy::of("list").with("layers_to_transform", json!([1, 2]));
    partial.tensors.retain(|name, _| !name.contains("layers.0."));
    partial.write();
    let done = start(partial.dir.path(), &["--rank", "2", "--alpha", "4", "--targets", "q_proj,v_proj"]);
    let refused = done.err.contains("leaves out vision_model.encoder.layers.0.self_attn.q_proj");
    assert!(done.code == 1 && refused, "{}", done.err);
}

/// What is written here is read here again, and its expression names the adapted layers and no others.
#[test]
fn written_adapters_are_read_back() {
    use Target::{Contract, Expand, Query};
    let config = ClipConfig::load(&tiny()).unwrap();
    let base = BaseModel::Hub { repository: "some/model".into(), revision: Some("refs/pr/1".into()) };
    let specs = [
        LoraSpec::new(2, 16.0, &Target::ATTENTION),
        LoraSpec { rslora: true, ..LoraSpec::new(1, 0.5, &[Expand]) },
        LoraSpec { dropout: 0.25, towers: Tower::ALL.to_vec(), ..LoraSpec::new(2, 1.0, &[Query, Contract]) },
        LoraSpec { towers: vec![Tower::Text], ..LoraSpec::new(3, 3.0, &Target::ALL) },
    ];
    for spec in specs {
        let dir = TempDir::new().unwrap();
        let mut tensors = BTreeMap::new();
        for &tower in &spec.towers {
            let sizes = if tower == Tower::Vision { &config.vision.tower } else { &config.text.tower };
            for layer in 0..sizes.layers {
                for &target in &spec.targets {
                    let (inputs, outputs) = target.sizes(sizes.width, sizes.mlp);
                    let a =
                        Tensor::from_slice([spec.rank, inputs], &vec![0.5f32; spec.rank * inputs]).unwrap();
                    let b = Tensor::zeros([outputs, spec.rank], DType::F32);
                    tensors.insert(Site { tower, layer, target }, (a, b));
                }
            }
        }
        for file in stage(dir.path(), &tensors, &spec, &base, None).unwrap() {
            file.persist().unwrap();
        }
        let read = read(dir.path()).unwrap();
        assert_eq!(read.spec, spec);
        assert_eq!(read.tensors().len(), tensors.len());
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        assert!(text.contains("\"base_model_name_or_path\": \"some/model\""), "{text}");
        assert!(text.contains("\"revision\": \"refs/pr/1\""), "{text}");
    }
}

/// The adapter of a case with other names of its tensors.
fn renamed(case: &str, to: &Path, name: impl Fn(usize, &str) -> String) {
    let file = TensorFile::read(&adapter(case).join("adapter_model.safetensors")).unwrap();
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(adapter(case).join("adapter_config.json"), to.join("adapter_config.json")).unwrap();
    let tensors =
        file.tensors.into_iter().enumerate().map(|(i, (old, tensor))| (name(i, &old), tensor)).collect();
    stage_tensors(&to.join("adapter_model.safetensors"), &tensors, HashMap::new())
        .unwrap()
        .persist()
        .unwrap();
}

/// As the state dict of the whole model has them, from which Accelerate and others save.
#[test]
fn keys_may_hold_the_name_of_the_adapter() {
    let place = TempDir::new().unwrap();
    for case in ["list", "both"] {
        let dir = place.path().join(case);
        renamed(case, &dir, |_, name| name.replace(".weight", ".default.weight"));
        let (found, expected) = (read(&dir).unwrap(), read(&adapter(case)).unwrap());
        assert!(found.tensors().keys().eq(expected.tensors().keys()), "{case}");
        for (a, b) in found.tensors().values().zip(expected.tensors().values()) {
            assert_eq!((a.0.bytes(), a.1.bytes()), (b.0.bytes(), b.1.bytes()), "{case}");
        }
    }
    let several = place.path().join("several");
    renamed("list", &several, |i, name| {
        name.replace(".weight", if i % 2 == 0 { ".default.weight" } else { ".other.weight" })
    });
    let text = refusal(&several);
    assert!(
        text.contains("holds several adapters, default and other") && text.contains("save one"),
        "{text}"
    );
}

#[test]
fn an_adapter_of_an_image_classifier_has_a_remedy() {
    let place = TempDir::new().unwrap();
    let dir = place.path().join("adapter");
    renamed("list", &dir, |_, name| name.to_owned());
    let path = dir.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["auto_mapping"]["base_model_class"] = "CLIPForImageClassification".into();
    std::fs::write(&path, config.to_string()).unwrap();
    let text = refusal(&dir);
    assert!(text.contains("CLIPForImageClassification") && text.contains("docs/python.md"), "{text}");
}
