//! Which epoch of a run is kept: of those whose validation accuracy is within one standard error of the best,
//! the one with the lowest validation loss.
//!
//! On a validation split of n images an accuracy a has a standard error of √(a(1 − a)/n): differences within it
//! say less than the loss does. What is within it is known at the end of the run alone, so every epoch that may
//! still be chosen stays.

use super::metrics::EvalMetrics;
use crate::tensor::Tensor;

/// An epoch that may be the one to keep.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Counted from 1.
    pub epoch: u32,
    /// Its results on the validation split.
    pub val: EvalMetrics,
    /// Values of all trained tensors, in the order of [`Learner::params`](super::learner::Learner::params).
    pub values: Vec<Tensor>,
}

/// The epochs so far that may be the one to keep, in their order: no other has both a higher accuracy and a
/// lower loss, and none is so much less accurate than the best that it cannot come back.
#[derive(Debug, Clone, Default)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Those of a saved run, as [`Candidates::iter`] gave them.
    pub fn of(candidates: Vec<Candidate>) -> Self {
        Candidates(candidates)
    }

    /// Those that there are, by epoch.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter()
    }

    /// Whether an epoch with these results may be the one to keep: not where an earlier one is at least as good in
    /// both respects, or so much more accurate that the loss does not count.
    pub fn admit(&self, val: &EvalMetrics) -> bool {
        let beaten = |c: &Candidate| c.val.top1 >= val.top1 && c.val.loss <= val.loss;
        self.best().is_none_or(|best| val.top1 >= threshold(best)) && !self.0.iter().any(beaten)
    }

    /// Adds an epoch that is admitted, and drops those that cannot be chosen any more.
    pub fn add(&mut self, candidate: Candidate) {
        let new = &candidate.val;
        self.0.retain(|c| c.val.top1 > new.top1 || c.val.loss < new.loss);
        self.0.push(candidate);
        // An accuracy that rises by an image lowers no threshold.
        let Some(threshold) = self.best().map(threshold) else { return };
        self.0.retain(|c| c.val.top1 >= threshold);
    }

    /// The epoch to keep, as things stand; none before the first.
    pub fn chosen(&self) -> Option<&Candidate> {
        // Whichever is too far from the best is gone.
        self.0.iter().min_by(|a, b| a.val.loss.total_cmp(&b.val.loss))
    }

    /// The same, at the end of a run.
    pub fn into_chosen(self) -> Option<Candidate> {
        self.0.into_iter().min_by(|a, b| a.val.loss.total_cmp(&b.val.loss))
    }

    /// The results with the best accuracy.
    fn best(&self) -> Option<&EvalMetrics> {
        self.0.iter().map(|c| &c.val).max_by(|a, b| a.top1.total_cmp(&b.top1))
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
        let mut candidates = Candidates::default();
        let kept = (1..).zip(epochs).map(|(epoch, &(right, loss))| {
            let val = val(right, loss);
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
