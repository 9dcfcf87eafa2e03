//! Linear heads on the features of a frozen model that cost seconds: a discriminant, a logistic regression, and the mean
//! of both, each with as much of the text logits in it, and at the temperature, as held-out photos ask for.

use super::StatsError;
use super::counting::{Counting, shares};
use super::discriminant::discriminant;
use super::judged::Judged;
use super::linear::Linear;
use super::logistic::{Choice, choose, fit_at, grid, grid_around};
use super::photos::{HeldOut, Photos, Sample};
use super::temperature::{PRIOR, fit_temperature};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Shares of the text logits that a logistic regression is tried with.
const SHARES: [f64; 3] = [1.0, 0.5, 0.0];

/// Rows times width times classes up to which everything is chosen on all photos, a row each and with crops; with more, on
/// a part of them.
const LARGEST: usize = 200_000_000;
const LARGEST_WITH_CROPS: usize = 600_000_000;

/// Photos that heads are fitted to and judged by. The offsets are the text logits.
#[derive(Clone, Copy)]
pub(crate) struct Material<'a> {
    /// A row for each photo to train on.
    pub plain: Photos<'a>,
    /// The photos of `plain` with crops of each, where there are any; a photo's rows next to each other.
    pub views: Option<Photos<'a>>,
    /// Photos for validation, at least one.
    pub validation: Photos<'a>,
    pub width: usize,
    pub classes: usize,
    pub counting: Counting,
    /// Seed of the folds.
    pub seed: u64,
}

/// A head and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fitted {
    /// At its temperature.
    pub head: Linear,
    pub how: How,
    /// Logits \[M,C\] of the held-out photos.
    pub held_out: Vec<f64>,
    pub seconds: f64,
}

/// The heads, and the labels \[M\] of what they were judged by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heads {
    pub labels: Vec<u32>,
    /// How many of them, the first, are those of the validation split.
    pub validation: usize,
    /// The text logits alone.
    pub text: Fitted,
    pub discriminant: Fitted,
    pub logistic: Fitted,
    pub mean: Fitted,
    /// Whether heads are fitted to crops too: unless what was held out says beyond noise that they hurt.
    pub crops_help: bool,
}

/// Choices behind a head: enough to fit the same head to other photos.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum How {
    /// factor·(text logits).
    Text(f64),
    Discriminant(DiscriminantHow),
    Logistic(LogisticHow),
    Mean(DiscriminantHow, LogisticHow, f64),
}

/// factor·(own·discriminant + text·text logits + log priors).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiscriminantHow {
    own: f64,
    text: f64,
    factor: f64,
    views: bool,
}

/// factor·(logistic regression with `share` of the text logits).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogisticHow {
    c: f64,
    share: f64,
    factor: f64,
    views: bool,
}

impl How {
    /// Fits it to the photos, plain or with crops of each.
    pub fn fit(self, of: Material<'_>) -> Result<Linear, StatsError> {
        self.fit_from(None, of)
    }

    /// Fits it as [`How::fit`] does, starting from a head that is not far from it, such as that of a part of the
    /// photos.
    fn fit_from(self, start: Option<&Linear>, of: Material<'_>) -> Result<Linear, StatsError> {
        match self {
            How::Text(factor) => Ok(text(of.width, of.classes, factor)),
            How::Discriminant(how) => Ok(how.fit(of)),
            How::Logistic(how) => how.fit(start, of),
            How::Mean(a, b, factor) => Ok(a.fit(of).plus(&b.fit(None, of)?).times(0.5 * factor)),
        }
    }

    /// For people.
    pub fn describe(self) -> String {
        let crops = |views| if views { ", with crops" } else { "" };
        match self {
            How::Discriminant(how) => {
                let with = if how.text > 0.0 { format!("text × {:.2}", how.text) } else { "no text".into() };
                with + crops(how.views)
            }
            How::Logistic(how) => {
                let text = if how.share > 0.0 { format!("text × {}", how.share) } else { "no text".into() };
                let digits = if how.c < 100.0 { 1 } else { 0 };
                format!("C {:.digits$}, {text}{}", how.c, crops(how.views))
            }
            How::Text(_) | How::Mean(..) => String::new(),
        }
    }
}

impl DiscriminantHow {
    fn fit(self, of: Material<'_>) -> Linear {
        let photos = of.photos(self.views);
        self.of(discriminant(photos, of.width, of.width, of.classes), photos.labels, of.counting)
    }

    fn of(self, own: Linear, labels: &[u32], counting: Counting) -> Linear {
        let mut head = own.times(self.own);
        head.share = self.text;
        let priors = counting.log_priors(head.bias.len(), labels);
        head.bias.iter_mut().zip(priors).for_each(|(bias, prior)| *bias += prior);
        head.times(self.factor)
    }
}

impl LogisticHow {
    fn fit(self, start: Option<&Linear>, of: Material<'_>) -> Result<Linear, StatsError> {
        let start = start.map(|head| head.clone().times(1.0 / self.factor));
        let photos = of.photos(self.views);
        let mut head = fit_at(self.c, photos, self.share, start.as_ref(), of.width, of.classes)?;
        of.counting.even_out(&mut head, photos.labels);
        Ok(head.times(self.factor))
    }
}

impl<'a> Material<'a> {
    fn photos(&self, views: bool) -> Photos<'a> {
        self.views.filter(|_| views).unwrap_or(self.plain)
    }

    /// Fits all of them.
    ///
    /// # Errors
    /// [`StatsError`] for no photos to train on or for validation, slices that do not fit, numbers that are not finite,
    /// and labels without a class.
    pub fn heads(self) -> Result<Heads, StatsError> {
        if self.validation.labels.is_empty() {
            return Err(StatsError::NoImages);
        }
        let numbers = |photos: Photos<'_>| photos.labels.len().saturating_mul(self.width * self.classes);
        let of_views = self.views.map_or(0, |views| numbers(views).div_ceil(LARGEST_WITH_CROPS));
        let every = numbers(self.plain).div_ceil(LARGEST).max(of_views);
        if every <= 1 { self.chosen() } else { self.chosen_on_part(every) }
    }

    /// Chooses on every so many photos of a class, and fits to all.
    fn chosen_on_part(self, every: usize) -> Result<Heads, StatsError> {
        let of = |photos: Photos<'_>| Sample::of(photos, self.width, self.classes, every);
        let (plain, views, validation) = (of(self.plain), self.views.map(of), of(self.validation));
        let part = Material {
            plain: plain.photos(),
            views: views.as_ref().map(Sample::photos),
            validation: validation.photos(),
            ..self
        };
        let mut heads = part.chosen()?;
        for fitted in [&mut heads.discriminant, &mut heads.logistic] {
            let started = Instant::now();
            fitted.head = fitted.how.fit_from(Some(&fitted.head), self)?;
            fitted.seconds += started.elapsed().as_secs_f64();
        }
        let How::Mean(.., factor) = heads.mean.how else { return Ok(heads) };
        let both = heads.discriminant.head.clone().plus(&heads.logistic.head);
        heads.mean.head = both.times(0.5 * factor);
        Ok(heads)
    }

    fn chosen(self) -> Result<Heads, StatsError> {
        let started = Instant::now();
        let held_out = |photos| HeldOut::new(photos, self.validation, self.width, self.classes, self.seed);
        let plain = held_out(self.plain)?;
        let labels = plain.labels();
        let mut best: Option<(f64, f64, Choice)> = None;
        for share in SHARES {
            let choice = choose(&plain, share, self.counting, &grid())?;
            let nll = self.judged(&choice.held_out, &labels).nll();
            if best.as_ref().is_none_or(|(least, ..)| nll < *least) {
                best = Some((nll, share, choice));
            }
        }
        let (_, share, mut choice) = best.ok_or(StatsError::NoImages)?;
        let mut photos = plain;
        let mut views = false;
        if let Some(cropped) = self.views {
            let cropped = held_out(cropped)?;
            let other = choose(&cropped, share, self.counting, &grid_around(choice.model.c))?;
            // More views of a photo say more of it: they are left out where they are worse beyond noise.
            views = !self.judged(&other.held_out, &labels).hurts(self.judged(&choice.held_out, &labels));
            if views {
                (photos, choice) = (cropped, other);
            }
        }
        let (held, factor) = self.calibrated(choice.held_out, &labels);
        let logistic = Fitted {
            how: How::Logistic(LogisticHow { c: choice.model.c, share, factor, views }),
            head: choice.model.head.times(factor),
            held_out: held,
            seconds: started.elapsed().as_secs_f64(),
        };
        let text = self.text(&photos, &labels);
        let discriminant = self.discriminant(&photos, &labels, views);
        let mean = self.mean(&discriminant, &logistic, &labels);
        let validation = self.validation.labels.len();
        Ok(Heads { labels, validation, text, discriminant, logistic, mean, crops_help: views })
    }

    fn text(&self, photos: &HeldOut<'_>, labels: &[u32]) -> Fitted {
        let started = Instant::now();
        let (held_out, factor) = self.calibrated(photos.offsets(), labels);
        let head = text(self.width, self.classes, factor);
        Fitted { head, how: How::Text(factor), held_out, seconds: started.elapsed().as_secs_f64() }
    }

    fn discriminant(&self, photos: &HeldOut<'_>, labels: &[u32], views: bool) -> Fitted {
        let started = Instant::now();
        let fit = |fit| discriminant(fit, photos.width, photos.features, self.classes);
        let parts = photos.parts().map(|[train, held]| (fit(train), held));
        let parts: Vec<(Linear, Photos<'_>)> = parts.collect();
        let own = parts.iter().flat_map(|(head, held)| head.logits(held.features, None));
        let own: Vec<f64> = own.collect();
        // Of about the size of the text logits, so that both are held back alike.
        let size = deviation(&own);
        let own: Vec<f64> = own.iter().map(|z| z / size).collect();
        let priors = self.counting.log_priors(self.classes, photos.train().labels);
        let text = photos.offsets();
        let [of_text, of_own] = shares([&text, &own], &priors, labels, self.counting);
        let both = own.iter().zip(&text).zip(priors.iter().cycle());
        let logits = both.map(|((own, text), prior)| of_own * own + of_text * text + prior).collect();
        let (held_out, factor) = self.calibrated(logits, labels);
        let how = DiscriminantHow { own: of_own / size, text: of_text, factor, views };
        let all = parts
            .into_iter()
            .next()
            .map(|(head, _)| how.of(photos.expand(head), photos.train().labels, self.counting));
        Fitted {
            head: all.unwrap_or_else(|| how.fit(*self)),
            how: How::Discriminant(how),
            held_out,
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    fn mean(&self, discriminant: &Fitted, logistic: &Fitted, labels: &[u32]) -> Fitted {
        let started = Instant::now();
        let logits = discriminant.held_out.iter().zip(&logistic.held_out).map(|(a, b)| 0.5 * (a + b));
        let (held_out, factor) = self.calibrated(logits.collect(), labels);
        let (How::Discriminant(a), How::Logistic(b)) = (discriminant.how, logistic.how) else {
            return discriminant.clone();
        };
        Fitted {
            head: discriminant.head.clone().plus(&logistic.head).times(0.5 * factor),
            how: How::Mean(a, b, factor),
            held_out,
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    fn judged<'l>(&self, logits: &'l [f64], labels: &'l [u32]) -> Judged<'l> {
        Judged { logits, labels, classes: self.classes, counting: self.counting }
    }

    /// The logits over their temperature, and one over that.
    fn calibrated(&self, mut logits: Vec<f64>, labels: &[u32]) -> (Vec<f64>, f64) {
        let factor = 1.0 / fit_temperature(&logits, self.classes, labels, Some(PRIOR));
        logits.iter_mut().for_each(|z| *z *= factor);
        (logits, factor)
    }
}

/// `share` times the text logits.
fn text(width: usize, classes: usize, share: f64) -> Linear {
    Linear { weight: vec![0.0; classes * width], bias: vec![0.0; classes], share }
}

/// Standard deviation; 1 where all are alike.
fn deviation(numbers: &[f64]) -> f64 {
    let n = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let square = numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    if square > 0.0 { square.sqrt() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::logistic::tests::case;
    use crate::stats::photos::Photos;

    /// 60 photos of five classes, with text logits that know a part of them.
    struct Case {
        features: Vec<f64>,
        labels: Vec<u32>,
        text: Vec<f64>,
    }

    fn images() -> Case {
        let ((features, labels), (text, _)) = (case(7), case(5));
        Case { features, labels, text }
    }

    impl Case {
        fn material(&self, train: usize) -> Material<'_> {
            let of = |rows: std::ops::Range<usize>| Photos {
                offset: Some(&self.text[rows.start * 5..rows.end * 5]),
                ..Photos::new(&self.features[rows.start * 7..rows.end * 7], &self.labels[rows])
            };
            Material {
                plain: of(0..train),
                views: None,
                validation: of(train..60),
                width: 7,
                classes: 5,
                counting: Counting::Photos,
                seed: 1,
            }
        }
    }

    #[test]
    fn what_was_chosen_fits_the_same_head_again() {
        let images = images();
        let material = images.material(40);
        let heads = material.heads().unwrap();
        assert_eq!((heads.labels.len(), heads.validation), (60, 20));
        for fitted in [&heads.text, &heads.discriminant, &heads.logistic, &heads.mean] {
            let again = fitted.how.fit(material).unwrap();
            let [found, expected] = [&again, &fitted.head]
                .map(|head| head.logits(material.validation.features, material.validation.offset));
            for (a, b) in found.iter().zip(&expected) {
                // A regression starts from others along its path.
                assert!((a - b).abs() < 2e-3, "{a} {b} in {:?}", fitted.how);
            }
            // What it was judged by first is the validation split.
            for (a, b) in fitted.held_out.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-9, "{a} {b} in {:?}", fitted.how);
            }
        }
    }

    #[test]
    fn what_is_chosen_on_a_part_is_fitted_to_all() {
        let images = images();
        let material = images.material(40);
        let heads = material.chosen_on_part(2).unwrap();
        // Of eight photos a class half, and of four half: few, so that those of training are held out too.
        assert_eq!((heads.validation, heads.labels.len()), (10, 30));
        for fitted in [&heads.discriminant, &heads.logistic, &heads.mean] {
            let again = fitted.how.fit(material).unwrap();
            let [found, expected] =
                [&fitted.head, &again].map(|head| head.logits(&images.features, Some(&images.text)));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 2e-3, "{a} {b} in {:?}", fitted.how);
            }
        }
    }

    #[test]
    fn text_that_says_nothing_has_no_part_and_text_that_knows_all_has_one() {
        let mut images = images();
        let share = |images: &Case| match images.material(40).heads().unwrap() {
            Heads { discriminant: Fitted { how: How::Discriminant(a), .. }, logistic, .. } => {
                match logistic.how {
                    How::Logistic(b) => (a.text, b.share),
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        };
        for (i, row) in images.text.chunks_mut(5).enumerate() {
            row.iter_mut()
                .enumerate()
                .for_each(|(c, z)| *z = if c as u32 == images.labels[i] { 9.0 } else { 0.0 });
        }
        let (a, b) = share(&images);
        assert!(a > 0.3 && b == 1.0, "{a} {b}");
        // As sure of a wrong class.
        for (i, row) in images.text.chunks_mut(5).enumerate() {
            row.iter_mut()
                .enumerate()
                .for_each(|(c, z)| *z = if c == (images.labels[i] as usize + 1) % 5 { 9.0 } else { 0.0 });
        }
        assert_eq!(share(&images), (0.0, 0.0));
    }

    #[test]
    fn few_photos_two_classes_and_many_classes_have_heads() {
        let images = images();
        // A photo of each class; the rest for validation.
        let heads = images.material(5).heads();
        let heads = heads.unwrap();
        assert!(heads.mean.held_out.iter().all(|z| z.is_finite()));
        for (classes, width, n) in [(2, 3, 9), (1200, 4, 1200)] {
            let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
            let features: Vec<f64> = (0..n * width).map(|k| ((k * k + k / 3) % 17) as f64 / 17.0).collect();
            let text = vec![0.0; n * classes];
            let photos = Photos { offset: Some(&text), ..Photos::new(&features, &labels) };
            let material =
                Material { plain: photos, validation: photos, width, classes, ..images.material(40) };
            let heads = material.heads().unwrap();
            for fitted in [&heads.discriminant, &heads.logistic, &heads.mean] {
                assert!(fitted.head.weight.iter().chain(&fitted.head.bias).all(|w| w.is_finite()));
            }
        }
        let none = Material { validation: Photos::new(&[], &[]), ..images.material(40) };
        assert_eq!(none.heads(), Err(StatsError::NoImages));
    }

    #[test]
    fn classes_that_count_alike_raise_the_rare_ones() {
        let images = images();
        let rare: Vec<usize> = (0..40).filter(|i| images.labels[*i] != 2 || i % 10 == 0).collect();
        let rows = |numbers: &[f64], columns: usize| -> Vec<f64> {
            rare.iter().flat_map(|i| numbers[i * columns..(i + 1) * columns].to_vec()).collect()
        };
        let (features, text) = (rows(&images.features, 7), rows(&images.text, 5));
        let labels: Vec<u32> = rare.iter().map(|i| images.labels[*i]).collect();
        let plain = Photos { offset: Some(&text), ..Photos::new(&features, &labels) };
        let taken = |counting| {
            let heads = Material { plain, counting, ..images.material(40) }.heads().unwrap();
            [heads.discriminant, heads.logistic].map(|fitted| {
                let logits = fitted.head.logits(&images.features, Some(&images.text));
                let of_class = logits.chunks(5).map(|row| {
                    let sum: f64 = row.iter().map(|z| (z - row[2]).exp()).sum();
                    1.0 / sum
                });
                of_class.sum::<f64>()
            })
        };
        let (photos, classes) = (taken(Counting::Photos), taken(Counting::Classes));
        assert!(classes[0] > 1.2 * photos[0] && classes[1] > 1.2 * photos[1], "{photos:?} {classes:?}");
    }
}
