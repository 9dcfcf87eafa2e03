//! The heads of the ladder on drawn features of real sizes: how good each is, and how long all take.

use crate::random;
use crate::stats::StatsError;
use crate::stats::counting::Counting;
use crate::stats::heads::Material;
use crate::stats::judged::Judged;
use crate::stats::linear::Linear;
use crate::stats::photos::Photos;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::ops::Range;
use std::time::Instant;

/// Photos for validation and for the test, of each class.
const VAL: usize = 10;
const TEST: usize = 50;

/// Results of all heads at one number of photos a class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Photos of each class that were fitted to.
    pub photos: usize,
    /// Seconds for all heads, with all that is chosen.
    pub seconds: f64,
    /// One entry for each head, from the text logits on.
    pub heads: Vec<HeadResult>,
}

/// Quality of one head on the test photos, and the time that it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadResult {
    pub name: &'static str,
    /// Fraction of the test photos whose class is the first choice.
    pub top1: f64,
    /// Mean −log probability of the right class, in nats.
    pub nll: f64,
    /// Seconds beyond those of the heads before it.
    pub seconds: f64,
}

/// Fits the heads to `photos` of each class, and tests them.
///
/// # Errors
/// None for a width and a number of classes and photos of at least 1.
pub fn fit(width: usize, classes: usize, photos: usize) -> Result<Fit, StatsError> {
    let (train, val) = (photos * classes, VAL * classes);
    let drawn = Drawn::new(train + val + TEST * classes, width, classes);
    let test = drawn.rows(train + val..train + val + TEST * classes, width, classes);
    let material = Material {
        plain: drawn.rows(0..train, width, classes),
        views: None,
        validation: drawn.rows(train..train + val, width, classes),
        width,
        classes,
        counting: Counting::Photos,
        seed: 0,
    };
    let started = Instant::now();
    let heads = material.heads()?;
    let seconds = started.elapsed().as_secs_f64();
    let named = [
        ("text logits", &heads.text),
        ("discriminant", &heads.discriminant),
        ("logistic regression", &heads.logistic),
        ("mean of the two", &heads.mean),
    ];
    let heads = named.map(|(name, fitted)| {
        let logits = fitted.head.logits(test.features, test.offset);
        let judged = Judged { logits: &logits, labels: test.labels, classes, counting: Counting::Photos };
        HeadResult { name, top1: judged.top1(), nll: judged.nll(), seconds: fitted.seconds }
    });
    Ok(Fit { photos, seconds, heads: heads.to_vec() })
}

/// Unit vectors around those of their classes, in a space whose directions differ in spread, and text logits that know
/// the classes' directions roughly.
struct Drawn {
    features: Vec<f64>,
    labels: Vec<u32>,
    text: Vec<f64>,
}

impl Drawn {
    fn new(n: usize, width: usize, classes: usize) -> Self {
        let mut rng = random::stream(0, 0);
        let mut draw =
            |count: usize| -> Vec<f64> { (0..count).map(|_| StandardNormal.sample(&mut rng)).collect() };
        let (centres, blur, mut features) = (draw(classes * width), draw(classes * width), draw(n * width));
        let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
        let spread = |j: usize| 1.0 / (1.0 + j as f64 / 100.0);
        for (row, &label) in features.chunks_exact_mut(width).zip(&labels) {
            let centre = &centres[label as usize * width..];
            row.iter_mut().zip(centre).enumerate().for_each(|(j, (x, c))| *x = spread(j) * (*x + 0.4 * c));
        }
        let about = centres.iter().zip(&blur).enumerate();
        let mut named: Vec<f64> = about.map(|(k, (c, b))| spread(k % width) * (c + 2.0 * b)).collect();
        for row in features.chunks_exact_mut(width).chain(named.chunks_exact_mut(width)) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        let text = Linear { weight: named, bias: vec![0.0; classes], share: 0.0 }.times(50.0);
        Drawn { text: text.logits(&features, None), features, labels }
    }

    fn rows(&self, rows: Range<usize>, width: usize, classes: usize) -> Photos<'_> {
        Photos {
            offset: Some(&self.text[rows.start * classes..rows.end * classes]),
            ..Photos::new(&self.features[rows.start * width..rows.end * width], &self.labels[rows])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_photos_make_better_heads_than_the_text_alone() {
        let fits = [1, 8].map(|photos| fit(64, 6, photos).unwrap());
        for fit in &fits {
            assert_eq!((fit.heads.len(), fit.heads[0].name), (4, "text logits"));
            assert!(fit.heads.iter().all(|head| head.nll.is_finite() && head.top1 > 1.0 / 6.0), "{fit:?}");
        }
        let mean = |fit: &Fit| (fit.heads[3].top1, -fit.heads[3].nll);
        assert!(mean(&fits[1]) > mean(&fits[0]) && fits[1].heads[3].nll < fits[1].heads[0].nll, "{fits:?}");
    }
}
