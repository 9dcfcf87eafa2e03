//! What a finished run says about photos: the classes with the highest probabilities.

use super::adapter::HeadFile;
use super::decode_ahead::{Photo, PhotoBatch, batch_and_total, decode_ahead};
use super::inference::Extractor;
use super::inference::{TunedTower, TuningFiles};
use super::model::Model;
use super::run_dir::RunDir;
use super::saved_run::{head_of_run, of_one_epoch};
use super::{Result, TrainError};
use crate::backend::{Backend, Classifier, DeviceTensor, Stat, Targets};
use crate::progress::Monitor;
use crate::settings::{Key, Settings};
use crate::tensor::{DType, Tensor};
use std::ops::ControlFlow;
use std::path::Path;

/// A class for a photo.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The number of the class in [`Predictor::class_names`].
    pub class: usize,
    /// Softmax of the head's logits by its temperature, at most 1.
    pub probability: f64,
}

/// Result for one photo.
#[derive(Debug)]
pub struct Predicted<P> {
    /// The photo as it was handed in.
    pub photo: P,
    /// The most probable classes, best first; an error where the photo could not be read.
    pub choices: Result<Vec<Choice>>,
}

/// How [`Predictor::predict`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredictOptions {
    /// Images per batch at the most.
    pub batch: usize,
    /// Classes for each photo; all where there are fewer.
    pub top_k: usize,
}

/// How many photos were dealt with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Photos with a prediction or with an error.
    pub done: usize,
    /// Photos with an error.
    pub failed: usize,
    /// Whether the user asked to stop before the last.
    pub stopped: bool,
}

/// The model of a run, ready to classify photos. The text tower, the training data and the cache are not
/// needed for it.
pub struct Predictor<B: Backend> {
    tuned: TunedTower<B>,
    weight: B::Tensor,
    bias: B::Tensor,
    temperature: f64,
    class_names: Vec<String>,
}

impl<B: Backend> Predictor<B> {
    /// Loads what the run in `dir` trained on `model`; photos are turned as in the run.
    ///
    /// # Errors
    /// A run whose first epoch did not end, files that are damaged, and those of another model.
    pub fn open(backend: B, model: &Model, dir: &RunDir, settings: &Settings) -> Result<Self> {
        let (head, tuned) = of_one_epoch(dir, settings, || {
            let head = head_of_run(dir, model.config.projection)?;
            let tuned = TunedTower::open(backend, model, &TuningFiles::of_run(dir, settings))?;
            Ok((head, tuned.with_orientation(settings.orientation)))
        })?;
        let HeadFile { weight, bias, temperature, class_names } = head;
        let (backend, parameter) = (tuned.backend(), tuned.backend().parameter_dtype());
        let (weight, bias) =
            (backend.upload(weight.view(), parameter)?, backend.upload(bias.view(), parameter)?);
        Ok(Predictor { tuned, weight, bias, temperature, class_names })
    }

    /// In the order of [`Choice::class`].
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Classifies photos and hands the results to `sink` in their order, a batch at a time, until
    /// `sink` breaks off or `monitor` says stop. Some batches at most are in memory at any time, of the list too.
    ///
    /// # Errors
    /// Errors of the device, of `sink` and of the list. A photo that cannot be read is none: `sink` gets its error.
    pub fn predict<P: Photo>(
        &self,
        photos: impl Iterator<Item = Result<P>> + Send,
        options: PredictOptions,
        monitor: &dyn Monitor,
        mut sink: impl FnMut(Vec<Predicted<P>>) -> Result<ControlFlow<()>>,
    ) -> Result<Tally> {
        let (batch, total) = batch_and_total(&photos, options.batch);
        let mut classify = Classify::new(self, batch)?;
        let mut tally = Tally::default();
        let mut deliver = |waiting: Waiting<B, P>| -> Result<ControlFlow<()>> {
            let predicted = waiting.predicted(self, options.top_k)?;
            tally.done += predicted.len();
            tally.failed += predicted.iter().filter(|photo| photo.choices.is_err()).count();
            monitor.advance(predicted.len() as u64);
            sink(predicted)
        };
        let (mut waiting, mut stopped) = (None, false);
        monitor.begin("predicting", total);
        let run = decode_ahead(photos, self.tuned.preprocess(), batch, monitor, |photos| {
            stopped = monitor.stopped();
            if stopped {
                return Ok(ControlFlow::Break(()));
            }
            let next = classify.start(photos)?;
            // One batch behind, so that the device works on the next while this one is looked at.
            let Some(previous) = waiting.replace(next) else { return Ok(ControlFlow::Continue(())) };
            let flow = deliver(previous);
            if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                waiting = None;
            }
            flow
        });
        let last = waiting.map_or(Ok(()), |last| deliver(last).map(|_| ()));
        monitor.finish();
        run.and(last)?;
        Ok(Tally { stopped, ..tally })
    }
}

/// The device's part: memory for batches of one size.
struct Classify<'a, B: Backend> {
    predictor: &'a Predictor<B>,
    extractor: Extractor<'a, B>,
    logits: B::Tensor,
    /// Operands of [`HeadLossOp::head_loss`](crate::backend::HeadLossOp::head_loss) that predictions have no use for.
    labels: B::Tensor,
    others: B::Tensor,
    stats: B::Tensor,
}

impl<'a, B: Backend> Classify<'a, B> {
    fn new(predictor: &'a Predictor<B>, batch: usize) -> Result<Self> {
        let (backend, classes) = (predictor.tuned.backend(), predictor.class_names.len());
        let parameter = backend.parameter_dtype();
        Ok(Classify {
            predictor,
            extractor: predictor.tuned.extractor(batch)?,
            logits: backend.empty([batch, classes], parameter)?,
            labels: backend.zeros([batch], DType::U32)?,
            others: backend.empty([batch, classes], parameter)?,
            stats: backend.zeros([Stat::COUNT], parameter)?,
        })
    }

    /// Sends a batch on its way.
    fn start<P>(&mut self, photos: PhotoBatch<P>) -> Result<Waiting<B, P>> {
        let PhotoBatch { photos, pixels, problems, .. } = photos;
        let rows = pixels.shape().rows();
        let problems = problems.into_iter().map(|problem| problem.map(TrainError::from)).collect();
        if rows == 0 {
            return Ok(Waiting { photos, problems, logits: None });
        }
        let Predictor { tuned, weight, bias, .. } = self.predictor;
        let backend = tuned.backend();
        let features = self.extractor.run(&pixels)?;
        for tensor in [&mut self.logits, &mut self.labels, &mut self.others] {
            tensor.set_rows(rows)?;
        }
        // The operation that evaluation uses, so that logits are the same to the bit. Its second classifier
        // and its losses go unused.
        let classifier = Classifier { weight, bias, text: weight, text_scale: 1.0 };
        let targets = Targets::of(&self.labels);
        let (logits, others) = (&mut self.logits, &mut self.others);
        backend.head_loss(features, classifier, targets, logits, others, &mut self.stats)?;
        Ok(Waiting { photos, problems, logits: Some(backend.fetch(&self.logits)?) })
    }
}

/// A batch whose logits are on their way.
struct Waiting<B: Backend, P> {
    photos: Vec<P>,
    problems: Vec<Option<TrainError>>,
    /// None where no photo of the batch could be read.
    logits: Option<B::Pending>,
}

impl<B: Backend, P: Photo> Waiting<B, P> {
    fn predicted(self, predictor: &Predictor<B>, k: usize) -> Result<Vec<Predicted<P>>> {
        let (backend, temperature) = (predictor.tuned.backend(), predictor.temperature);
        let Waiting { photos, problems, logits } = self;
        let logits = match logits {
            Some(mut pending) => backend.arrived(&mut pending, true)?,
            None => None,
        };
        let logits =
            logits.unwrap_or_else(|| Tensor::zeros([0, 1], DType::F64)).view().to_tensor(DType::F64)?;
        let mut rows = logits.typed::<f64>()?.chunks_exact(logits.shape().columns().max(1));
        let photos = photos.into_iter().zip(problems).map(|(photo, problem)| {
            let choices = match problem {
                Some(problem) => Err(problem),
                None => rows
                    .next()
                    .and_then(|logits| best(logits, temperature, k))
                    .ok_or_else(|| not_finite(photo.path())),
            };
            Predicted { photo, choices }
        });
        Ok(photos.collect())
    }
}

fn not_finite(path: &Path) -> TrainError {
    let flag = Key::precision;
    let problem = format!("the model's logits for it are not numbers; try {flag} f32, or check the run");
    TrainError::file(path, problem)
}

/// The `k` most probable classes by softmax(`logits`/`temperature`), best first, the first of equals first; none
/// where a logit leaves no probability.
fn best(logits: &[f64], temperature: f64, k: usize) -> Option<Vec<Choice>> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|z| ((z - max) / temperature).exp()).sum();
    if !sum.is_finite() {
        return None;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(k);
    let choice =
        |class: usize| Choice { class, probability: ((logits[class] - max) / temperature).exp() / sum };
    Some(order.into_iter().map(choice).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_a_softmax_best_first() {
        let found = best(&[1.0, 3.0, 3.0, -1.0], 1.0, 3).unwrap();
        assert_eq!(found.iter().map(|c| c.class).collect::<Vec<_>>(), [1, 2, 0], "the first of equals first");
        // 1/(2 + e⁻² + e⁻⁴).
        assert!((found[0].probability - 0.464_327_802_489_524_3).abs() < 1e-15, "{found:?}");
        assert_eq!(found[0].probability, found[1].probability);
        assert!((found[2].probability / found[0].probability - (-2.0f64).exp()).abs() < 1e-15);
        let all = best(&[1.0, 3.0, 3.0, -1.0], 1.0, 99).unwrap();
        assert_eq!(all.len(), 4);
        assert!((all.iter().map(|c| c.probability).sum::<f64>() - 1.0).abs() < 1e-15);
        let large = best(&[1000.0, 0.0], 1.0, 2).unwrap();
        assert_eq!((large[0].probability, large[1].probability), (1.0, 0.0));
    }

    #[test]
    fn logits_that_are_no_numbers_give_no_prediction() {
        for bad in [f64::NAN, f64::INFINITY] {
            assert_eq!(best(&[0.0, bad, 1.0], 1.0, 2), None, "{bad}");
        }
        assert_eq!(best(&[f64::NEG_INFINITY; 2], 1.0, 2), None);
        assert_eq!(best(&[0.0, f64::NEG_INFINITY], 1.0, 1).unwrap()[0].probability, 1.0);
    }
}
