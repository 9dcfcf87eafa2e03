//! A CLIP directory put to use: towers on a backend, class features, preprocessing.

use super::adapter::Adapter;
use super::base_model::BaseModel;
use super::other_models;
use super::provenance::WeightsId;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::text::TextClassifier;
use crate::clip::text::{self, EmbeddedPrompts, TextTower};
use crate::clip::tokenizer::{ClipTokenizer, TokenBatch};
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::clip::weights::Weights;
use crate::data::Preprocess;
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::Tensor;
use crate::tune::BlockLayers;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A Hugging Face CLIP directory whose weights fit its configuration.
pub struct Model {
    /// Name that adapters trained on it give as their base model.
    pub base: BaseModel,
    dir: PathBuf,
    /// The sizes in its config.json.
    pub config: ClipConfig,
    /// The checkpoint's tensors, mapped; all that `config` asks for are among them.
    pub weights: Weights,
    /// How photos become its images.
    pub preprocess: Preprocess,
    /// A temporary home of the files, if they have one.
    temporary: Option<tempfile::TempDir>,
}

/// The text tower and the prompts of all classes.
pub(crate) struct TextTraining<B: Backend> {
    /// The frozen tower, which adapters are trained in.
    pub tower: Arc<TextTower<B>>,
    /// Every class name in every template, embedded.
    pub prompts: EmbeddedPrompts,
}

impl Model {
    /// Opens `dir`; the weights are mapped, not read.
    pub fn open(dir: &Path) -> Result<Self> {
        let other = match dir.is_file() {
            true => Some(other_models::of_file(dir)),
            false => other_models::of_folder(dir),
        };
        if let Some(problem) = other {
            return Err(TrainError::file(dir, problem));
        }
        if !dir.is_dir() {
            return Err(TrainError::file(
                dir,
                format!(
                    "no such folder; give {} the directory of a Hugging Face CLIP checkpoint, or owner/name on the \
                     hub",
                    Key::model
                ),
            ));
        }
        let config = ClipConfig::load(dir)?;
        let weights = Weights::open(dir)?;
        weights.check(&config)?;
        let preprocess = Preprocess::from_model_dir(dir, config.vision.image_size)?;
        Ok(Model {
            base: BaseModel::Folder(dir.to_path_buf()),
            dir: dir.to_path_buf(),
            config,
            weights,
            preprocess,
            temporary: None,
        })
    }

    /// Keeps `dir`, where the files are, for as long as the model.
    pub(super) fn keep(&mut self, dir: tempfile::TempDir) {
        self.temporary = Some(dir);
    }

    /// Identifies its weights by their hash and, in the hub's cache, the commit.
    pub fn weights_id(&self) -> Result<WeightsId> {
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        // The hub's cache keeps a repository's files in snapshots/COMMIT.
        let cached = self.dir.parent().and_then(name).is_some_and(|parent| parent == "snapshots");
        let commit = name(&self.dir).filter(|_| cached);
        Ok(WeightsId { hash: self.weights.fingerprint(&self.config)?, commit })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The vision tower with the exact savings.
    pub fn vision<B: Backend>(&self, backend: &B) -> Result<VisionTower<B>> {
        let pixels = Normalisation { mean: self.preprocess.mean(), std: self.preprocess.std() };
        let (config, features) = (&self.config.vision, self.config.projection);
        Ok(VisionTower::load(backend, &self.weights, config, features, pixels, Savings::ALL)?)
    }

    /// The text tower.
    pub fn text<B: Backend>(&self, backend: &B) -> Result<TextTower<B>> {
        Ok(TextTower::load(backend, &self.weights, &self.config.text, self.config.projection)?)
    }

    fn tokens(&self, class_names: &[String], templates: &[String]) -> Result<TokenBatch> {
        let tokenizer = ClipTokenizer::load(&self.dir, &self.config.text)?;
        Ok(tokenizer.encode_batch(&text::prompts(class_names, templates))?)
    }

    /// Loads the text tower and embeds the prompts of all classes, to train the tower on them.
    pub(crate) fn text_training<B: Backend>(
        &self,
        backend: &B,
        class_names: &[String],
        templates: &[String],
    ) -> Result<TextTraining<B>> {
        let tokens = self.tokens(class_names, templates)?;
        let prompts = EmbeddedPrompts::new(&self.weights, &self.config.text, &tokens, templates.len())?;
        Ok(TextTraining { tower: Arc::new(self.text(backend)?), prompts })
    }

    /// Features \[N, E\] of texts as they are, in the backend's parameter dtype, rows of length 1. The text tower is loaded for
    /// this and dropped again.
    pub fn text_features<B: Backend>(
        &self,
        backend: &B,
        texts: &[String],
        monitor: &dyn Monitor,
    ) -> Result<Tensor> {
        let tokens = ClipTokenizer::load(&self.dir, &self.config.text)?.encode_batch(texts)?;
        if let Some(&row) = tokens.cut.first() {
            monitor.warn(&format!(
                "{:?} is longer than the {} tokens that the text tower takes, and is cut off",
                texts[row], tokens.len
            ));
        }
        Ok(self.text(backend)?.features(backend, &self.weights, &tokens, &[], monitor)?)
    }

    /// Class features of the text tower, which is loaded for this and dropped again; with the adapters that
    /// `adapter` has for it.
    pub fn text_classifier<B: Backend>(
        &self,
        backend: &B,
        class_names: &[String],
        templates: &[String],
        adapter: Option<&mut Adapter>,
        monitor: &dyn Monitor,
    ) -> Result<TextClassifier> {
        let tokens = self.tokens(class_names, templates)?;
        doubts(&tokens, class_names, templates).iter().for_each(|doubt| monitor.warn(doubt));
        let tower = self.text(backend)?;
        let mut lora = Vec::new();
        if let Some(adapter) = adapter {
            lora = tower.adapters(backend, &adapter.spec.clone(), adapter)?;
            BlockLayers::fold(backend, &mut lora)?;
        }
        let features = tower.features(backend, &self.weights, &tokens, &lora, monitor)?;
        Ok(TextClassifier {
            features: text::class_features(&features, templates.len())?,
            scale: text::logit_scale(&self.weights)?,
        })
    }
}

/// Warnings of classes that have the same tokens, which no text classifier can tell apart, and of prompts that are
/// longer than the text tower takes.
fn doubts(tokens: &TokenBatch, class_names: &[String], templates: &[String]) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut first: HashMap<&[u32], &String> = HashMap::new();
    let mut same = class_names.iter().enumerate().filter_map(|(class, name)| {
        let other = first.insert(tokens.of_rows(class * templates.len(), templates.len()), name);
        other.map(|other| (other, name))
    });
    if let Some((a, b)) = same.next() {
        let more = same.count();
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        doubts.push(format!(
            "the classes {a:?} and {b:?} have the same prompts{more}, and text features cannot tell them apart; other \
             names ({}) can",
            Key::class_names
        ));
    }
    if let Some(&row) = tokens.cut.first() {
        let (count, class, longest) = (tokens.cut.len(), &class_names[row / templates.len()], tokens.len);
        doubts.push(format!(
            "{count} of {} prompts are longer than the {longest} tokens that CLIP reads, and were cut; the first is of \
             {class:?}",
            tokens.rows
        ));
    }
    doubts
}
