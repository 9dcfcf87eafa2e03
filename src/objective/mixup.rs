//! MixUp (Zhang et al. 2018): images are blended with others of their batch, and so are their classes.

use crate::random;
use rand::seq::SliceRandom;
use rand_distr::{Beta, BetaError, Distribution};
use serde::{Deserialize, Serialize};

/// Representation of the images that MixUp blends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MixOn {
    /// The normalised pixels, in front of the tower.
    Pixels,
    /// The features behind it, which are not normalised again.
    Features,
}

/// How one batch is blended: image i keeps λᵢ and gets 1 − λᵢ of image `partner`\[i\].
#[derive(Debug, Clone, PartialEq)]
pub struct MixDraw {
    /// A permutation of the batch.
    pub partner: Vec<u32>,
    /// λ of every image, from 0 to 1.
    pub lambda: Vec<f32>,
}

impl MixDraw {
    /// A random permutation, and λ ~ Beta(α, α) for every image; it depends on seed and step alone.
    ///
    /// # Errors
    /// An α that is not above 0.
    pub fn new(alpha: f64, batch: usize, seed: u64, step: u64) -> Result<Self, BetaError> {
        let mut rng = random::stream(seed, random::MIXUP + step);
        let mut partner: Vec<u32> = (0..batch as u32).collect();
        partner.shuffle(&mut rng);
        let beta = Beta::new(alpha, alpha)?;
        let lambda = (0..batch).map(|_| beta.sample(&mut rng) as f32).collect();
        Ok(MixDraw { partner, lambda })
    }

    /// The inverse permutation.
    pub fn inverse(&self) -> Vec<u32> {
        let mut inverse = vec![0; self.partner.len()];
        for (i, &partner) in self.partner.iter().enumerate() {
            if let Some(place) = inverse.get_mut(partner as usize) {
                *place = i as u32;
            }
        }
        inverse
    }

    /// True where `partner` is a permutation of `batch` images and every λ lies in 0..=1.
    pub fn fits(&self, batch: usize) -> bool {
        let mut seen = vec![false; batch];
        let all_once = self.partner.iter().all(|&partner| {
            seen.get_mut(partner as usize).is_some_and(|seen| !std::mem::replace(seen, true))
        });
        all_once
            && (self.partner.len(), self.lambda.len()) == (batch, batch)
            && self.lambda.iter().all(|lambda| (0.0..=1.0).contains(lambda))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_fit_and_depend_on_seed_and_step_alone() {
        let draw = MixDraw::new(0.2, 32, 42, 7).unwrap();
        assert!(draw.fits(32));
        assert_eq!(draw, MixDraw::new(0.2, 32, 42, 7).unwrap());
        assert_ne!(draw, MixDraw::new(0.2, 32, 42, 8).unwrap());
        assert_ne!(draw, MixDraw::new(0.2, 32, 43, 7).unwrap());
        let inverse = draw.inverse();
        assert!((0..32).all(|i| draw.partner[inverse[i] as usize] as usize == i));
    }

    /// Beta(α, α) has mean 1/2 and variance 1/(4·(2α + 1)).
    #[test]
    fn lambda_is_distributed_as_beta() {
        for alpha in [0.2, 1.0, 4.0] {
            let draws: Vec<f64> = (0..400)
                .flat_map(|step| MixDraw::new(alpha, 50, 1, step).unwrap().lambda)
                .map(f64::from)
                .collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.01, "α {alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.03, "α {alpha}: {variance}, not {expected}");
        }
    }

    #[test]
    fn what_is_no_permutation_does_not_fit() {
        let draw =
            |partner: &[u32], lambda: &[f32]| MixDraw { partner: partner.into(), lambda: lambda.into() };
        assert!(draw(&[1, 0], &[0.0, 1.0]).fits(2));
        assert!(!draw(&[1, 1], &[0.5, 0.5]).fits(2));
        assert!(!draw(&[2, 0], &[0.5, 0.5]).fits(2));
        assert!(!draw(&[1, 0], &[0.5, 1.5]).fits(2));
        assert!(!draw(&[1, 0], &[0.5]).fits(2));
        assert!(!draw(&[1, 0], &[0.5, f32::NAN]).fits(2));
        assert!(MixDraw::new(0.0, 2, 0, 0).is_err());
    }
}
