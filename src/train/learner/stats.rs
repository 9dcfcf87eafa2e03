//! The numbers of a batch, a step or an epoch.

use crate::backend::{Backend, Result, Stat};
use crate::objective::Objective;
use crate::tensor::{DType, Tensor};
use crate::train::metrics::{nan, number};
use serde::{Deserialize, Serialize};

/// Defines [`LossParts`]: a line for each part with its place among the backend's numbers and the weight of the
/// [`Objective`] without which there is no such part.
macro_rules! loss_parts {
    ($($(#[$doc:meta])* $name:ident: $stat:ident, $weight:ident;)*) => {
        /// Parts of the loss before they are weighted, and measures of the triplets: means over the images. Not
        /// numbers, and left out of JSON, where a run has no such part or an overflow left none.
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct LossParts {
            $($(#[$doc])* #[serde(skip_serializing_if = "is_unknown", deserialize_with = "number")] pub $name: f64,)*
        }

        impl LossParts {
            const fn all(value: f64) -> Self {
                LossParts { $($name: value),* }
            }

            fn from_stats(stats: &[f64]) -> Self {
                LossParts { $($name: stats[Stat::$stat as usize]),* }
            }

            /// Adds `weight` times the means of other images.
            fn add(&mut self, other: &LossParts, weight: f64) {
                $(self.$name += weight * other.$name;)*
            }

            /// Keeps the parts to which `objective` gives a weight; the others become not numbers.
            pub fn of(&self, objective: &Objective) -> Self {
                LossParts { $($name: if objective.$weight == 0.0 { nan() } else { self.$name }),* }
            }
        }
    };
}

loss_parts! {
    /// Cross entropy of the head.
    loss_head: LossHead, head;
    /// Cross entropy of the text logits.
    loss_text: LossText, text;
    /// Batch-hard triplet loss.
    loss_triplet: LossTriplet, triplet;
    /// Share of the images whose triplet loss is above 0.
    triplets_active: TripletsActive, triplet;
    /// Mean distance of the farthest image of the same class, see [`Stat::DistancePositive`].
    distance_positive: DistancePositive, triplet;
    /// Mean distance of the nearest image of another class.
    distance_negative: DistanceNegative, triplet;
}

fn is_unknown(value: &f64) -> bool {
    !value.is_finite()
}

impl Default for LossParts {
    /// None is known.
    fn default() -> Self {
        LossParts::all(nan())
    }
}

/// Numbers of one batch: losses, counts of right images, and what the optimizer did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// The objective, from the parts below as it weights them; the loss scale is not in it.
    pub loss: f64,
    /// 0 where a part is not computed.
    pub parts: LossParts,
    /// Images whose class is the first choice of the head, or without a head of the text logits; see
    /// [`Stat::Correct`] for mixed ones.
    pub correct: f64,
    /// Images whose class is the first choice of the text logits.
    pub text_correct: f64,
    /// Length of all gradients as one vector.
    pub grad_norm: f64,
    /// Factor that the loss was multiplied with for the backward pass.
    pub loss_scale: f64,
    /// True where a gradient was not finite and loss scaling left the trained tensors alone.
    pub skipped: bool,
}

impl Default for StepStats {
    /// Before anything is added; what the optimizer says is not known.
    fn default() -> Self {
        StepStats {
            loss: 0.0,
            parts: LossParts::all(0.0),
            correct: 0.0,
            text_correct: 0.0,
            grad_norm: f64::NAN,
            loss_scale: f64::NAN,
            skipped: false,
        }
    }
}

impl StepStats {
    /// Adds `weight` times the losses of other images.
    pub(in crate::train) fn add(&mut self, other: &StepStats, weight: f64) {
        self.loss += weight * other.loss;
        self.parts.add(&other.parts, weight);
    }

    pub(super) fn from_tensor(stats: &Tensor, objective: Objective) -> Result<Self> {
        let stats = stats.view().to_tensor(DType::F64)?;
        let stats = stats.typed::<f64>()?;
        let at = |stat: Stat| stats[stat as usize];
        let mut parts = LossParts::from_stats(stats);
        let mut correct = at(Stat::Correct);
        if objective.head == 0.0 {
            // Without a head the images are classified by their text logits.
            (parts.loss_head, correct) = (0.0, at(Stat::TextCorrect));
        }
        Ok(StepStats {
            loss: objective.total(parts.loss_head, parts.loss_text, parts.loss_triplet),
            parts,
            correct,
            text_correct: at(Stat::TextCorrect),
            grad_norm: at(Stat::GradientSquared).sqrt(),
            loss_scale: at(Stat::LossScale),
            skipped: at(Stat::Skipped) != 0.0,
        })
    }
}

/// The numbers of a step, on their way from the device.
pub struct PendingStats<B: Backend> {
    pub(super) pending: B::Pending,
    pub(super) objective: Objective,
}

impl<B: Backend> PendingStats<B> {
    /// The numbers, if they are here; `wait` until they are.
    pub fn arrived(&mut self, backend: &B, wait: bool) -> Result<Option<StepStats>> {
        let stats = backend.arrived(&mut self.pending, wait)?;
        stats.map(|stats| StepStats::from_tensor(&stats, self.objective)).transpose()
    }
}
