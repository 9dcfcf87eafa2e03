//! What an evaluation reports.

use super::Result;
use crate::objective::Objective;
use crate::stats::calibration::{BINS, bin_of};
use crate::stats::temperature::ImageScores;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Deserializer, Serialize};

/// The results on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Images of the split.
    pub images: usize,
    /// The objective, over the whole split. Null in JSON where a logit was not a number.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Mean cross entropy of the head, before it is weighted.
    #[serde(deserialize_with = "number")]
    pub loss_head: f64,
    /// Mean cross entropy of the text logits, before it is weighted.
    #[serde(deserialize_with = "number")]
    pub loss_text: f64,
    /// Fraction of images whose class is the head's first choice.
    pub top1: f64,
    /// Fraction of images whose class is among the head's first five.
    pub top5: f64,
    /// Fraction of images whose class is the first choice of the text logits.
    pub text_top1: f64,
    /// Fraction of images whose class is among the first five of the text logits.
    pub text_top5: f64,
    /// Mean over the classes of the head's F1 score; classes that occur neither in labels nor in
    /// predictions are left out, as in scikit-learn.
    pub macro_f1: f64,
    /// Expected calibration error of the head: the mean distance between confidence and accuracy over the
    /// bins of the confidence. Not a number, null in JSON, where an image has no confidence.
    #[serde(deserialize_with = "number")]
    pub ece: f64,
    /// Mean −log probability of the right class, by the probabilities that are shown. Not a number, null in JSON,
    /// where it is not known.
    #[serde(default = "nan", deserialize_with = "number")]
    pub nll: f64,
    /// Mean over the images of the squared distance between the probabilities of the classes and 1 for the right
    /// one, 0 for all others (Brier 1950). Not a number, null in JSON, where it is not known.
    #[serde(default = "nan", deserialize_with = "number")]
    pub brier: f64,
}

/// Everything that is known about a split after an evaluation; the content of evaluation.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// "train", "val" or "test".
    pub split: String,
    /// In label order.
    pub class_names: Vec<String>,
    /// Over the whole split.
    pub metrics: EvalMetrics,
    /// In label order.
    pub classes: Vec<ClassMetrics>,
    /// Results of plain CLIP's text logits on each class, before training; empty where these were not computed.
    pub zero_shot: Vec<ClassMetrics>,
    /// Images of class i that the head takes for class j, at \[i\]\[j\].
    pub confusion: Vec<Vec<u32>>,
    /// Fifteen bins, from the least confidence to the greatest.
    pub calibration: Vec<CalibrationBin>,
    /// In the order of the split.
    pub images: Vec<ImageResult>,
}

impl Evaluation {
    /// The metrics, and beside them what is known of the classes: what `engine eval --json` prints.
    ///
    /// # Errors
    /// None for metrics that are numbers.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        let mut report = serde_json::to_value(&self.metrics)?;
        let names = self.class_names.iter().zip(&self.classes);
        let classes = names.map(|(name, class)| {
            let mut entry = serde_json::to_value(class)?;
            entry["name"] = name.as_str().into();
            Ok(entry)
        });
        report["classes"] = classes.collect::<serde_json::Result<Vec<_>>>()?.into();
        report["confusion"] = serde_json::to_value(&self.confusion)?;
        report["calibration"] = serde_json::to_value(&self.calibration)?;
        Ok(report)
    }
}

/// The results on one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Images of the class.
    pub images: u32,
    /// Images that are taken for the class, rightly or not.
    pub predicted: u32,
    /// Images of the class that are taken for it.
    pub right: u32,
    /// `right`/`predicted`; none where no image is taken for the class.
    pub precision: Option<f64>,
    /// `right`/`images`; none for a class without images.
    pub recall: Option<f64>,
    /// Harmonic mean of the two, 0 where nothing is right; none for a class that occurs neither in labels nor
    /// in predictions.
    pub f1: Option<f64>,
}

/// Images whose confidence, the probability of the head's first choice, is within one of equally wide bins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Images whose confidence is in the bin.
    pub images: u32,
    /// Mean confidence of its images; 0 where there is none.
    pub confidence: f64,
    /// Fraction of its images whose class is the first choice; 0 where there is none.
    pub accuracy: f64,
}

/// One image as the classifier sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageResult {
    /// The photo's path, or the name of a generated image.
    pub path: String,
    /// Number of its class in [`Evaluation::class_names`].
    pub label: u32,
    /// The class that the head takes it for; see [`Accumulator`] for logits that are not numbers.
    pub predicted: u32,
    /// Probability of `predicted`.
    pub confidence: f32,
    /// The class that the text logits take it for.
    pub text_predicted: u32,
}

/// How good probabilities are; smaller is better in each. Not numbers, null in JSON, where an image has no
/// probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Probabilities {
    /// Mean −log probability of the right class.
    #[serde(deserialize_with = "number")]
    pub nll: f64,
    /// See [`EvalMetrics::brier`].
    #[serde(deserialize_with = "number")]
    pub brier: f64,
    /// See [`EvalMetrics::ece`].
    #[serde(deserialize_with = "number")]
    pub ece: f64,
}

/// One image with what head and text logits make of it.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    label: u32,
    /// Scores of softmax(logits/T); none where a logit is not a number.
    shown: Option<ImageScores>,
    /// Scores of softmax(logits); none where a logit is not a number.
    untempered: Option<ImageScores>,
    predicted: u32,
    text_predicted: u32,
}

/// Results of the batches of a split.
///
/// An image with a logit that is not a number, or is infinite so that no probability is left, counts as
/// wrong: as one that is taken for the first class that is not its own.
#[derive(Debug, Clone)]
pub struct Accumulator {
    classes: usize,
    objective: Objective,
    temperature: f64,
    /// Logits of all images \[N, C\], where they are kept.
    logits: Option<Vec<f64>>,
    loss_head: f64,
    loss_text: f64,
    top5: usize,
    text_top5: usize,
    /// The first image whose loss is no number.
    not_finite: Option<usize>,
    outcomes: Vec<Outcome>,
}

impl Accumulator {
    /// Without any batch yet, of a split with `classes` classes; `objective` weights the parts of the loss.
    pub fn new(classes: usize, objective: Objective) -> Self {
        Accumulator {
            classes,
            objective,
            temperature: 1.0,
            logits: None,
            loss_head: 0.0,
            loss_text: 0.0,
            top5: 0,
            text_top5: 0,
            not_finite: None,
            outcomes: Vec::new(),
        }
    }

    /// With probabilities softmax(logits/`temperature`): those to come, and where the logits are kept those so far.
    pub(crate) fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        let rows = self.logits.iter().flat_map(|logits| logits.chunks_exact(self.classes));
        for (outcome, logits) in self.outcomes.iter_mut().zip(rows) {
            outcome.shown = ImageScores::of(logits, outcome.label as usize, temperature);
        }
        self
    }

    /// Keeps the head's logits for [`Accumulator::logits`].
    pub(crate) fn keep_logits(mut self) -> Self {
        self.logits = Some(Vec::new());
        self
    }

    /// Logits of the head \[N, C\] and labels \[N\] of all batches so far, where the logits are kept.
    pub fn logits(&self) -> Option<(&[f64], Vec<u32>)> {
        let labels = || self.outcomes.iter().map(|outcome| outcome.label).collect();
        self.logits.as_deref().map(|logits| (logits, labels()))
    }

    /// Takes in one batch: logits of head and text \[n, C\], labels \[n\].
    pub fn add(&mut self, head: &Tensor, text: &Tensor, labels: &[u32]) -> Result<()> {
        let (head, text) = (head.view().to_tensor(DType::F64)?, text.view().to_tensor(DType::F64)?);
        let head = head.typed::<f64>()?;
        if let Some(logits) = &mut self.logits {
            logits.extend_from_slice(head);
        }
        let rows = head.chunks_exact(self.classes).zip(text.typed::<f64>()?.chunks_exact(self.classes));
        for ((head, text), &label) in rows.zip(labels) {
            let untempered = ImageScores::of(head, label as usize, 1.0);
            let shown = match self.temperature {
                1.0 => untempered,
                temperature => ImageScores::of(head, label as usize, temperature),
            };
            let (head, text) = (Scores::of(head, label), Scores::of(text, label));
            if !self.objective.total(head.loss, text.loss, 0.0).is_finite() {
                self.not_finite.get_or_insert(self.outcomes.len());
            }
            self.loss_head += head.loss;
            self.loss_text += text.loss;
            self.top5 += usize::from(head.place < 5);
            self.text_top5 += usize::from(text.place < 5);
            let (predicted, text_predicted) = (head.choice, text.choice);
            self.outcomes.push(Outcome { label, shown, untempered, predicted, text_predicted });
        }
        Ok(())
    }

    /// The first image of which a part of the objective is not a number, by its place in the split.
    pub(crate) fn not_finite(&self) -> Option<usize> {
        self.not_finite
    }

    /// The results on all batches so far; losses and fractions are 0 where there was none.
    pub fn finish(&self) -> EvalMetrics {
        let n = self.outcomes.len().max(1) as f64;
        let fraction = |count: usize| count as f64 / n;
        let (loss_head, loss_text) = (self.loss_head / n, self.loss_text / n);
        let Probabilities { nll, brier, ece } = self.probabilities();
        EvalMetrics {
            images: self.outcomes.len(),
            loss: self.objective.total(loss_head, loss_text, 0.0),
            loss_head,
            loss_text,
            top1: fraction(self.outcomes.iter().filter(|o| o.predicted == o.label).count()),
            top5: fraction(self.top5),
            text_top1: fraction(self.outcomes.iter().filter(|o| o.text_predicted == o.label).count()),
            text_top5: fraction(self.text_top5),
            macro_f1: macro_f1(&self.head_classes()),
            ece,
            nll,
            brier,
        }
    }

    /// How good the probabilities are that are shown.
    pub fn probabilities(&self) -> Probabilities {
        self.probabilities_of(|outcome| outcome.shown)
    }

    /// Probability of the first choice of each image; those without one are left out.
    pub(crate) fn confidences(&self) -> Vec<f64> {
        self.outcomes.iter().filter_map(|outcome| outcome.shown).map(|shown| shown.confidence).collect()
    }

    /// How good the probabilities softmax(logits) are, without the temperature.
    pub(crate) fn untempered(&self) -> Probabilities {
        self.probabilities_of(|outcome| outcome.untempered)
    }

    fn probabilities_of(&self, of: impl Fn(&Outcome) -> Option<ImageScores>) -> Probabilities {
        let n = self.outcomes.len().max(1) as f64;
        let (mut nll, mut brier) = (0.0, 0.0);
        for outcome in &self.outcomes {
            let Some(shown) = of(outcome) else {
                return Probabilities { nll: f64::NAN, brier: f64::NAN, ece: f64::NAN };
            };
            (nll, brier) = (nll + shown.nll, brier + shown.brier);
        }
        let gap = |bin: &CalibrationBin| f64::from(bin.images) * (bin.accuracy - bin.confidence).abs();
        let ece = self.bins(of).iter().map(gap).sum::<f64>() / n;
        Probabilities { nll: nll / n, brier: brier / n, ece }
    }

    /// The head's results per class, in label order.
    fn head_classes(&self) -> Vec<ClassMetrics> {
        class_metrics(self.classes, self.outcomes.iter().map(|o| (o.label, o.predicted)))
    }

    /// The results of the text logits per class, in label order.
    pub fn text_classes(&self) -> Vec<ClassMetrics> {
        class_metrics(self.classes, self.outcomes.iter().map(|o| (o.label, o.text_predicted)))
    }

    /// All that is known about the split. `path` names the image at a place of it; `zero_shot` are the
    /// `text_classes` of plain CLIP on the same images.
    pub fn evaluation(
        &self,
        split: &str,
        class_names: &[String],
        path: impl Fn(usize) -> String,
        zero_shot: Vec<ClassMetrics>,
    ) -> Evaluation {
        let images = self.outcomes.iter().enumerate().map(|(i, outcome)| ImageResult {
            path: path(i),
            label: outcome.label,
            predicted: outcome.predicted,
            confidence: outcome.shown.map_or(0.0, |shown| shown.confidence) as f32,
            text_predicted: outcome.text_predicted,
        });
        Evaluation {
            split: split.to_owned(),
            class_names: class_names.to_vec(),
            metrics: self.finish(),
            classes: self.head_classes(),
            zero_shot,
            confusion: self.confusion(),
            calibration: self.bins(|outcome| outcome.shown),
            images: images.collect(),
        }
    }

    fn confusion(&self) -> Vec<Vec<u32>> {
        let mut confusion = vec![vec![0; self.classes]; self.classes];
        for outcome in &self.outcomes {
            confusion[outcome.label as usize][outcome.predicted as usize] += 1;
        }
        confusion
    }

    /// Images without a confidence are in no bin.
    fn bins(&self, of: impl Fn(&Outcome) -> Option<ImageScores>) -> Vec<CalibrationBin> {
        let mut bins = vec![CalibrationBin { images: 0, confidence: 0.0, accuracy: 0.0 }; BINS];
        for outcome in &self.outcomes {
            let Some(ImageScores { confidence, .. }) = of(outcome) else { continue };
            let bin = &mut bins[bin_of(confidence)];
            bin.images += 1;
            bin.confidence += confidence;
            bin.accuracy += f64::from(u8::from(outcome.predicted == outcome.label));
        }
        for bin in &mut bins {
            let n = f64::from(bin.images.max(1));
            (bin.confidence, bin.accuracy) = (bin.confidence / n, bin.accuracy / n);
        }
        bins
    }
}

/// Counts and scores per class of pairs of label and prediction.
// No crate: linfa's, the best kept one, brings an array library, computes in f32, and leaves open what becomes
// of a class that is missing from labels or predictions.
fn class_metrics(classes: usize, pairs: impl Iterator<Item = (u32, u32)>) -> Vec<ClassMetrics> {
    let mut counts = vec![[0u32; 3]; classes];
    for (label, predicted) in pairs {
        counts[label as usize][0] += 1;
        counts[predicted as usize][1] += 1;
        counts[label as usize][2] += u32::from(predicted == label);
    }
    let ratio = |a: u32, b: u32| (b > 0).then(|| f64::from(a) / f64::from(b));
    let scores = counts.into_iter().map(|[images, predicted, right]| ClassMetrics {
        images,
        predicted,
        right,
        precision: ratio(right, predicted),
        recall: ratio(right, images),
        f1: ratio(2 * right, images + predicted),
    });
    scores.collect()
}

/// Mean F1 score of the classes that have one.
pub(crate) fn macro_f1(classes: &[ClassMetrics]) -> f64 {
    let scores: Vec<f64> = classes.iter().filter_map(|class| class.f1).collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// Loss of one image and the place of its label among the classes, by its logits.
struct Scores {
    /// −log softmax(z)\[label\].
    loss: f64,
    /// The class of the largest logit, the first of equals.
    choice: u32,
    /// How many classes come before the label: larger logits, and equal ones of a smaller index.
    place: usize,
}

impl Scores {
    fn of(logits: &[f64], label: u32) -> Self {
        let own = logits[label as usize];
        let (choice, max) = logits
            .iter()
            .copied()
            .enumerate()
            .fold((0, f64::NEG_INFINITY), |best, (i, z)| if z > best.1 { (i as u32, z) } else { best });
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        let loss = sum.ln() + max - own;
        if sum.is_nan() {
            let another = u32::from(label == 0 && logits.len() > 1);
            return Scores { loss, choice: another, place: usize::MAX };
        }
        let before = |&(i, &z): &(usize, &f64)| z > own || (z == own && i < label as usize);
        let place = logits.iter().enumerate().filter(before).count();
        Scores { loss, choice, place }
    }
}

/// In place of a number that a file from before it was recorded lacks.
pub(crate) fn nan() -> f64 {
    f64::NAN
}

/// Reads a number, or the null that JSON has in place of one that is not finite.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
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
        let mut sums = Accumulator::new(3, Objective::new(1.0, 0.5));
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

    /// The case of tools/metrics_reference.py: class 5 has no image and class 4 is never predicted.
    fn sklearn_case() -> Accumulator {
        let labels: Vec<u32> = (0..40).map(|i| (3 * i + i / 4) % 5).collect();
        let logits = sklearn_logits(&labels);
        let mut sums = Accumulator::new(6, Objective::new(1.0, 0.0));
        for (logits, labels) in logits.chunks(17 * 6).zip(labels.chunks(17)) {
            let head = Tensor::from_slice([labels.len(), 6], logits).unwrap();
            // The text logits take every image for class 2.
            let text = [0.0f32, 0.0, 1.0, 0.0, 0.0, 0.0].repeat(labels.len());
            let text = Tensor::from_slice([labels.len(), 6], &text).unwrap();
            sums.add(&head, &text, labels).unwrap();
        }
        sums
    }

    fn sklearn_logits(labels: &[u32]) -> Vec<f64> {
        let mut logits = vec![0.0f64; 40 * 6];
        for (k, logit) in logits.iter_mut().enumerate() {
            let (i, j) = (k / 6, k % 6);
            *logit = ((7 * i + 13 * j + 5 * i * j + i * i) % 23) as f64 / 4.0;
            *logit += if labels[i] as usize == j { 2.0 } else { 0.0 };
            *logit -= if j == 4 { 10.0 } else { 0.0 };
        }
        logits
    }

    #[test]
    fn scores_agree_with_scikit_learn() {
        let sums = sklearn_case();
        let names: Vec<String> = (0..6).map(|i| format!("class {i}")).collect();
        let found = sums.evaluation("val", &names, |i| format!("{i}.jpg"), sums.text_classes());
        let third = 2.0 / 3.0;
        let of =
            |score: fn(&ClassMetrics) -> Option<f64>| found.classes.iter().map(score).collect::<Vec<_>>();
        let some = |values: &[f64]| values.iter().map(|&v| Some(v)).collect::<Vec<_>>();
        let precision = [some(&[third, third, third, 0.625]), vec![None, Some(0.0)]].concat();
        assert_eq!(of(|c| c.precision), precision);
        assert_eq!(of(|c| c.recall), [some(&[0.75, 0.5, 0.75, 0.625, 0.0]), vec![None]].concat());
        let f1 = [0.7058823529411765, 0.5714285714285714, 0.7058823529411765, 0.625, 0.0, 0.0];
        assert_eq!(of(|c| c.f1), some(&f1));
        let confusion = [
            [6, 0, 1, 0, 0, 1],
            [0, 4, 2, 1, 0, 1],
            [0, 2, 6, 0, 0, 0],
            [2, 0, 0, 5, 0, 1],
            [1, 0, 0, 2, 0, 5],
            [0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(found.confusion, confusion);
        let metrics = &found.metrics;
        assert_eq!((metrics.images, metrics.top1, metrics.top5), (40, 0.525, 0.8));
        assert_relative_eq!(metrics.macro_f1, 0.43469887955182074, epsilon = 1e-15);
        assert_relative_eq!(metrics.loss_head, 3.034236059026658, epsilon = 1e-14);
        assert_relative_eq!(metrics.ece, 0.2197519210623598, epsilon = 1e-14);
        assert_relative_eq!(metrics.nll, metrics.loss_head, epsilon = 1e-14);
        assert_relative_eq!(metrics.brier, 0.7050750564951312, epsilon = 1e-14);
    }

    #[test]
    fn a_temperature_changes_probabilities_as_scikit_learn_has_them_and_no_choice() {
        let plain = sklearn_case();
        let empty = || Accumulator::new(6, Objective::new(1.0, 0.0));
        let fill = |mut sums: Accumulator| {
            let labels: Vec<u32> = plain.outcomes.iter().map(|outcome| outcome.label).collect();
            let logits = Tensor::from_slice([40, 6], &sklearn_logits(&labels)).unwrap();
            sums.add(&logits, &logits, &labels).unwrap();
            sums
        };
        // Before the images are added, and after.
        let sums = [fill(empty().with_temperature(2.5)), fill(empty().keep_logits()).with_temperature(2.5)];
        for sums in sums {
            let found = sums.finish();
            assert_relative_eq!(found.nll, 1.9432054002614276, epsilon = 1e-14);
            assert_relative_eq!(found.brier, 0.7064602727684927, epsilon = 1e-14);
            assert_relative_eq!(found.ece, 0.14931103295707768, epsilon = 1e-14);
            assert_eq!(found.top1, plain.finish().top1);
            assert_relative_eq!(found.loss_head, plain.finish().loss_head, epsilon = 1e-14);
            assert_relative_eq!(sums.untempered().ece, plain.finish().ece, epsilon = 1e-14);
        }
    }

    #[test]
    fn an_evaluation_lists_every_image_and_bin() {
        let sums = sklearn_case();
        let names: Vec<String> = (0..6).map(|i| format!("class {i}")).collect();
        let found = sums.evaluation("val", &names, |i| format!("{i}.jpg"), sums.text_classes());
        assert_eq!((found.split.as_str(), found.class_names), ("val", names));
        assert_eq!(found.images.len(), 40);
        let image = &found.images[23];
        assert_eq!((image.path.as_str(), image.label, image.text_predicted), ("23.jpg", 4, 2));
        for (label, row) in found.confusion.iter().enumerate() {
            let images = found.images.iter().filter(|image| image.label as usize == label);
            let mut counted = [0; 6];
            images.for_each(|image| counted[image.predicted as usize] += 1);
            assert_eq!(row, &counted);
        }
        assert_eq!((found.zero_shot[2].predicted, found.zero_shot[2].right), (40, 8));
        assert_eq!((found.zero_shot[0].precision, found.zero_shot[0].recall), (None, Some(0.0)));
        assert_eq!(found.calibration.len(), BINS);
        assert_eq!(found.calibration.iter().map(|bin| bin.images).sum::<u32>(), 40);
        for (i, bin) in found.calibration.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
            assert!(bin.confidence * 15.0 > i as f64 && bin.confidence * 15.0 <= i as f64 + 1.0);
        }
    }

    #[test]
    fn calibration_error_of_a_case_worked_by_hand() {
        let mut sums = Accumulator::new(2, Objective::new(1.0, 0.0));
        // Probabilities 0.8 (twice, right once) and 0.5 (right).
        let head = [4f64.ln(), 0.0, 4f64.ln(), 0.0, 0.0, 0.0];
        let head = Tensor::from_slice([3, 2], &head).unwrap();
        sums.add(&head, &head, &[0, 1, 0]).unwrap();
        assert_relative_eq!(sums.finish().ece, (2.0 * 0.3 + 0.5) / 3.0, epsilon = 1e-15);
    }

    #[test]
    fn bins_contain_their_upper_edge() {
        assert_eq!([1e-9, 1.0 / 15.0, 0.0667, 0.2, 0.5, 0.99, 1.0].map(bin_of), [0, 0, 1, 2, 7, 14, 14]);
    }

    #[test]
    fn logits_that_are_not_numbers_are_wrong() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let rows = [[nan, nan], [nan, 1.0], [nan, 1.0], [inf, 0.0], [-inf, -inf], [0.0, 1.0], [0.0, -inf]];
        let labels = [0, 0, 1, 0, 1, 1, 0];
        let head = Tensor::from_slice([7, 2], rows.as_flattened()).unwrap();
        let mut sums = Accumulator::new(2, Objective::new(1.0, 0.0));
        sums.add(&head, &head, &labels).unwrap();
        let names = ["a".to_owned(), "b".to_owned()];
        let found = sums.evaluation("val", &names, |i| i.to_string(), sums.text_classes());
        let metrics = &found.metrics;
        assert_relative_eq!(metrics.top1, 2.0 / 7.0);
        assert_eq!((metrics.top1, metrics.top1), (metrics.top5, metrics.text_top1));
        assert_eq!(found.confusion, [[1, 3], [2, 1]]);
        assert!(metrics.ece.is_nan() && metrics.loss_head.is_nan());
        assert_eq!(found.calibration.iter().map(|bin| bin.images).sum::<u32>(), 2);
        let confidences: Vec<f32> = found.images.iter().map(|image| image.confidence).collect();
        assert_relative_eq!(confidences[5], 0.7310586);
        assert_eq!([&confidences[..5], &confidences[6..]].concat(), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        // What is not a number comes back as such, and does not spoil the file.
        let read: Evaluation = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
        assert!(read.metrics.ece.is_nan() && read.metrics.loss.is_nan());
        assert_eq!((read.images, read.classes), (found.images, found.classes));
    }

    #[test]
    fn one_class_and_no_image_make_no_panic() {
        let mut sums = Accumulator::new(1, Objective::new(1.0, 0.0));
        assert_eq!((sums.finish().images, sums.finish().ece), (0, 0.0));
        let head = Tensor::from_slice([2, 1], &[3.0f64, f64::NAN]).unwrap();
        sums.add(&head, &head, &[0, 0]).unwrap();
        assert_eq!(sums.finish().images, 2);
    }
}
