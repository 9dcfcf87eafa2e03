//! Chooses C by photos that a fit has not seen.

use super::{Logistic, Path, StatsError, check_path};
use crate::stats::counting::{Counting, nll};
use crate::stats::photos::HeldOut;

/// So many C in a row that are worse than the best end the path; the greatest C take the longest.
const WORSE: usize = 3;
/// Where no photo can be held out: one a class, and no validation.
const UNKNOWN: f64 = 10.0;

/// The classifier at the best C, and what it was chosen by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// Fitted to all training photos.
    pub model: Logistic,
    /// The C that were tried, with the NLL of the held-out photos in nats; empty where there are none.
    pub tried: Vec<(f64, f64)>,
    /// Logits \[M,C\] of the photos of [`HeldOut::labels`] at the best C, each by a model that has not seen the photo. A
    /// temperature can be fitted to them.
    pub held_out: Vec<f64>,
}

/// 10^−2, 10^−1.5 … 10^6: from the prior alone to no penalty, for features of length 1.
pub fn grid() -> Vec<f64> {
    (-4..=12).map(|half| 10f64.powf(0.5 * f64::from(half))).collect()
}

/// The C of [`grid`] that are within a factor of ten of `c`.
pub fn grid_around(c: f64) -> Vec<f64> {
    grid().into_iter().filter(|other| (other / c).log10().abs() < 1.25).collect()
}

/// Fits along `cs`, with `share` times the offset added to the logits, and keeps the model with the lowest NLL on the
/// photos that are held out. Where there are none, C is the one nearest to 10. The path ends after three C in a row that
/// are worse than the best.
///
/// # Errors
/// [`StatsError::Path`] for C that are none, not positive or not ascending.
pub(crate) fn choose(
    photos: &HeldOut<'_>,
    share: f64,
    counting: Counting,
    cs: &[f64],
) -> Result<Choice, StatsError> {
    check_path(cs)?;
    let (width, classes, labels) = (photos.width, photos.classes, photos.labels());
    let parts = photos.parts().map(|[fit, held]| Ok((Path::new(fit, share, width, classes)?, held)));
    let mut parts = parts.collect::<Result<Vec<_>, StatsError>>()?;
    // The C of a row counts for all views of a photo.
    let fit = |path: &mut Path, c: f64| {
        let mut model = path.fit(c / photos.train().views as f64);
        counting.even_out(&mut model.head, photos.train().labels);
        Logistic { c, ..model }
    };
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut best: Option<(usize, Choice)> = None;
    if labels.is_empty() {
        let nearest = cs.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
        let model = nearest.zip(parts.first_mut()).map(|(c, (path, _))| fit(path, c));
        let model = expanded(photos, model.ok_or(StatsError::Path(Vec::new()))?);
        return Ok(Choice { model, tried, held_out: Vec::new() });
    }
    for (i, &c) in cs.iter().enumerate() {
        let (mut all, mut held_out) = (None, Vec::with_capacity(labels.len() * classes));
        for (path, held) in &mut parts {
            let model = fit(path, c);
            held_out.extend(model.head.logits(held.features, held.offset));
            all.get_or_insert(model);
        }
        let nll = nll(&held_out, classes, &labels, counting);
        tried.push((c, nll));
        match (&best, all) {
            (Some((at, _)), _) if nll >= tried[*at].1 && i - at >= WORSE => break,
            (Some((at, _)), _) if nll >= tried[*at].1 => (),
            (_, Some(model)) => best = Some((i, Choice { model, tried: Vec::new(), held_out })),
            _ => {}
        }
    }
    let (_, choice) = best.ok_or(StatsError::Path(Vec::new()))?;
    Ok(Choice { model: expanded(photos, choice.model), tried, ..choice })
}

fn expanded(photos: &HeldOut<'_>, model: Logistic) -> Logistic {
    Logistic { head: photos.expand(model.head), ..model }
}

/// From the C that is taken where nothing can be said of it, in powers of e.
fn distance(c: f64) -> f64 {
    (c / UNKNOWN).ln().abs()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{case, photos};
    use super::*;
    use crate::stats::discriminant::discriminant;
    use crate::stats::logistic::fit_path;
    use crate::stats::photos::Photos;
    use crate::stats::temperature::proper_scores;
    use approx::assert_relative_eq;

    const NONE: Photos<'static> = Photos::new(&[], &[]);

    fn chosen(
        train: Photos<'_>,
        validation: Photos<'_>,
        [width, classes]: [usize; 2],
        cs: &[f64],
        seed: u64,
    ) -> Result<(Choice, Vec<u32>), StatsError> {
        let held_out = HeldOut::new(train, validation, width, classes, seed)?;
        Ok((choose(&held_out, 1.0, Counting::Photos, cs)?, held_out.labels()))
    }

    #[test]
    fn enough_validation_chooses_alone() {
        let (features, labels) = case(7);
        let validation: Vec<f64> = features.iter().rev().copied().collect();
        let (found, found_labels) =
            chosen(photos(&features, &labels), photos(&validation, &labels), [7, 5], &grid(), 0).unwrap();
        let models = fit_path(photos(&features, &labels), 7, 5, &grid()).unwrap();
        let nlls = models
            .iter()
            .map(|model| proper_scores(&model.head.logits(&validation, None), 5, &labels, 1.0).nll);
        let nlls: Vec<f64> = nlls.collect();
        let best = (0..nlls.len()).min_by(|&a, &b| nlls[a].total_cmp(&nlls[b])).unwrap();
        assert_eq!(found.model.head.weight, models[best].head.weight);
        assert_eq!(found.held_out, models[best].head.logits(&validation, None));
        assert_eq!(found_labels, labels);
        let tried: Vec<f64> = found.tried.iter().map(|tried| tried.1).collect();
        assert_eq!(tried.len(), best + 1 + WORSE);
        for (tried, nll) in tried.iter().zip(&nlls) {
            assert_relative_eq!(tried, nll, max_relative = 1e-12);
        }
    }

    #[test]
    fn few_for_validation_are_joined_by_folds() {
        let (features, labels) = case(7);
        let (train, few) = (photos(&features[..50 * 7], &labels[..50]), &features[50 * 7..]);
        let choose = |validation, seed| chosen(train, validation, [7, 5], &grid(), seed).unwrap();
        let (found, held_out) = choose(photos(few, &labels[50..]), 1);
        assert_eq!((found.held_out.len(), held_out.len()), (60 * 5, 60));
        assert_eq!(held_out[..10], labels[50..]);
        let nll = proper_scores(&found.held_out, 5, &held_out, 1.0).nll;
        let least = found.tried.iter().map(|tried| tried.1).fold(f64::INFINITY, f64::min);
        assert_relative_eq!(nll, least, max_relative = 1e-12);
        // Out of fold, the photos are less sure than the model that has seen them.
        let seen = proper_scores(&found.model.head.logits(train.features, None), 5, train.labels, 1.0).nll;
        assert!(proper_scores(&found.held_out[50..], 5, &held_out[10..], 1.0).nll > seen);
        assert_eq!(choose(photos(few, &labels[50..]), 1).0, found);
        assert_ne!(choose(NONE, 2).0, choose(NONE, 1).0);
    }

    #[test]
    fn a_photo_is_held_out_by_a_model_that_has_not_seen_it() {
        // Each label is random; who has seen a photo knows it by its own feature.
        let mut features = vec![0.0; 40 * 40];
        (0..40).for_each(|i| features[i * 40 + i] = 1.0);
        let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let (found, _) = chosen(photos(&features, &labels), NONE, [40, 2], &[1e4], 0).unwrap();
        assert!(found.tried[0].1 >= 2f64.ln() - 1e-6, "{:?}", found.tried);
    }

    #[test]
    fn offsets_follow_their_photos() {
        let ((features, labels), (offset, _)) = (case(7), case(5));
        let train = Photos { offset: Some(&offset), ..photos(&features, &labels) };
        let (found, _) = chosen(train, NONE, [7, 5], &[1e-6], 3).unwrap();
        // With weights of almost nothing the logits are the offsets and a bias of about the class's excess.
        let plain = proper_scores(&offset, 5, &labels, 1.0).nll;
        assert_relative_eq!(found.tried[0].1, plain, max_relative = 0.2);
    }

    #[test]
    fn views_that_are_the_photo_itself_change_nothing() {
        let (features, labels) = case(7);
        let twice: Vec<f64> = features.chunks_exact(7).flat_map(|row| [row, row].concat()).collect();
        let of_rows: Vec<u32> = labels.iter().flat_map(|&label| [label, label]).collect();
        let views = Photos { views: 2, ..photos(&twice, &of_rows) };
        let (found, _) = chosen(views, NONE, [7, 5], &grid(), 4).unwrap();
        let (expected, _) = chosen(photos(&features, &labels), NONE, [7, 5], &grid(), 4).unwrap();
        assert_eq!(found.model.c, expected.model.c);
        for (tried, expected) in found.tried.iter().zip(&expected.tried) {
            assert_relative_eq!(tried.1, expected.1, max_relative = 1e-5);
        }
    }

    #[test]
    fn features_in_a_subspace_have_the_fit_in_it() {
        let ((features, labels), (offset, _)) = (case(7), case(5));
        // 7 of the rows of a Hadamard matrix of order 16.
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 0.25 } else { -0.25 };
        let laid = |rows: &[f64]| -> Vec<f64> {
            let row = |x: &[f64]| -> Vec<f64> {
                (0..16).map(|j| x.iter().enumerate().map(|(i, x)| x * sign(i, j)).sum()).collect()
            };
            rows.chunks(7).flat_map(row).collect()
        };
        let wide = laid(&features);
        let with = |features| Photos { offset: Some(&offset), ..photos(features, &labels) };
        let (expected, _) = chosen(with(&features), NONE, [7, 5], &grid(), 4).unwrap();
        let held_out = HeldOut::new(with(&wide), NONE, 16, 5, 4).unwrap();
        assert_eq!((held_out.width, held_out.features), (7, 16));
        let found = choose(&held_out, 1.0, Counting::Photos, &grid()).unwrap();
        assert_eq!(found.model.c, expected.model.c);
        let close = |a: &[f64], b: &[f64]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert_relative_eq!(a, b, epsilon = 1e-5, max_relative = 1e-5));
        };
        close(&found.held_out, &expected.held_out);
        close(&found.model.head.weight, &laid(&expected.model.head.weight));
        close(&found.model.head.bias, &expected.model.head.bias);
        let [narrow, inside] =
            [(with(&features), 7), (held_out.train(), 16)].map(|(photos, of)| discriminant(photos, 7, of, 5));
        let whole = discriminant(with(&wide), 16, 16, 5);
        close(&held_out.expand(inside).weight, &whole.weight);
        // With 16 dimensions the ridge is another than with 7.
        assert!((whole.weight[0] - laid(&narrow.weight)[0]).abs() > 1e-3);
    }

    #[test]
    fn the_grid_around_a_c_is_the_grid_within_a_factor_of_ten() {
        let around = grid_around(grid()[6]);
        assert_eq!(around, grid()[4..=8]);
        assert_eq!(grid_around(grid()[0]), grid()[..=2]);
    }

    #[test]
    fn with_no_photo_to_choose_by_c_is_near_10() {
        let (features, labels) = ([1.0, 0.0, 0.0, 1.0], [0, 1]);
        let train = photos(&features, &labels);
        let (found, _) = chosen(train, NONE, [2, 2], &[0.1, 1.0, 31.0], 0).unwrap();
        assert_eq!((found.model.c, found.tried.len(), found.held_out.len()), (31.0, 0, 0));
        // One photo for validation is enough to choose by.
        let (found, labels) = chosen(train, photos(&[0.0, 1.0], &[1]), [2, 2], &grid(), 0).unwrap();
        assert_eq!((found.model.c, labels), (1e6, vec![1]));
    }

    #[test]
    fn what_cannot_be_chosen_is_an_error() {
        let train = photos(&[1.0, 2.0], &[0, 1]);
        let error = |train, validation, cs: &[f64]| chosen(train, validation, [1, 2], cs, 0).unwrap_err();
        assert_eq!(error(train, NONE, &[]), StatsError::Path(vec![]));
        let found = error(train, photos(&[f64::NAN], &[0]), &grid());
        assert_eq!(found, StatsError::NotFinite { what: "features", row: 0 });
        assert_eq!(error(NONE, train, &grid()), StatsError::NoImages);
    }
}
