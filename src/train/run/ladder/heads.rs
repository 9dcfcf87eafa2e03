//! The rungs on plain CLIP's features.

use super::{Climb, counting, scores};
use crate::backend::Backend;
use crate::data::{Cache, DataError, Split, SplitView};
use crate::progress::Monitor;
use crate::settings::Settings;
use crate::stats::counting::Counting;
use crate::stats::heads::{Fitted, Material};
use crate::stats::judged::Judged;
use crate::stats::linear::Linear;
use crate::stats::photos::Photos;
use crate::tensor::{DType, Tensor};
use crate::train::Result;
use crate::train::batches::{Behind, Inputs};
use crate::train::learner::Learner;
use crate::train::records::{Rung, RungKind};
use crate::train::run::SharedModel;
use std::time::Instant;

/// Crops of each training photo, beside the photo itself, which counts twice.
pub(super) const CROPS: usize = 6;

/// Training images up to which heads are fitted to crops too: of many, crops say little that others do not.
const MOST_WITH_CROPS: usize = 10_000;

/// Features and labels on the host.
pub(super) struct Numbers {
    /// \[N, E\]
    pub features: Vec<f64>,
    pub labels: Vec<u32>,
    /// Text logits \[N, C\].
    text: Vec<f64>,
    views: usize,
}

impl Numbers {
    pub fn photos(&self) -> Photos<'_> {
        Photos { views: self.views, offset: Some(&self.text), ..Photos::new(&self.features, &self.labels) }
    }
}

impl<B: Backend> SharedModel<'_, B> {
    /// Climbs the rungs that stand on plain CLIP's features, of the training images `chosen`, and chooses the best.
    ///
    /// # Errors
    /// [`DataError::Interrupted`] once `monitor` says stop.
    pub(in crate::train::run) fn climb(
        &mut self,
        settings: &Settings,
        learner: &mut Learner<B>,
        chosen: &[usize],
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Climb> {
        let started = Instant::now();
        let [plain, val] =
            [Split::Train, Split::Val].map(|split| self.numbers(learner, split, batch, monitor));
        let (plain, val) = (plain?.of(chosen), val?);
        let images = plain.labels.len() + val.labels.len();
        let seconds_of_image = started.elapsed().as_secs_f64() / images.max(1) as f64;
        let images = (train as fn(&Cache) -> SplitView<'_>, chosen);
        let views = self.views(settings, &plain, images, learner, batch, monitor)?;
        let seconds = started.elapsed().as_secs_f64();
        let (width, classes) = (self.tower.features(), self.cache.class_names().len());
        let counting = counting(settings);
        let material = Material {
            plain: plain.photos(),
            views: views.as_ref().map(Numbers::photos),
            validation: val.photos(),
            width,
            classes,
            counting,
            seed: settings.seed,
        };
        let heads = material.heads()?;
        let fitted = [
            (RungKind::PlainClip, &heads.text),
            (RungKind::Discriminant, &heads.discriminant),
            (RungKind::LogisticRegression, &heads.logistic),
            (RungKind::Mean, &heads.mean),
        ];
        let judged = |fitted| judged(fitted, &heads.labels, counting);
        let mut best = 0;
        for rung in 1..fitted.len() {
            if judged(fitted[rung].1).is_taken_over(judged(fitted[best].1)) {
                best = rung;
            }
        }
        let rungs = fitted.iter().map(|&(kind, fitted)| Rung {
            kind,
            chosen: fitted.how.describe(),
            val: Some(scores(judged(fitted).first(heads.validation))),
            test: None,
            seconds: fitted.seconds + if kind == RungKind::PlainClip { seconds } else { 0.0 },
        });
        let rungs: Vec<Rung> = rungs.collect();
        let (weights, biases) = self.folded(fitted.iter().map(|(_, fitted)| &fitted.head))?;
        monitor.line(&format!("best head: {}", rungs[best].kind.name()));
        Ok(Climb {
            rungs,
            hows: fitted.iter().map(|(_, fitted)| fitted.how).collect(),
            best,
            held_out: heads.labels.len(),
            crops: views.is_none() || heads.crops_help,
            looks: Vec::new(),
            rate: settings.lr_lora.known(),
            epochs: None,
            look_seconds: 0.0,
            seconds_of_image,
            tensors: Some([weights, biases]),
        })
    }

    /// Plain CLIP's features of a split.
    pub(super) fn numbers(
        &mut self,
        learner: &mut Learner<B>,
        split: Split,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Numbers> {
        let features = self.features(learner, split, batch, monitor)?.values.clone();
        let features = features.view().to_tensor(DType::F64)?.typed::<f64>()?.to_vec();
        self.with_text(features, self.cache.split(split).labels().to_vec(), 1)
    }

    fn with_text(&self, features: Vec<f64>, labels: Vec<u32>, views: usize) -> Result<Numbers> {
        let text = self.text_head()?.logits(&features, None);
        Ok(Numbers { features, labels, text, views })
    }

    /// exp(logit_scale)·T.
    fn text_head(&self) -> Result<Linear> {
        let features = self.text.features.view().to_tensor(DType::F64)?;
        let weight = features.typed::<f64>()?.iter().map(|t| self.text.scale * t).collect();
        Ok(Linear { weight, bias: vec![0.0; self.cache.class_names().len()], share: 0.0 })
    }

    /// Heads with their share of the text logits in the weights: weights \[R·C, E\] and biases \[R, C\].
    pub(super) fn folded<'h>(&self, heads: impl Iterator<Item = &'h Linear>) -> Result<(Tensor, Tensor)> {
        let text = self.text_head()?;
        let (mut weights, mut biases, mut count) = (Vec::new(), Vec::new(), 0);
        for head in heads {
            weights.extend(head.weight.iter().zip(&text.weight).map(|(w, t)| w + head.share * t));
            biases.extend_from_slice(&head.bias);
            count += 1;
        }
        let (width, classes) = (self.tower.features(), text.bias.len());
        let f32s = |shape: [usize; 2], values: &[f64]| -> Result<Tensor> {
            Ok(Tensor::from_slice(shape, values)?.view().to_tensor(DType::F32)?)
        };
        Ok((f32s([count * classes, width], &weights)?, f32s([count, classes], &biases)?))
    }

    /// `plain`, which are those `chosen` of some images, with crops of each; none where the run does not augment its images
    /// or there are too many for it.
    pub(super) fn views(
        &self,
        settings: &Settings,
        plain: &Numbers,
        (images, chosen): (fn(&Cache) -> SplitView<'_>, &[usize]),
        learner: &mut Learner<B>,
        batch: usize,
        monitor: &dyn Monitor,
    ) -> Result<Option<Numbers>> {
        let (Some(enlarged), Some(augmentation)) = (self.augmented(settings)?, settings.augmentation())
        else {
            return Ok(None);
        };
        if chosen.len() > MOST_WITH_CROPS {
            return Ok(None);
        }
        let (width, views) = (self.tower.features(), CROPS + 2);
        let mut features = vec![0.0; chosen.len() * views * width];
        let rows = features.chunks_exact_mut(views * width).zip(plain.features.chunks_exact(width));
        for (of_image, own) in rows {
            of_image[..width].copy_from_slice(own);
            of_image[width..2 * width].copy_from_slice(own);
        }
        let side = enlarged.preprocess().image_size();
        let inputs = Inputs::Images(images(enlarged));
        let mut keep = |(view, part, mut pending): (usize, usize, B::Pending)| -> Result<()> {
            let Some(found) = self.backend.arrived(&mut pending, true)? else { return Ok(()) };
            let found = found.view().to_tensor(DType::F64)?;
            let rows = found.typed::<f64>()?.chunks_exact(width);
            monitor.advance(rows.len() as u64);
            for (i, row) in rows.enumerate() {
                let at = ((part * batch + i) * views + view + 2) * width;
                features[at..at + width].copy_from_slice(row);
            }
            Ok(())
        };
        let mut waiting = Behind::new();
        monitor.begin("features of crops", (chosen.len() * CROPS) as u64);
        for view in 0..CROPS {
            // Crops of their own: those of the epochs are numbered from 1.
            let number = u32::MAX - view as u32;
            for (part, indices) in chosen.chunks(batch).enumerate() {
                if monitor.stopped() {
                    monitor.finish();
                    return Err(DataError::Interrupted.into());
                }
                let host = inputs.batch(indices)?;
                let crops = augmentation.crops(settings.seed, number, indices, side, side)?;
                learner.embed_crops(host.input()?, crops.view(), &host.labels)?;
                if let Some(oldest) = waiting.push((view, part, learner.fetch_features()?)) {
                    keep(oldest)?;
                }
            }
        }
        waiting.rest().try_for_each(keep)?;
        monitor.finish();
        let labels = plain.labels.iter().flat_map(|&label| std::iter::repeat_n(label, views)).collect();
        self.with_text(features, labels, views).map(Some)
    }
}

fn train(cache: &Cache) -> SplitView<'_> {
    cache.split(Split::Train)
}

fn judged<'f>(fitted: &'f Fitted, labels: &'f [u32], counting: Counting) -> Judged<'f> {
    Judged { logits: &fitted.held_out, labels, classes: fitted.head.bias.len(), counting }
}

impl Numbers {
    /// With others behind them.
    pub fn with(mut self, others: Self) -> Self {
        self.features.extend(others.features);
        self.labels.extend(others.labels);
        self.text.extend(others.text);
        self
    }

    /// The images `chosen` of them.
    pub fn of(self, chosen: &[usize]) -> Self {
        let (rows, n) = (self.labels.len(), self.labels.len().max(1));
        let pick = |numbers: &[f64]| -> Vec<f64> {
            let columns = numbers.len() / n;
            chosen
                .iter()
                .filter(|&&i| i < rows)
                .flat_map(|&i| &numbers[i * columns..(i + 1) * columns])
                .copied()
                .collect()
        };
        Numbers {
            features: pick(&self.features),
            text: pick(&self.text),
            labels: chosen.iter().map(|&i| self.labels[i]).collect(),
            views: 1,
        }
    }
}
