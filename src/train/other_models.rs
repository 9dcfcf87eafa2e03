//! What a folder or a name that is no CLIP checkpoint in Hugging Face's layout is instead, and what to do with it.

use crate::model_files::{CONFIG, WEIGHTS};
use crate::settings::{Key, flag};
use serde_json::Value;
use std::path::Path;

/// Names of files that are photos, for the most part.
const PHOTOS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// Entries of a folder that are looked at for photos.
const LOOKED_AT: usize = 100;

/// Names that OpenAI's and open_clip's own programs take, and the same weights on the hub; none for ResNets, which
/// transformers does not have.
const NAMES: [(&str, Option<&str>); 9] = [
    ("ViT-B/32", Some("openai/clip-vit-base-patch32")),
    ("ViT-B/16", Some("openai/clip-vit-base-patch16")),
    ("ViT-L/14", Some("openai/clip-vit-large-patch14")),
    ("ViT-L/14@336px", Some("openai/clip-vit-large-patch14-336")),
    ("RN50", None),
    ("RN101", None),
    ("RN50x4", None),
    ("RN50x16", None),
    ("RN50x64", None),
];

const RESNET: &str = "a CLIP with a ResNet, which this engine does not compute; take one with a ViT, such as \
                      openai/clip-vit-base-patch32";

const PICKLE: &str = "as OpenAI and open_clip save their models: a pickle, which is code as much as data and is not \
                      read; take the same model in Hugging Face's layout, such as openai/clip-vit-base-patch32, or \
                      convert it by docs/python.md";

/// Explains a name that OpenAI's or open_clip's own programs take, with what to give instead; none for other names.
pub fn of_name(name: &str) -> Option<String> {
    let plain = |name: &str| name.replace('/', "-").to_lowercase();
    let (name, on_hub) = NAMES.into_iter().find(|(other, _)| plain(other) == plain(name))?;
    Some(match on_hub {
        Some(id) => format!("{name} is what OpenAI's own program calls {id}; give that name"),
        None => format!("{name} is {RESNET}"),
    })
}

/// Explains why a file cannot stand in the place of a model's folder, and what to give instead.
pub(crate) fn of_file(path: &Path) -> String {
    match extension(path).as_str() {
        "pt" | "pth" | "bin" | "ckpt" => format!("a file {PICKLE}"),
        "safetensors" => {
            "a file; give the folder that it is in, with config.json and the tokenizer beside it".into()
        }
        _ => "a file; give the folder of a Hugging Face CLIP checkpoint, or owner/name on the hub".into(),
    }
}

/// Explains what a folder that is no CLIP checkpoint holds, and what to do with it; none where it may be a checkpoint.
pub(crate) fn of_folder(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).is_file();
    if has(CONFIG) {
        return json(&dir.join(CONFIG)).and_then(|config| of_config(&config));
    }
    let adapter = ["adapter/adapter_config.json", "adapter_config.json"];
    let base = adapter.iter().find_map(|name| json(&dir.join(name)));
    let base = base.and_then(|config| Some(config["base_model_name_or_path"].as_str()?.to_owned()));
    if has("config.toml") && (has("metrics.jsonl") || has("head.safetensors") || has("summary.json")) {
        let text = std::fs::read_to_string(dir.join("config.toml")).unwrap_or_default();
        let settings: toml::Table = text.parse().unwrap_or_default();
        let model = settings.get("model").and_then(|model| Some(model.as_str()?.to_owned()));
        return Some(format!(
            "a run, not the model that it was trained on{}; {} or {} take it, and engine export {} makes a model of it",
            named(model),
            flag::RUN,
            Key::init_from,
            flag::MERGED
        ));
    }
    if has("head.safetensors") || base.is_some() || has("adapter_config.json") {
        return Some(format!(
            "an adapter or a head without the model that it belongs to{}; {} takes it",
            named(base),
            Key::init_from
        ));
    }
    if let Some(config) = json(&dir.join("open_clip_config.json")) {
        return Some(of_open_clip(&config["model_cfg"]));
    }
    let files = || std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if files().any(|path| name(&path).starts_with("open_clip_")) {
        return Some(of_open_clip(&Value::Null));
    }
    if has(WEIGHTS) {
        return Some(
            "model.safetensors without config.json; add that and the tokenizer of the same checkpoint".into(),
        );
    }
    if let Some(file) = files().find(|path| matches!(extension(path).as_str(), "pt" | "pth" | "ckpt")) {
        return Some(format!("holds {}, {PICKLE}", name(&file)));
    }
    let is_photo = |path: &Path| PHOTOS.contains(&extension(path).as_str());
    let within = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(LOOKED_AT);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    // Folders of classes, and those of splits around them.
    let mut paths = within(dir);
    for _ in 0..3 {
        if paths.iter().any(|path| is_photo(path)) {
            return Some(format!(
                "a folder of photos; {} or {} take it, {} is the CLIP model",
                Key::data,
                Key::images,
                Key::model
            ));
        }
        paths = paths.iter().flat_map(|path| within(path)).take(LOOKED_AT).collect();
    }
    None
}

/// Explains a config.json of another kind of model, and what to take instead; none where it may be CLIP's.
fn of_config(config: &Value) -> Option<String> {
    if config.get("vision_cfg").is_some() || config.get("model_cfg").is_some() {
        return Some(of_open_clip(config.get("model_cfg").unwrap_or(config)));
    }
    if let Some(architecture) = config["architecture"].as_str() {
        return Some(format!(
            "{architecture} of timm, which is no whole CLIP checkpoint; take a CLIP in Hugging Face's layout, such as \
             openai/clip-vit-base-patch32"
        ));
    }
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let kind = config["model_type"].as_str().unwrap_or_default();
    match (class, kind) {
        ("CLIPForImageClassification", _) => Some(
            "a CLIPForImageClassification, which has no text tower; name the CLIP that it was made from, or put its \
             vision tower back into that by docs/python.md"
                .into(),
        ),
        (_, "clip_vision_model" | "clip_text_model") => {
            Some("one tower of a CLIP alone; name the whole model that it was taken from".into())
        }
        (_, "siglip" | "siglip2") => Some(
            "a SigLIP, whose towers and loss are others than CLIP's; this engine adapts CLIP, such as \
             openai/clip-vit-base-patch32"
                .into(),
        ),
        _ => None,
    }
}

fn of_open_clip(config: &Value) -> String {
    let vision = &config["vision_cfg"];
    if vision["layers"].is_array() {
        return format!("in open_clip's format, {RESNET}");
    }
    if vision.get("timm_model_name").is_some() {
        return "in open_clip's format, a CLIP whose vision tower is one of timm's, which this engine does not compute; \
                take one with CLIP's own ViT, such as openai/clip-vit-base-patch32"
            .into();
    }
    "in open_clip's format; take the same model in Hugging Face's layout (config.json with model_type clip), which \
     many repositories on the hub have too, or convert it by docs/python.md"
        .into()
}

fn named(model: Option<String>) -> String {
    model.map_or(String::new(), |model| format!(" ({} {model})", Key::model))
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}
