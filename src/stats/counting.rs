//! What the photos of a class count, where classes have different numbers of them.

use super::linear::Linear;
use super::temperature::ImageScores;

/// Frequencies of the classes that a classifier is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Photos as they come: classes are as frequent as in training.
    Photos,
    /// Classes that are all equally likely, however many photos there are of each.
    Classes,
}

impl Counting {
    /// Weight of a photo by its class \[C\]; over the photos of `labels` the weights add up to 1.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::logistic::tests::case;
    use crate::stats::temperature::proper_scores;
    use approx::assert_relative_eq;

    /// By scipy: tools/statistics_reference.py.
    #[test]
    fn shares_agree_with_scipy() {
        let ((features, labels), (text, _)) = (case(7), case(5));
        let labels = &labels[..50];
        let priors = Counting::Photos.log_priors(5, labels);
        let of = |f: fn(f64) -> f64| -> Vec<f64> {
            features
                .chunks(7)
                .take(50)
                .flat_map(|row| row[..5].iter().map(move |x| f(*x)).collect::<Vec<_>>())
                .collect()
        };
        let (squares, opposite) = (of(|x| x * x / 5.0), of(|x| -x));
        for (own, counting, expected) in [
            (&squares, Counting::Photos, [0.315953, 0.267733]),
            (&squares, Counting::Classes, [0.304864, 0.287278]),
            // What speaks against the labels has no share.
            (&opposite, Counting::Photos, [0.739575, 0.0]),
            (&opposite, Counting::Classes, [0.759707, 0.0]),
        ] {
            let found = shares([&text[..250], own], &priors, labels, counting);
            found.iter().zip(expected).for_each(|(a, b)| assert_relative_eq!(*a, b, epsilon = 2e-6));
        }
    }

    #[test]
    fn each_photo_or_each_class_counts_the_same() {
        let (logits, labels) = case(5);
        let few: Vec<usize> = (0..60).filter(|i| labels[*i] != 3 || i % 4 == 0).collect();
        let rows: Vec<f64> = few.iter().flat_map(|i| logits[5 * i..5 * (i + 1)].to_vec()).collect();
        let labels: Vec<u32> = few.iter().map(|i| labels[*i]).collect();
        let plain = proper_scores(&rows, 5, &labels, 1.0).nll;
        assert_relative_eq!(nll(&rows, 5, &labels, Counting::Photos), plain, max_relative = 1e-12);
        let of_class = |class: u32| {
            let own: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
            let rows: Vec<f64> = own.iter().flat_map(|i| rows[5 * i..5 * (i + 1)].to_vec()).collect();
            let labels = vec![class; own.len()];
            [nll(&rows, 5, &labels, Counting::Photos), top1(&rows, 5, &labels, Counting::Photos)]
        };
        let all: Vec<[f64; 2]> = (0..5).map(of_class).collect();
        let mean = |k: usize| all.iter().map(|scores| scores[k]).sum::<f64>() / 5.0;
        assert_relative_eq!(nll(&rows, 5, &labels, Counting::Classes), mean(0), max_relative = 1e-12);
        assert_relative_eq!(top1(&rows, 5, &labels, Counting::Classes), mean(1), max_relative = 1e-12);
    }

    #[test]
    fn evening_out_takes_how_frequent_classes_are_from_the_biases() {
        let head = || Linear { weight: vec![0.0; 4], bias: vec![0.0; 2], share: 0.0 };
        let mut even = head();
        Counting::Photos.even_out(&mut even, &[0, 0, 0, 1]);
        assert_eq!(even, head());
        Counting::Classes.even_out(&mut even, &[0, 0, 0, 1]);
        assert_relative_eq!(even.bias[1] - even.bias[0], 3f64.ln(), max_relative = 1e-12);
    }
}
