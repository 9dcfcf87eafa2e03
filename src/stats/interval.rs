//! The confidence interval of a fraction of images.

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % score interval of the fraction `right`/`of`, of Wilson 1927, "Probable Inference, the Law of
/// Succession, and Statistical Inference": lower and upper end, within \[0, 1\]. It holds at 0 and at `of` too,
/// where the normal approximation has no width. (0, 1) where `of` is 0.
///
/// Equals scipy's `binomtest(right, of).proportion_ci(method="wilson")`.
///
/// # Panics
/// When `right` exceeds `of`.
pub(crate) fn wilson(right: u64, of: u64) -> (f64, f64) {
    assert!(right <= of, "{right} of {of} images cannot be right");
    if of == 0 {
        return (0.0, 1.0);
    }
    let n = of as f64;
    let fraction = right as f64 / n;
    let shrunk = 1.0 / (1.0 + Z * Z / n);
    let centre = shrunk * (fraction + Z * Z / (2.0 * n));
    let half = shrunk * Z * (fraction * (1.0 - fraction) / n + Z * Z / (4.0 * n * n)).sqrt();
    // Exact at the ends, where the two differ by a rounding.
    let low = if right == 0 { 0.0 } else { centre - half };
    let high = if right == of { 1.0 } else { centre + half };
    (low, high)
}

/// The 95 % score interval of an accuracy, as evaluations hold it, over `of` images.
///
/// # Panics
/// When the fraction exceeds 1.
pub fn wilson_of(fraction: f64, of: usize) -> (f64, f64) {
    wilson((fraction * of as f64).round() as u64, of as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn intervals_agree_with_scipy() {
        // Printed by tools/statistics_reference.py.
        let cases = [
            (0, 1, 0.0, 0.793450685622763),
            (1, 1, 0.206549314377237, 1.0),
            (0, 20, 0.0, 0.161125158052819),
            (7, 20, 0.181191824101082, 0.567145723314764),
            (20, 20, 0.838874841947181, 1.0),
            (873, 1000, 0.850925247428214, 0.892219990741562),
            (5000, 6149, 0.8032030643234, 0.822686620267646),
        ];
        for (right, of, low, high) in cases {
            let found = wilson(right, of);
            assert_relative_eq!(found.0, low, epsilon = 1e-14);
            assert_relative_eq!(found.1, high, epsilon = 1e-14);
        }
    }

    #[test]
    fn no_image_says_nothing() {
        assert_eq!(wilson(0, 0), (0.0, 1.0));
        assert_eq!(wilson_of(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn the_ends_are_exact() {
        for of in 1..2000 {
            let (none, all) = (wilson(0, of), wilson(of, of));
            assert_eq!((none.0, all.1), (0.0, 1.0));
            assert!(none.1 > 0.0 && none.1 < 1.0 && all.0 > 0.0 && all.0 < 1.0);
        }
    }

    #[test]
    fn an_accuracy_stands_for_its_count() {
        for right in 0..=23 {
            assert_eq!(wilson_of(right as f64 / 23.0, 23), wilson(right, 23));
        }
    }
}
