//! Every technique through the command line on real files: what a run leaves, that it is what was tested,
//! that it can be interrupted, repeated and started from, and the combinations that are refused.

use crate::command::*;
use clip_engine::train::tensor_files::TensorFile;
use serde_json::Value;
use std::path::Path;

/// Techniques, and the files that hold what they train.
const TECHNIQUES: [(&str, &[&str], &[&str]); 9] = [
    ("linear", &["--recipe", "linear"], &["head.safetensors"]),
    ("mixup", &["--recipe", "mixup"], &["head.safetensors", "adapter/adapter_model.safetensors"]),
    (
        "features",
        &["--recipe", "mixup", "--mixup-on", "features", "--text-weight", "0.3"],
        &["head.safetensors"],
    ),
    ("triplet", &["--recipe", "triplet"], &["head.safetensors", "adapter/adapter_model.safetensors"]),
    ("vpt", &["--recipe", "vpt"], &["head.safetensors", "prompts.safetensors"]),
    (
        "deep",
        &["--recipe", "vpt", "--prompts", "per-layer", "--prompt-mode", "accumulate", "--prompt-count", "3"],
        &["head.safetensors", "prompts.safetensors"],
    ),
    (
        "both",
        &["--recipe", "vpt", "--with-lora", "--triplet", "0.2"],
        &["head.safetensors", "prompts.safetensors", "adapter/adapter_model.safetensors"],
    ),
    ("cropped", &["--augment", "crop-flip", "--head-init", "text"], &["head.safetensors"]),
    (
        "few",
        &["--method", "vpt", "--mixup", "0.4", "--shots", "2"],
        &["head.safetensors", "prompts.safetensors"],
    ),
];

fn train(place: &Place, run: &str, more: &[&str]) -> Done {
    let base = ["train", "--data", &place.data, "--model", &place.model, "--output", run];
    // A run that goes on to more epochs has the rates that it would have had.
    let own = ["--batch-size", "5", "--early-stop", "off", "--schedule", "constant"];
    succeed(&[&base[..], &own, more].concat(), place.path())
}

#[test]
fn every_technique_trains_and_what_is_saved_is_what_was_tested() {
    let place = Place::new([4, 3, 3]);
    for (name, flags, files) in TECHNIQUES {
        let run = place.at(name);
        train(&place, &run, &[flags, &["--epochs", "2"]].concat());
        for file in files {
            assert!(Path::new(&run).join(file).is_file(), "{name}: {file} is missing");
        }
        let lines = metrics(&run);
        let steps: Vec<&Value> = lines.iter().filter(|line| line["type"] == "step").collect();
        let images = if name == "few" { 6usize } else { 12 };
        assert_eq!(steps.len(), 2 * images.div_ceil(5), "{name}");
        let of = |key: &str| steps[0][key].as_f64().unwrap();
        let triplet = ["triplet", "both"].contains(&name);
        for key in ["loss_triplet", "triplets_active", "distance_positive", "distance_negative"] {
            assert_eq!(steps[0][key].is_number(), triplet, "{name}: {key}");
            assert_eq!(lines[lines.len() - 1]["train"][key].is_number(), triplet, "{name}: {key}");
        }
        if name == "triplet" {
            let parts = 0.7 * of("loss_head") + 0.3 * of("loss_triplet");
            assert!((of("loss") - parts).abs() < 1e-6, "{name}: {} is not {parts}", of("loss"));
            // Every image of the batch that has a positive and a negative, and a margin of 1 leaves none out.
            let apart = of("distance_positive") - of("distance_negative");
            assert!(
                (of("loss_triplet") - of("triplets_active") * (apart + 1.0)).abs() < 1e-6,
                "{:?}",
                steps[0]
            );
        }
        let summary = json(&run, "summary.json");
        let eval = succeed(&["eval", "--run", &run, "--json"], place.path());
        let tested = serde_json::from_str::<Value>(&eval.out).unwrap();
        let same = |key: &str| (tested[key].as_f64().unwrap() - summary["test"][key].as_f64().unwrap()).abs();
        assert!(same("loss") < 1e-6 && same("top1") == 0.0, "{name}: {tested} is not {}", summary["test"]);
    }
}

/// Interrupted after an epoch and resumed, a run ends as if nothing had happened; and config.toml alone
/// repeats it.
#[test]
fn every_technique_resumes_and_repeats_to_the_bit() {
    let place = Place::new([4, 2, 2]);
    for (name, flags, files) in TECHNIQUES {
        let (whole, parts, again) = (place.at("whole"), place.at("parts"), place.at("again"));
        let overwrite = ["--overwrite"];
        train(&place, &whole, &[flags, &["--epochs", "3"], &overwrite].concat());
        train(&place, &parts, &[flags, &["--epochs", "1"], &overwrite].concat());
        succeed(&["train", "--output", &parts, "--resume", "--epochs", "3"], place.path());
        let config = format!("{whole}/config.toml");
        succeed(&["train", "--config", &config, "--output", &again, "--overwrite"], place.path());
        for file in files {
            assert_eq!(bytes(&whole, file), bytes(&parts, file), "{name}: {file} of the resumed run");
            assert_eq!(bytes(&whole, file), bytes(&again, file), "{name}: {file} of the repeated run");
        }
        assert_eq!(metrics(&whole), metrics(&parts), "{name}");
        assert_eq!(metrics(&whole), metrics(&again), "{name}");
        assert_eq!(json(&whole, "evaluation.json"), json(&parts, "evaluation.json"), "{name}");
    }
}

/// Validation changes nothing of training; a run that goes on validates after the epochs that it would have.
#[test]
fn a_run_takes_the_same_steps_however_often_it_is_validated() {
    let place = Place::new([4, 2, 2]);
    let [each, some, parts] = ["each", "some", "parts"].map(|name| place.at(name));
    let flags = ["--augment", "crop-flip", "--accumulate", "2"];
    train(&place, &each, &[&flags[..], &["--epochs", "5"]].concat());
    let seldom = [&flags[..], &["--validate-every", "2"]].concat();
    train(&place, &some, &[&seldom[..], &["--epochs", "5"]].concat());
    train(&place, &parts, &[&seldom[..], &["--epochs", "2"]].concat());
    succeed(&["train", "--output", &parts, "--resume", "--epochs", "5"], place.path());

    let lines =
        |run: &str, kind: &str| metrics(run).into_iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    assert_eq!(lines(&each, "step"), lines(&some, "step"));
    assert_eq!(metrics(&some), metrics(&parts));
    assert_eq!(bytes(&some, "head.safetensors"), bytes(&parts, "head.safetensors"));
    let [each, some] = [&each, &some].map(|run| lines(run, "epoch"));
    let epochs: Vec<u64> = some.iter().map(|line| line["epoch"].as_u64().unwrap()).collect();
    assert_eq!(epochs, [2, 4, 5]);
    for (line, last) in some.iter().zip([2, 4, 5]) {
        let same = &each[last - 1];
        assert_eq!(line["val"], same["val"], "{last}");
        let of = |line: &Value, key: &str| line["train"][key].as_f64().unwrap();
        for key in ["loss", "top1"] {
            let mean =
                if last == 5 { of(same, key) } else { (of(&each[last - 2], key) + of(same, key)) / 2.0 };
            assert!((of(line, key) - mean).abs() < 1e-12, "{last}, {key}: {} is not {mean}", of(line, key));
        }
    }
}

#[test]
fn prompts_can_be_started_from_and_embedded_with() {
    let place = Place::new([4, 2, 2]);
    let (run, next) = (place.at("run"), place.at("next"));
    train(&place, &run, &["--recipe", "vpt", "--epochs", "2", "--prompt-count", "4"]);
    // With nothing left to learn the prompts stay what they were.
    let still = ["--lr-prompt", "0", "--lr-head", "0", "--wd-head", "0", "--epochs", "1"];
    let from = ["--recipe", "vpt", "--prompt-count", "4", "--init-from", &run];
    train(&place, &next, &[&from[..], &still].concat());
    // The files differ in the epoch that they are of.
    let prompts = |run: &str| TensorFile::read(&Path::new(run).join("prompts.safetensors")).unwrap().tensors;
    assert!(prompts(&run)["prompts"].bytes() == prompts(&next)["prompts"].bytes());
    let top1 = |run: &str| json(run, "summary.json")["test"]["top1"].clone();
    assert_eq!(top1(&run), top1(&next));

    let other = place.at("other");
    let base =
        ["train", "--data", &place.data, "--model", &place.model, "--output", &other, "--init-from", &run];
    let refuse = |more: &[&str], code: i32, words: &[&str]| {
        fail(code, &[&base[..], more].concat(), place.path(), words);
    };
    refuse(&["--recipe", "vpt"], 1, &["prompts.safetensors", "[4, 128]", "[16, 128]", "--prompt-count"]);
    refuse(
        &["--recipe", "vpt", "--prompt-count", "4", "--prompts", "per-layer"],
        1,
        &["prompts.safetensors", "--prompts"],
    );
    refuse(&["--recipe", "lora"], 2, &["--init-from", "prompts", "--method vpt"]);
    let mode = ["--recipe", "vpt", "--prompt-count", "4", "--prompt-mode", "accumulate"];
    refuse(&mode, 1, &["prompts.safetensors", "--prompt-mode replace"]);

    // Once a run has begun, what it was started from may go.
    let started = Path::new(&run).with_file_name("moved");
    std::fs::rename(&run, &started).unwrap();
    succeed(&["train", "--output", &next, "--resume", "--epochs", "2"], place.path());
    std::fs::rename(&started, &run).unwrap();

    let images = Path::new(&place.data).join("test").display().to_string();
    let features = |file: &str, more: &[&str]| {
        let out = place.at(file);
        let base = ["embed", "--images", &images, "--out", &out];
        succeed(&[&base[..], more].concat(), place.path());
        std::fs::read(out).unwrap()
    };
    let plain = features("plain.safetensors", &["--model", &place.model]);
    let tuned = features("tuned.safetensors", &["--run", &run]);
    assert_ne!(plain, tuned, "the prompts change the features");
    let from = features("from.safetensors", &["--model", &place.model, "--init-from", &run]);
    assert_eq!(from, tuned);
}

#[test]
fn combinations_that_make_no_sense_are_refused_with_a_reason() {
    let place = Place::new([3, 2, 2]);
    let run = place.at("run");
    let base = ["train", "--data", &place.data, "--model", &place.model, "--output", &run];
    let cases: [(&[&str], &[&str]); 23] = [
        (&["--recipe", "mixup", "--batch-size", "1"], &["--batch-size", "mix"]),
        (&["--recipe", "triplet", "--batch-size", "1"], &["--batch-size", "triplet"]),
        (&["--recipe", "triplet", "--mixup", "0.2"], &["--triplet", "--mixup"]),
        (&["--method", "linear", "--triplet", "0.3"], &["--triplet", "linear"]),
        (&["--triplet", "1.5"], &["--triplet", "1.5"]),
        (&["--mixup=-1"], &["--mixup", "-1"]),
        (&["--mixup", "nan"], &["--mixup"]),
        (&["--recipe", "triplet", "--margin=-2"], &["--margin", "-2"]),
        (&["--recipe", "linear", "--rank", "4"], &["--rank", "no adapters"]),
        (&["--recipe", "vpt", "--lr-lora", "0.1"], &["--lr-lora", "--with-lora"]),
        (&["--recipe", "lora", "--prompts", "shared"], &["--prompts", "--method vpt"]),
        (&["--recipe", "lora", "--prompt-count", "4"], &["--prompt-count", "--method vpt"]),
        (&["--recipe", "vpt", "--prompt-count", "0"], &["--prompt-count", "0"]),
        (&["--recipe", "linear", "--with-lora"], &["--with-lora", "--method vpt"]),
        (&["--mixup-on", "features"], &["--mixup-on", "--mixup"]),
        (&["--margin", "0.5"], &["--margin", "--triplet"]),
        (&["--shots", "0"], &["--shots", "0"]),
        (&["--augment", "crop-flip", "--dtype", "f16"], &["--augment", "--dtype u8"]),
        (&["--lr-prompt", "0.1"], &["--lr-prompt", "--method vpt"]),
        (&["--triplet", "1"], &["--triplet", "head"]),
        (&["--recipe", "triplet", "--shots", "1"], &["--shots", "triplet"]),
        (&["--with-lora"], &["--with-lora", "--method vpt"]),
        (&["--early-stop", "off", "--early-stop-against", "best"], &["--early-stop-against", "never"]),
    ];
    for (flags, words) in cases {
        fail(2, &[&base[..], flags].concat(), place.path(), words);
        assert!(!Path::new(&run).exists(), "{flags:?} left something behind");
    }
    let done = succeed(&[&base[..], &["--shots", "4", "--epochs", "1"]].concat(), place.path());
    assert!(
        done.err.contains("--shots 4: 3 of the classes have fewer photos and take part with all"),
        "{}",
        done.err
    );
}

/// A class may be missing where nothing is learned from it, and nowhere else.
#[test]
fn a_class_without_training_images_is_named() {
    let place = Place::new([2, 2, 2]);
    let class = place.class_dir("train");
    std::fs::remove_dir_all(&class).unwrap();
    let name = class.file_name().unwrap().to_str().unwrap().to_string();
    let run = place.at("run");
    fail(1, &place.train(&run, &[]), place.path(), &[&name]);
}

/// The CUDA backend's launchers and kernels, by way of the host twin.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: command_line trains the default on this backend"]
fn techniques_train_on_the_cuda_backend() {
    let place = Place::new([3, 2, 2]);
    let on_twin = ["--device", "twin", "--epochs", "1", "--overwrite"];
    for (name, flags, _) in
        TECHNIQUES.into_iter().filter(|(name, ..)| ["deep", "cropped", "few"].contains(name))
    {
        let (twin, cpu) = (place.at("twin"), place.at("cpu"));
        train(&place, &twin, &[flags, &on_twin].concat());
        train(&place, &cpu, &[flags, &["--epochs", "1", "--overwrite"]].concat());
        let loss = |run: &str| json(run, "summary.json")["test"]["loss"].as_f64().unwrap();
        let (twin, cpu) = (loss(&twin), loss(&cpu));
        assert!((twin / cpu - 1.0).abs() < 0.02, "{name}: f16 ends at {twin}, f32 at {cpu}");
    }
}
