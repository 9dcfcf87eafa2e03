//! One run with several seeds: what each of them reached, the mean, and how far they scatter.

use crate::train::metrics::number;
use crate::train::records::Summary;
use serde::{Deserialize, Serialize};

/// Scores of a run, as fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Top-1 accuracy on the validation split.
    pub val_top1: f64,
    /// Top-1 accuracy; this and all below on the test split, or on the validation split where there is no test split.
    pub test_top1: f64,
    /// Fraction of images whose class is among the head's first five.
    pub test_top5: f64,
    /// Fraction of images whose class is the first choice of the text logits.
    pub text_top1: f64,
    /// See [`crate::train::metrics::EvalMetrics::macro_f1`].
    pub macro_f1: f64,
    /// Expected calibration error. Not a number, null in JSON, where an image has no confidence.
    #[serde(deserialize_with = "number")]
    pub ece: f64,
}

impl Scores {
    /// Takes the scores of a run from its summary.
    pub(crate) fn of(summary: &Summary) -> Self {
        let tested = summary.test.as_ref().unwrap_or(&summary.val);
        Scores {
            val_top1: summary.val.top1,
            test_top1: tested.top1,
            test_top5: tested.top5,
            text_top1: tested.text_top1,
            macro_f1: tested.macro_f1,
            ece: tested.ece,
        }
    }

    fn values(&self) -> [f64; 6] {
        [self.val_top1, self.test_top1, self.test_top5, self.text_top1, self.macro_f1, self.ece]
    }

    fn from_values([val_top1, test_top1, test_top5, text_top1, macro_f1, ece]: [f64; 6]) -> Self {
        Scores { val_top1, test_top1, test_top5, text_top1, macro_f1, ece }
    }
}

/// Mean and sample standard deviation (n − 1) of each score; of a single run there is no deviation, of none
/// there is nothing.
pub(crate) fn mean_and_std(runs: &[Scores]) -> Option<(Scores, Option<Scores>)> {
    if runs.is_empty() {
        return None;
    }
    let n = runs.len() as f64;
    let mut mean = [0.0; 6];
    let mut squares = [0.0; 6];
    for run in runs {
        mean.iter_mut().zip(run.values()).for_each(|(sum, value)| *sum += value / n);
    }
    for run in runs {
        for ((sum, value), mean) in squares.iter_mut().zip(run.values()).zip(mean) {
            *sum += (value - mean).powi(2);
        }
    }
    let std = (runs.len() > 1).then(|| Scores::from_values(squares.map(|sum| (sum / (n - 1.0)).sqrt())));
    Some((Scores::from_values(mean), std))
}

/// Runs that differ in their seed alone; the content of seeds.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedSummary {
    /// Split that the scores other than `val_top1` were measured on.
    pub split: String,
    /// In the order in which the runs were handed in.
    pub seeds: Vec<u64>,
    /// In the order of `seeds`.
    pub runs: Vec<SeedRun>,
    /// Mean of each score.
    pub mean: Scores,
    /// Sample standard deviation of each score; none of a single run.
    pub std: Option<Scores>,
}

/// A run with one of the seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedRun {
    /// The run's `--seed`.
    pub seed: u64,
    /// Scores that the run reached; in JSON its fields stand beside those here.
    #[serde(flatten)]
    pub scores: Scores,
    /// Epochs that ran.
    pub epochs: u32,
    /// The epoch that was kept, counted from 1.
    pub best_epoch: u32,
    /// Seconds of training and validation.
    pub seconds: f64,
}

impl SeedSummary {
    /// Summarises runs, each with its seed, in the order of the seeds; none without a run.
    pub fn of(runs: &[(u64, &Summary)]) -> Option<Self> {
        let (_, first) = runs.first()?;
        let scores: Vec<Scores> = runs.iter().map(|(_, summary)| Scores::of(summary)).collect();
        let (mean, std) = mean_and_std(&scores)?;
        let run = |(&(seed, summary), scores): (&(u64, &Summary), Scores)| SeedRun {
            seed,
            scores,
            epochs: summary.epochs,
            best_epoch: summary.best_epoch,
            seconds: summary.seconds,
        };
        Some(SeedSummary {
            split: first.zero_shot.split.clone(),
            seeds: runs.iter().map(|(seed, _)| *seed).collect(),
            runs: runs.iter().zip(scores).map(run).collect(),
            mean,
            std,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(val_top1: f64, ece: f64) -> Scores {
        Scores { val_top1, test_top1: 0.5, test_top5: 1.0, text_top1: 0.25, macro_f1: 0.75, ece }
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, 32/7.
        let runs = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].map(|v| scores(v, 0.0));
        let (mean, std) = mean_and_std(&runs).unwrap();
        let std = std.unwrap();
        assert!((mean.val_top1 - 5.0).abs() < 1e-12);
        assert!((std.val_top1 - (32.0f64 / 7.0).sqrt()).abs() < 1e-12, "{}", std.val_top1);
        assert_eq!((mean.test_top1, mean.test_top5, mean.text_top1, mean.macro_f1), (0.5, 1.0, 0.25, 0.75));
        assert_eq!((std.test_top1, std.ece), (0.0, 0.0));
    }

    #[test]
    fn one_run_does_not_scatter_and_no_run_is_nothing() {
        let (mean, std) = mean_and_std(&[scores(0.5, 0.125)]).unwrap();
        assert_eq!((mean, std), (scores(0.5, 0.125), None));
        assert_eq!(mean_and_std(&[]), None);
    }

    #[test]
    fn a_score_that_is_no_number_has_no_mean() {
        let (mean, std) = mean_and_std(&[scores(0.5, f64::NAN), scores(0.7, 0.1)]).unwrap();
        assert!(mean.ece.is_nan() && std.unwrap().ece.is_nan());
        assert!((mean.val_top1 - 0.6).abs() < 1e-12);
        let text = serde_json::to_string(&mean).unwrap();
        assert!(serde_json::from_str::<Scores>(&text).unwrap().ece.is_nan(), "{text}");
    }
}
