//! How large the calibration error of few images is by chance alone.

use crate::random;
use rand::RngExt;

/// Bins of the confidence, equally wide, as in Guo et al. 2017, "On Calibration of Modern Neural Networks".
pub(crate) const BINS: usize = 15;

/// The 2.5 % and 97.5 % quantiles of the expected calibration error over 15 bins of a classifier that is perfectly
/// calibrated and has these confidences, the probabilities of its first choices: each choice is right with the
/// probability that it claims, drawn `draws` times; a thousand are enough for two digits. An error within them is no
/// sign of miscalibration. The idea is the consistency resampling of Bröcker and Smith 2007, "Increasing the
/// Reliability of Reliability Diagrams", here with the confidences as they are.
///
/// The draws depend on `seed` alone. (0, 0) without images or draws; not a number where a confidence is not in
/// \[0, 1\].
pub(crate) fn chance_error(confidences: &[f64], draws: usize, seed: u64) -> (f64, f64) {
    if !confidences.iter().all(|p| (0.0..=1.0).contains(p)) {
        return (f64::NAN, f64::NAN);
    }
    if confidences.is_empty() || draws == 0 {
        return (0.0, 0.0);
    }
    let mut errors = errors(confidences, draws, seed);
    errors.sort_unstable_by(f64::total_cmp);
    (quantile(&errors, 0.025), quantile(&errors, 0.975))
}

/// The calibration error of each draw.
fn errors(confidences: &[f64], draws: usize, seed: u64) -> Vec<f64> {
    let mut rng = random::stream(seed, 0);
    let draw = |_| {
        let mut gaps = [0.0; BINS];
        for &p in confidences {
            let right = f64::from(u8::from(rng.random::<f64>() < p));
            gaps[bin_of(p)] += right - p;
        }
        gaps.iter().map(|gap| gap.abs()).sum::<f64>() / confidences.len() as f64
    };
    (0..draws).map(draw).collect()
}

/// The bin ((i − 1)/BINS, i/BINS\] that holds a probability.
pub(crate) fn bin_of(confidence: f64) -> usize {
    ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1
}

/// Quantile of ascending values, by the line between the two next to it, as numpy does.
fn quantile(values: &[f64], part: f64) -> f64 {
    let place = part * (values.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    values[low] + (place - low as f64) * (values[high] - values[low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn the_mean_of_one_bin_is_the_mean_deviation_of_a_binomial() {
        // E|k/n − p| of n = 10 and p = 0.7, over all k.
        let (n, p) = (10, 0.7f64);
        let mut term = (1.0 - p).powi(n);
        let mut expected = 0.0;
        for k in 0..=n {
            expected += term * (f64::from(k) / f64::from(n) - p).abs();
            term *= f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p);
        }
        let errors = errors(&[p; 10], 200_000, 0);
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        // Five standard errors of the mean.
        assert_relative_eq!(mean, expected, epsilon = 5.0 * 0.09 / 200_000f64.sqrt());
    }

    #[test]
    fn the_ends_are_the_quantiles_of_a_binomial() {
        // Of 100 images at 0.5, 50 ± 11 or further off are right in 3.5 % of the draws, 50 ± 12 in 2.1 %.
        let (low, high) = chance_error(&[0.5; 100], 20_000, 1);
        assert!(low == 0.0 && (high - 0.11).abs() < 1e-12, "{low} {high}");
    }

    #[test]
    fn bins_are_those_of_the_evaluation() {
        assert_eq!([1e-9, 1.0 / 15.0, 0.0667, 0.2, 0.5, 0.99, 1.0].map(bin_of), [0, 0, 1, 2, 7, 14, 14]);
        // Apart, two bins of one image each cannot make up for each other.
        assert_relative_eq!(chance_error(&[0.5, 0.9], 1000, 0).1, 0.7, epsilon = 1e-9);
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [0.0, 1.0, 4.0, 9.0];
        assert_relative_eq!(quantile(&values, 0.025), 0.075);
        assert_relative_eq!(quantile(&values, 0.975), 8.625);
        assert_eq!(quantile(&[2.0], 0.975), 2.0);
    }

    #[test]
    fn draws_repeat_and_sure_images_make_no_error() {
        let confidences: Vec<f64> = (1..=60).map(|i| f64::from(i) / 61.0).collect();
        assert_eq!(chance_error(&confidences, 500, 3), chance_error(&confidences, 500, 3));
        assert_ne!(chance_error(&confidences, 500, 3), chance_error(&confidences, 500, 4));
        assert_eq!(chance_error(&[1.0, 1.0, 0.0], 100, 0), (0.0, 0.0));
    }

    #[test]
    fn without_images_there_is_no_band() {
        assert_eq!(chance_error(&[], 100, 0), (0.0, 0.0));
        assert_eq!(chance_error(&[0.5], 0, 0), (0.0, 0.0));
        assert!(chance_error(&[0.5, f64::NAN], 10, 0).0.is_nan() && chance_error(&[1.5], 10, 0).1.is_nan());
    }
}
