//! A run directory from outside: who may write to it and when, what a run that goes on insists on, and what
//! belongs together in it.

use crate::command::*;
use clip_engine::progress::Silent;
use clip_engine::train::model::Model;
use clip_engine::train::provenance::Stamp;
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::saved_run::of_one_epoch;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every file below `folder` with its bytes.
fn contents(folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap().into_path());
    entries.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs the engine, insists on an error line, and on a folder that is as it was.
fn refused(place: &Place, code: i32, args: &[&str], folder: &str, expected: &[&str]) {
    let before = contents(folder);
    fail(code, args, place.path(), expected);
    let after = contents(folder);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{args:?}");
    for (path, bytes) in before {
        assert!(bytes == after[&path], "{args:?} changed {}", path.display());
    }
}

fn resume<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--resume", "--output", run], more].concat()
}

#[test]
fn one_process_at_a_time_trains_into_a_run() {
    let place = Place::new([2, 1, 1]);
    let (run, set) = (place.at("run"), place.at("set"));
    let train = place.train(&run, &["--epochs", "1", "--recipe", "linear"]);
    let overwrite = [&train[..], &["--overwrite"]].concat();
    succeed(&train, place.path());
    let seeds =
        [&place.train(&set, &["--epochs", "1", "--recipe", "linear"])[..], &["--seeds", "1"]].concat();
    succeed(&seeds, place.path());
    let seeds = [&seeds[..], &["--overwrite"]].concat();
    // What the other process has just begun to write.
    std::fs::write(Path::new(&run).join(".engine-mine.tmp"), "half").unwrap();
    let busy = ["another process is training into it", "wait for it", "--output"];
    for (folder, args) in [
        (&run, &resume(&run, &["--epochs", "2"])),
        (&run, &overwrite),
        (&set, &seeds),
        (&format!("{set}/seed-42"), &seeds),
    ] {
        let other = RunDir::at(Path::new(folder));
        other.lock(&Silent).unwrap();
        // The one that trains may ask again.
        other.clone().lock(&Silent).unwrap();
        let outer = if args[..] == seeds[..] { &set } else { &run };
        refused(&place, 1, args, outer, &[&busy[..], &[folder.as_str()]].concat());
    }
    succeed(&resume(&run, &["--epochs", "2"]), place.path());
    assert!(!Path::new(&run).join(".engine-mine.tmp").exists());
    succeed(&seeds, place.path());
}

#[test]
fn nothing_is_removed_before_it_is_known_that_a_run_can_go_on() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    succeed(&place.train(&run, &["--epochs", "1", "--recipe", "linear"]), place.path());
    std::fs::write(Path::new(&run).join(".engine-mine.tmp"), "half").unwrap();
    let more = resume(&run, &["--epochs", "2"]);
    let path = Path::new(&run).join("metrics.jsonl");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(&place, 1, &more, &run, &["metrics.jsonl", "saved state knows", "restore it"]);
    std::fs::write(&path, [b"no JSON\n", &whole[8..]].concat()).unwrap();
    refused(&place, 1, &more, &run, &["metrics.jsonl", "no JSON", "restore it"]);
    std::fs::remove_file(&path).unwrap();
    refused(&place, 1, &more, &run, &["metrics.jsonl", "has 0 bytes", "restore it"]);
    std::fs::write(&path, whole).unwrap();
    succeed(&more, place.path());
}

/// Writes a safetensors file again, with `more` beside its tensors and its metadata changed.
fn rewrite(path: &Path, more: &[(&str, TensorView)], change: impl Fn(&mut HashMap<String, String>)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap_or_default();
    change(&mut metadata);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let more = more.iter().map(|(name, view)| (name.to_string(), view.clone()));
    let tensors: Vec<_> = file.tensors().into_iter().chain(more).collect();
    std::fs::write(path, safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
}

/// Gives a file of a run another epoch.
fn restamp(path: &Path, epoch: u32) {
    rewrite(path, &[], |metadata| {
        let stamp = metadata.get_mut("clip-engine").unwrap();
        let mut value: serde_json::Value = serde_json::from_str(stamp).unwrap();
        value["epoch"] = epoch.into();
        *stamp = value.to_string();
    });
}

fn unstamp(path: &Path) {
    rewrite(path, &[], |metadata| drop(metadata.remove("clip-engine").unwrap()));
}

#[test]
fn a_run_knows_the_weights_it_was_trained_on() {
    let mut place = Place::new([2, 1, 1]);
    let model = model_copy(place.path());
    place.model = model.display().to_string();
    let (run, weights) = (place.at("run"), model.join("model.safetensors"));
    succeed(&place.train(&run, &["--epochs", "1", "--recipe", "linear"]), place.path());
    // The same tensors in another file, as another release may save them.
    rewrite(
        &weights,
        &[("position_ids", TensorView::new(safetensors::Dtype::U8, vec![1], &[0]).unwrap())],
        |_| {},
    );
    let (test, out) = (format!("{}/test", place.data), place.at("features.safetensors"));
    let predict = ["predict", "--run", &run, &test];
    let warning = |args: &[&str]| succeed(args, place.path()).err.contains("warning: ");
    assert!(!warning(&predict));
    // The last bit but one of the last number of a tensor.
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 2;
    std::fs::write(&weights, bytes).unwrap();
    let export = place.at("export");
    let commands: [&[&str]; 4] = [
        &predict,
        &["eval", "--run", &run],
        &["embed", "--run", &run, "--images", &test, "--out", &out],
        &["export", "--run", &run, "--peft", &export],
    ];
    for args in commands {
        let done = succeed(args, place.path());
        let said = done.err.lines().find(|line| line.starts_with("warning: ")).unwrap_or_default();
        assert!(said.contains("other weights") && said.contains("--model"), "{args:?}: {}", done.err);
    }
    let more = resume(&run, &["--epochs", "2"]);
    refused(&place, 1, &more, &run, &["state.safetensors", "other weights", "config.toml"]);
    // What an older version left says nothing of weights.
    unstamp(&Path::new(&run).join("head.safetensors"));
    rewrite(&Path::new(&run).join("state.safetensors"), &[], |metadata| {
        let progress = metadata.get_mut("progress").unwrap();
        let mut value: serde_json::Value = serde_json::from_str(progress).unwrap();
        for key in ["weights", "photos"] {
            value.as_object_mut().unwrap().remove(key).unwrap();
        }
        *progress = value.to_string();
    });
    assert!(!warning(&predict));
    succeed(&more, place.path());
}

#[test]
fn weights_from_the_hub_are_known_by_their_commit() {
    let place = tempfile::tempdir().unwrap();
    let copy = model_copy(place.path());
    let id = Model::open(&copy).unwrap().weights_id().unwrap();
    assert_eq!((id.commit, id.hash.len()), (None, 32));
    let snapshot = place.path().join("models--a--b/snapshots/0123abcd");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::fs::rename(copy, &snapshot).unwrap();
    let found = Model::open(&snapshot).unwrap().weights_id().unwrap();
    assert_eq!((found.commit.as_deref(), found.hash), (Some("0123abcd"), id.hash));
}

#[test]
fn files_of_different_epochs_are_not_used_together() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    let recipe = ["--recipe", "vpt", "--with-lora", "--prompt-count", "2", "--epochs", "1"];
    succeed(&place.train(&run, &recipe), place.path());
    let [head, prompts, adapter] = ["head", "prompts", "adapter/adapter_model"]
        .map(|name| Path::new(&run).join(format!("{name}.safetensors")));
    let stamp = Stamp::read(&head).unwrap();
    assert_eq!(stamp.epoch, 1);
    assert_eq!((Stamp::read(&prompts), Stamp::read(&adapter)), (Some(stamp.clone()), Some(stamp)));

    let (test, out, export) = (format!("{}/test", place.data), place.at("f.safetensors"), place.at("export"));
    let commands: [&[&str]; 4] = [
        &["predict", "--run", &run, &test],
        &["eval", "--run", &run],
        &["embed", "--run", &run, "--images", &test, "--out", &out],
        &["export", "--run", &run, "--peft", &export],
    ];
    for (file, name) in [(&prompts, "prompts"), (&adapter, "adapter_model")] {
        let whole = std::fs::read(file).unwrap();
        restamp(file, 7);
        let name = &format!("{name}.safetensors of epoch 7");
        for args in commands {
            fail(1, args, place.path(), &["head.safetensors is of epoch 1", name, "try again", "--resume"]);
        }
        std::fs::write(file, whole).unwrap();
    }
    // Saved while they are read.
    let dir = RunDir::existing(Path::new(&run)).unwrap();
    let settings = dir.read_settings().unwrap();
    let error = of_one_epoch(&dir, &settings, || {
        [&head, &prompts, &adapter].into_iter().for_each(|file| restamp(file, 2));
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("try again"));
    of_one_epoch(&dir, &settings, || Ok(())).unwrap();
    // An adapter from elsewhere says nothing, and goes with any head.
    unstamp(&adapter);
    succeed(commands[0], place.path());
    // A run that was killed between two of them is made whole.
    restamp(&head, 3);
    fail(1, commands[0], place.path(), &["try again"]);
    succeed(&resume(&run, &[]), place.path());
    succeed(commands[0], place.path());
}

#[test]
fn copied_photos_are_the_same_ones_and_others_are_not() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    succeed(&place.train(&run, &["--epochs", "1", "--recipe", "linear"]), place.path());
    for entry in walkdir::WalkDir::new(&place.data).into_iter().map(Result::unwrap) {
        if entry.file_type().is_file() {
            let file = File::options().append(true).open(entry.path()).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - Duration::from_secs(3600)).unwrap();
        }
    }
    let done = succeed(&resume(&run, &["--epochs", "2"]), place.path());
    assert!(done.err.contains("files of another place or time"), "{}", done.err);
    let photo = place.class_dir("train").join("000.png");
    let bytes = std::fs::read(&photo).unwrap();
    std::fs::write(&photo, [&bytes[..], b"more"].concat()).unwrap();
    let more = resume(&run, &["--epochs", "3"]);
    refused(&place, 1, &more, &run, &["state.safetensors", "photos", "put them back"]);
}

#[test]
fn another_number_of_epochs_is_looked_at() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    let cosine = ["--epochs", "1", "--recipe", "linear", "--schedule", "cosine"];
    succeed(&place.train(&run, &cosine), place.path());
    let done = succeed(&resume(&run, &["--epochs", "2"]), place.path());
    assert!(done.err.contains("warning: --epochs: 2 instead of 1"), "{}", done.err);
    assert!(done.err.contains("from 0 % to 50 %"), "{}", done.err);
    refused(&place, 2, &resume(&run, &["--epochs", "1"]), &run, &["--epochs: 1", "trained 2", "give 2"]);
    let constant = place.at("constant");
    succeed(&place.train(&constant, &["--epochs", "1", "--recipe", "linear"]), place.path());
    let done = succeed(&resume(&constant, &["--epochs", "2"]), place.path());
    assert!(!done.err.contains("warning: --epochs"), "{}", done.err);
}

#[test]
fn the_demo_replaces_no_other_run() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("runs/demo");
    succeed(&place.train(&run, &["--epochs", "1", "--recipe", "linear"]), place.path());
    let demo = |more: &[&str]| {
        let args = [&["train", "--demo", "--epochs", "1", "--recipe", "linear"], more].concat();
        let mut demo = command(&args, place.path());
        demo.current_dir(place.path());
        demo
    };
    let before = contents(&run);
    fail_of(&mut demo(&[]), 1, &["runs/demo", "not empty", "--overwrite"]);
    assert!(contents(&run) == before);
    // It may go when asked for: the lock is all that is in the way.
    let other = RunDir::at(Path::new(&run));
    other.lock(&Silent).unwrap();
    fail_of(&mut demo(&["--overwrite"]), 1, &["runs/demo", "another process"]);
    assert!(contents(&run) == before);
}

#[test]
fn a_run_that_stopped_early_goes_on_with_more_patience() {
    let place = Place::new([4, 2, 2]);
    let [stopped, whole] = ["stopped", "whole"].map(|name| place.at(name));
    // Steps so long that the loss soon rises.
    let wild = ["--recipe", "linear", "--lr-head", "3", "--epochs", "6", "--early-stop"];
    succeed(&place.train(&stopped, &[&wild[..], &["1"]].concat()), place.path());
    let epochs = json(&stopped, "summary.json")["epochs"].as_u64().unwrap();
    assert!(json(&stopped, "summary.json")["stopped_early"] == true && epochs < 6, "{epochs}");
    // As it is it trains nothing, and says what would.
    let done = succeed(&resume(&stopped, &["--epochs", "6"]), place.path());
    assert!(
        done.err.contains("stopped early") && done.err.contains("larger --early-stop, or off"),
        "{}",
        done.err
    );
    assert_eq!(json(&stopped, "summary.json")["epochs"], epochs);
    succeed(&resume(&stopped, &["--epochs", "6", "--early-stop", "off"]), place.path());
    succeed(&place.train(&whole, &[&wild[..], &["off"]].concat()), place.path());
    assert_eq!(metrics(&stopped), metrics(&whole));
    assert!(bytes(&stopped, "head.safetensors") == bytes(&whole, "head.safetensors"));
}

#[test]
fn class_names_that_clip_does_not_know_are_said_where_they_matter() {
    let place = Place::new([2, 8, 1]);
    let run = place.at("run");
    let short = ["--epochs", "1", "--template", "A photo of {}.", "--overwrite"];
    let done = succeed(&place.train(&run, &short), place.path());
    assert!(!done.err.contains("chance"), "{}", done.err);
    // Each class gets the name of another.
    for split in ["train", "val", "test"] {
        let split = Path::new(&place.data).join(split);
        let mut classes: Vec<PathBuf> =
            std::fs::read_dir(&split).unwrap().map(|entry| entry.unwrap().path()).collect();
        classes.sort();
        let aside = split.join("aside");
        std::fs::rename(&classes[0], &aside).unwrap();
        classes.windows(2).for_each(|pair| std::fs::rename(&pair[1], &pair[0]).unwrap());
        std::fs::rename(&aside, classes.last().unwrap()).unwrap();
    }
    let done = succeed(&place.train(&run, &short), place.path());
    assert!(done.err.contains("the text alignment is left out"), "{}", done.err);
    let aligned = |run: &str| metrics(run).iter().any(|record| record.get("loss_text").is_some());
    assert!(!aligned(&run));
    let without = place.at("without");
    let none = [&short[..], &["--text-weight", "0"]].concat();
    let done = succeed(&place.train(&without, &none), place.path());
    assert!(!done.err.contains("chance"), "{}", done.err);
    assert!(bytes(&run, "head.safetensors") == bytes(&without, "head.safetensors"));
    assert!(std::fs::read_to_string(format!("{run}/config.toml")).unwrap().contains("text-weight = 0.3"));
    // It goes on as it began, and the next run on other images decides for itself.
    succeed(&["train", "--resume", "--epochs", "2", "--output", &run], place.path());
    let two = ["--epochs", "2", "--template", "A photo of {}.", "--overwrite", "--text-weight", "0"];
    succeed(&place.train(&without, &two), place.path());
    assert!(bytes(&run, "head.safetensors") == bytes(&without, "head.safetensors"));
    let config = format!("{run}/config.toml");
    let again = place.at("again");
    let always = ["--config", &config, "--text-alignment", "always", "--output", &again, "--epochs", "1"];
    let done = succeed(&[&["train"], &always[..]].concat(), place.path());
    assert!(done.err.contains("holds the images to them"), "{}", done.err);
    assert!(aligned(&again));
    // Nothing is held to the text features where nothing but the head is trained.
    let done = succeed(&place.train(&run, &[&short[..], &["--recipe", "linear"]].concat()), place.path());
    assert!(!done.err.contains("chance"), "{}", done.err);
}

#[test]
fn a_loss_that_still_falls_at_the_end_is_said_with_what_to_do() {
    let place = Place::new([4, 2, 2]);
    let run = place.at("run");
    let slow = ["--recipe", "linear", "--lr-head", "0.003", "--epochs", "4"];
    let done = succeed(&place.train(&run, &slow), place.path());
    let remedy = format!(
        "still falling after epoch 4, the last: go on with engine train --resume --output {run} --epochs 8"
    );
    assert!(done.err.contains(&remedy), "{}", done.err);
    // A rate that has fallen to nothing would jump.
    let cosine = [&slow[..], &["--schedule", "cosine", "--overwrite"]].concat();
    let done = succeed(&place.train(&run, &cosine), place.path());
    assert!(done.err.contains("train anew with --epochs 8"), "{}", done.err);
    let still = [&slow[..2], &["--lr-head", "0", "--epochs", "4", "--overwrite"]].concat();
    let done = succeed(&place.train(&run, &still), place.path());
    assert!(!done.err.contains("still falling"), "{}", done.err);
}
