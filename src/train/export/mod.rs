//! A run as other programs read it: an adapter for PEFT, a whole Hugging Face directory, or an ONNX model.

mod card;
mod folder;
mod merge;
mod onnx;

pub use merge::merged_tensors;
pub use onnx::OnnxInput;

use super::adapter::{self, Adapter, HeadFile, load_prompts};
use super::model::Model;
use super::provenance::Stamp;
use super::records::Summary;
use super::run_dir::RunDir;
use super::saved_run::of_one_epoch;
use super::tensor_files::write_tensors;
use super::{Result, TrainError};
use crate::data::Preprocess;
use crate::data::preprocess::Resize;
use crate::files::write_atomic;
use crate::model_files::{CONFIG, PROCESSOR_FILES, WEIGHTS};
use crate::settings::Settings;
use crate::settings::flag;
use crate::tensor::{DType, Tensor};
use crate::tune::PromptMode;
use card::{Card, ExportKind};
use folder::NewFolder;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The class names of an ONNX model as a JSON list.
const LABELS: &str = "labels.json";

/// A run with all that an export needs of it, read and checked.
pub struct Export<'a> {
    dir: &'a RunDir,
    settings: &'a Settings,
    model: &'a Model,
    adapter: Option<Adapter>,
    head: HeadFile,
    prompts: Option<PromptFile>,
    stamp: Option<Stamp>,
    /// None where the run has not finished.
    summary: Option<Summary>,
}

struct PromptFile {
    bytes: Vec<u8>,
    mode: PromptMode,
    /// \[sets, m, D\]
    values: Tensor,
}

impl<'a> Export<'a> {
    /// Reads the run in `dir`, which was trained on `model`.
    ///
    /// # Errors
    /// A run that ended before its first epoch did, and files that do not fit the model.
    pub fn open(dir: &'a RunDir, settings: &'a Settings, model: &'a Model) -> Result<Self> {
        if !dir.head().is_file() {
            let problem = "no head.safetensors here; the run ended before its first epoch did";
            return Err(TrainError::file(dir.path(), problem));
        }
        let (head, adapter, prompts, stamp) = of_one_epoch(dir, settings, || {
            let head = HeadFile::load(&dir.head(), model.config.projection)?;
            let adapter = settings.lora().map(|_| Adapter::load(&dir.adapter())).transpose()?;
            let prompts = settings.prompt_spec().map(|spec| {
                let (path, tower) = (dir.prompts(), &model.config.vision.tower);
                let values = load_prompts(&path, &spec, tower.layers, tower.width)?;
                Ok::<_, TrainError>(PromptFile { bytes: read(&path)?, mode: spec.mode, values })
            });
            let prompts = prompts.transpose()?;
            Ok((head, adapter, prompts, Stamp::read(&dir.head())))
        })?;
        if let Some(adapter) = &adapter {
            adapter.check(&model.config)?;
        }
        let summary = dir.read_summary()?;
        Ok(Export { dir, settings, model, adapter, head, prompts, stamp, summary })
    }

    /// Writes adapter/, head.safetensors, prompts.safetensors, as far as the run has them, and a model card
    /// to the folder `to`. `--init-from` reads such a folder. Adapter and card name the model as in
    /// [`Model::base`], a folder by its last part.
    ///
    /// # Errors
    /// A folder that is not empty; with `overwrite`, one that holds anything but an export.
    pub fn peft(&self, to: &Path, overwrite: bool) -> Result<()> {
        let folder = self.folder(to, overwrite)?;
        if let Some(adapter) = &self.adapter {
            let (dir, base) = (folder.path().join("adapter"), self.model.base.without_path());
            let stamp = self.stamp.as_ref();
            for file in adapter::stage(&dir, adapter.tensors(), &adapter.spec, &base, stamp)? {
                file.persist()?;
            }
        }
        self.write_head(&folder)?;
        if let Some(prompts) = &self.prompts {
            write_atomic(&folder.path().join("prompts.safetensors"), &prompts.bytes)?;
        }
        self.write_card(&folder, ExportKind::Peft)?;
        folder.finish()
    }

    /// Writes the model with the adapters added to its weights, its tokenizer and image processor, the head
    /// and a model card to the folder `to`.
    ///
    /// # Errors
    /// As of [`Export::peft`], and a run with prompts.
    pub fn merged(&self, to: &Path, overwrite: bool, dtype: DType) -> Result<()> {
        if self.settings.prompt_spec().is_some() {
            return Err(TrainError::Setting(format!(
                "{}: the run has prompts, which transformers has no place for; use {} or {}",
                flag::MERGED,
                flag::PEFT,
                flag::ONNX
            )));
        }
        let folder = self.folder(to, overwrite)?;
        let tensors = merged_tensors(self.model, self.adapter.as_ref(), dtype)?;
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        write_tensors(&folder.path().join(WEIGHTS), &tensors, metadata)?;
        drop(tensors);
        self.write_config(&folder, dtype)?;
        for name in PROCESSOR_FILES {
            let from = self.model.dir().join(name);
            if from.is_file() {
                copy(&from, &folder.path().join(name))?;
            }
        }
        let processor = folder.path().join("preprocessor_config.json");
        if !processor.is_file() {
            write_json(&processor, &processor_config(&self.model.preprocess))?;
        }
        self.write_head(&folder)?;
        self.write_card(&folder, ExportKind::Merged)?;
        folder.finish()
    }

    /// Writes the whole classifier as an ONNX model, from images as `input` says to probabilities, its class names, the
    /// settings of an image processor and a model card to the folder `to`: model.onnx, labels.json,
    /// preprocessor_config.json, README.md, and model.onnx.data where one file cannot hold all weights.
    ///
    /// # Errors
    /// As of [`Export::peft`].
    pub fn onnx(&self, to: &Path, overwrite: bool, input: OnnxInput) -> Result<()> {
        let folder = self.folder(to, overwrite)?;
        let preprocess = self.preprocess();
        let parts = onnx::Parts {
            model: self.model,
            settings: self.settings,
            preprocess: &preprocess,
            adapter: self.adapter.as_ref(),
            prompts: self.prompts.as_ref().map(|prompts| (prompts.mode, &prompts.values)),
            head: &self.head,
        };
        onnx::write(folder.path(), &parts, input)?;
        write_json(&folder.path().join(LABELS), &json!(self.head.class_names))?;
        write_json(&folder.path().join("preprocessor_config.json"), &processor_config(&preprocess))?;
        self.write_card(&folder, ExportKind::Onnx(input))?;
        folder.finish()
    }

    /// That of the run: photos are turned as it turned them.
    fn preprocess(&self) -> Preprocess {
        self.model.preprocess.with_orientation(self.settings.orientation)
    }

    fn folder(&self, to: &Path, overwrite: bool) -> Result<NewFolder> {
        NewFolder::beside(to, overwrite, &[self.dir.path(), self.model.dir()])
    }

    fn write_head(&self, folder: &NewFolder) -> Result<()> {
        let path = folder.path().join("head.safetensors");
        Ok(adapter::stage_head(&path, &self.head, self.stamp.as_ref())?.persist()?)
    }

    fn write_card(&self, folder: &NewFolder, form: ExportKind) -> Result<()> {
        let card = Card {
            form,
            settings: self.settings,
            preprocess: &self.preprocess(),
            base: self.model.base.without_path(),
            class_names: &self.head.class_names,
            adapter: self.adapter.as_ref().map(|adapter| &adapter.spec),
            summary: self.summary.as_ref(),
        };
        Ok(write_atomic(&folder.path().join("README.md"), card.text().as_bytes())?)
    }

    /// The checkpoint's config.json for weights of this type.
    fn write_config(&self, folder: &NewFolder, dtype: DType) -> Result<()> {
        let path = self.model.dir().join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path, "read the file"))?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| TrainError::file(&path, format!("not valid JSON ({e}); save the model again")))?;
        write_json(&folder.path().join(CONFIG), &config_for(config, dtype))
    }
}

/// The configuration with another type of weights, and without code to run.
fn config_for(mut config: Value, dtype: DType) -> Value {
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    for part in ["text_config", "vision_config", "text_config_dict", "vision_config_dict"] {
        if let Some(Value::Object(part)) = config.get_mut(part) {
            for key in ["dtype", "torch_dtype"] {
                part.remove(key);
            }
        }
    }
    if let Value::Object(config) = &mut config {
        for key in ["dtype", "auto_map", "_name_or_path"] {
            config.remove(key);
        }
        config.insert("architectures".into(), json!(["CLIPModel"]));
        // The name that releases before 4.56 look for; later ones read it too.
        config.insert("torch_dtype".into(), json!(name));
    }
    config
}

/// The image processor of a checkpoint that has no file for it.
fn processor_config(preprocess: &Preprocess) -> Value {
    let side = preprocess.image_size();
    let size = match preprocess.resize() {
        Resize::ShortSide(side) => json!({ "shortest_edge": side }),
        Resize::Square(side) => json!({ "height": side, "width": side }),
    };
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": side, "width": side },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": preprocess.mean(),
        "image_std": preprocess.std(),
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Ok(write_atomic(to, &read(from)?)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(TrainError::io(path, "read the file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_the_new_type_of_weights_and_no_other() {
        let config = json!({
            "model_type": "clip",
            "dtype": "float16",
            "auto_map": { "AutoModel": "code.Model" },
            "text_config": { "torch_dtype": "float16", "hidden_size": 48 },
        });
        let expected = json!({
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "torch_dtype": "bfloat16",
            "text_config": { "hidden_size": 48 },
        });
        assert_eq!(config_for(config, DType::BF16), expected);
    }

    #[test]
    fn a_written_image_processor_is_read_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for preprocess in [Preprocess::clip(64), Preprocess::clip(224)] {
            write_json(&dir.path().join("preprocessor_config.json"), &processor_config(&preprocess)).unwrap();
            let read = Preprocess::from_model_dir(dir.path(), preprocess.image_size()).unwrap();
            assert_eq!(read, preprocess);
        }
    }
}
