//! What is minimised: the head's cross entropy, a share of the text alignment, and what the recipes add.

mod mixup;

pub use mixup::{MixDraw, MixOn};

use crate::backend::LossWeights;

/// How a cross entropy counts the classes of training images.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClassCounts {
    /// Whether every batch says what each class counts.
    pub weighted: bool,
    /// S of label smoothing: a label is 1 − S of its class, and S of all classes alike.
    pub smoothing: f64,
}

/// Weights of the parts of the loss.
///
/// `head`·CE(f·Hᵀ + h, y) + `text`·CE(exp(logit_scale)·f·Tᵀ, y) + `triplet`·(batch-hard triplet loss of f),
/// means over the batch: the second term keeps the features where the text tower finds them, the third
/// pulls those of a class together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Weight of the head's cross entropy; 0 where no head is trained.
    pub head: f64,
    /// Weight of the cross entropy against the text features of the classes.
    pub text: f64,
    /// Weight of the triplet loss; 0 for none.
    pub triplet: f64,
    /// By how much the nearest image of another class should be farther away than the farthest of the same.
    pub margin: f64,
    /// Class weights and smoothing of the head's cross entropy; of the text's where that is what images are classified
    /// by. A term that keeps the features where the text tower finds them is no matter of classes and their number.
    pub counts: ClassCounts,
}

impl Objective {
    /// Cross entropies only.
    pub const fn new(head: f64, text: f64) -> Self {
        let counts = ClassCounts { weighted: false, smoothing: 0.0 };
        Objective { head, text, triplet: 0.0, margin: 0.0, counts }
    }

    /// Replaces how the classes count.
    pub fn with_counts(self, counts: ClassCounts) -> Self {
        Objective { counts, ..self }
    }

    /// `triplet` times the triplet loss, and the rest of the weight for the head: (1 − λ)·CE + λ·triplet.
    pub fn with_triplet(self, triplet: f64, margin: f64) -> Self {
        Objective { head: self.head * (1.0 - triplet), triplet, margin, ..self }
    }

    /// The loss that is reported for images which are not trained on: the cross entropies, the head's in full, in
    /// which all images count alike. It is the same measure for all recipes, and does not depend on which images
    /// share a batch.
    pub fn evaluation(&self) -> Self {
        Objective::new(if self.head == 0.0 { 0.0 } else { 1.0 }, self.text)
    }

    /// The loss from its parts.
    pub fn total(&self, loss_head: f64, loss_text: f64, loss_triplet: f64) -> f64 {
        // A term of weight 0 may be anything, not a number included.
        let term = |weight: f64, loss: f64| if weight == 0.0 { 0.0 } else { weight * loss };
        term(self.head, loss_head) + term(self.text, loss_text) + term(self.triplet, loss_triplet)
    }

    /// The weights of the two cross entropies, which the backend computes as one.
    pub(crate) fn weights(&self) -> LossWeights {
        LossWeights { head: self.head, text: self.text }
    }
}
