//! What a run writes down: a record of each step and each epoch in metrics.jsonl, and summary.json. Whatever reads
//! them, to resume, plot, compare or show, reads them by these definitions.

use super::learner::LossParts;
use super::metrics::{EvalMetrics, Probabilities, number};
use crate::clip::config::VisionConfig;
use crate::data::Split;
use serde::{Deserialize, Serialize};

/// A line of metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Record {
    /// At the end of a step.
    Step(StepRecord),
    /// At the end of an epoch.
    Epoch(EpochRecord),
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1 over the whole run.
    pub step: u64,
    /// Counted from 1.
    pub epoch: u32,
    /// Loss, the weighted sum of its parts. This and the norm are null in JSON, here not numbers, where an overflow
    /// left none.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Parts of the loss, before they are weighted.
    #[serde(flatten)]
    pub parts: LossParts,
    /// Length of all gradients as one vector, before it is clipped.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Factor that the loss was multiplied with for the backward pass.
    #[serde(default = "super::metrics::nan", deserialize_with = "number")]
    pub loss_scale: f64,
    /// Whether loss scaling left the trained tensors alone, as a gradient was not finite.
    #[serde(default)]
    pub skipped: bool,
    /// Images of the step by the seconds since the one before, or since the epoch began.
    #[serde(deserialize_with = "number")]
    pub images_per_s: f64,
    /// Learning rate of the head, where one is trained, with the schedule's factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate of the adapters, where some are trained, with the schedule's factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_lora: Option<f64>,
    /// Learning rate of the prompts, where some are trained, with the schedule's factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_prompt: Option<f64>,
}

/// An epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: u32,
    /// On the training images, while they were trained on.
    pub train: TrainRecord,
    /// On the validation split, at the end of the epoch.
    pub val: EvalMetrics,
}

/// Means over the images of an epoch's steps; batches whose loss is not a number are left out of the losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// The objective.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Parts of the loss, before they are weighted.
    #[serde(flatten)]
    pub parts: LossParts,
    /// Fraction of images whose class is the head's first choice, or without a head that of the text logits.
    pub top1: f64,
    /// Fraction of images whose class is the first choice of the text logits.
    pub text_top1: f64,
}

/// Summary of a finished run; the content of summary.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The recipe that the settings started from; any of them may differ from it.
    pub recipe: crate::settings::Recipe,
    /// Number of classes C.
    pub classes: usize,
    /// Elements of all trained tensors.
    pub trained_parameters: usize,
    /// Epochs that ran.
    pub epochs: u32,
    /// The epoch that was kept, counted from 1; [`Settings::keep_by`](crate::settings::Settings::keep_by) says which.
    pub best_epoch: u32,
    /// True where early stopping ended the run.
    pub stopped_early: bool,
    /// The kept epoch on the validation split.
    pub val: EvalMetrics,
    /// The kept epoch on the test split; none where there is no such split.
    pub test: Option<EvalMetrics>,
    /// Plain CLIP on the test split, or on the validation split where there is no test split: its text
    /// logits are the result, its head is untrained.
    pub zero_shot: ZeroShot,
    /// Plain CLIP on the validation split; none in a summary from before it was recorded.
    #[serde(default)]
    pub zero_shot_val: Option<ZeroShot>,
    /// A logistic regression on plain CLIP's features, on the split of the result; none where it was not fitted.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Temperature that the head's logits are divided by before probabilities are taken; none where they are taken as
    /// they are.
    #[serde(default)]
    pub temperature: Option<Temperature>,
    /// Classifiers that were tried, in the recipe that climbs a ladder; none in the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Ladder>,
    /// Wall-clock time of training and validation.
    pub seconds: f64,
    /// Images per second of the training steps alone.
    pub images_per_s: f64,
    /// Whether the text alignment had no part in it, see [`crate::settings::TextAlignment`].
    #[serde(default)]
    pub text_left_out: bool,
    /// A hash of the photos' bytes, labels and splits; none in a summary from before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub photos: Option<String>,
    /// Device that the run ended on, see [`Memory::describe`](crate::backend::Memory::describe).
    pub device: String,
    /// Sizes of the vision tower; none in a summary from before they were recorded.
    #[serde(default)]
    pub vision: Option<VisionSizes>,
}

/// The classifiers that `--recipe auto` tried, from the cheapest on, and the one that it kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// From plain CLIP on, in the order in which they were tried. One that was not worth its time is not among them.
    pub rungs: Vec<Rung>,
    /// The place among them of the one that the run's files hold.
    pub kept: usize,
    /// Why that one was kept, and why others were left out: a sentence or two for people.
    pub reason: String,
}

/// A classifier of the ladder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// Kind of classifier.
    pub kind: RungKind,
    /// Hyperparameters that were chosen for it, for people: "C 31.6, text × 0.5, with crops"; empty where there is no
    /// choice.
    pub chosen: String,
    /// Scores on the validation split; none where the rung was fitted to it.
    pub val: Option<RungScores>,
    /// Scores on the test split; none where there is no such split.
    pub test: Option<RungScores>,
    /// Wall-clock time that it took beyond those before.
    pub seconds: f64,
}

/// The rungs of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RungKind {
    /// The class features of the text tower.
    PlainClip,
    /// A Gaussian for each class on plain CLIP's features, with one covariance; the text logits blended in.
    Discriminant,
    /// A logistic regression on plain CLIP's features, the text logits as an offset.
    LogisticRegression,
    /// The mean of the logits of the two before.
    Mean,
    /// Adapters and head trained from the best head before.
    Lora,
    /// Adapters and head on the way from plain CLIP with the best head to those trained.
    Blend,
    /// The kept one, fitted once more to training and validation images together.
    FinalFit,
}

impl RungKind {
    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            RungKind::PlainClip => "plain CLIP",
            RungKind::Discriminant => "discriminant",
            RungKind::LogisticRegression => "logistic regression",
            RungKind::Mean => "mean of the two",
            RungKind::Lora => "LoRA",
            RungKind::Blend => "blend with plain CLIP",
            RungKind::FinalFit => "final fit",
        }
    }
}

/// How good a rung is, its logits divided by its own temperature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RungScores {
    /// Images that it was measured on.
    pub images: usize,
    /// Fraction of images whose class is the first choice.
    pub top1: f64,
    /// Mean −log probability of the right class, in nats.
    #[serde(deserialize_with = "number")]
    pub nll: f64,
}

/// Sizes that tell one CLIP vision tower from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionSizes {
    /// Blocks.
    pub layers: usize,
    /// Elements of a token.
    pub width: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
}

impl From<&VisionConfig> for VisionSizes {
    fn from(config: &VisionConfig) -> Self {
        VisionSizes {
            layers: config.tower.layers,
            width: config.tower.width,
            patch_size: config.patch_size,
            image_size: config.image_size,
        }
    }
}

/// Plain CLIP's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZeroShot {
    /// "test", or "val" where there is no test split.
    pub split: String,
    /// Images of the split.
    pub images: usize,
    /// Mean cross entropy of the text logits.
    pub loss: f64,
    /// Fraction of images whose class is the first choice.
    pub top1: f64,
    /// Fraction of images whose class is among the first five.
    pub top5: f64,
}

impl ZeroShot {
    pub(super) fn of(split: Split, plain: &EvalMetrics) -> Self {
        ZeroShot {
            split: split.to_string(),
            images: plain.images,
            loss: plain.loss_text,
            top1: plain.text_top1,
            top5: plain.text_top5,
        }
    }
}

/// The results of a logistic regression on plain CLIP's image features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// "test", or "val" where there is no test split.
    pub split: String,
    /// Images of the split.
    pub images: usize,
    /// Fraction of images whose class is the first choice.
    pub top1: f64,
    /// See [`EvalMetrics::macro_f1`].
    pub macro_f1: f64,
    /// Mean −log probability of the right class.
    pub nll: f64,
    /// See [`EvalMetrics::ece`].
    pub ece: f64,
    /// Wall-clock time of fitting it, with the choice of `c`.
    pub seconds: f64,
    /// Inverse strength of its L2 penalty, as in scikit-learn.
    pub c: f64,
}

/// The temperature of the head's probabilities, and what it does to them on the split of the result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// T > 0: probabilities are softmax(logits / T).
    pub value: f64,
    /// At T = 1.
    pub before: Probabilities,
    /// At T = `value`.
    pub after: Probabilities,
    /// Where `after.ece` lies in 95 of 100 cases if the probabilities are right; none where it is not known.
    #[serde(default)]
    pub chance: Option<[f64; 2]>,
}
