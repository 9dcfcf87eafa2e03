//! Linear heads on the features of a frozen model that cost seconds: a discriminant, a logistic regression, and the mean
//! of both, each with as much of the text logits in it, and at the temperature, as held-out photos ask for.

use super::StatsError;
use super::counting::{Counting, nll, shares};
use super::discriminant::discriminant;
use super::linear::Linear;
use super::logistic::{Choice, choose, grid};
use super::photos::{HeldOut, Photos, Sample};
use super::temperature::{PRIOR, fit_temperature};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Shares of the text logits that a logistic regression is tried with.
const SHARES: [f64; 3] = [1.0, 0.5, 0.0];

/// Rows times width times classes up to which everything is chosen on all photos; with more, on a part of them.
const LARGEST: usize = 600_000_000;

/// What heads are fitted to, and what they are judged by. The offsets are the text logits.
#[derive(Clone, Copy)]
pub(crate) struct Material<'a> {
    /// A row for each photo to train on.
    pub plain: Photos<'a>,
    /// The same photos with crops of each, where there are any.
    pub views: Option<Photos<'a>>,
    /// At least one photo.
    pub validation: Photos<'a>,
    pub width: usize,
    pub classes: usize,
    pub counting: Counting,
    /// Of the folds.
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
    /// Whether crops lowered the NLL of what was held out; the heads are then fitted to them too.
    pub crops_help: bool,
}

/// What was chosen: enough to fit the same head to other photos.
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
        match self {
            How::Text(factor) => Ok(text(of.width, of.classes, factor)),
            How::Discriminant(how) => Ok(how.fit(of)),
            How::Logistic(how) => how.fit(of),
            How::Mean(a, b, factor) => Ok(a.fit(of).plus(&b.fit(of)?).times(0.5 * factor)),
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
                format!("C {:.3}, {text}{}", how.c, crops(how.views))
            }
            How::Text(_) | How::Mean(..) => String::new(),
        }
    }
}

impl DiscriminantHow {
    fn fit(self, of: Material<'_>) -> Linear {
        let photos = of.photos(self.views);
        self.of(discriminant(photos, of.width, of.classes), photos.labels, of.counting)
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
    fn fit(self, of: Material<'_>) -> Result<Linear, StatsError> {
        let none = Photos::new(&[], &[]);
        let held_out = HeldOut::without_folds(of.photos(self.views), none, of.width, of.classes)?;
        Ok(choose(&held_out, self.share, of.counting, &[self.c])?.model.head.times(self.factor))
    }
}

impl<'a> Material<'a> {
    fn photos(&self, views: bool) -> Photos<'a> {
        self.views.filter(|_| views).unwrap_or(self.plain)
    }

    /// Fits all three.
    ///
    /// # Errors
    /// [`StatsError`] for no photos to train on or for validation, slices that do not fit, numbers that are not finite,
    /// and labels without a class.
    pub fn heads(self) -> Result<Heads, StatsError> {
        if self.validation.labels.is_empty() {
            return Err(StatsError::NoImages);
        }
        let rows = self.views.unwrap_or(self.plain).labels.len();
        let every = rows.saturating_mul(self.width).saturating_mul(self.classes).div_ceil(LARGEST);
        if every <= 1 {
            return self.chosen();
        }
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
            fitted.head = fitted.how.fit(self)?;
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
            let nll = nll(&choice.held_out, self.classes, &labels, self.counting);
            if best.as_ref().is_none_or(|(least, ..)| nll < *least) {
                best = Some((nll, share, choice));
            }
        }
        let (least, share, mut choice) = best.ok_or(StatsError::NoImages)?;
        let mut photos = plain;
        let mut views = false;
        if let Some(cropped) = self.views {
            let cropped = held_out(cropped)?;
            let other = choose(&cropped, share, self.counting, &grid())?;
            views = nll(&other.held_out, self.classes, &labels, self.counting) < least;
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
        let parts = photos.parts().map(|[fit, held]| (discriminant(fit, self.width, self.classes), held));
        let parts: Vec<(Linear, Photos<'_>)> = parts.collect();
        let own = parts.iter().flat_map(|(head, held)| head.logits(held.features, None));
        let own: Vec<f64> = own.collect();
        // Of about the size of the text logits, so that both are held back alike.
        let size = deviation(&own);
        let own: Vec<f64> = own.iter().map(|z| z / size).collect();
        let priors = self.counting.log_priors(self.classes, photos.train.labels);
        let text = photos.offsets();
        let [of_text, of_own] = shares([&text, &own], &priors, labels, self.counting);
        let both = own.iter().zip(&text).zip(priors.iter().cycle());
        let logits = both.map(|((own, text), prior)| of_own * own + of_text * text + prior).collect();
        let (held_out, factor) = self.calibrated(logits, labels);
        let how = DiscriminantHow { own: of_own / size, text: of_text, factor, views };
        let all = parts.into_iter().next().map(|(head, _)| how.of(head, photos.train.labels, self.counting));
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
