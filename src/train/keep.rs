//! Which epoch of a run is kept: by default, of those whose validation accuracy is within one standard error of the
//! best, the one with the lowest validation loss.
//!
//! On a validation split of n images an accuracy a has a standard error of √(a(1 − a)/n): differences within it
//! say less than the loss does. What is within it is known at the end of the run alone, so every epoch that may
//! still be chosen stays.

use super::metrics::EvalMetrics;
pub use crate::settings::KeepBy;
use crate::tensor::Tensor;
use std::cmp::Ordering;

impl KeepBy {
    /// Which of two epochs is kept: less is better. By [`KeepBy::OneSe`] of two whose accuracies do not differ.
    fn compare(self, a: &EvalMetrics, b: &EvalMetrics) -> Ordering {
        let first = match self {
            KeepBy::Accuracy => b.top1.total_cmp(&a.top1),
            KeepBy::MacroF1 => b.macro_f1.total_cmp(&a.macro_f1),
            KeepBy::OneSe | KeepBy::Loss => Ordering::Equal,
        };
        first.then(a.loss.total_cmp(&b.loss))
    }
}

/// An epoch that may be the one to keep.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// Counted from 1.
    pub epoch: u32,
    /// Its results on the validation split.
    pub val: EvalMetrics,
    /// Values of all trained tensors, in the order of [`Learner::params`](super::learner::Learner::params).
    pub values: Vec<Tensor>,
}

/// The epochs so far that may be the one to keep, in their order. By [`KeepBy::OneSe`] no other has both a higher
/// accuracy and a lower loss, and none is so much less accurate than the best that it cannot come back; by the others
/// it is the best alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    by: KeepBy,
    epochs: Vec<Candidate>,
}

impl Candidates {
    /// None so far, or those of a saved run as [`Candidates::iter`] gave them.
    pub fn new(by: KeepBy, epochs: Vec<Candidate>) -> Self {
        Candidates { by, epochs }
    }

    /// Iterates over the candidates, the earliest epoch first.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.epochs.iter()
    }

    /// Whether an epoch with these results may be the one to keep: not where an earlier one is at least as good, for
    /// [`KeepBy::OneSe`] in both respects or so much more accurate that the loss does not count.
    pub(crate) fn admit(&self, val: &EvalMetrics) -> bool {
        let beaten = |c: &Candidate| match self.by {
            KeepBy::OneSe => c.val.top1 >= val.top1 && c.val.loss <= val.loss,
            by => by.compare(&c.val, val) != Ordering::Greater,
        };
        let in_reach = |best| self.by != KeepBy::OneSe || val.top1 >= threshold(best);
        self.best().is_none_or(in_reach) && !self.epochs.iter().any(beaten)
    }

    /// Adds an epoch that is admitted, and drops those that cannot be chosen any more.
    pub fn add(&mut self, candidate: Candidate) {
        let new = &candidate.val;
        if self.by != KeepBy::OneSe {
            self.epochs.clear();
        }
        self.epochs.retain(|c| c.val.top1 > new.top1 || c.val.loss < new.loss);
        self.epochs.push(candidate);
        // An accuracy that rises by an image lowers no threshold.
        let Some(threshold) = self.best().map(threshold) else { return };
        self.epochs.retain(|c| c.val.top1 >= threshold);
    }

    /// The epoch to keep, as things stand; none before the first.
    pub fn chosen(&self) -> Option<&Candidate> {
        // Whichever is too far from the best is gone.
        self.epochs.iter().min_by(|a, b| self.by.compare(&a.val, &b.val))
    }

    /// Moves the epoch to keep out of the candidates, at the end of a run.
    pub(crate) fn into_chosen(self) -> Option<Candidate> {
        self.epochs.into_iter().min_by(|a, b| self.by.compare(&a.val, &b.val))
    }

    /// The results with the best accuracy.
    fn best(&self) -> Option<&EvalMetrics> {
        self.epochs.iter().map(|c| &c.val).max_by(|a, b| a.top1.total_cmp(&b.top1))
    }
}

/// The least accuracy that is within one standard error of that of `best`.
fn threshold(best: &EvalMetrics) -> f64 {
    let (accuracy, images) = (best.top1, best.images.max(1) as f64);
    // The margin is for the rounding of equal ones.
    accuracy - (accuracy * (1.0 - accuracy) / images).sqrt() - 1e-12
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Objective;
    use crate::train::metrics::Accumulator;
    use rand::RngExt;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    const IMAGES: u32 = 100;

    fn val(right: u32, loss: f64) -> EvalMetrics {
        let empty = Accumulator::new(2, Objective::new(1.0, 0.0)).finish();
        EvalMetrics { images: IMAGES as usize, top1: f64::from(right) / f64::from(IMAGES), loss, ..empty }
    }

    /// The epoch kept after each of a run's epochs, of which right images and losses are given.
    fn run(epochs: &[(u32, f64)]) -> (Vec<u32>, Candidates) {
        let results: Vec<_> = epochs.iter().map(|&(right, loss)| val(right, loss)).collect();
        run_by(KeepBy::OneSe, &results)
    }

    fn run_by(by: KeepBy, epochs: &[EvalMetrics]) -> (Vec<u32>, Candidates) {
        let mut candidates = Candidates::new(by, Vec::new());
        let kept = (1..).zip(epochs).map(|(epoch, val)| {
            let val = val.clone();
            if candidates.admit(&val) {
                candidates.add(Candidate { epoch, val, values: Vec::new() });
            }
            candidates.chosen().unwrap().epoch
        });
        (kept.collect(), candidates)
    }

    #[test]
    fn among_accuracies_that_do_not_differ_the_lowest_loss_is_kept() {
        // 90 of 100 have a standard error of 3.
        assert_eq!(run(&[(90, 0.5), (87, 0.4), (86, 0.1), (88, 0.45)]).0, [1, 2, 2, 2]);
        // Of equals the first.
        assert_eq!(run(&[(80, 0.5), (80, 0.5)]).0, [1, 1]);
    }

    #[test]
    fn an_epoch_that_was_passed_over_is_kept_once_the_one_before_it_falls_behind() {
        // The second is within 2.2 of the last, the first is not, and its loss is the lower.
        let (kept, candidates) = run(&[(92, 0.50), (93, 0.55), (95, 0.60)]);
        assert_eq!(kept, [1, 1, 2]);
        assert_eq!(candidates.iter().map(|c| c.epoch).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn other_rules_keep_the_best_by_what_they_are_named_for() {
        let val = |right, macro_f1, loss| EvalMetrics { macro_f1, ..val(right, loss) };
        let epochs =
            [val(80, 0.5, 0.9), val(82, 0.6, 0.4), val(82, 0.7, 0.5), val(81, 0.7, 0.3), val(82, 0.6, 0.4)];
        assert_eq!(run_by(KeepBy::Accuracy, &epochs).0, [1, 2, 2, 2, 2]);
        assert_eq!(run_by(KeepBy::MacroF1, &epochs).0, [1, 2, 3, 4, 4]);
        assert_eq!(run_by(KeepBy::Loss, &epochs).0, [1, 2, 2, 4, 4]);
        for by in [KeepBy::Accuracy, KeepBy::MacroF1, KeepBy::Loss] {
            assert_eq!(run_by(by, &epochs).1.iter().count(), 1, "{by:?}");
        }
    }

    /// The rule itself, over all epochs.
    fn by_definition(epochs: &[(u32, f64)]) -> u32 {
        let n = f64::from(IMAGES);
        let best = f64::from(epochs.iter().map(|e| e.0).max().unwrap()) / n;
        let error = (best * (1.0 - best) / n).sqrt();
        let near = (1..).zip(epochs).filter(|(_, e)| f64::from(e.0) / n >= best - error - 1e-12);
        let lowest = |a: &(u32, &(u32, f64)), b: &(u32, &(u32, f64))| {
            // The most accurate, then the first, of equal losses.
            a.1.1.total_cmp(&b.1.1).then(b.1.0.cmp(&a.1.0))
        };
        near.min_by(lowest).unwrap().0
    }

    #[test]
    fn what_is_dropped_on_the_way_would_not_have_been_kept() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for length in 1..400 {
            let top = rng.random_range(1..=IMAGES);
            let bottom = rng.random_range(0..top);
            let draw = |_| (rng.random_range(bottom..=top), f64::from(rng.random_range(0..30)) / 10.0);
            let epochs: Vec<(u32, f64)> = (0..length % 40 + 1).map(draw).collect();
            assert_eq!(*run(&epochs).0.last().unwrap(), by_definition(&epochs), "{epochs:?}");
        }
    }
}
