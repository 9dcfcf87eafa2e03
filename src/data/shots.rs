//! Few-shot training: a small, balanced part of the training images.

use super::DataError;
use crate::random;
use rand::seq::SliceRandom;

/// Draws `shots` images of every class without replacement, or all of a class that has fewer: indices into
/// `labels`, ascending.
///
/// The choice depends on `seed`, and within a class on its label and its images alone. Fewer shots under the
/// same seed are a part of more shots, so that a curve over their number compares like with like.
///
/// # Errors
/// [`DataError::NoShots`] for none.
///
/// # Panics
/// On a label without a class name, which no cache holds.
pub(crate) fn few_shot(
    labels: &[u32],
    class_names: &[String],
    shots: usize,
    seed: u64,
) -> Result<Vec<usize>, DataError> {
    if shots == 0 {
        return Err(DataError::NoShots);
    }
    let mut classes = by_class(labels, class_names);
    let mut chosen = Vec::new();
    for (images, label) in classes.iter_mut().zip(0..) {
        // All of them, where a part would do: fewer shots are then the beginning of more.
        images.shuffle(&mut random::of_purpose("few-shot", &[seed], label));
        chosen.extend(images.iter().take(shots));
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// Message about the classes with fewer than `shots` images, of which all take part; none where there are none.
pub(crate) fn classes_below(labels: &[u32], class_names: &[String], shots: usize) -> Option<String> {
    const NAMED: usize = 5;
    let classes = by_class(labels, class_names);
    let small = classes.iter().zip(class_names).filter(|(images, _)| images.len() < shots);
    let small: Vec<String> = small.map(|(images, name)| format!("{name:?} ({})", images.len())).collect();
    let more = match small.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = small.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let count = small.len();
    (count > 0).then(|| {
        format!(
            "--shots {shots}: {count} of the classes have fewer photos and take part with all: {named}{more}"
        )
    })
}

/// The images of each class.
fn by_class(labels: &[u32], class_names: &[String]) -> Vec<Vec<usize>> {
    let mut classes = vec![Vec::new(); class_names.len()];
    for (index, &label) in labels.iter().enumerate() {
        classes[label as usize].push(index);
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["lily", "rose", "tulip"].map(str::to_owned).to_vec()
    }

    /// 40 lilies, 25 roses and 10 tulips, mixed up.
    fn labels() -> Vec<u32> {
        (0..75u32).map(|i| [0, 1, 0, 1, 0, 0, 2, 0, 1, 0, 1, 0, 1, 2, 0][i as usize % 15]).collect()
    }

    #[test]
    fn every_class_gets_as_many_images_as_asked_for_and_none_twice() {
        let labels = labels();
        for shots in [1, 4, 10] {
            let chosen = few_shot(&labels, &names(), shots, 42).unwrap();
            assert!(chosen.is_sorted_by(|a, b| a < b), "{chosen:?}");
            for label in 0..3 {
                assert_eq!(chosen.iter().filter(|&&i| labels[i] == label).count(), shots);
            }
        }
    }

    #[test]
    fn the_choice_depends_on_the_seed_and_on_nothing_else() {
        let labels = labels();
        let choose = |seed| few_shot(&labels, &names(), 4, seed).unwrap();
        let all: std::collections::BTreeSet<Vec<usize>> = (0..50).map(choose).collect();
        assert_eq!(all.len(), 50, "other seeds give other images");
        assert_eq!(choose(7), choose(7));
        // Two classes of one size do not get the same places.
        let halves: Vec<u32> = (0..200).map(|i| i / 100).collect();
        let chosen = few_shot(&halves, &names()[..2], 20, 7).unwrap();
        let (first, second) = chosen.split_at(20);
        assert!(first.iter().zip(second).any(|(a, b)| a + 100 != *b));
        // The tulips are the same ones whether or not there are more lilies after them.
        let mut more = labels.clone();
        more.extend([0; 20]);
        let tulips =
            |chosen: Vec<usize>| -> Vec<usize> { chosen.into_iter().filter(|&i| more[i] == 2).collect() };
        assert_eq!(tulips(few_shot(&more, &names(), 4, 7).unwrap()), tulips(choose(7)));
    }

    #[test]
    fn every_image_is_as_likely_as_any_other_of_its_class() {
        let labels = labels();
        let mut count = vec![0u32; labels.len()];
        for seed in 0..2000 {
            for image in few_shot(&labels, &names(), 5, seed).unwrap() {
                count[image] += 1;
            }
        }
        for (image, &count) in count.iter().enumerate() {
            let of_class = labels.iter().filter(|&&label| label == labels[image]).count() as f64;
            let expected = 5.0 / of_class;
            let deviation = (expected * (1.0 - expected) / 2000.0).sqrt();
            let found = f64::from(count) / 2000.0;
            assert!(
                (found - expected).abs() < 5.0 * deviation,
                "image {image}: {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn fewer_shots_are_a_part_of_more() {
        let choose = |shots| few_shot(&labels(), &names(), shots, 3).unwrap();
        let more = choose(8);
        assert!(choose(2).iter().all(|image| more.binary_search(image).is_ok()));
    }

    #[test]
    fn a_class_with_fewer_images_takes_part_with_all_and_is_named() {
        let (labels, names) = (labels(), names());
        let chosen = few_shot(&labels, &names, 30, 0).unwrap();
        let of = |class| chosen.iter().filter(|&&image| labels[image] == class).count();
        assert_eq!([of(0), of(1), of(2)], [30, 25, 10]);
        let line = classes_below(&labels, &names, 30).unwrap();
        let expected = "--shots 30: 2 of the classes have fewer photos and take part with all: \"rose\" (25), \
                        \"tulip\" (10)";
        assert_eq!(line, expected);
        assert_eq!(classes_below(&labels, &names, 10), None);
        let many: Vec<String> = (0..8).map(|i| i.to_string()).collect();
        assert!(classes_below(&[], &many, 1).unwrap().ends_with("\"4\" (0) and 3 more"));
        // Nor is any number too large.
        assert_eq!(few_shot(&labels, &names, usize::MAX, 0).unwrap().len(), labels.len());
        assert!(matches!(few_shot(&labels, &names, 0, 0), Err(DataError::NoShots)));
    }
}
