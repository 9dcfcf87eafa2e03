//! What a run is trained and evaluated on, and plain CLIP's results on it.

use super::balance;
use super::baseline::{self, Labelled};
use super::shared_model::SharedModel;
use super::state::PlainResult;
use crate::backend::Backend;
use crate::data::Augmentation;
use crate::data::{Cache, DataError, Split};
use crate::data::{classes_below, few_shot};
use crate::progress::Monitor;
use crate::settings::Key;
use crate::settings::{Augment, ClassWeights, Sampler, Settings};
use crate::tensor::Tensor;
use crate::train::batches::{Inputs, evaluate_split, require_numbers};
use crate::train::learner::{Learner, Which};
use crate::train::metrics::Accumulator;
use crate::train::records::Baseline;
use crate::train::{Result, TrainError};
use std::sync::Arc;

/// Training images of a run, or their features.
pub(super) struct Training<'a> {
    pub inputs: Inputs<'a>,
    /// The images that take part.
    pub chosen: Vec<usize>,
    /// How they are augmented, and their side before.
    pub augmentation: Option<(Augmentation, usize)>,
}

impl Training<'_> {
    /// Images that take part, of each class.
    pub fn counts(&self, classes: usize) -> Vec<usize> {
        let labels = self.inputs.labels();
        balance::counts_of(self.chosen.iter().map(|&image| labels[image]), classes)
    }
}

pub(super) struct RunInputs<'a> {
    pub training: Training<'a>,
    pub val: Inputs<'a>,
    pub test: Option<Inputs<'a>>,
    /// Wall-clock time of computing features that stand for images.
    pub seconds: f64,
}

impl<'a, B: Backend> SharedModel<'a, B> {
    /// Refuses images that cannot be learned from, and templates that the class features are not of.
    pub(super) fn check(&self, settings: &Settings) -> Result<()> {
        self.check_templates(&settings.templates)?;
        for split in [Split::Train, Split::Val] {
            if self.cache.split(split).is_empty() {
                let data = settings.data.clone().unwrap_or_default();
                return Err(TrainError::file(&data, format!("the {split} split has no images; add some")));
            }
        }
        Ok(self.cache.split(Split::Train).require_every_class()?)
    }

    /// The training images that take part.
    pub(super) fn chosen(&self, settings: &Settings, monitor: &dyn Monitor) -> Result<Vec<usize>> {
        let images = self.cache.split(Split::Train);
        Ok(match settings.shots {
            Some(shots) => {
                let names = self.cache.class_names();
                if let Some(line) = classes_below(images.labels(), names, shots) {
                    monitor.line(&line);
                }
                few_shot(images.labels(), names, shots, settings.seed)?
            }
            None => (0..images.len()).collect(),
        })
    }

    /// Says how many training images the classes have where they differ, and warns of splits that are too small. Once:
    /// the runs of one model have the same images, unless they take a part of them.
    pub(super) fn say_what_images_there_are(
        &mut self,
        settings: &Settings,
        chosen: &[usize],
        monitor: &dyn Monitor,
    ) {
        let (names, labels) = (self.cache.class_names(), self.cache.split(Split::Train).labels());
        if std::mem::replace(&mut self.images_are_said, true) {
            return;
        }
        let counts = balance::counts_of(chosen.iter().map(|&image| labels[image]), names.len());
        let done = settings.class_weights != ClassWeights::Off || settings.sampler != Sampler::Once;
        if let Some(line) = balance::describe(&counts, names, done) {
            monitor.line(&line);
        }
        if settings.batch_size > chosen.len() {
            monitor.warn(&format!(
                "{}: {} is more than the {} training images, so that an epoch is one step; a smaller one \
                 makes more of them",
                Key::batch_size,
                settings.batch_size,
                chosen.len()
            ));
        }
        let splits = [Split::Val, Split::Test].map(|split| (split.name(), self.cache.split(split).labels()));
        let splits: Vec<_> = splits.into_iter().filter(|(_, labels)| !labels.is_empty()).collect();
        balance::warnings_of_splits(&splits, names).iter().for_each(|warning| monitor.warn(warning));
    }

    /// Larger images to take crops of, where the run augments its images.
    pub(super) fn augmented(&self, settings: &Settings) -> Result<Option<&'a Cache>> {
        match (settings.augment, self.enlarged) {
            (Augment::Off, _) => Ok(None),
            (Augment::CropFlip, Some(images)) => Ok(Some(images)),
            (Augment::CropFlip, None) => {
                let text = "larger training images are needed and were not prepared";
                Err(TrainError::Setting(format!("{}: {text}", Key::augment)))
            }
        }
    }

    /// Plain CLIP's results, unless they are known, and what the run is trained and evaluated on.
    pub(super) fn inputs(
        &mut self,
        settings: &Settings,
        learner: &mut Learner<B>,
        chosen: Vec<usize>,
        (batch, plain): (usize, Option<PlainResult>),
        monitor: &dyn Monitor,
    ) -> Result<(PlainResult, RunInputs<'a>)> {
        let cache = self.cache;
        let plain = match plain {
            Some(plain) => plain,
            None => self.plain(settings, learner, &chosen, batch, monitor)?,
        };
        let mut seconds = 0.0;
        let mut inputs = |model: &mut Self, split: Split, on_features: bool| -> Result<Inputs<'a>> {
            if !on_features {
                return Ok(Inputs::Images(cache.split(split)));
            }
            let features = model.features(learner, split, batch, monitor)?;
            // Training and validation count as they do for runs on images.
            seconds += if split == Split::Test { 0.0 } else { features.seconds };
            let (values, labels) = (features.values.clone(), cache.split(split).labels());
            Ok(Inputs::Features { values, labels, which: Which::Tuned })
        };
        // Where nothing in the tower is trained, only training images can differ from epoch to epoch.
        let frozen = settings.vision_is_frozen();
        let val = inputs(self, Split::Val, frozen)?;
        let test = match cache.split(Split::Test).is_empty() {
            true => None,
            false => Some(inputs(self, Split::Test, frozen)?),
        };
        let training = match self.augmented(settings)? {
            Some(images) => Training {
                inputs: Inputs::Images(images.split(Split::Train)),
                chosen,
                augmentation: settings.augmentation().map(|crops| (crops, images.preprocess().image_size())),
            },
            None => {
                let inputs = inputs(self, Split::Train, settings.on_frozen_features())?;
                Training { inputs, chosen, augmentation: None }
            }
        };
        Ok((plain, RunInputs { training, val, test, seconds }))
    }

    /// Plain CLIP on the split where the final result is measured and on the validation split, and what a logistic
    /// regression makes of its features.
    fn plain(
        &mut self,
        settings: &Settings,
        learner: &mut Learner<B>,
        chosen: &[usize],
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<PlainResult> {
        let cache = self.cache;
        let split = if cache.split(Split::Test).is_empty() { Split::Val } else { Split::Test };
        let sums = self.zero_shot(split, learner, batch, monitor)?;
        let val = match split {
            Split::Val => sums.finish(),
            _ => self.zero_shot(Split::Val, learner, batch, monitor)?.finish(),
        };
        let baseline = match settings.baseline {
            true => self.logistic_regression(settings.seed, learner, chosen, batch, split, monitor)?,
            false => None,
        };
        Ok(PlainResult { metrics: sums.finish(), classes: sums.text_classes(), val, baseline })
    }

    fn zero_shot(
        &mut self,
        split: Split,
        learner: &mut Learner<B>,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Accumulator> {
        let values = self.features(learner, split, batch, monitor)?.values.clone();
        let inputs =
            Inputs::Features { values, labels: self.cache.split(split).labels(), which: Which::Frozen };
        let (task, sums) = (format!("plain CLIP {split}"), learner.accumulator());
        let sums = evaluate_split(learner, &inputs, batch, &task, sums, monitor)?;
        let sums = sums.ok_or(TrainError::Data(DataError::Interrupted))?;
        require_numbers(&sums, self.cache.split(split))?;
        Ok(sums)
    }

    /// Fitted once for runs on the same images with the same seed.
    fn logistic_regression(
        &mut self,
        seed: u64,
        learner: &mut Learner<B>,
        chosen: &[usize],
        batch: usize,
        split: Split,
        monitor: &dyn Monitor,
    ) -> Result<Option<Baseline>> {
        if let Some((known, of_seed, baseline)) = &self.baseline
            && (known.as_slice(), *of_seed) == (chosen, seed)
        {
            return Ok(baseline.clone());
        }
        let cache = self.cache;
        let mut features = |split| -> Result<Arc<Tensor>> {
            Ok(self.features(learner, split, batch, monitor)?.values.clone())
        };
        let [train, val, result] = [features(Split::Train)?, features(Split::Val)?, features(split)?];
        let of = |split, features| Labelled { features, labels: cache.split(split).labels() };
        let classes = cache.class_names().len();
        let (train, val) = (of(Split::Train, &train), of(Split::Val, &val));
        let result = (split.name(), of(split, &result));
        let baseline = baseline::fit(train, chosen, val, result, classes, seed)?;
        monitor.line(&match &baseline {
            Some(Baseline { top1, c, seconds, .. }) => format!(
                "logistic regression on plain CLIP's features: {:.1} % on {split} (C {c:.3}, {seconds:.1} s)",
                100.0 * top1
            ),
            None => "logistic regression on plain CLIP's features: left out, it would take minutes".into(),
        });
        self.baseline = Some((chosen.to_vec(), seed, baseline.clone()));
        Ok(baseline)
    }
}
