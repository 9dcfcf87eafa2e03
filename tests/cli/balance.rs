//! Classes with different numbers of photos, from outside: what is said, what is trained, what is kept.

use crate::command::*;
use serde_json::Value;
use std::path::Path;

/// Flowers of three classes, of the last of which two train photos are left.
fn uneven() -> Place {
    let place = Place::new([8, 2, 2]);
    let train = Path::new(&place.data).join("train");
    let mut classes: Vec<_> = std::fs::read_dir(train).unwrap().map(|entry| entry.unwrap().path()).collect();
    classes.sort();
    let mut photos: Vec<_> =
        std::fs::read_dir(&classes[2]).unwrap().map(|entry| entry.unwrap().path()).collect();
    photos.sort();
    photos[2..].iter().for_each(|photo| std::fs::remove_file(photo).unwrap());
    place
}

fn count(done: &Done, part: &str) -> usize {
    done.err.lines().filter(|line| line.contains(part)).count()
}

#[test]
fn what_makes_results_say_little_is_said_once() {
    let place = uneven();
    let linear = ["--recipe", "linear", "--epochs", "1", "--batch-size", "32"];
    let done = succeed(&place.train(&place.at("run"), &linear), place.path());
    let said = "training images of a class: 2 (\"";
    assert_eq!(count(&done, said), 1, "{}", done.err);
    assert_eq!(count(&done, "median 8; --class-weights balanced or --sampler balanced"), 1, "{}", done.err);
    for warning in ["few photos to measure by (val 6, test 6)", "--batch-size: 32 is more than the 18"] {
        assert_eq!(count(&done, warning), 1, "{warning}: {}", done.err);
    }
    assert_eq!(count(&done, "no test photos of"), 0, "{}", done.err);
    // Runs of the same images say it once, and not what is already done.
    let seeds = [&linear[..], &["--seeds", "2", "--sampler", "balanced"]].concat();
    let done = succeed(&place.train(&place.at("seeds"), &seeds), place.path());
    assert_eq!((count(&done, said), count(&done, "--class-weights")), (1, 0), "{}", done.err);
    for photo in std::fs::read_dir(place.class_dir("test")).unwrap() {
        std::fs::write(photo.unwrap().path(), "this is no photo").unwrap();
    }
    let skip = [&linear[..], &["--skip-bad-images"]].concat();
    let done = succeed(&place.train(&place.at("less"), &skip), place.path());
    assert_eq!(count(&done, "no test photos of 1 class (\""), 1, "{}", done.err);
    // Nothing is learnt: of three classes the first is taken in every case.
    let still = [&skip[..], &["--lr-head", "0", "--text-weight", "0"]].concat();
    let done = succeed(&place.train(&place.at("still"), &still), place.path());
    assert_eq!(count(&done, "no test photo is taken for 1 class (\""), 1, "{}", done.err);
}

#[test]
fn weights_and_draws_change_the_run_and_not_its_measure() {
    let place = uneven();
    let epoch = |more: &[&str]| {
        let run = place.at(&format!("run{}", more.join("")));
        let more = [&["--recipe", "linear", "--epochs", "2", "--text-weight", "0"], more].concat();
        succeed(&place.train(&run, &more), place.path());
        metrics(&run)
    };
    let plain = epoch(&[]);
    for flags in [["--class-weights", "balanced"], ["--sampler", "balanced"], ["--label-smoothing", "0.2"]] {
        let (once, again) = (epoch(&flags), epoch(&[flags[0], flags[1], "--overwrite"]));
        assert_eq!(once, again, "{flags:?}: the same again");
        assert_ne!(once, plain, "{flags:?}");
    }
    // At the head's start of 0 every loss is ln 3, whatever the classes count, and whatever the labels.
    for run in [&plain, &epoch(&["--class-weights", "balanced", "--seed", "9"])] {
        let first = run[0]["loss"].as_f64().unwrap();
        assert!((first - 3f64.ln()).abs() < 1e-6, "{first}");
    }
}

/// In steps of several batches the weights are those of the whole step.
#[test]
fn weighted_steps_of_several_batches_are_those_of_one() {
    let place = uneven();
    let run = |name: &str, batch: &str, accumulate: &str| {
        let run = place.at(name);
        let more =
            ["--recipe", "linear", "--epochs", "1", "--class-weights", "balanced", "--batch-size", batch];
        let more =
            [&more[..], &["--accumulate", accumulate, "--lr-head", "0.01", "--text-weight", "0"]].concat();
        succeed(&place.train(&run, &more), place.path());
        let losses = metrics(&run).into_iter().filter(|line| line["type"] == "step");
        losses.map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (whole, parts) = (run("whole", "12", "1"), run("parts", "4", "3"));
    assert_eq!(whole.len(), 2);
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a - b).abs() < 1e-5, "{whole:?} and {parts:?}");
    }
}

#[test]
fn a_run_goes_on_with_the_rule_that_it_keeps_by() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run").display().to_string();
    let flags = ["--keep-by", "accuracy", "--epochs", "4", "--early-stop", "off", "--baseline", "false"];
    let train = ["train", "--demo", "--recipe", "linear", "--output", &run];
    succeed(&[&train[..], &flags].concat(), place.path());
    succeed(&["train", "--resume", "--output", &run, "--epochs", "8"], place.path());
    let lines = metrics(&run).into_iter().filter(|line| line["type"] == "epoch");
    let val = |line: &Value, key: &str| line["val"][key].as_f64().unwrap();
    let epochs: Vec<_> =
        lines.map(|line| (val(&line, "top1"), val(&line, "loss"), line["epoch"].clone())).collect();
    let best = epochs.iter().max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1))).unwrap();
    assert_eq!(json(&run, "summary.json")["best_epoch"], best.2, "{epochs:?}");
    // By the loss it would be another.
    assert!(epochs.iter().any(|epoch| epoch.1 < best.1), "{epochs:?}");
    fail(2, &["train", "--resume", "--output", &run, "--keep-by", "loss"], place.path(), &["--resume"]);
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    for (more, expected) in [
        (&["--sampler", "balanced", "--shuffle", "true"][..], &["--shuffle", "--sampler balanced"][..]),
        (
            &["--sampler", "balanced", "--class-weights", "balanced"],
            &["--class-weights", "--sampler", "choose one"],
        ),
        (&["--label-smoothing", "1"], &["--label-smoothing", "below 1"]),
    ] {
        fail(2, &place.train(&run, more), place.path(), expected);
    }
    assert!(!Path::new(&run).exists());
}
