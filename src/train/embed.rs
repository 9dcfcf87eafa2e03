//! Features of photos.

use super::decode_ahead::{Photo, batch_and_total, decode_ahead};
use super::inference::TunedTower;
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::data::DataError;
use crate::progress::Monitor;
use crate::settings::Key;
use crate::tensor::{DType, Tensor};
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

/// The features \[E\] of a photo, or why it has none.
pub type Row<'a> = std::result::Result<&'a [f32], String>;

/// Computes the features of photos and hands them to `sink` in their order, a batch at a time: each photo with its row
/// \[E\], of length 1, or why it cannot be decoded where such are to be left out. Some batches at most are in memory
/// at any time, of the list too.
///
/// # Errors
/// A photo that cannot be decoded is named unless such are to be left out. Features that are no numbers, errors of
/// `sink`, of the list and of the device; the user's wish to stop.
pub fn embed<B: Backend, P: Photo>(
    tuned: &TunedTower<B>,
    photos: impl Iterator<Item = Result<P>> + Send,
    options: EmbedOptions,
    monitor: &dyn Monitor,
    sink: impl FnMut(&[(P, Row<'_>)]) -> Result<()>,
) -> Result<()> {
    let (batch, total) = batch_and_total(&photos, options.batch);
    monitor.begin("features", total);
    let embedded = batches(tuned, photos, EmbedOptions { batch, ..options }, monitor, sink);
    monitor.finish();
    embedded
}

fn batches<B: Backend, P: Photo>(
    tuned: &TunedTower<B>,
    photos: impl Iterator<Item = Result<P>> + Send,
    options: EmbedOptions,
    monitor: &dyn Monitor,
    mut sink: impl FnMut(&[(P, Row<'_>)]) -> Result<()>,
) -> Result<()> {
    let mut extractor = tuned.extractor(options.batch)?;
    decode_ahead(photos, tuned.preprocess(), options.batch, monitor, |decoded| {
        if monitor.stopped() {
            return Err(DataError::Interrupted.into());
        }
        for problem in decoded.problems.iter().flatten().filter(|_| options.skip_bad_images) {
            monitor.warn(&format!("left out: {problem}"));
        }
        let features = match decoded.pixels.shape().rows() {
            0 => Tensor::zeros([0, tuned.features()], DType::F32),
            _ => {
                let features = tuned.backend().download(extractor.run(&decoded.pixels)?)?;
                features.view().to_tensor(DType::F32)?
            }
        };
        let mut rows = features.typed::<f32>()?.chunks_exact(tuned.features());
        let count = decoded.photos.len();
        let photos = decoded.photos.into_iter().zip(decoded.problems).map(|(photo, problem)| match problem {
            Some(problem) if options.skip_bad_images => Ok((photo, Err(problem.to_string()))),
            Some(problem) => Err(DataError::BadImage(Box::new(problem)).into()),
            None => {
                let row = rows.next().filter(|row| row.iter().all(|x| x.is_finite()));
                let row = row.ok_or_else(|| not_finite(photo.path()))?;
                Ok((photo, Ok(row)))
            }
        });
        sink(&photos.collect::<Result<Vec<_>>>()?)?;
        monitor.advance(count as u64);
        Ok(ControlFlow::Continue(()))
    })
}

fn not_finite(path: &Path) -> TrainError {
    let flag = Key::precision;
    let problem =
        format!("the model's features for it are not numbers; try {flag} f32, or check the weights");
    TrainError::file(path, problem)
}
