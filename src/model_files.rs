//! The files of a CLIP checkpoint in Hugging Face's layout, by their names.

use crate::files::FileError;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Which shards a checkpoint has in place of [`WEIGHTS`], and which tensor is in which.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Weights that are not read: a pickle is code as much as data.
pub(crate) const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Files of a tokenizer where there is no [`TOKENIZER`].
pub(crate) const TOKENIZER_PARTS: [&str; 2] = ["vocab.json", "merges.txt"];

/// Files of a tokenizer and an image processor, as far as a checkpoint has them.
pub(crate) const PROCESSOR_FILES: [&str; 8] = [
    TOKENIZER,
    "tokenizer_config.json",
    TOKENIZER_PARTS[0],
    TOKENIZER_PARTS[1],
    "special_tokens_map.json",
    "added_tokens.json",
    IMAGES[0].0,
    IMAGES[1].0,
];

/// Where it is said how images are prepared, and below which key. The first that says anything wins, as in transformers
/// 5, which writes the first alone; earlier releases write the second, and the first without the key.
pub(crate) const IMAGES: [(&str, Option<&str>); 2] =
    [("processor_config.json", Some("image_processor")), ("preprocessor_config.json", None)];

/// The file in `dir` that says how images are prepared, and what it says; none where images are as for OpenAI's CLIP.
pub(crate) fn of_images(dir: &Path) -> Result<Option<(PathBuf, serde_json::Result<Value>)>, FileError> {
    for (name, key) in IMAGES {
        let path = dir.join(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(FileError::of(&path, "read the file")(e)),
        };
        let said = serde_json::from_str(&text).map(|mut config: Value| match key {
            None => Some(config),
            Some(key) => config.get_mut(key).map(Value::take).filter(|nested| !nested.is_null()),
        });
        if let Some(said) = said.transpose() {
            return Ok(Some((path, said)));
        }
    }
    Ok(None)
}

/// Whether a file in `dir` says how images are prepared, right or wrong.
pub(crate) fn has_images(dir: &Path) -> bool {
    !matches!(of_images(dir), Ok(None))
}
