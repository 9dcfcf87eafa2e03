//! What the photos of a class count, where classes have different numbers of them.

use super::linear::Linear;
use super::temperature::ImageScores;

/// What a classifier is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Photos as they come: classes are as frequent as in training.
    Photos,
    /// Classes that are all equally likely, however many photos there are of each.
    Classes,
}

impl Counting {
    /// What a photo of each class counts \[C\] beside `labels`; the sum over these is 1.
    fn weights(self, classes: usize, labels: &[u32]) -> Vec<f64> {
        let counts = counts(classes, labels);
        let present = counts.iter().filter(|count| **count > 0.0).count().max(1) as f64;
        match self {
            Counting::Photos => vec![1.0 / labels.len().max(1) as f64; classes],
            Counting::Classes => counts.iter().map(|count| 1.0 / (present * count.max(1.0))).collect(),
        }
    }

    /// Logarithms of how likely the classes are before a photo is seen \[C\], by those of `labels` or all alike.
    pub fn log_priors(self, classes: usize, labels: &[u32]) -> Vec<f64> {
        match self {
            Counting::Photos => {
                let n = labels.len() as f64;
                counts(classes, labels).iter().map(|count| (count.max(0.5) / n).ln()).collect()
            }
            Counting::Classes => vec![0.0; classes],
        }
    }

    /// Makes a classifier that was fitted to photos of `labels` good for classes that are all equally likely, where that
    /// is asked for (Menon et al. 2021, "Long-tail learning via logit adjustment").
    pub fn even_out(self, head: &mut Linear, labels: &[u32]) {
        if self == Counting::Classes {
            let priors = Counting::Photos.log_priors(head.bias.len(), labels);
            head.bias.iter_mut().zip(priors).for_each(|(bias, prior)| *bias -= prior);
        }
    }
}

fn counts(classes: usize, labels: &[u32]) -> Vec<f64> {
    let mut counts = vec![0.0; classes];
    labels.iter().for_each(|&label| counts[label as usize] += 1.0);
    counts
}

/// NLL of softmax(logits) \[N,C\] in nats: the mean over the photos, or over the classes of their means. Not a number
/// where logits leave a photo no probability.
pub(crate) fn nll(logits: &[f64], classes: usize, labels: &[u32], counting: Counting) -> f64 {
    let weights = counting.weights(classes, labels);
    let rows = logits.chunks_exact(classes).zip(labels);
    rows.map(|(row, &label)| {
        let scores = ImageScores::of(row, label as usize, 1.0);
        scores.map_or(f64::NAN, |scores| weights[label as usize] * scores.nll)
    })
    .sum()
}

/// Fraction of the photos, or mean over the classes of theirs, whose class has the greatest logit.
pub(crate) fn top1(logits: &[f64], classes: usize, labels: &[u32], counting: Counting) -> f64 {
    let rows = logits.chunks_exact(classes).zip(labels);
    let right = rows.filter(|(row, label)| first_choice(row) == **label as usize).map(|(_, &label)| label);
    match counting {
        // As it is counted elsewhere, to the bit.
        Counting::Photos => right.count() as f64 / labels.len().max(1) as f64,
        Counting::Classes => {
            let weights = counting.weights(classes, labels);
            right.map(|label| weights[label as usize]).sum()
        }
    }
}

/// The first of the greatest.
fn first_choice(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best })
}

/// Shares a ≥ 0 with the least NLL of softmax(Σ a_k·parts_k + offset) plus ½·1e-4·|a|², for logits `parts` \[N,C\] and an
/// `offset` \[C\]. The problem is convex; where a share would be negative it is 0.
pub(crate) fn shares(parts: [&[f64]; 2], offset: &[f64], labels: &[u32], counting: Counting) -> [f64; 2] {
    let classes = offset.len();
    let problem = Shares { parts, offset, labels, weights: counting.weights(classes, labels) };
    let either =
        [[true, true], [true, false], [false, true], [false, false]].map(|free| problem.minimum(free));
    let within = either.into_iter().filter(|(shares, _)| shares.iter().all(|share| *share >= 0.0));
    within.min_by(|a, b| a.1.total_cmp(&b.1)).map_or([0.0; 2], |(shares, _)| shares)
}

struct Shares<'a> {
    parts: [&'a [f64]; 2],
    offset: &'a [f64],
    labels: &'a [u32],
    /// By class.
    weights: Vec<f64>,
}

const RIDGE: f64 = 1e-4;

impl Shares<'_> {
    /// The least value over the shares that are `free`, the others 0.
    fn minimum(&self, free: [bool; 2]) -> ([f64; 2], f64) {
        let mut at = [0.0; 2];
        let (mut value, mut gradient, mut hessian) = self.local(at);
        for _ in 0..100 {
            let [[a, b], [_, d]] = hessian;
            let step = match free {
                [true, true] => {
                    let det = a * d - b * b;
                    [(b * gradient[1] - d * gradient[0]) / det, (b * gradient[0] - a * gradient[1]) / det]
                }
                [true, false] => [-gradient[0] / a, 0.0],
                [false, true] => [0.0, -gradient[1] / d],
                [false, false] => break,
            };
            let slope = step[0] * gradient[0] + step[1] * gradient[1];
            let mut length = 1.0;
            let moved = loop {
                let next = [0, 1].map(|k| at[k] + length * step[k]);
                let there = self.local(next);
                if there.0 <= value + 1e-4 * length * slope {
                    break Some((next, there));
                }
                length *= 0.5;
                if length < 1e-9 {
                    break None;
                }
            };
            let Some((next, there)) = moved else { break };
            at = next;
            (value, gradient, hessian) = there;
            if slope.abs() < 1e-14 {
                break;
            }
        }
        (at, value)
    }

    /// Value, gradient and second derivatives.
    fn local(&self, at: [f64; 2]) -> (f64, [f64; 2], [[f64; 2]; 2]) {
        let classes = self.offset.len();
        let mut value = 0.5 * RIDGE * (at[0] * at[0] + at[1] * at[1]);
        let mut gradient = at.map(|share| RIDGE * share);
        let mut hessian = [[RIDGE, 0.0], [0.0, RIDGE]];
        let mut row = vec![0.0; classes];
        for (i, &label) in self.labels.iter().enumerate() {
            let parts = self.parts.map(|part| &part[i * classes..(i + 1) * classes]);
            for (c, z) in row.iter_mut().enumerate() {
                *z = at[0] * parts[0][c] + at[1] * parts[1][c] + self.offset[c];
            }
            let (weight, label) = (self.weights[label as usize], label as usize);
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let right = row[label] - max;
            row.iter_mut().for_each(|z| *z = (*z - max).exp());
            let sum: f64 = row.iter().sum();
            value += weight * (sum.ln() - right);
            let mean =
                |of: &dyn Fn(usize) -> f64| row.iter().enumerate().map(|(c, p)| p * of(c)).sum::<f64>() / sum;
            let means = [0, 1].map(|k| mean(&|c| parts[k][c]));
            for k in 0..2 {
                gradient[k] += weight * (means[k] - parts[k][label]);
                for l in k..2 {
                    let bend = mean(&|c| (parts[k][c] - means[k]) * (parts[l][c] - means[l]));
                    hessian[k][l] += weight * bend;
                }
            }
        }
        (value, gradient, hessian)
    }
}
