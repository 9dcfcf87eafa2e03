//! Stopping when the validation loss no longer falls.

use serde::{Deserialize, Serialize};

/// Loss that an epoch's validation loss is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopAgainst {
    /// The lowest loss so far.
    Best,
    /// The loss of the epoch before.
    Previous,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStopSpec {
    /// Epochs in a row without an improvement, after which the run ends.
    pub patience: u32,
    /// By how much the loss must fall to count as an improvement.
    pub min_delta: f64,
    /// Loss that an epoch's loss must fall below by `min_delta`.
    pub against: StopAgainst,
}

/// The state of early stopping; all of it goes into a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStop {
    spec: EarlyStopSpec,
    /// The loss that the next epoch is compared with.
    pub reference: Option<f64>,
    /// Epochs in a row without an improvement.
    pub stale: u32,
}

impl EarlyStop {
    /// The state before the first epoch, which is an improvement whatever its loss, unless that is not a number.
    pub fn new(spec: EarlyStopSpec) -> Self {
        EarlyStop { spec, reference: None, stale: 0 }
    }

    /// Takes in an epoch's validation loss; true when the run should end. A loss that is not a number is
    /// no improvement.
    pub fn update(&mut self, loss: f64) -> bool {
        let improved = match self.reference {
            Some(reference) => loss < reference - self.spec.min_delta,
            None => !loss.is_nan(),
        };
        self.stale = if improved { 0 } else { self.stale + 1 };
        self.reference = match (self.spec.against, self.reference) {
            (_, reference) if loss.is_nan() => reference,
            (StopAgainst::Best, Some(reference)) => Some(reference.min(loss)),
            _ => Some(loss),
        };
        self.stale >= self.spec.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(against: StopAgainst, losses: &[f64]) -> Option<usize> {
        let mut stop = EarlyStop::new(EarlyStopSpec { patience: 3, min_delta: 0.02, against });
        losses.iter().position(|&loss| stop.update(loss))
    }

    #[test]
    fn stops_after_three_epochs_without_enough_improvement() {
        let losses = [1.0, 0.5, 0.49, 0.489, 0.485, 0.1];
        assert_eq!(run(StopAgainst::Best, &losses), Some(4));
        assert_eq!(run(StopAgainst::Best, &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]), None);
    }

    #[test]
    fn small_improvements_do_not_add_up_against_the_best() {
        // Each step is under the minimum, so the best moves without the run counting as improving.
        let losses = [1.0, 0.99, 0.98, 0.97];
        assert_eq!(run(StopAgainst::Best, &losses), Some(3));
    }

    #[test]
    fn against_the_previous_epoch_a_recovery_counts() {
        let losses = [1.0, 1.5, 1.2, 1.6, 1.3, 1.7];
        assert_eq!(run(StopAgainst::Previous, &losses), None);
        assert_eq!(run(StopAgainst::Best, &losses), Some(3));
    }

    #[test]
    fn not_a_number_is_no_improvement() {
        assert_eq!(run(StopAgainst::Best, &[1.0, f64::NAN, f64::NAN, f64::NAN]), Some(3));
        assert_eq!(run(StopAgainst::Previous, &[f64::NAN, f64::NAN, f64::NAN, 1.0]), Some(2));
    }
}
