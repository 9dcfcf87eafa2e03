//! What is minimised: the head's cross entropy plus a share of the text alignment.

use crate::backend::LossWeights;

/// Weights of the parts of the loss.
///
/// `head`·CE(f·Hᵀ + h, y) + `text`·CE(exp(logit_scale)·f·Tᵀ, y), means over the batch: the second term
/// keeps the features where the text tower finds them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    pub head: f64,
    pub text: f64,
}

impl Objective {
    /// The loss from its parts.
    pub fn total(&self, loss_head: f64, loss_text: f64) -> f64 {
        // A term of weight 0 may be anything, not a number included.
        let term = |weight: f64, loss: f64| if weight == 0.0 { 0.0 } else { weight * loss };
        term(self.head, loss_head) + term(self.text, loss_text)
    }

    pub fn weights(&self) -> LossWeights {
        LossWeights { head: self.head, text: self.text }
    }
}
