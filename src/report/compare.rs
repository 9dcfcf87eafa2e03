//! Runs beside each other, and beside plain CLIP.

use serde::{Deserialize, Serialize};

/// Techniques on the same data; the content of comparison.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What the accuracies of `test_top1` were measured on: "test", or "val" where there is no test split.
    pub split: String,
    pub classes: usize,
    /// Plain CLIP first, then the runs in the order in which they were named.
    pub rows: Vec<ComparisonRow>,
}

/// One technique.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// The run's name; "zero-shot" for plain CLIP.
    pub name: String,
    pub recipe: String,
    /// Fractions. Plain CLIP has no validation result.
    pub val_top1: Option<f64>,
    pub test_top1: f64,
    pub test_top5: f64,
    pub text_top1: Option<f64>,
    pub macro_f1: Option<f64>,
    pub ece: Option<f64>,
    pub trained_parameters: usize,
    pub epochs: u32,
    pub best_epoch: u32,
    /// Of training and validation.
    pub seconds: f64,
    pub images_per_s: f64,
    /// What others report for the same technique on the same data, where it is known.
    pub published: Option<Published>,
}

/// A result that was published elsewhere, as fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The lowest and the highest that is reported.
    pub test_top1: [f64; 2],
    pub val_top1: Option<f64>,
}
