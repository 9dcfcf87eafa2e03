//! Which of two classifiers is better by photos that neither was fitted to.

use super::counting::{Counting, nll, top1};
use super::temperature::ImageScores;

/// Logits of held-out photos, over their temperature, and their labels.
#[derive(Clone, Copy)]
pub(crate) struct Judged<'a> {
    pub logits: &'a [f64],
    pub labels: &'a [u32],
    pub classes: usize,
    pub counting: Counting,
}

impl Judged<'_> {
    /// The first so many of the photos.
    pub fn first(self, count: usize) -> Self {
        Judged { logits: &self.logits[..count * self.classes], labels: &self.labels[..count], ..self }
    }

    pub fn nll(self) -> f64 {
        nll(self.logits, self.classes, self.labels, self.counting)
    }

    pub fn top1(self) -> f64 {
        top1(self.logits, self.classes, self.labels, self.counting)
    }

    /// The standard error of an accuracy on so many photos.
    fn error_of(self, accuracy: f64) -> f64 {
        (accuracy * (1.0 - accuracy) / self.labels.len().max(1) as f64).sqrt()
    }

    /// Whether its accuracy is lower than another's by more than one standard error of that.
    fn is_less_accurate(self, than: Judged<'_>) -> bool {
        // The margin is for the rounding of equal ones.
        self.top1() < than.top1() - than.error_of(than.top1()) - 1e-12
    }

    /// Whether a rung is taken over the one below: its NLL is lower, and its accuracy not lower beyond one standard error.
    pub fn is_taken_over(self, below: Judged<'_>) -> bool {
        self.nll() < below.nll() && !self.is_less_accurate(below)
    }

    /// Whether a rung is worse than another beyond noise: its accuracy by more than one standard error, or its NLL by
    /// more than that of the mean difference of the photos.
    pub fn hurts(self, beside: Judged<'_>) -> bool {
        let each = |judged: Judged<'_>| -> Vec<f64> {
            let rows = judged.logits.chunks_exact(judged.classes).zip(judged.labels);
            rows.map(|(row, &label)| ImageScores::of(row, label as usize, 1.0).map_or(f64::NAN, |s| s.nll))
                .collect()
        };
        let gaps: Vec<f64> = each(self).iter().zip(each(beside)).map(|(a, b)| a - b).collect();
        let n = gaps.len().max(1) as f64;
        let mean = gaps.iter().sum::<f64>() / n;
        let variance = gaps.iter().map(|gap| (gap - mean) * (gap - mean)).sum::<f64>() / (n - 1.0).max(1.0);
        let gap = self.nll() - beside.nll();
        // What is no number is no better.
        let is_worse = gap.is_nan() || gap > (variance / n).sqrt();
        is_worse || self.is_less_accurate(beside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes; the logit of class 0 beside that of class 1.
    fn judged<'a>(logits: &'a [f64], labels: &'a [u32]) -> Judged<'a> {
        Judged { logits, labels, classes: 2, counting: Counting::Photos }
    }

    fn logits(margins: &[f64], labels: &[u32]) -> Vec<f64> {
        margins.iter().zip(labels).flat_map(|(m, &y)| if y == 0 { [*m, 0.0] } else { [0.0, *m] }).collect()
    }

    #[test]
    fn a_rung_is_taken_for_a_lower_nll_unless_it_is_less_accurate() {
        let labels: Vec<u32> = (0..100).map(|i| i % 2).collect();
        let unsure = logits(&[0.5; 100], &labels);
        let sure = logits(&[3.0; 100], &labels);
        assert!(judged(&sure, &labels).is_taken_over(judged(&unsure, &labels)));
        assert!(!judged(&unsure, &labels).is_taken_over(judged(&sure, &labels)));
        assert!(!judged(&sure, &labels).is_taken_over(judged(&sure, &labels)));
        // A tenth wrong by a little: the NLL is lower, the accuracy is not within an error of 90 of 100 right.
        let margins =
            |wrong: usize| -> Vec<f64> { (0..100).map(|i| if i < wrong { -0.1 } else { 2.0 }).collect() };
        let [few, many] = [margins(10), margins(20)].map(|margins| logits(&margins, &labels));
        let below = logits(&(0..100).map(|i| if i < 10 { -6.0 } else { 2.0 }).collect::<Vec<_>>(), &labels);
        assert!(judged(&few, &labels).is_taken_over(judged(&below, &labels)));
        assert!(judged(&many, &labels).nll() < judged(&below, &labels).nll());
        assert!(!judged(&many, &labels).is_taken_over(judged(&below, &labels)));
    }

    #[test]
    fn what_is_worse_within_the_noise_does_not_hurt() {
        let labels: Vec<u32> = (0..100).map(|i| i % 2).collect();
        let plain = logits(&[1.0; 100], &labels);
        // Up and down from photo to photo, which costs more than it brings.
        let noisy = |mean: f64| {
            let margins: Vec<f64> =
                (0..100).map(|i| 1.0 + mean + if i % 4 < 2 { 0.5 } else { -0.5 }).collect();
            logits(&margins, &labels)
        };
        assert!(judged(&noisy(0.06), &labels).nll() > judged(&plain, &labels).nll());
        assert!(!judged(&noisy(0.06), &labels).hurts(judged(&plain, &labels)));
        assert!(judged(&noisy(-0.3), &labels).hurts(judged(&plain, &labels)));
        assert!(!judged(&noisy(0.3), &labels).hurts(judged(&plain, &labels)));
        let nothing = vec![f64::NAN; 200];
        assert!(judged(&nothing, &labels).hurts(judged(&plain, &labels)));
    }

    #[test]
    fn classes_count_alike_where_that_is_asked_for() {
        // Nine photos of class 0, all right; one of class 1, wrong.
        let labels = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let margins: Vec<f64> = labels.iter().map(|y| if *y == 0 { 1.0 } else { -1.0 }).collect();
        let logits = logits(&margins, &labels);
        let photos = judged(&logits, &labels);
        let classes = Judged { counting: Counting::Classes, ..photos };
        assert!((photos.top1() - 0.9).abs() < 1e-12 && (classes.top1() - 0.5).abs() < 1e-12);
    }
}
