//! Features of a folder of photos.

use super::adapter::Adapter;
use super::files::stage_tensors;
use super::model::Model;
use super::{Result, TrainError};
use crate::backend::{Backend, BackendError};
use crate::clip::vision::{Purpose, VisionActivations};
use crate::data::{DataError, decode, folder};
use crate::progress::Monitor;
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Writes `features` \[N, E\], f32, rows of length 1, for all photos below `images` in the order of their
/// sorted paths; the paths, relative to `images`, are a JSON list under "paths" in the metadata. Returns N.
///
/// # Errors
/// A photo that cannot be decoded is named; nothing is written then.
pub fn embed<B: Backend>(
    backend: B,
    model: Model,
    adapter: Option<&Path>,
    images: &Path,
    out: &Path,
    batch: usize,
    monitor: &dyn Monitor,
) -> Result<usize> {
    let paths = folder::images_below(images)?;
    let tower = model.vision(&backend)?;
    let mut folded = Vec::new();
    if let Some(dir) = adapter {
        let mut adapter = Adapter::load(dir)?;
        adapter.check(tower.config().tower.layers, tower.config().tower.width)?;
        let lora = tower.adapters(&backend, &adapter.spec.clone(), &mut adapter)?;
        folded = tower.folded(&backend, &lora)?;
        tower.fold(&backend, &lora, &mut folded)?;
    }
    let preprocess = model.preprocess.clone();
    drop(model);
    let (side, width) = (preprocess.image_size(), tower.features());
    let mut activations = VisionActivations::new(&backend, &tower, batch, &[], Purpose::Inference)?;
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
        activations.set_batch(chunk.len())?;
        let part = one_batch(&backend, &tower, &folded, &pixels, &mut activations)?;
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

fn one_batch<B: Backend>(
    backend: &B,
    tower: &crate::clip::vision::VisionTower<B>,
    folded: &[crate::clip::block::FoldedBlock<B>],
    pixels: &Tensor,
    activations: &mut VisionActivations<B>,
) -> std::result::Result<Tensor, BackendError> {
    let pixels = backend.upload(pixels.view(), DType::U8)?;
    tower.infer(backend, &pixels, folded, activations)?;
    Ok(backend.download(&activations.features)?.view().to_tensor(DType::F32)?)
}
