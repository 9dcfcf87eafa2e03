//! Features of a folder of photos.

use super::adapter::{Adapter, load_prompts};
use super::files::stage_tensors;
use super::model::Model;
use super::session::Extractor;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::{DataError, decode, folder};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use crate::tune::{PromptSpec, Prompts, TowerTuning};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Where what was trained in the tower is kept; nothing for plain CLIP.
#[derive(Debug, Clone, Default)]
pub struct TuningFiles {
    /// A directory with an adapter in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// A file of prompts, and what they are.
    pub prompts: Option<(PathBuf, PromptSpec)>,
}

/// Writes `features` \[N, E\], f32, rows of length 1, for all photos below `images` in the order of their
/// sorted paths; the paths, relative to `images`, are a JSON list under "paths" in the metadata. Returns N.
///
/// # Errors
/// A photo that cannot be decoded is named; nothing is written then.
pub fn embed<B: Backend>(
    backend: B,
    model: Model,
    tuning: &TuningFiles,
    images: &Path,
    out: &Path,
    batch: usize,
    monitor: &dyn Monitor,
) -> Result<usize> {
    let paths = folder::images_below(images)?;
    let tower = model.vision(&backend)?;
    let mut folded = Vec::new();
    if let Some(dir) = &tuning.adapter {
        let mut adapter = Adapter::load(dir)?;
        adapter.check(&model.config)?;
        let lora = tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?;
        folded = tower.folded(&backend, &lora)?;
        tower.fold(&backend, &lora, &mut folded)?;
    }
    let prompts = match &tuning.prompts {
        Some((path, spec)) => {
            let sizes = &tower.config().tower;
            let values = load_prompts(path, spec, sizes.layers, sizes.width)?;
            Some(Prompts::new(&backend, spec.mode, values.view())?)
        }
        None => None,
    };
    let preprocess = model.preprocess.clone();
    drop(model);
    let (side, width) = (preprocess.image_size(), tower.features());
    let tuned = TowerTuning { lora: &[], prompts: prompts.as_ref(), dropout: None };
    let mut extractor = Extractor::new(&backend, &tower, tuned, &folded, batch)?;
    let mut features = Vec::with_capacity(paths.len() * width);
    monitor.begin("features", paths.len() as u64);
    for chunk in paths.chunks(batch) {
        if monitor.stopped() {
            monitor.finish();
            return Err(DataError::Interrupted.into());
        }
        let decoded: Vec<Vec<u8>> = chunk
            .par_iter()
            .map(|path| Ok(preprocess.resize_crop(&decode::decode(path)?)))
            .collect::<std::result::Result<_, DataError>>()?;
        let pixels = Tensor::from_slice([chunk.len(), side, side, 3], &decoded.concat())?;
        let part = extractor.features(&pixels)?.view().to_tensor(DType::F32)?;
        features.extend_from_slice(part.typed::<f32>()?);
        monitor.advance(chunk.len() as u64);
    }
    monitor.finish();
    let features = Tensor::from_slice([paths.len(), width], &features)?;
    let names: Vec<String> =
        paths.iter().map(|path| path.strip_prefix(images).unwrap_or(path).display().to_string()).collect();
    let names = serde_json::to_string(&names).map_err(|e| TrainError::file(out, e.to_string()))?;
    let tensors = BTreeMap::from([("features".to_string(), features)]);
    stage_tensors(out, &tensors, HashMap::from([("paths".to_string(), names)]))?.persist()?;
    Ok(paths.len())
}
