//! The temperature that logits are divided by, so that their softmax can be taken as probabilities (Guo et al. 2017,
//! "On Calibration of Modern Neural Networks"), and the proper scores that show what it did.

/// The standard deviation of ln T for `prior` of [`fit_temperature`] that is good for any number of images. Mean NLL
/// above that of the right temperature, and the worst of 14 heads' (logistic regressions on photos of five flowers,
/// and synthetic ones of 5 and 102 classes, with logits too small by 0.05 or too great by 3 and between), 20 draws:
///
/// | images | T = 1 | likelihood alone | 0.5 | 1 | 2 |
/// |---:|---|---|---|---|---|
/// | 5 | 1.28, 9.78 | 11.6, 111 | 0.34, 1.38 | 0.14, 0.30 | 0.14, 0.32 |
/// | 10 | | 0.08, 0.14 | 0.17, 0.66 | 0.07, 0.15 | 0.07, 0.14 |
/// | 20 | | 0.03, 0.08 | 0.09, 0.30 | 0.03, 0.08 | 0.03, 0.08 |
/// | 60 | | 0.01, 0.01 | 0.02, 0.05 | 0.01, 0.01 | 0.01, 0.01 |
pub(crate) const PRIOR: f64 = 1.0;

/// Standard errors of ln T that [`cautious_temperature`] is above the likeliest: the epoch was chosen by the same
/// photos, so that they are easier for it than others, the more so the fewer they are. Confidence less accuracy on the
/// test split, the mean over 84 runs of six recipes on the demo and on 300 photos of five flowers:
///
/// | standard errors | demo | photos |
/// |---:|---:|---:|
/// | 0 | 1.4 % | 2.3 % |
/// | 0.5 | 0.6 % | 0.0 % |
const CAUTION: f64 = 0.5;

/// Bounds of the temperature.
const RANGE: (f64, f64) = (1e-3, 1e3);
/// Steps of ln T in the first search; an image's NLL changes on a scale of 1.
const GRID: usize = 28;

/// How good probabilities are; both scores are least for the right ones.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProperScores {
    /// Mean negative log-likelihood of the labels, in nats; scikit-learn's `log_loss`.
    pub nll: f64,
    /// Mean over the images of Σ_c (p_c − y_c)², 0 to 2, as Brier 1950 has it; scikit-learn's `brier_score_loss` with
    /// `scale_by_half=False`, its default for more than two classes.
    pub brier: f64,
}

/// The scores of softmax(logits/temperature), for `logits` \[N,C\] and `labels` \[N\]. Not a number where logits
/// leave an image no probability, and where there is no image.
///
/// # Panics
/// On logits that are not N rows of `classes`, and on a label without a class.
#[cfg(test)]
pub(crate) fn proper_scores(
    logits: &[f64],
    classes: usize,
    labels: &[u32],
    temperature: f64,
) -> ProperScores {
    let (mut nll, mut brier) = (0.0, 0.0);
    for (row, label) in rows(logits, classes, labels) {
        let Some(scores) = ImageScores::of(row, label, temperature) else {
            return ProperScores { nll: f64::NAN, brier: f64::NAN };
        };
        (nll, brier) = (nll + scores.nll, brier + scores.brier);
    }
    let n = labels.len() as f64;
    ProperScores { nll: nll / n, brier: brier / n }
}

/// Scores of the probabilities of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ImageScores {
    /// Probability of the first choice.
    pub confidence: f64,
    /// −log probability of the right class, in nats.
    pub nll: f64,
    /// Σ_c (p_c − y_c)².
    pub brier: f64,
}

impl ImageScores {
    /// For softmax(`logits`/`temperature`); none where a logit leaves no probability.
    pub fn of(logits: &[f64], label: usize, temperature: f64) -> Option<Self> {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weight = |z: &f64| ((z - max) / temperature).exp();
        let sum: f64 = logits.iter().map(weight).sum();
        if sum.is_nan() {
            return None;
        }
        let gap = |(c, z): (usize, &f64)| (weight(z) / sum - f64::from(u8::from(c == label))).powi(2);
        let brier = logits.iter().enumerate().map(gap).sum();
        let nll = sum.ln() + (max - logits[label]) / temperature;
        Some(ImageScores { confidence: 1.0 / sum, nll, brier })
    }
}

/// The temperature T within 1e-3 and 1e3 that minimises the summed NLL of softmax(logits/T), for `logits` \[N,C\] and
/// `labels` \[N\]; with a `prior`, the standard deviation s of ln T, of that plus (ln T)²/(2s²), the maximum a
/// posteriori. Images with a logit that is not finite are left out.
///
/// Where every image is right at any T, the likelihood alone leads to the lower bound and a prior keeps T finite.
/// 1 where the images say nothing: there are none, or only one class.
///
/// # Panics
/// As [`proper_scores`]; and on a prior that is not positive.
pub(crate) fn fit_temperature(logits: &[f64], classes: usize, labels: &[u32], prior: Option<f64>) -> f64 {
    Fit::of(logits, classes, labels, prior).map_or(1.0, |fit| fit.temperature(0.0))
}

/// The temperature for images that also chose what their logits come from, the epoch that is kept above all: that of
/// [`fit_temperature`] with [`PRIOR`], and [`CAUTION`] standard errors of ln T above it. 1 where the images say nothing.
///
/// # Panics
/// As [`proper_scores`].
pub(crate) fn cautious_temperature(logits: &[f64], classes: usize, labels: &[u32]) -> f64 {
    Fit::of(logits, classes, labels, Some(PRIOR)).map_or(1.0, |fit| fit.temperature(CAUTION))
}

/// ln T where the objective is least, and the second derivative there.
struct Fit {
    u: f64,
    bend: f64,
}

impl Fit {
    /// None where T makes no difference.
    fn of(logits: &[f64], classes: usize, labels: &[u32], prior: Option<f64>) -> Option<Self> {
        assert!(prior.is_none_or(|sd| sd > 0.0), "the deviation of a prior is positive");
        let rows: Vec<(&[f64], usize)> =
            rows(logits, classes, labels).filter(|(row, _)| row.iter().all(|z| z.is_finite())).collect();
        let gaps = gaps(&rows);
        if gaps.iter().all(|&gap| gap == 0.0) {
            return None;
        }
        let objective = Objective { gaps, classes, prior };
        // The likelihood is convex in 1/T, but with the prior there may be two minima in ln T.
        let (low, high) = (RANGE.0.ln(), RANGE.1.ln());
        let place = |i: usize| low + (high - low) * i as f64 / GRID as f64;
        let values: Vec<f64> = (0..=GRID).map(|i| objective.at(place(i)).value).collect();
        let best = (0..=GRID).fold(0, |best, i| if values[i] < values[best] { i } else { best });
        let within = (place(best.saturating_sub(1)), place((best + 1).min(GRID)));
        let u = objective.minimum(place(best), within);
        Some(Fit { u, bend: objective.at(u).bend })
    }

    /// T at `errors` standard errors of ln T above the least, as far as the bend there says one.
    fn temperature(&self, errors: f64) -> f64 {
        let error = if self.bend > 0.0 { self.bend.sqrt().recip() } else { 0.0 };
        (self.u + errors * error).exp().clamp(RANGE.0, RANGE.1)
    }
}

fn rows<'a>(
    logits: &'a [f64],
    classes: usize,
    labels: &'a [u32],
) -> impl Iterator<Item = (&'a [f64], usize)> {
    assert_eq!(logits.len(), labels.len() * classes, "logits are a row of {classes} for each label");
    assert!(labels.iter().all(|&label| (label as usize) < classes), "a label has no class");
    logits.chunks_exact(classes.max(1)).zip(labels.iter().map(|&label| label as usize))
}

/// Every row's logits less that of its label, which is all that the likelihood depends on.
fn gaps(rows: &[(&[f64], usize)]) -> Vec<f64> {
    rows.iter().flat_map(|&(row, label)| row.iter().map(move |z| z - row[label])).collect()
}

/// The function of u = ln T that is minimised.
struct Objective {
    /// \[N,C\].
    gaps: Vec<f64>,
    classes: usize,
    prior: Option<f64>,
}

/// The objective and its first two derivatives.
struct Local {
    value: f64,
    slope: f64,
    bend: f64,
}

impl Objective {
    /// With β = 1/T and g the gaps, an image's NLL is ln Σ exp(βg), its derivatives by β are mean and variance of g
    /// under the softmax; dβ/du = −β.
    fn at(&self, u: f64) -> Local {
        let beta = (-u).exp();
        let (mut value, mut first, mut second) = (0.0, 0.0, 0.0);
        for row in self.gaps.chunks_exact(self.classes.max(1)) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut sum, mut mean, mut square) = (0.0, 0.0, 0.0);
            for g in row {
                let p = (beta * (g - max)).exp();
                sum += p;
                mean += p * (g - max);
                square += p * (g - max) * (g - max);
            }
            mean /= sum;
            value += sum.ln() + beta * max;
            first += mean + max;
            second += square / sum - mean * mean;
        }
        let precision = self.prior.map_or(0.0, |sd| 1.0 / (sd * sd));
        Local {
            value: value + 0.5 * precision * u * u,
            slope: precision * u - beta * first,
            bend: precision + beta * first + beta * beta * second,
        }
    }

    /// Newton's steps from `u`, and bisection where they leave the bracket.
    fn minimum(&self, mut u: f64, (mut low, mut high): (f64, f64)) -> f64 {
        for _ in 0..100 {
            let local = self.at(u);
            if local.slope >= 0.0 {
                high = u
            } else {
                low = u
            }
            let newton = u - local.slope / local.bend;
            let next =
                if local.bend > 0.0 && newton > low && newton < high { newton } else { 0.5 * (low + high) };
            let step = (next - u).abs();
            u = next;
            if step < 1e-12 {
                break;
            }
        }
        u
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// The case of tools/statistics_reference.py: 40 images of 6 classes, the last without an image.
    fn case() -> (Vec<f64>, Vec<u32>) {
        let labels: Vec<u32> = (0..40).map(|i| (3 * i + i / 4) % 5).collect();
        let logits = (0..240).map(|k| {
            let (i, j) = (k / 6, k % 6);
            let own = if labels[i] as usize == j { 2.0 } else { 0.0 };
            ((7 * i + 13 * j + 5 * i * j + i * i) % 23) as f64 / 4.0 + own
        });
        (logits.collect(), labels)
    }

    #[test]
    fn temperatures_agree_with_scipy() {
        let (logits, labels) = case();
        let cases =
            [(None, 1.382151472), (Some(2.0), 1.3783425), (Some(1.0), 1.367441089), (Some(0.5), 1.330308149)];
        for (prior, temperature) in cases {
            assert_relative_eq!(
                fit_temperature(&logits, 6, &labels, prior),
                temperature,
                max_relative = 1e-7
            );
        }
        let cautious = cautious_temperature(&logits, 6, &labels);
        assert_relative_eq!(cautious, 1.497053, max_relative = 2e-7);
    }

    #[test]
    fn caution_fades_with_the_images() {
        let (logits, labels) = case();
        let above = |times: usize| {
            let (logits, labels) = (logits.repeat(times), labels.repeat(times));
            let likeliest = fit_temperature(&logits, 6, &labels, Some(PRIOR));
            (cautious_temperature(&logits, 6, &labels) / likeliest).ln()
        };
        // A standard error is one over the root of the number of images, but for the prior.
        assert_relative_eq!(above(2500) / above(100), 0.2, max_relative = 1e-3);
        assert!(above(1) > 0.05, "{}", above(1));
    }

    #[test]
    fn scores_agree_with_scikit_learn() {
        let (logits, labels) = case();
        for (temperature, nll, brier) in
            [(1.0, 1.28216462372392, 0.580642330279927), (3.0, 1.37465931889954, 0.656171058219724)]
        {
            let found = proper_scores(&logits, 6, &labels, temperature);
            assert_relative_eq!(found.nll, nll, max_relative = 1e-13);
            assert_relative_eq!(found.brier, brier, max_relative = 1e-13);
        }
    }

    #[test]
    fn what_multiplies_the_logits_multiplies_the_temperature() {
        let (logits, labels) = case();
        let temperature = fit_temperature(&logits, 6, &labels, None);
        for factor in [0.003, 0.05, 3.0, 400.0] {
            let logits: Vec<f64> = logits.iter().map(|z| z * factor).collect();
            let found = fit_temperature(&logits, 6, &labels, None);
            assert_relative_eq!(found, factor * temperature, max_relative = 1e-9);
        }
    }

    #[test]
    fn images_that_are_all_right_need_a_prior() {
        let logits = [2.0, 0.0, 0.0, 3.0];
        let labels = [0, 1];
        assert_relative_eq!(fit_temperature(&logits, 2, &labels, None), RANGE.0, max_relative = 1e-12);
        let found = fit_temperature(&logits, 2, &labels, Some(1.0));
        assert!(found > 0.5 && found < 1.0, "{found}");
        // All wrong: the logits say nothing.
        assert_relative_eq!(fit_temperature(&logits, 2, &[1, 0], None), RANGE.1, max_relative = 1e-12);
        assert!(fit_temperature(&logits, 2, &[1, 0], Some(1.0)) < 10.0);
    }

    #[test]
    fn of_two_minima_the_lower_is_found() {
        // One is near the prior's, T = 1, where the likelihood is almost flat; at the other every image is right.
        for (gap, low, high) in [(0.03, 0.0, 0.02), (0.015, 0.5, 1.0)] {
            let logits = [gap, 0.0].repeat(20);
            let labels = [0; 20];
            let found = fit_temperature(&logits, 2, &labels, Some(1.0));
            let objective = |t: f64| 20.0 * proper_scores(&logits, 2, &labels, t).nll + 0.5 * t.ln() * t.ln();
            let least = (0..2000).map(|i| objective((-6.9 + 0.00345 * f64::from(i)).exp()));
            assert!(objective(found) <= least.fold(f64::INFINITY, f64::min), "{found}");
            assert!(found > low && found < high, "{found}");
        }
    }

    #[test]
    fn images_without_finite_logits_are_left_out() {
        let (mut logits, mut labels) = case();
        let expected = fit_temperature(&logits, 6, &labels, Some(1.0));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            logits.extend([bad, 1.0, 2.0, 0.0, 0.0, 0.0]);
            labels.push(1);
        }
        assert_eq!(fit_temperature(&logits, 6, &labels, Some(1.0)), expected);
        let scores = proper_scores(&logits, 6, &labels, 1.0);
        assert!(scores.nll.is_nan() && scores.brier.is_nan());
    }

    #[test]
    fn without_anything_to_learn_from_the_temperature_is_1() {
        let cases: [(&[f64], usize, &[u32]); 3] =
            [(&[], 3, &[]), (&[5.0, -2.0], 1, &[0, 0]), (&[4.0; 6], 3, &[0, 2])];
        for (logits, classes, labels) in cases {
            for prior in [None, Some(1.0)] {
                assert_eq!(fit_temperature(logits, classes, labels, prior), 1.0);
            }
            assert_eq!(cautious_temperature(logits, classes, labels), 1.0);
        }
        assert!(proper_scores(&[], 3, &[], 1.0).nll.is_nan());
    }
}
