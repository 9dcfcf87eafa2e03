//! The temperature that logits are divided by, so that their softmax can be taken as probabilities (Guo et al. 2017,
//! "On Calibration of Modern Neural Networks"), and the proper scores that show what it did.

/// Bounds of the temperature.
const RANGE: (f64, f64) = (1e-3, 1e3);
/// Steps of ln T in the first search; an image's NLL changes on a scale of 1.
const GRID: usize = 28;

/// How good probabilities are; both scores are least for the right ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProperScores {
    /// Mean negative log-likelihood of the labels, in nats; scikit-learn's `log_loss`.
    pub nll: f64,
    /// Mean over the images of Σ_c (p_c − y_c)², 0 to 2, as Brier 1950 has it; scikit-learn's `brier_score_loss` with
    /// `scale_by_half=False`, its default for more than two classes.
    pub brier: f64,
}

/// The scores of softmax(logits/temperature), for `logits` \[N,C\] and `labels` \[N\]. Not a number where a logit is
/// not finite, and where there is no image.
///
/// # Panics
/// On logits that are not N rows of `classes`, and on a label without a class.
pub fn proper_scores(logits: &[f64], classes: usize, labels: &[u32], temperature: f64) -> ProperScores {
    let (mut nll, mut brier) = (0.0, 0.0);
    for (row, label) in rows(logits, classes, labels) {
        if row.iter().any(|z| !z.is_finite()) {
            return ProperScores { nll: f64::NAN, brier: f64::NAN };
        }
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|z| ((z - max) / temperature).exp()).sum();
        nll += sum.ln() + (max - row[label]) / temperature;
        let gaps = row.iter().enumerate().map(|(c, z)| {
            let p = ((z - max) / temperature).exp() / sum;
            (p - f64::from(u8::from(c == label))).powi(2)
        });
        brier += gaps.sum::<f64>();
    }
    let n = labels.len() as f64;
    ProperScores { nll: nll / n, brier: brier / n }
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
pub fn fit_temperature(logits: &[f64], classes: usize, labels: &[u32], prior: Option<f64>) -> f64 {
    assert!(prior.is_none_or(|sd| sd > 0.0), "the deviation of a prior is positive");
    let rows: Vec<(&[f64], usize)> =
        rows(logits, classes, labels).filter(|(row, _)| row.iter().all(|z| z.is_finite())).collect();
    let objective = Objective { gaps: gaps(&rows), classes, prior };
    // The likelihood is convex in 1/T, but with the prior there may be two minima in ln T.
    let (low, high) = (RANGE.0.ln(), RANGE.1.ln());
    let place = |i: usize| low + (high - low) * i as f64 / GRID as f64;
    let values: Vec<f64> = (0..=GRID).map(|i| objective.at(place(i)).value).collect();
    let best = (0..=GRID).fold(0, |best, i| if values[i] < values[best] { i } else { best });
    if values.iter().all(|value| *value == values[0]) {
        return 1.0;
    }
    let within = (place(best.saturating_sub(1)), place((best + 1).min(GRID)));
    objective.minimum(place(best), within).exp().clamp(RANGE.0, RANGE.1)
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
            if local.slope > 0.0 {
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
