//! A vision tower with what was trained in it, read from files: what predicting and embedding begin with.

use super::adapter::{Adapter, HeadFile, adapter_in, load_prompts, prompt_spec};
use super::memory::check_photos;
use super::model::Model;
use super::run_dir::RunDir;
use super::session::Extractor;
use super::settings::Settings;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::block::{Evaluated, FoldedBlock};
use crate::clip::vision::VisionTower;
use crate::data::Preprocess;
use crate::data::decode::Orientation;
use crate::tune::{BlockLora, PromptSpec, Prompts, TowerTuning};
use std::path::{Path, PathBuf};

/// Where what was trained in the tower is kept; nothing for plain CLIP.
#[derive(Debug, Clone, Default)]
pub struct TuningFiles {
    /// A directory with an adapter in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// A file of prompts, and what they are.
    pub prompts: Option<(PathBuf, PromptSpec)>,
}

impl TuningFiles {
    /// Those of a run. One of the head alone has neither: its tower is plain CLIP's.
    pub fn of_run(dir: &RunDir, settings: &Settings) -> Self {
        TuningFiles {
            adapter: settings.lora().map(|_| dir.adapter()),
            prompts: settings.prompt_spec().map(|spec| (dir.prompts(), spec)),
        }
    }

    /// Those that a directory holds, whoever wrote it.
    ///
    /// # Errors
    /// A directory without any, and prompts that cannot be read.
    pub fn found_in(dir: &Path) -> Result<Self> {
        let prompts = dir.join("prompts.safetensors");
        let mut files = TuningFiles { adapter: adapter_in(dir)?, prompts: None };
        if prompts.is_file() {
            files.prompts = Some((prompts.clone(), prompt_spec(&prompts)?));
        }
        if files.adapter.is_none() && files.prompts.is_none() {
            let problem = "none of adapter/, adapter_config.json and prompts.safetensors is here; name a run or the \
                           folder of an adapter";
            return Err(TrainError::file(dir, problem));
        }
        Ok(files)
    }
}

/// A vision tower for inference, with the adapters in its layers and the prompts in front of its blocks.
pub struct TunedTower<B: Backend> {
    backend: B,
    tower: VisionTower<B>,
    lora: Vec<BlockLora<B>>,
    folded: Vec<FoldedBlock<B>>,
    prompts: Option<Prompts<B>>,
    preprocess: Preprocess,
}

impl<B: Backend> TunedTower<B> {
    /// Loads the vision tower of `model`, whose files may be let go afterwards, and what belongs into it.
    pub fn open(backend: B, model: &Model, files: &TuningFiles) -> Result<Self> {
        let tower = model.vision(&backend)?;
        let (mut lora, mut folded) = (Vec::new(), Vec::new());
        if let Some(dir) = &files.adapter {
            let mut adapter = Adapter::load(dir)?;
            adapter.check(&model.config)?;
            lora = tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?;
            folded = tower.folded(&backend, &lora)?;
            tower.fold(&backend, &lora, &mut folded)?;
        }
        let prompts = match &files.prompts {
            Some((path, spec)) => {
                let sizes = &tower.config().tower;
                let values = load_prompts(path, spec, sizes.layers, sizes.width)?;
                Some(Prompts::new(&backend, spec.mode, values.view())?)
            }
            None => None,
        };
        Ok(TunedTower { backend, tower, lora, folded, prompts, preprocess: model.preprocess.clone() })
    }

    /// The same for photos that are turned upright or not.
    pub fn with_orientation(self, orientation: Orientation) -> Self {
        TunedTower { preprocess: self.preprocess.with_orientation(orientation), ..self }
    }

    /// The device that the tower is on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What the tower's images are made by.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// Width E of the features.
    pub fn features(&self) -> usize {
        self.tower.features()
    }

    /// The tower with memory for batches of up to `batch` images.
    pub(super) fn extractor(&self, batch: usize) -> Result<Extractor<'_, B>> {
        let tuning = TowerTuning { lora: &self.lora, prompts: self.prompts.as_ref(), dropout: None };
        check_photos(&self.backend, &self.tower, tuning, batch)?;
        let adapters = Evaluated { lora: &self.lora, folded: &self.folded };
        Extractor::new(&self.backend, &self.tower, adapters, self.prompts.as_ref(), batch)
    }
}

/// The head of the best epoch of a run so far, for features of width `width`.
///
/// # Errors
/// A run that has none yet.
pub fn head_of_run(dir: &RunDir, width: usize) -> Result<HeadFile> {
    HeadFile::load(&head_file_of_run(dir)?, width)
}

/// Where that head is.
pub(super) fn head_file_of_run(dir: &RunDir) -> Result<PathBuf> {
    if !dir.head().is_file() {
        let problem = "no head.safetensors here; the run ended before its first epoch did";
        return Err(TrainError::file(dir.path(), problem));
    }
    Ok(dir.head())
}
