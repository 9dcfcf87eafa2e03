//! Classes with different numbers of training images: what is said of them, and what may be done about it.

use crate::settings::Key;
use crate::train::metrics::ClassMetrics;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Photos of a split below which accuracies on it are chance for the most part.
const FEW: usize = 30;

/// How many times as many images as the least the class with the most must have, before what helps is named.
const UNEVEN: usize = 4;

/// Classes that are named before the others are counted.
const NAMED: usize = 5;

/// Images of each class.
pub(super) fn counts_of(labels: impl Iterator<Item = u32>, classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    labels.for_each(|label| counts[label as usize] += 1);
    counts
}

/// Describes the numbers of training images where the classes differ in them; with what helps, unless some of it is
/// `done`.
pub(super) fn describe(counts: &[usize], names: &[String], done: bool) -> Option<String> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&class| counts[class]);
    let (&least, &most) = (order.first()?, order.last()?);
    if counts[least] == counts[most] {
        return None;
    }
    let median = match counts.len() {
        n if n.is_multiple_of(2) => (counts[order[n / 2 - 1]] + counts[order[n / 2]]) as f64 / 2.0,
        n => counts[order[n / 2]] as f64,
    };
    let helps = match done || counts[most] < UNEVEN * counts[least] {
        true => String::new(),
        false => format!(
            "; {} balanced or {} balanced lets the small ones count as much",
            Key::class_weights,
            Key::sampler
        ),
    };
    Some(format!(
        "training images of a class: {} ({:?}) to {} ({:?}), median {median}{helps}",
        counts[least], names[least], counts[most], names[most],
    ))
}

/// Weights of the classes in a cross entropy with which all count the same: n/(C·n_c), as scikit-learn's
/// `class_weight="balanced"`.
pub(super) struct BalancedWeights {
    of_class: Vec<f64>,
    of_step: Vec<f32>,
}

impl BalancedWeights {
    pub(super) fn new(counts: &[usize]) -> Self {
        let images: usize = counts.iter().sum();
        let weight = |&count: &usize| images as f64 / (counts.len() * count.max(1)) as f64;
        BalancedWeights { of_class: counts.iter().map(weight).collect(), of_step: vec![1.0; counts.len()] }
    }

    /// Sets the weights for a step on images of these labels: as many times larger as makes the mean over the images
    /// the mean weighted by their classes, which is what `torch.nn.CrossEntropyLoss(weight)` takes.
    pub(super) fn begin_step(&mut self, labels: impl Iterator<Item = u32>) {
        let (images, sum) = labels
            .fold((0u32, 0.0), |(images, sum), label| (images + 1, sum + self.of_class[label as usize]));
        let scale = f64::from(images) / sum;
        let weights = self.of_step.iter_mut().zip(&self.of_class);
        weights.for_each(|(now, weight)| *now = (scale * weight) as f32);
    }

    /// Weights of the classes \[C\] in the step that was begun.
    pub(super) fn of_step(&self) -> &[f32] {
        &self.of_step
    }
}

/// As many of the images `chosen` as there are, drawn with replacement: each class as likely as any other, and in
/// it each image.
pub(super) fn draw(labels: &[u32], chosen: &[usize], classes: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut of_class = vec![Vec::new(); classes];
    chosen.iter().for_each(|&image| of_class[labels[image] as usize].push(image));
    of_class.retain(|images| !images.is_empty());
    let one = |_: &usize| {
        let images = &of_class[rng.random_range(0..of_class.len())];
        images[rng.random_range(0..images.len())]
    };
    chosen.iter().map(one).collect()
}

/// Returns warnings of splits whose results say little: those of few photos and, for the last of `splits`, where the
/// result is measured, classes without a photo.
pub(super) fn warnings_of_splits(splits: &[(&str, &[u32])], names: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    let few = splits.iter().filter(|(_, labels)| labels.len() < FEW);
    let few: Vec<String> = few.map(|(split, labels)| format!("{split} {}", labels.len())).collect();
    if !few.is_empty() {
        warnings.push(format!(
            "few photos to measure by ({}): on fewer than {FEW} an accuracy is easily {:.0} points off",
            few.join(", "),
            // Two standard errors at one half.
            100.0 / (FEW as f64).sqrt(),
        ));
    }
    if let Some((split, labels)) = splits.last() {
        let counts = counts_of(labels.iter().copied(), names.len());
        if let Some(classes) = named(names, |class| counts[class] == 0) {
            warnings.push(format!("no {split} photos of {classes}: the result says nothing of them"));
        }
    }
    warnings
}

/// Returns a warning of classes that no image of the split is taken for; `helps` is what may help besides photos.
pub(super) fn never_predicted(
    split: &str,
    results: &[ClassMetrics],
    names: &[String],
    helps: &str,
) -> Option<String> {
    let never = |class: usize| results[class].predicted == 0 && results[class].images > 0;
    let classes = named(names, never)?;
    Some(format!(
        "no {split} photo is taken for {classes}, which the kept model does not tell from others; more training photos \
         of it help{helps}"
    ))
}

/// The classes that `is` true of, by name; none where it is of none.
fn named(names: &[String], is: impl Fn(usize) -> bool) -> Option<String> {
    let found: Vec<String> = names
        .iter()
        .enumerate()
        .filter(|&(class, _)| is(class))
        .map(|(_, name)| format!("{name:?}"))
        .collect();
    let more = match found.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let plural = if found.len() == 1 { "class" } else { "classes" };
    (!found.is_empty())
        .then(|| format!("{} {plural} ({}{more})", found.len(), found[..found.len().min(NAMED)].join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| format!("c{class}")).collect()
    }

    #[test]
    fn the_numbers_of_images_are_said_where_they_differ() {
        assert_eq!(describe(&[5, 5, 5], &names(3), false), None);
        let line = describe(&[30, 6, 12, 20], &names(4), false).unwrap();
        let expected = "training images of a class: 6 (\"c1\") to 30 (\"c0\"), median 16";
        assert!(line.starts_with(expected) && line.contains("--class-weights balanced"), "{line}");
        assert_eq!(describe(&[30, 6, 12, 20], &names(4), true).unwrap(), expected);
        assert!(!describe(&[30, 10, 12], &names(3), false).unwrap().contains("--class-weights"));
    }

    /// scikit-learn's compute_class_weight("balanced"); torch divides by the sum over the labels.
    #[test]
    fn weights_are_those_of_scikit_learn_and_their_mean_over_a_step_is_1() {
        let mut weights = BalancedWeights::new(&[6, 2, 4]);
        assert_eq!(weights.of_class, [12.0 / 18.0, 2.0, 1.0]);
        let labels = [0, 1, 1, 2, 0];
        weights.begin_step(labels.into_iter());
        let mean =
            labels.iter().map(|&label| f64::from(weights.of_step()[label as usize])).sum::<f64>() / 5.0;
        assert!((mean - 1.0).abs() < 1e-6, "{mean}");
        let ratio = weights.of_step()[1] / weights.of_step()[2];
        assert!((ratio - 2.0).abs() < 1e-6, "{ratio}");
    }

    #[test]
    fn classes_are_drawn_alike_and_the_images_of_one_too() {
        let labels: Vec<u32> = (0..60).map(|image| u32::from(image >= 50)).collect();
        let chosen: Vec<usize> = (0..60).collect();
        let mut of_class = [0u32; 2];
        let mut of_image = [0u32; 60];
        for epoch in 0..500 {
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            rng.set_stream(epoch);
            let drawn = draw(&labels, &chosen, 2, &mut rng);
            assert_eq!(drawn.len(), 60);
            for image in drawn {
                of_class[labels[image] as usize] += 1;
                of_image[image] += 1;
            }
        }
        // 30000 draws, with a deviation of 87 by class; 300 and 1500 of an image, of 17 and 38.
        assert!(of_class[0].abs_diff(15_000) < 435, "{of_class:?}");
        assert!(of_image[..50].iter().all(|count| count.abs_diff(300) < 87), "{of_image:?}");
        assert!(of_image[50..].iter().all(|count| count.abs_diff(1500) < 190), "{of_image:?}");
    }

    #[test]
    fn splits_that_say_little_are_named() {
        let (many, few): (Vec<u32>, Vec<u32>) = ((0..40).map(|i| i % 2).collect(), vec![0, 1, 2, 0]);
        assert!(
            warnings_of_splits(&[("val", &few.repeat(8)), ("test", &few.repeat(8))], &names(3)).is_empty()
        );
        let warnings = warnings_of_splits(&[("val", &few), ("test", &many)], &names(3));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("(val 4)") && warnings[0].contains("18 points"), "{warnings:?}");
        assert!(warnings[1].starts_with("no test photos of 1 class (\"c2\")"), "{warnings:?}");
        let warnings = warnings_of_splits(&[("val", &many)], &names(9));
        assert!(
            warnings[0].contains("7 classes (\"c2\", \"c3\", \"c4\", \"c5\", \"c6\" and 2 more)"),
            "{warnings:?}"
        );
    }
}
