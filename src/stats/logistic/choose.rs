//! Chooses C by photos that a fit has not seen.

use super::{Logistic, Path, Photos, StatsError, check_path};
use crate::random;
use crate::stats::temperature::proper_scores;
use rand::seq::SliceRandom;

/// With fewer photos for validation, those held out of training are asked too.
const FEW: usize = 60;
/// Parts of the training photos, each held out once.
const FOLDS: usize = 5;
/// So many C in a row that are worse than the best end the path; the greatest C take the longest.
const WORSE: usize = 3;
/// Where no photo can be held out: one a class, and no validation.
const UNKNOWN: f64 = 10.0;

/// The classifier at the best C, and what it was chosen by.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Fitted to all training photos.
    pub model: Logistic,
    /// The C that were tried, with the mean NLL of the held-out photos in nats; empty where there are none.
    pub tried: Vec<(f64, f64)>,
    /// Logits \[M,C\] of the held-out photos at the best C, each by a model that has not seen the photo: those for
    /// validation in their order, then those held out of training by folds. A temperature can be fitted to them.
    pub held_out: Vec<f64>,
    /// Their labels \[M\].
    pub held_out_labels: Vec<u32>,
}

/// 10^−2, 10^−1.5 … 10^6: from the prior alone to no penalty, for features of length 1.
pub fn grid() -> Vec<f64> {
    (-4..=12).map(|half| 10f64.powf(0.5 * f64::from(half))).collect()
}

/// Fits `train` along `cs` and keeps the model with the lowest NLL on photos that it was not fitted to: on `validation`
/// and, where that has fewer than 60 photos, on the photos of `train` too, each by a model fitted to the four fifths
/// without it, at the same C. The fifths have equal parts of every class and depend on `seed` and the labels alone. A
/// class's only photo is never held out. Where no photo is left to choose by, C is the one nearest to 10.
///
/// The path ends after three C in a row that are worse than the best.
///
/// # Errors
/// [`StatsError`] for no photos to train on, slices that do not fit, features or offsets that are not finite, labels
/// without a class, and C that are none, not positive or not ascending. `validation` may be empty; both have an offset
/// or neither has.
pub fn choose(
    train: Photos<'_>,
    validation: Photos<'_>,
    width: usize,
    classes: usize,
    cs: &[f64],
    seed: u64,
) -> Result<Choice, StatsError> {
    check_path(cs)?;
    validation.check(width, classes)?;
    let mut path = Path::new(train, width, classes)?;
    let folds = if validation.labels.len() < FEW { folds(train.labels, classes, seed) } else { Vec::new() };
    let mut parts = Vec::new();
    for fold in 0..FOLDS {
        let held = Rows::of(train, width, classes, |i| folds.get(i) == Some(&Some(fold)));
        if !held.labels.is_empty() {
            let rest = Rows::of(train, width, classes, |i| folds[i] != Some(fold));
            parts.push((Path::new(rest.photos(), width, classes)?, held));
        }
    }
    let mut held_out_labels = validation.labels.to_vec();
    held_out_labels.extend(parts.iter().flat_map(|(_, held)| &held.labels));
    if held_out_labels.is_empty() {
        let nearest = cs.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
        let model = path.fit(nearest.ok_or(StatsError::Path(Vec::new()))?);
        return Ok(Choice { model, tried: Vec::new(), held_out: Vec::new(), held_out_labels });
    }
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut best: Option<(usize, Logistic, Vec<f64>)> = None;
    for (i, &c) in cs.iter().enumerate() {
        let model = path.fit(c);
        let mut held_out = model.logits(validation.features, validation.offset);
        for (path, held) in &mut parts {
            held_out.extend(path.fit(c).logits(&held.features, held.offset.as_deref()));
        }
        let nll = proper_scores(&held_out, classes, &held_out_labels, 1.0).nll;
        tried.push((c, nll));
        match &best {
            Some((at, ..)) if nll >= tried[*at].1 && i - at >= WORSE => break,
            Some((at, ..)) if nll >= tried[*at].1 => (),
            _ => best = Some((i, model, held_out)),
        }
    }
    let (_, model, held_out) = best.ok_or(StatsError::Path(Vec::new()))?;
    Ok(Choice { model, tried, held_out, held_out_labels })
}

/// From the C that is taken where nothing can be said of it, in powers of e.
fn distance(c: f64) -> f64 {
    (c / UNKNOWN).ln().abs()
}

/// The fold that holds out each photo; none for one without another of its class.
fn folds(labels: &[u32], classes: usize, seed: u64) -> Vec<Option<usize>> {
    let mut of_class = vec![Vec::new(); classes];
    for (photo, &label) in labels.iter().enumerate() {
        of_class[label as usize].push(photo);
    }
    let mut rng = random::stream(seed, 0);
    let mut folds = vec![None; labels.len()];
    // Dealt on from class to class, so that small classes do not all fill the first folds.
    let mut next = (0..FOLDS).cycle();
    for photos in of_class.iter_mut().filter(|photos| photos.len() > 1) {
        photos.shuffle(&mut rng);
        photos.iter().for_each(|&photo| folds[photo] = next.next());
    }
    folds
}

/// Some of the photos.
struct Rows {
    features: Vec<f64>,
    labels: Vec<u32>,
    offset: Option<Vec<f64>>,
}

impl Rows {
    fn of(photos: Photos<'_>, width: usize, classes: usize, keep: impl Fn(usize) -> bool) -> Self {
        let kept: Vec<usize> = (0..photos.labels.len()).filter(|&i| keep(i)).collect();
        let rows = |numbers: &[f64], columns: usize| -> Vec<f64> {
            kept.iter().flat_map(|&i| &numbers[i * columns..(i + 1) * columns]).copied().collect()
        };
        Rows {
            features: rows(photos.features, width),
            labels: kept.iter().map(|&i| photos.labels[i]).collect(),
            offset: photos.offset.map(|offset| rows(offset, classes)),
        }
    }

    fn photos(&self) -> Photos<'_> {
        Photos { features: &self.features, labels: &self.labels, offset: self.offset.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{case, photos};
    use super::*;
    use crate::stats::logistic::fit_path;
    use approx::assert_relative_eq;

    const NONE: Photos<'static> = Photos { features: &[], labels: &[], offset: None };

    #[test]
    fn enough_validation_chooses_alone() {
        let (features, labels) = case(7);
        let validation: Vec<f64> = features.iter().rev().copied().collect();
        let found =
            choose(photos(&features, &labels), photos(&validation, &labels), 7, 5, &grid(), 0).unwrap();
        let models = fit_path(photos(&features, &labels), 7, 5, &grid()).unwrap();
        let nlls =
            models.iter().map(|model| proper_scores(&model.logits(&validation, None), 5, &labels, 1.0).nll);
        let nlls: Vec<f64> = nlls.collect();
        let best = (0..nlls.len()).min_by(|&a, &b| nlls[a].total_cmp(&nlls[b])).unwrap();
        assert_eq!(found.model, models[best]);
        assert_eq!(found.held_out, models[best].logits(&validation, None));
        assert_eq!(found.held_out_labels, labels);
        let tried: Vec<f64> = found.tried.iter().map(|tried| tried.1).collect();
        assert_eq!(tried, nlls[..best + 1 + WORSE]);
    }

    #[test]
    fn few_for_validation_are_joined_by_folds() {
        let (features, labels) = case(7);
        let (train, few) = (photos(&features[..50 * 7], &labels[..50]), &features[50 * 7..]);
        let found = choose(train, photos(few, &labels[50..]), 7, 5, &grid(), 1).unwrap();
        assert_eq!((found.held_out.len(), found.held_out_labels.len()), (60 * 5, 60));
        assert_eq!(found.held_out_labels[..10], labels[50..]);
        let nll = proper_scores(&found.held_out, 5, &found.held_out_labels, 1.0).nll;
        let least = found.tried.iter().map(|tried| tried.1).fold(f64::INFINITY, f64::min);
        assert_eq!(nll, least);
        // Out of fold, the photos are less sure than the model that has seen them.
        let seen = proper_scores(&found.model.logits(train.features, None), 5, train.labels, 1.0).nll;
        assert!(proper_scores(&found.held_out[50..], 5, &found.held_out_labels[10..], 1.0).nll > seen);
        assert_eq!(choose(train, photos(few, &labels[50..]), 7, 5, &grid(), 1).unwrap(), found);
        assert_ne!(
            choose(train, NONE, 7, 5, &grid(), 2).unwrap(),
            choose(train, NONE, 7, 5, &grid(), 1).unwrap()
        );
    }

    #[test]
    fn a_photo_is_held_out_by_a_model_that_has_not_seen_it() {
        // Each label is random; who has seen a photo knows it by its own feature.
        let mut features = vec![0.0; 40 * 40];
        (0..40).for_each(|i| features[i * 40 + i] = 1.0);
        let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
        let found = choose(photos(&features, &labels), NONE, 40, 2, &[1e4], 0).unwrap();
        assert!(found.tried[0].1 >= 2f64.ln() - 1e-6, "{:?}", found.tried);
    }

    #[test]
    fn folds_have_equal_parts_of_every_class() {
        let labels: Vec<u32> = (0..103).map(|i| [0, 0, 1, 0, 2][i % 5]).chain([3, 4, 4]).collect();
        let folds = folds(&labels, 5, 7);
        assert_eq!(folds[103], None, "the only photo of its class");
        assert!(folds[..103].iter().all(Option::is_some) && folds[104] != folds[105]);
        for class in 0..5 {
            let counts = (0..FOLDS).map(|fold| {
                folds.iter().zip(&labels).filter(|(f, l)| **f == Some(fold) && **l == class).count()
            });
            let counts: Vec<usize> = counts.collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn offsets_follow_their_photos() {
        let ((features, labels), (offset, _)) = (case(7), case(5));
        let train = Photos { offset: Some(&offset), ..photos(&features, &labels) };
        let found = choose(train, NONE, 7, 5, &[1e-6], 3).unwrap();
        // With weights of almost nothing the logits are the offsets and a bias of about the class's excess.
        let plain = proper_scores(&offset, 5, &labels, 1.0).nll;
        assert_relative_eq!(found.tried[0].1, plain, max_relative = 0.2);
    }

    #[test]
    fn with_no_photo_to_choose_by_c_is_near_10() {
        let (features, labels) = ([1.0, 0.0, 0.0, 1.0], [0, 1]);
        let found = choose(photos(&features, &labels), NONE, 2, 2, &[0.1, 1.0, 31.0], 0).unwrap();
        assert_eq!((found.model.c, found.tried.len(), found.held_out.len()), (31.0, 0, 0));
        // One photo for validation is enough to choose by.
        let found = choose(photos(&features, &labels), photos(&[0.0, 1.0], &[1]), 2, 2, &grid(), 0).unwrap();
        assert_eq!((found.model.c, found.held_out_labels), (1e6, vec![1]));
    }

    #[test]
    fn what_cannot_be_chosen_is_an_error() {
        let train = photos(&[1.0, 2.0], &[0, 1]);
        assert_eq!(choose(train, NONE, 1, 2, &[], 0), Err(StatsError::Path(vec![])));
        let found = choose(train, photos(&[f64::NAN], &[0]), 1, 2, &grid(), 0);
        assert_eq!(found, Err(StatsError::NotFinite { what: "features", row: 0 }));
        assert_eq!(choose(NONE, train, 1, 2, &grid(), 0), Err(StatsError::NoImages));
    }
}
