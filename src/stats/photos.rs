//! Photos as a classifier on features is fitted to them and judged by them.

use super::StatsError;
use super::linear::Linear;
use super::span::Span;
use crate::random;
use rand::seq::SliceRandom;
use std::borrow::Cow;

/// Features of photos, or of several views of each.
#[derive(Debug, Clone, Copy)]
pub struct Photos<'a> {
    /// \[N,E\], row-major.
    pub features: &'a [f64],
    /// \[N\], below the number of classes.
    pub labels: &'a [u32],
    /// Logits of another classifier for the same photos \[N,C\]: a part of them is added to the logits and not fitted.
    pub offset: Option<&'a [f64]>,
    /// Rows of a photo, next to each other; it is judged by the first of them.
    pub views: usize,
}

impl<'a> Photos<'a> {
    /// A row for each photo, and no offset.
    pub const fn new(features: &'a [f64], labels: &'a [u32]) -> Self {
        Photos { features, labels, offset: None, views: 1 }
    }

    pub(super) fn check(&self, width: usize, classes: usize) -> Result<(), StatsError> {
        let rows = self.labels.len();
        let offset = self.offset.map(|offset| ("offsets", offset, classes));
        for (what, numbers, columns) in
            [Some(("features", self.features, width)), offset].into_iter().flatten()
        {
            if numbers.len() != rows * columns {
                return Err(StatsError::Length { what, found: numbers.len(), rows, columns });
            }
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                return Err(StatsError::NotFinite { what, row: at / columns });
            }
        }
        match self.labels.iter().position(|&label| label as usize >= classes) {
            Some(row) => Err(StatsError::Label { row, label: self.labels[row], classes }),
            None => Ok(()),
        }
    }
}

/// With fewer photos for validation, those held out of training are asked too.
const FEW: usize = 60;
/// Parts of the training photos, each held out once.
const FOLDS: usize = 5;

/// Photos that a classifier is fitted to and those that it is judged by: the photos for validation and, where there are
/// fewer than 60 of them, the photos to train on too, each judged by a fit to the four fifths without it. The fifths have
/// equal parts of every class and depend on the seed and the labels alone. A class's only photo is never held out.
///
/// Where the features to train on lie in a subspace of less than half their width, all are coordinates in it, and
/// [`HeldOut::expand`] makes of a head for these one for features.
pub(crate) struct HeldOut<'a> {
    /// Width of the photos here, which is that of the coordinates where they are some.
    pub width: usize,
    /// Width of the features.
    pub features: usize,
    pub classes: usize,
    /// Those to train on and those for validation; their features stand in `rows`.
    train: Photos<'a>,
    validation: Photos<'a>,
    rows: [Cow<'a, [f64]>; 2],
    /// The photos that each fold fits to, and those that it holds out.
    folds: Vec<[Rows; 2]>,
    span: Option<Span>,
}

impl<'a> HeldOut<'a> {
    /// # Errors
    /// [`StatsError`] for no photos to train on, slices that do not fit, features or offsets that are not finite, and
    /// labels without a class. `validation` may be empty, and has one view of each photo; both have an offset or neither
    /// has.
    pub fn new(
        train: Photos<'a>,
        validation: Photos<'a>,
        width: usize,
        classes: usize,
        seed: u64,
    ) -> Result<Self, StatsError> {
        train.check(width, classes)?;
        validation.check(width, classes)?;
        if train.labels.is_empty() {
            return Err(StatsError::NoImages);
        }
        let span = Span::of(train.features, width);
        let rows = [train.features, validation.features].map(|features| match &span {
            Some(span) => Cow::Owned(span.coordinates(features)),
            None => Cow::Borrowed(features),
        });
        let fitted = span.as_ref().map_or(width, Span::dimensions);
        let mut photos = HeldOut {
            width: fitted,
            features: width,
            classes,
            train,
            validation,
            rows,
            folds: Vec::new(),
            span,
        };
        if validation.labels.len() < FEW {
            photos.folds = photos.folds_of_train(seed);
        }
        Ok(photos)
    }

    fn folds_of_train(&self, seed: u64) -> Vec<[Rows; 2]> {
        let (train, views) = (self.train(), self.train.views);
        let of_photos: Vec<u32> = train.labels.iter().step_by(views).copied().collect();
        let fold_of = folds(&of_photos, self.classes, seed);
        let rows = |keep: &dyn Fn(usize) -> bool| Rows::of(train, self.width, self.classes, keep);
        let folds = (0..FOLDS).map(|held| {
            let is_held = |row: usize| fold_of[row / views] == Some(held);
            [rows(&|row| !is_held(row)), rows(&|row| is_held(row) && row.is_multiple_of(views))]
        });
        folds.filter(|[_, held]| !held.labels.is_empty()).collect()
    }

    /// All photos to train on.
    pub fn train(&self) -> Photos<'_> {
        Photos { features: &self.rows[0], ..self.train }
    }

    /// Every fit with what it is judged by; the first is to all photos.
    pub fn parts(&self) -> impl Iterator<Item = [Photos<'_>; 2]> {
        let folds = self
            .folds
            .iter()
            .map(|[fit, held]| [Photos { views: self.train.views, ..fit.photos() }, held.photos()]);
        let validation = Photos { features: &self.rows[1], ..self.validation };
        std::iter::once([self.train(), validation]).chain(folds)
    }

    /// The head for features that a head for the photos here is.
    pub fn expand(&self, mut head: Linear) -> Linear {
        if let Some(span) = &self.span {
            head.weight = span.expand(&head.weight, head.bias.len());
        }
        head
    }

    /// Labels of all that is held out \[M\]: the photos for validation in their order, then those of the folds.
    pub fn labels(&self) -> Vec<u32> {
        self.parts().flat_map(|[_, held]| held.labels.iter().copied()).collect()
    }

    /// Logits of another classifier for all that is held out \[M,C\]; empty where there is none.
    pub fn offsets(&self) -> Vec<f64> {
        self.parts().flat_map(|[_, held]| held.offset.unwrap_or_default().iter().copied()).collect()
    }
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

/// Some of the rows.
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
        Photos { offset: self.offset.as_deref(), ..Photos::new(&self.features, &self.labels) }
    }
}

/// A part of the photos that has each class by its share.
pub(crate) struct Sample {
    rows: Rows,
    views: usize,
}

impl Sample {
    /// The first of every so many photos of a class.
    pub fn of(photos: Photos<'_>, width: usize, classes: usize, every: usize) -> Self {
        let mut seen = vec![0usize; classes];
        let keep = photos.labels.iter().step_by(photos.views).map(|&label| {
            let seen = &mut seen[label as usize];
            *seen += 1;
            (*seen - 1).is_multiple_of(every)
        });
        let keep: Vec<bool> = keep.collect();
        Sample { rows: Rows::of(photos, width, classes, |row| keep[row / photos.views]), views: photos.views }
    }

    pub fn photos(&self) -> Photos<'_> {
        Photos { views: self.views, ..self.rows.photos() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_views_of_a_photo_are_held_out_together_and_judged_by_the_first() {
        // A row is the photo's number and that of the view.
        let (photos, views) = (20, 3);
        let features: Vec<f64> =
            (0..photos * views).flat_map(|row| [(row / views) as f64, (row % views) as f64]).collect();
        let labels: Vec<u32> = (0..photos * views).map(|row| (row / views % 2) as u32).collect();
        let train = Photos { views, ..Photos::new(&features, &labels) };
        let held_out = HeldOut::new(train, Photos::new(&[], &[]), 2, 2, 3).unwrap();
        assert_eq!(held_out.labels().len(), photos);
        for [fit, held] in held_out.parts().skip(1) {
            assert_eq!(fit.labels.len(), (photos - held.labels.len()) * views);
            for row in held.features.chunks_exact(2) {
                assert_eq!(row[1], 0.0);
                assert!(fit.features.chunks_exact(2).all(|other| other[0] != row[0]));
            }
        }
    }
}
