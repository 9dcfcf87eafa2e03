//! A CLIP directory put to use: towers on a backend, class features, preprocessing.

use super::learner::TextClassifier;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::text::{self, TextTower};
use crate::clip::tokenizer::ClipTokenizer;
use crate::clip::vision::{Normalisation, Savings, VisionTower};
use crate::clip::weights::Weights;
use crate::data::Preprocess;
use crate::progress::Monitor;
use std::path::{Path, PathBuf};

/// A Hugging Face CLIP directory whose weights fit its configuration.
pub struct Model {
    /// What adapters trained on it call it.
    pub name: String,
    dir: PathBuf,
    pub config: ClipConfig,
    pub weights: Weights,
    pub preprocess: Preprocess,
    /// A temporary home of the files, if they have one.
    temporary: Option<tempfile::TempDir>,
}

impl Model {
    /// Opens `dir`; the weights are mapped, not read.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(TrainError::file(
                dir,
                "no such folder; give --model the directory of a Hugging Face CLIP checkpoint",
            ));
        }
        let config = ClipConfig::load(dir)?;
        let weights = Weights::open(dir)?;
        weights.check(&config)?;
        let preprocess = Preprocess::from_model_dir(dir, config.vision.image_size)?;
        Ok(Model {
            name: dir.display().to_string(),
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

    /// Class features of the text tower, which is loaded for this and dropped again.
    pub fn text_classifier<B: Backend>(
        &self,
        backend: &B,
        class_names: &[String],
        templates: &[String],
        monitor: &dyn Monitor,
    ) -> Result<TextClassifier> {
        let tokenizer = ClipTokenizer::load(&self.dir, &self.config.text)?;
        let tokens = tokenizer.encode_batch(&text::prompts(class_names, templates))?;
        let tower = TextTower::load(backend, &self.weights, &self.config.text, self.config.projection)?;
        let features = tower.features(backend, &self.weights, &tokens, monitor)?;
        Ok(TextClassifier {
            features: text::class_features(&features, templates.len())?,
            scale: text::logit_scale(&self.weights)?,
        })
    }
}
