//! What an evaluation reports.

use super::Result;
use crate::objective::Objective;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The results on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    pub images: usize,
    /// The objective, over the whole split.
    pub loss: f64,
    pub loss_head: f64,
    pub loss_text: f64,
    /// Fractions of images whose class is the head's first choice, and among its first five.
    pub top1: f64,
    pub top5: f64,
    /// The same for the text logits.
    pub text_top1: f64,
    pub text_top5: f64,
    /// Mean over the classes of the head's F1 score; classes that occur neither in labels nor in
    /// predictions are left out, as in scikit-learn.
    pub macro_f1: f64,
}

/// Everything that is known about a split after an evaluation; the content of evaluation.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub split: String,
    pub class_names: Vec<String>,
    pub metrics: EvalMetrics,
    /// In label order.
    pub classes: Vec<ClassMetrics>,
    /// The same for plain CLIP's text logits, before training.
    pub zero_shot: Vec<ClassMetrics>,
    /// Images of class i that the head takes for class j, at \[i\]\[j\].
    pub confusion: Vec<Vec<u32>>,
    pub calibration: Vec<CalibrationBin>,
    /// In the order of the split.
    pub images: Vec<ImageResult>,
}

/// The results on one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Images of the class, and images that are taken for it.
    pub images: u32,
    pub predicted: u32,
    pub right: u32,
    /// `right`/`predicted` and `right`/`images`, and their harmonic mean; none where nothing is divided by.
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
}

/// Images whose confidence, the probability of the head's first choice, is within one of equally wide bins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    pub images: u32,
    /// Means; 0 where there is no image.
    pub confidence: f64,
    pub accuracy: f64,
}

/// One image as the classifier sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageResult {
    pub path: String,
    pub label: u32,
    pub predicted: u32,
    /// Probability of `predicted`.
    pub confidence: f32,
    pub text_predicted: u32,
}

/// Sums over the batches of a split.
#[derive(Debug, Clone)]
pub struct Accumulator {
    objective: Objective,
    images: usize,
    loss_head: f64,
    loss_text: f64,
    top1: usize,
    top5: usize,
    text_top1: usize,
    text_top5: usize,
    /// Per class: images of it, predictions of it, and both at once.
    labelled: Vec<usize>,
    predicted: Vec<usize>,
    right: Vec<usize>,
}

impl Accumulator {
    pub fn new(classes: usize, objective: Objective) -> Self {
        Accumulator {
            objective,
            images: 0,
            loss_head: 0.0,
            loss_text: 0.0,
            top1: 0,
            top5: 0,
            text_top1: 0,
            text_top5: 0,
            labelled: vec![0; classes],
            predicted: vec![0; classes],
            right: vec![0; classes],
        }
    }

    /// Takes in one batch: logits of head and text \[n, C\], labels \[n\].
    pub fn add(&mut self, head: &Tensor, text: &Tensor, labels: &[u32]) -> Result<()> {
        let classes = self.labelled.len();
        let (head, text) = (head.view().to_tensor(DType::F64)?, text.view().to_tensor(DType::F64)?);
        let rows = head.typed::<f64>()?.chunks_exact(classes).zip(text.typed::<f64>()?.chunks_exact(classes));
        for ((head, text), &label) in rows.zip(labels) {
            let label = label as usize;
            self.images += 1;
            self.loss_head += cross_entropy(head, label);
            self.loss_text += cross_entropy(text, label);
            let (place, text_place) = (place_of(head, label), place_of(text, label));
            self.top1 += usize::from(place < 1);
            self.top5 += usize::from(place < 5);
            self.text_top1 += usize::from(text_place < 1);
            self.text_top5 += usize::from(text_place < 5);
            let prediction = first_choice(head);
            self.labelled[label] += 1;
            self.predicted[prediction] += 1;
            self.right[label] += usize::from(prediction == label);
        }
        Ok(())
    }

    pub fn finish(&self) -> EvalMetrics {
        let n = self.images.max(1) as f64;
        let fraction = |count: usize| count as f64 / n;
        let (loss_head, loss_text) = (self.loss_head / n, self.loss_text / n);
        EvalMetrics {
            images: self.images,
            loss: self.objective.total(loss_head, loss_text),
            loss_head,
            loss_text,
            top1: fraction(self.top1),
            top5: fraction(self.top5),
            text_top1: fraction(self.text_top1),
            text_top5: fraction(self.text_top5),
            macro_f1: self.macro_f1(),
        }
    }

    fn macro_f1(&self) -> f64 {
        let classes = self.labelled.iter().zip(&self.predicted).zip(&self.right);
        let scores: Vec<f64> = classes
            .filter(|((labelled, predicted), _)| **labelled + **predicted > 0)
            .map(|((labelled, predicted), right)| 2.0 * *right as f64 / (labelled + predicted) as f64)
            .collect();
        scores.iter().sum::<f64>() / scores.len().max(1) as f64
    }
}

/// −log softmax(z)\[label\].
fn cross_entropy(logits: &[f64], label: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
    sum.ln() + max - logits[label]
}

/// How many classes come before `label`: larger logits, and equal ones of a smaller index. A logit that is
/// not a number is no choice at all.
fn place_of(logits: &[f64], label: usize) -> usize {
    let own = logits[label];
    if own.is_nan() {
        return usize::MAX;
    }
    logits.iter().enumerate().filter(|&(i, &z)| z > own || (z == own && i < label)).count()
}

/// The class of the largest logit, the first of equals.
fn first_choice(logits: &[f64]) -> usize {
    let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best });
    best.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn counts_agree_with_a_case_worked_by_hand() {
        let head = [2.0f32, 1.0, 0.0, 0.0, 3.0, 1.0, 1.0, 1.0, 1.0];
        let text = [0.0f32, 9.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0];
        let (head, text) =
            (Tensor::from_slice([3, 3], &head).unwrap(), Tensor::from_slice([3, 3], &text).unwrap());
        let mut sums = Accumulator::new(3, Objective { head: 1.0, text: 0.5 });
        // First choices of the head: 0, 1, and 0 (the first of three equals).
        sums.add(&head, &text, &[0, 1, 2]).unwrap();
        let metrics = sums.finish();
        assert_eq!(metrics.images, 3);
        assert_relative_eq!(metrics.top1, 2.0 / 3.0);
        assert_eq!(metrics.top5, 1.0);
        assert_relative_eq!(metrics.text_top1, 2.0 / 3.0);
        // Class 0: precision 1/2, recall 1; class 1: both 1; class 2: never predicted.
        assert_relative_eq!(metrics.macro_f1, (2.0 / 3.0 + 1.0 + 0.0) / 3.0);
        let expected = |z: [f64; 3], y: usize| (z.iter().map(|v| v.exp()).sum::<f64>()).ln() - z[y];
        let loss = (expected([2.0, 1.0, 0.0], 0) + expected([0.0, 3.0, 1.0], 1) + 3f64.ln()) / 3.0;
        assert_relative_eq!(metrics.loss_head, loss, epsilon = 1e-12);
        assert_relative_eq!(metrics.loss, metrics.loss_head + 0.5 * metrics.loss_text, epsilon = 1e-12);
    }
}
