//! How far a share of a few images is from that of all images.

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959963984540054;

/// The 95 % interval of a share, `right` of `of` images (Wilson 1927, without continuity correction); the whole
/// range where there is no image.
pub fn wilson(right: u64, of: u64) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let n = of as f64;
    let (p, z2) = (right as f64 / n, Z * Z);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At the ends the formula is 0 and 1, and rounding is not.
    let low = if right == 0 { 0.0 } else { (middle - half).max(0.0) };
    let high = if right >= of { 1.0 } else { (middle + half).min(1.0) };
    (low, high)
}

/// That of an accuracy on `images` images.
pub fn of_share(share: f64, images: usize) -> (f64, f64) {
    wilson((share * images as f64).round() as u64, images as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn intervals_are_wilsons() {
        // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (right, of, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let found = wilson(right, of);
            assert_relative_eq!(found.0, low, epsilon = 5e-5);
            assert_relative_eq!(found.1, high, epsilon = 5e-5);
        }
        assert_eq!((wilson(0, 0), wilson(20, 20).1), ((0.0, 1.0), 1.0));
        assert_eq!(of_share(81.0 / 263.0, 263), wilson(81, 263));
    }
}
