//! Features of a folder of photos.

use super::decode_ahead::{Photo, decode_ahead};
use super::inference::TunedTower;
use super::tensor_files::stage_tensors;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::{DataError, images_below};
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

/// How [`embed`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Images per batch at the most.
    pub batch: usize,
    /// Leave out photos that cannot be decoded, instead of stopping at the first.
    pub skip_bad_images: bool,
}

/// Writes `features` \[N, E\], f32, rows of length 1, for all photos below `images` in the order of their
/// sorted paths; the paths, relative to `images`, are a JSON list under "paths" in the metadata. Returns N.
///
/// # Errors
/// A photo that cannot be decoded is named unless such are to be left out; nothing is written then.
pub fn embed<B: Backend>(
    tuned: &TunedTower<B>,
    images: &Path,
    out: &Path,
    options: EmbedOptions,
    monitor: &dyn Monitor,
) -> Result<usize> {
    let (paths, left_out) = images_below(images)?;
    left_out.iter().for_each(|warning| monitor.warn(warning));
    let (embedded, features) = features(tuned, &paths, options, monitor)?;
    if embedded.is_empty() {
        let found = "no readable image in it".into();
        return Err(DataError::NoImages { path: images.to_path_buf(), found }.into());
    }
    let names: Vec<String> =
        embedded.iter().map(|path| path.strip_prefix(images).unwrap_or(path).display().to_string()).collect();
    let names = serde_json::to_string(&names).map_err(|e| TrainError::file(out, e.to_string()))?;
    let tensors = BTreeMap::from([("features".to_string(), features)]);
    stage_tensors(out, &tensors, HashMap::from([("paths".to_string(), names)]))?.persist()?;
    Ok(embedded.len())
}

/// Computes the features of photos: the paths or names \[N\] of those that could be decoded, and their features
/// \[N, E\], f32, rows of length 1.
///
/// # Errors
/// A photo that cannot be decoded is named unless such are to be left out.
pub fn features<'a, B: Backend, P: Photo>(
    tuned: &TunedTower<B>,
    photos: &'a [P],
    options: EmbedOptions,
    monitor: &dyn Monitor,
) -> Result<(Vec<&'a Path>, Tensor)> {
    monitor.begin("features", photos.len() as u64);
    let features = features_of(tuned, photos, options, monitor);
    monitor.finish();
    let (embedded, features) = features?;
    let features = Tensor::from_slice([embedded.len(), tuned.features()], &features)?;
    Ok((embedded, features))
}

/// The photos that could be decoded, and their features one after the other.
fn features_of<'a, B: Backend, P: Photo>(
    tuned: &TunedTower<B>,
    all: &'a [P],
    options: EmbedOptions,
    monitor: &dyn Monitor,
) -> Result<(Vec<&'a Path>, Vec<f32>)> {
    let batch = options.batch.clamp(1, all.len().max(1));
    let mut extractor = tuned.extractor(batch)?;
    let mut embedded = Vec::with_capacity(all.len());
    let mut features = Vec::with_capacity(all.len() * tuned.features());
    decode_ahead(all, tuned.preprocess(), batch, monitor, |photos| {
        if monitor.stopped() {
            return Err(DataError::Interrupted.into());
        }
        let first = embedded.len();
        for (photo, problem) in all[photos.places].iter().zip(photos.problems) {
            match problem {
                None => embedded.push(photo.path()),
                Some(problem) if options.skip_bad_images => monitor.warn(&format!("left out: {problem}")),
                Some(problem) => return Err(DataError::BadImage(Box::new(problem)).into()),
            }
        }
        let count = photos.pixels.shape().rows();
        if count > 0 {
            let part = tuned.backend().download(extractor.run(&photos.pixels)?)?;
            let part = part.view().to_tensor(DType::F32)?;
            if let Some((index, _)) = part.view().first_not_finite() {
                let path = embedded[first + index / tuned.features()];
                let problem = format!(
                    "the model's features for it are not numbers; try {} f32, or check the weights",
                    Key::precision
                );
                return Err(TrainError::file(path, problem));
            }
            features.extend_from_slice(part.typed::<f32>()?);
        }
        monitor.advance(count as u64);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((embedded, features))
}
