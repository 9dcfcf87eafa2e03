//! A vision tower with what was trained in it, read from files: what predicting and embedding begin with.

use super::adapter::{Adapter, CONFIG_FILE, WEIGHTS_FILE, adapter_in, load_prompts, prompt_spec};
use super::memory::check_photos;
use super::model::Model;
use super::run_dir::RunDir;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::vision::{Purpose, VisionActivations, VisionTower};
use crate::data::Preprocess;
use crate::data::decode::Orientation;
use crate::hash::{Parts, hex};
use crate::settings::Settings;
use crate::tensor::{DType, Tensor};
use crate::tune::{BlockLayers, PromptSpec, Prompts, TowerTuning};
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
    /// Names the files of a run. One of the head alone has neither: its tower is plain CLIP's.
    pub fn of_run(dir: &RunDir, settings: &Settings) -> Self {
        TuningFiles {
            adapter: settings.lora().map(|_| dir.adapter()),
            prompts: settings.prompt_spec().map(|spec| (dir.prompts(), spec)),
        }
    }

    /// A hash of what is in them.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn digest(&self) -> Result<String> {
        let of_adapter = |dir: &PathBuf| [CONFIG_FILE, WEIGHTS_FILE].map(|name| dir.join(name));
        let files = self.adapter.iter().flat_map(of_adapter);
        let mut hash = Parts::default();
        for file in files.chain(self.prompts.iter().map(|(path, _)| path.clone())) {
            hash.add(std::fs::read(&file).map_err(TrainError::io(&file, "read the file"))?);
        }
        Ok(hex(&hash.finish()))
    }

    /// Finds the files that a directory holds, whoever wrote it.
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
    lora: Vec<BlockLayers<B>>,
    prompts: Option<Prompts<B>>,
    preprocess: Preprocess,
}

impl<B: Backend> TunedTower<B> {
    /// Loads the vision tower of `model`, whose files may be let go afterwards, and what belongs into it.
    pub fn open(backend: B, model: &Model, files: &TuningFiles) -> Result<Self> {
        let tower = model.vision(&backend)?;
        let mut lora = Vec::new();
        if let Some(dir) = &files.adapter {
            let mut adapter = Adapter::load(dir)?;
            adapter.check(&model.config)?;
            lora = tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?;
            BlockLayers::fold(&backend, &mut lora)?;
        }
        let prompts = match &files.prompts {
            Some((path, spec)) => {
                let sizes = &tower.config().tower;
                let values = load_prompts(path, spec, sizes.layers, sizes.width)?;
                Some(Prompts::new(&backend, spec.mode, values.view())?)
            }
            None => None,
        };
        Ok(TunedTower { backend, tower, lora, prompts, preprocess: model.preprocess.clone() })
    }

    /// Changes whether photos are turned upright by their EXIF data.
    pub fn with_orientation(self, orientation: Orientation) -> Self {
        TunedTower { preprocess: self.preprocess.with_orientation(orientation), ..self }
    }

    /// The device that the tower is on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Preprocessing that turns photos into the tower's images.
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
        Extractor::new(&self.backend, &self.tower, tuning, batch)
    }
}

/// Features of batches of images, from a tower that is not trained.
pub(super) struct Extractor<'a, B: Backend> {
    backend: &'a B,
    tower: &'a VisionTower<B>,
    tuning: TowerTuning<'a, B>,
    activations: VisionActivations<B>,
}

impl<'a, B: Backend> Extractor<'a, B> {
    /// For batches of up to `batch` images.
    pub fn new(
        backend: &'a B,
        tower: &'a VisionTower<B>,
        tuning: TowerTuning<'a, B>,
        batch: usize,
    ) -> Result<Self> {
        let activations = VisionActivations::new(backend, tower, batch, tuning, Purpose::Inference)?;
        Ok(Extractor { backend, tower, tuning, activations })
    }

    /// Normalised features \[n, E\] of `images` \[n, …\], u8 or numbers, on the device.
    pub fn run(&mut self, images: &Tensor) -> Result<&B::Tensor> {
        let (backend, a) = (self.backend, &mut self.activations);
        let dtype = if images.dtype() == DType::U8 { DType::U8 } else { backend.compute_dtype() };
        let pixels = backend.upload(images.view(), dtype)?;
        a.set_batch(images.shape().rows())?;
        self.tower.infer(backend, &pixels, None, self.tuning, a)?;
        Ok(&a.ends.features)
    }
}
