//! `engine predict` from a run directory alone: that its numbers are those of evaluation and of the head by
//! hand, and what becomes of bad photos, odd names, long lists and runs that are not there.

use crate::command::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Classes of a run that [`linear_run`] makes.
pub const CLASSES: [&str; 4] = ["aster", "\"bee, balm\"", "钟花", "sweet\tpea"];

/// Width of the features of the model there.
const WIDTH: usize = 32;

/// A model without a tokenizer and without settings for images.
fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/tiny")
}

/// A run of the head alone on a tiny model, as quick as can be; its data is nowhere.
pub fn linear_run(dir: &Path) -> String {
    let run = dir.join("linear");
    std::fs::create_dir_all(&run).unwrap();
    let model = tiny_model();
    let config =
        format!("model = {model:?}\ndata = \"/nowhere\"\nrecipe = \"linear\"\nmethod = \"linear\"\n");
    std::fs::write(run.join("config.toml"), config).unwrap();
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state) / f64::from(u32::MAX) - 0.5
    };
    let weight: Vec<f32> = (0..CLASSES.len() * WIDTH).map(|_| 8.0 * random() as f32).collect();
    write_head(&run, &CLASSES, &weight, &[0.1, -0.2, 0.3, 0.0]);
    run.display().to_string()
}

fn write_head(run: &Path, classes: &[&str], weight: &[f32], bias: &[f32]) {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (bytes(weight), bytes(bias));
    let view = |shape: Vec<usize>, data| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap()
    };
    let n = classes.len();
    let width = weight.len() / 4 / n;
    let tensors = [("head.weight", view(vec![n, width], &weight)), ("head.bias", view(vec![n], &bias))];
    let metadata = HashMap::from([("class_names".to_string(), serde_json::to_string(classes).unwrap())]);
    let file = safetensors::serialize(tensors, Some(metadata)).unwrap();
    std::fs::write(run.join("head.safetensors"), file).unwrap();
}

/// A photo like no other.
pub fn photo(path: &Path, number: u32) {
    let spot = |x: u32, y: u32, c: u32| ((x * 7 + y * (3 + number) + c * 80 + number * 37) % 251) as u8;
    let image = image::RgbImage::from_fn(40, 33, |x, y| image::Rgb([0, 1, 2].map(|c| spot(x, y, c))));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save_with_format(path, image::ImageFormat::Png).unwrap();
}

fn lines(done: &Done) -> Vec<Value> {
    done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn paths(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["path"].as_str().unwrap()).collect()
}

/// Probabilities by class number.
fn probabilities(line: &Value, classes: usize) -> Vec<f64> {
    let mut found = vec![f64::NAN; classes];
    for choice in line["predictions"].as_array().unwrap() {
        found[choice["index"].as_u64().unwrap() as usize] = choice["probability"].as_f64().unwrap();
    }
    found
}

pub fn floats(file: &[u8], name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).unwrap();
    view.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
}

pub fn metadata<T: for<'a> serde::Deserialize<'a>>(file: &[u8], key: &str) -> T {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}

/// Logits of a head for each row of features, and how far logits in f32 may be from them: the bound of a sum
/// of products, for rows of length 1 and whatever the order, times the two of them that are compared.
fn logits_by_hand(features: &[f64], head: &[u8]) -> (Vec<Vec<f64>>, f64) {
    let (weight, bias) = (floats(head, "head.weight"), floats(head, "head.bias"));
    let width = weight.len() / bias.len();
    let dot = |f: &[f64], w: &[f64]| f.iter().zip(w).map(|(f, w)| f * w).sum::<f64>();
    let logits = features
        .chunks_exact(width)
        .map(|f| weight.chunks_exact(width).zip(&bias).map(|(w, b)| dot(f, w) + b).collect());
    let longest = weight.chunks_exact(width).map(|w| dot(w, w).sqrt()).fold(0.0, f64::max);
    let largest = bias.iter().fold(0.0f64, |m, b| m.max(b.abs()));
    let unit = f64::from(f32::EPSILON) / 2.0;
    (logits.collect(), 2.0 * (width + 2) as f64 * unit * (longest + largest))
}

fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|z| (z / temperature).exp()).sum();
    logits.iter().map(|z| (z / temperature).exp() / sum).collect()
}

#[test]
fn predictions_are_those_of_the_evaluation_and_of_the_head_by_hand() {
    let mut place = Place::new([2, 1, 2]);
    place.model = model_copy(place.path()).display().to_string();
    let recipes = [&["lora"][..], &["linear"], &["vpt", "--prompt-count", "3", "--with-lora"]];
    for recipe in recipes {
        let run = place.at(recipe[0]);
        let short = ["--epochs", "1", "--lr-head", "0.002", "--template", "A photo of {}.", "--recipe"];
        succeed(&place.train(&run, &[&short[..], recipe].concat()), place.path());
    }
    // The run directories, the vision tower and the photos are all that is left.
    let alone = tempfile::tempdir().unwrap();
    let test = format!("{}/test", place.data);
    for gone in [place.path().join("clip-engine"), Path::new(&place.data).join("train")] {
        std::fs::remove_dir_all(gone).unwrap();
    }
    std::fs::remove_file(Path::new(&place.model).join("tokenizer.json")).unwrap();
    for recipe in recipes {
        let run = place.at(recipe[0]);
        let predict = ["predict", "--run", &run, &test, "--json", "--top-k", "9"];
        let done = succeed(&predict, alone.path());
        let found = lines(&done);
        assert_eq!(std::fs::read_dir(alone.path()).unwrap().count(), 0, "no cache is made");

        let out = place.at("features.safetensors");
        succeed(&["embed", "--run", &run, "--images", &test, "--out", &out], alone.path());
        let features = std::fs::read(&out).unwrap();
        let head = bytes(&run, "head.safetensors");
        let names: Vec<String> = metadata(&head, "class_names");
        let (logits, error) = logits_by_hand(&floats(&features, "features"), &head);
        let temperature = floats(&head, "temperature")[0];
        assert!(temperature != 1.0, "it was fitted");
        let error = error / temperature;
        let evaluation = json(&run, "evaluation.json");
        let images = evaluation["images"].as_array().unwrap();
        let embedded: Vec<String> = metadata(&features, "paths");
        assert_eq!((found.len(), images.len(), logits.len()), (6, 6, 6));
        for (i, (line, image)) in found.iter().zip(images).enumerate() {
            assert_eq!(line["path"], image["path"]);
            assert_eq!(line["path"], format!("{test}/{}", embedded[i]));
            let choices = line["predictions"].as_array().unwrap();
            let falling = |pair: &[Value]| pair[0]["probability"].as_f64() >= pair[1]["probability"].as_f64();
            assert!(choices.windows(2).all(falling), "{line}");
            for choice in choices {
                assert_eq!(choice["class"], names[choice["index"].as_u64().unwrap() as usize]);
            }
            let found = probabilities(line, 3);
            for (found, expected) in found.iter().zip(softmax(&logits[i], temperature)) {
                // p moves by p(1 − p)·2δ at the most where logits move by δ.
                assert!(
                    (found - expected).abs() <= error,
                    "{recipe:?}: {found} and {expected}, bound {error}"
                );
            }
            assert_eq!(choices[0]["index"], image["predicted"], "{recipe:?}: {line} and {image}");
            let confidence = image["confidence"].as_f64().unwrap();
            let top = choices[0]["probability"].as_f64().unwrap();
            assert!((top - confidence).abs() <= error, "{recipe:?}: {line} and {image}");
        }
        let spread = found.iter().map(|line| probabilities(line, 3)[0]);
        let (low, high) = spread.fold((1.0f64, 0.0f64), |(l, h), p| (l.min(p), h.max(p)));
        assert!(high - low > 1e3 * error, "predictions differ from photo to photo: {low} to {high}");
    }
}

/// Evaluates and insists on the numbers of a part of the summary.
fn evaluate(run: &str, cache: &Path, flags: &[&str], expected: &Value) {
    let done = succeed(&[&["eval", "--run", run, "--json"], flags].concat(), cache);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let (found, expected) = (found[name].as_f64().unwrap(), expected.as_f64().unwrap());
        // Batches of other sizes may add up in another order.
        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{flags:?} {name}: {found}, {expected}");
    }
}

#[test]
fn evaluation_repeats_the_summary_of_every_recipe() {
    let place = Place::new([2, 1, 2]);
    let flat = place.path().join("flat");
    for split in ["train", "val", "test"] {
        for entry in walkdir::WalkDir::new(Path::new(&place.data).join(split)) {
            let entry = entry.unwrap();
            let class = flat.join(entry.path().parent().unwrap().file_name().unwrap());
            if entry.file_type().is_file() {
                std::fs::create_dir_all(&class).unwrap();
                let name = format!("{split}{}", entry.file_name().to_str().unwrap());
                std::fs::copy(entry.path(), class.join(name)).unwrap();
            }
        }
    }
    for recipe in ["linear", "lora", "mixup", "triplet", "vpt"] {
        let run = place.at(recipe);
        let short = ["--epochs", "1", "--template", "A photo of {}.", "--recipe", recipe];
        succeed(&place.train(&run, &short), place.path());
        let summary = json(&run, "summary.json");
        evaluate(&run, place.path(), &[], &summary["test"]);
        evaluate(&run, place.path(), &["--split", "val"], &summary["val"]);
    }
    // The same classes in another layout: as prediction has it, photo by photo.
    let (run, flat) = (place.at("lora"), flat.display().to_string());
    let source = clip_engine::data::Dataset::open(Path::new(&flat), 42).unwrap();
    let items = source.split(clip_engine::data::Split::Test);
    let paths: Vec<&str> = items.iter().map(|item| item.path.to_str().unwrap()).collect();
    assert_eq!(paths.len(), 3);
    let predict = ["predict", "--run", &run, "--json", "--top-k", "1"];
    let found = lines(&succeed(&[&predict[..], &paths].concat(), place.path()));
    let right = found.iter().zip(items).filter(|(line, item)| line["predictions"][0]["index"] == item.label);
    let expected = serde_json::json!({"images": 3, "top1": right.count() as f64 / 3.0});
    evaluate(&run, place.path(), &["--data", &flat], &expected);
    // The model somewhere else, under its own name nowhere.
    let model = model_copy(place.path()).display().to_string();
    let config = Path::new(&run).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&place.model, "/nowhere")).unwrap();
    fail(1, &["eval", "--run", &run], place.path(), &["/nowhere", "--model"]);
    evaluate(&run, place.path(), &["--model", &model], &json(&run, "summary.json")["test"]);
    // A photo that is none, left out of a cache of its own.
    std::fs::write(Path::new(&flat).join(place.class_dir("test").file_name().unwrap()).join("z.png"), "none")
        .unwrap();
    let own = place.at("caches");
    let other = ["--model", &model, "--data", &flat, "--batch-size", "2", "--cache", &own];
    let eval = [&["eval", "--run", &run], &other[..]].concat();
    fail(1, &eval, place.path(), &["z.png", "--skip-bad-images"]);
    let done = succeed(&[&eval[..], &["--skip-bad-images"]].concat(), place.path());
    assert!(done.err.contains("warning: left out 1 ") && done.err.contains(&own), "{}", done.err);
    assert!(std::fs::read_dir(&own).unwrap().count() > 0);
}

#[test]
fn order_and_duplicates_are_those_of_the_arguments_whatever_the_batch() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let at = |name: &str| place.path().join(name).display().to_string();
    for (number, name) in (0..).zip(["z.png", "dir/b.png", "dir/sub/c.png", "dir/a.PNG", "y.png"]) {
        photo(&place.path().join(name), number);
    }
    std::fs::write(place.path().join("dir/notes.txt"), "no photo").unwrap();
    let [z, y, dir] = ["z.png", "y.png", "dir"].map(at);
    let images = [&z, &dir, &y, &z].map(String::as_str);
    let expected = [&z, &at("dir/a.PNG"), &at("dir/b.png"), &at("dir/sub/c.png"), &y, &z].map(String::clone);
    let predict = |batch: &str| {
        let flags = ["predict", "--run", &run, "--json", "--batch-size", batch];
        succeed(&[&flags[..], &images].concat(), place.path())
    };
    let head = bytes(&run, "head.safetensors");
    let (_, error) = logits_by_hand(&[], &head);
    let whole = lines(&predict("32"));
    assert_eq!(paths(&whole), expected);
    assert_eq!(whole[0], whole[5], "the same photo twice");
    assert_ne!(whole[0]["predictions"], whole[4]["predictions"], "another photo");
    // One at a time, all batches full, and a last one that is not.
    for batch in ["1", "3", "4"] {
        let found = lines(&predict(batch));
        assert_eq!(paths(&found), expected, "batches of {batch}");
        for (found, whole) in found.iter().zip(&whole) {
            let (found, whole) = (probabilities(found, 4), probabilities(whole, 4));
            assert!(found.iter().zip(&whole).all(|(a, b)| (a - b).abs() <= error), "{found:?} and {whole:?}");
        }
    }
}

#[test]
fn top_k_is_as_many_classes_as_asked_for_and_there_are() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let image = place.path().join("a.png").display().to_string();
    photo(Path::new(&image), 1);
    let predict = |more: &[&str]| {
        let done = succeed(&[&["predict", "--run", &run, &image, "--json"], more].concat(), place.path());
        lines(&done)[0]["predictions"].as_array().unwrap().clone()
    };
    let all = predict(&["--top-k", "1000"]);
    assert_eq!(all.len(), CLASSES.len());
    assert!((all.iter().map(|c| c["probability"].as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-12);
    assert_eq!(predict(&["--top-k", "1"]), all[..1]);
    assert_eq!(predict(&["--top-k", "3"]), all[..3]);
    assert_eq!(predict(&[]), all, "five by default");
    fail_usage(&["predict", "--run", &run, &image, "--top-k", "0"], place.path(), "--top-k");
    fail_usage(&["predict", "--run", &run, &image, "--json", "--csv"], place.path(), "--csv");
    fail_usage(&["predict", "--run", &run], place.path(), "IMAGE");
    fail_usage(&["predict", &image], place.path(), "--run");
}

fn fail_usage(args: &[&str], cache: &Path, flag: &str) {
    let done = engine(args, cache);
    assert_eq!((done.code, done.out.as_str()), (2, ""), "{args:?}\n{}", done.err);
    assert!(done.err.contains(flag), "{args:?}\n{}", done.err);
}

#[test]
fn photos_of_nothing_in_particular_are_unknown() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let photos: Vec<String> =
        (1..=6).map(|i| place.path().join(format!("{i}.png")).display().to_string()).collect();
    (1..).zip(&photos).for_each(|(number, path)| photo(Path::new(path), number));
    let predict = |more: &[&str]| {
        let args = [&["predict", "--run", &run], more].concat();
        [args, photos.iter().map(String::as_str).collect()]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let succeed =
        |more: &[&str]| succeed(&predict(more).iter().map(String::as_str).collect::<Vec<_>>(), place.path());
    let plain = lines(&succeed(&["--json"]));
    assert!(plain.iter().all(|line| line.get("class").is_none() && line.get("unknown").is_none()));
    let best = |line: &Value| line["predictions"][0]["probability"].as_f64().unwrap();
    let mut sorted: Vec<f64> = plain.iter().map(best).collect();
    sorted.sort_by(f64::total_cmp);
    // That one itself is not below it.
    let least = sorted[3];
    let below = |line: &Value| best(line) < least;
    assert_eq!(plain.iter().filter(|line| below(line)).count(), 3, "{sorted:?}");
    let flag = format!("--unknown-below={least}");
    let json = lines(&succeed(&["--json", &flag]));
    for (line, plain) in json.iter().zip(&plain) {
        let class = if below(plain) { &Value::from("unknown") } else { &plain["predictions"][0]["class"] };
        assert_eq!((&line["class"], &line["unknown"]), (class, &below(plain).into()));
        assert_eq!(line["predictions"], plain["predictions"], "the choices stay");
    }
    let csv = |more: &[&str]| {
        let out = succeed(&[&["--csv"], more].concat()).out;
        let mut reader = csv::Reader::from_reader(out.as_bytes());
        reader
            .records()
            .map(|record| record.unwrap().iter().map(String::from).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    for (with, without) in csv(&[&flag]).iter().zip(csv(&[])) {
        let line = plain.iter().find(|line| line["path"] == without[0].as_str()).unwrap();
        let class = if below(line) && with[1] == "1" { "unknown" } else { &without[2] };
        assert_eq!(with[2], class);
        assert_eq!((&with[..2], &with[3..]), (&without[..2], &without[3..]), "the number of the class stays");
    }
    // A row for each of many photos, and a block for each of few.
    let table = succeed(&[&flag]).out;
    let called: Vec<&str> = table.lines().map(|line| line.split('|').nth(2).unwrap().trim()).collect();
    assert_eq!(called[0], "class");
    for (called, line) in called[2..].iter().zip(&json) {
        assert_eq!(*called, line["class"].as_str().unwrap().replace('\t', "\\t"), "{table}");
    }
    let one = crate::command::succeed(
        &["predict", "--run", &run, "--unknown-below", "1", &photos[0]],
        place.path(),
    );
    assert!(one.out.starts_with(&format!("{}: unknown\n", photos[0])), "{}", one.out);
    for wrong in ["0", "-0.5", "1.01", "NaN"] {
        let args = ["predict", "--run", &run, "--unknown-below", wrong, &photos[0]];
        fail(2, &args, place.path(), &["--unknown-below: "]);
    }
    write_head(Path::new(&run), &["aster", "unknown"], &vec![0.5; 2 * WIDTH], &[0.0, 0.1]);
    let args = ["predict", "--run", &run, "--unknown-below", "0.5", &photos[0]];
    fail(2, &args, place.path(), &["--unknown-below", "a class called unknown"]);
}

/// Files that are no photos, each with a part of the reason.
#[cfg(unix)]
fn bad_files(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| dir.join(name);
    std::fs::write(at("text.jpg"), "not an image").unwrap();
    std::fs::write(at("empty.png"), "").unwrap();
    photo(&at("cut.png"), 9);
    let whole = std::fs::read(at("cut.png")).unwrap();
    std::fs::write(at("cut.png"), &whole[..whole.len() / 2]).unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("dangling.png")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.png")).status().unwrap().success());
    vec![
        (at("text.jpg"), "not a JPEG"),
        (at("empty.png"), "empty"),
        (at("cut.png"), "repair or remove"),
        (at("dangling.png"), "nowhere, which is not there"),
        (at("missing.png"), "No such file"),
        (at("pipe.png"), "not a regular file"),
        (PathBuf::from("/dev/null"), "not a regular file"),
    ]
}

#[cfg(unix)]
#[test]
fn bad_files_are_named_and_passed_over() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let good = ["1.png", "2.png", "3.png"].map(|name| place.path().join(name));
    good.iter().zip(1..).for_each(|(path, number)| photo(path, number));
    let bad = bad_files(place.path());
    let mut args: Vec<String> = vec![good[0].display().to_string()];
    args.extend(bad.iter().map(|(path, _)| path.display().to_string()));
    args.extend(good[1..].iter().map(|path| path.display().to_string()));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // With batches that hold good ones, bad ones, or both.
    for batch in ["1", "2", "4", "32"] {
        let predict = ["predict", "--run", &run, "--batch-size", batch];
        let json = [&predict[..], &["--json"], &args].concat();
        let failed = format!("{} of {} photos", bad.len(), args.len());
        let done = fail(1, &json, place.path(), &[&failed]);
        let found = lines(&done);
        assert_eq!(paths(&found), args);
        for (line, (path, reason)) in found[1..].iter().zip(&bad) {
            assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
            assert!(line.get("predictions").is_none(), "{}", path.display());
        }
        for line in [&found[0], &found[8], &found[9]] {
            assert!(line.get("error").is_none() && line["predictions"].as_array().unwrap().len() == 4);
        }
        // The good ones are what they are without the bad ones.
        let good = succeed(&[&predict[..], &["--json", args[0], args[8], args[9]]].concat(), place.path());
        for (alone, among) in lines(&good).iter().zip([&found[0], &found[8], &found[9]]) {
            let (alone, among) = (probabilities(alone, 4), probabilities(among, 4));
            assert!(alone.iter().zip(&among).all(|(a, b)| (a - b).abs() < 1e-5), "{alone:?} and {among:?}");
        }
        for form in [&[][..], &["--csv"]] {
            let done = fail(1, &[&predict[..], form, &args].concat(), place.path(), &[&failed]);
            for (path, reason) in &bad {
                let path = path.display().to_string();
                let start = format!("warning: {path}");
                let told = |line: &str| line.starts_with(&start) && line.contains(reason);
                assert_eq!(done.err.lines().filter(|line| told(line)).count(), 1, "{path}\n{}", done.err);
                assert!(!done.out.contains(&path), "{}", done.out);
            }
            assert!(good_names(&args).iter().all(|path| done.out.contains(path)), "{}", done.out);
        }
    }
    let only_bad = ["predict", "--run", &run, args[1], args[2]];
    let done = fail(1, &only_bad, place.path(), &["2 of 2 photos", "the lines above"]);
    assert_eq!(done.out, "");
    for form in ["--top-k=1", "--csv"] {
        let with = |more: &[&'static str]| [&only_bad[..], &[form], more].concat();
        let warned = fail(1, &with(&["--log-level", "warn"]), place.path(), &["the lines above"]);
        // Beside them, that the model does not say how images are prepared, and that the run has not finished.
        assert_eq!(warned.err.matches("warning: ").count(), 4, "{}", warned.err);
        assert_eq!(warned.err.matches("repair or remove the file").count(), 2, "{}", warned.err);
        let quiet =
            fail(1, &with(&["--quiet"]), place.path(), &["2 of 2 photos", "--log-level warn says why"]);
        assert_eq!(quiet.err.lines().count(), 1, "{}", quiet.err);
    }
}

#[cfg(unix)]
fn good_names<'a>(args: &[&'a str]) -> [&'a str; 3] {
    [args[0], args[8], args[9]]
}

#[cfg(target_os = "linux")]
#[test]
fn any_name_that_a_file_can_have_comes_through() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let names = [
        "with space.png",
        "花 ümläut 🌷.png",
        "two\nlines.png",
        "tab\tand \"quotes\", comma.png",
        "\u{1b}[31mred.png",
    ];
    let names: Vec<PathBuf> = names.iter().map(|name| place.path().join(name)).collect();
    names.iter().zip(0..).for_each(|(path, number)| photo(path, number));
    let raw = place.path().join(OsString::from_vec(b"caf\xe9\xff.png".to_vec()));
    photo(&raw, 20);
    let predict = |form: &[&str]| {
        let mut command = command(&["predict", "--run", &run, "--top-k", "1"], place.path());
        let output = command.args(form).args(&names).arg(&raw).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let found: Vec<Value> = String::from_utf8(predict(&["--json"]))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(found.len(), 6);
    for (line, name) in found.iter().zip(&names) {
        assert_eq!(line["path"].as_str(), name.to_str());
        assert!(line.get("path_base64").is_none());
    }
    let bytes = STANDARD.decode(found[5]["path_base64"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, raw.as_os_str().as_bytes());
    assert!(found[5]["path"].as_str().unwrap().ends_with("caf\u{fffd}\u{fffd}.png"));

    let table = predict(&["--csv"]);
    let mut csv = csv::Reader::from_reader(&table[..]);
    assert_eq!(csv.byte_headers().unwrap(), vec!["path", "rank", "class", "index", "probability"]);
    for ((row, path), line) in csv.byte_records().zip(names.iter().chain([&raw])).zip(&found) {
        let row = row.unwrap();
        assert_eq!((&row[0], &row[1]), (path.as_os_str().as_bytes(), &b"1"[..]));
        let choice = &line["predictions"][0];
        assert_eq!(&row[2], choice["class"].as_str().unwrap().as_bytes());
        let number = |i: usize| std::str::from_utf8(&row[i]).unwrap().parse::<f64>().unwrap();
        assert_eq!(
            (number(3), number(4)),
            (choice["index"].as_f64().unwrap(), choice["probability"].as_f64().unwrap())
        );
    }
    // Six rows and two lines above them, and nothing that a terminal would act on.
    let table = String::from_utf8(predict(&[])).unwrap();
    assert_eq!(table.lines().count(), 8, "{table}");
    assert!(table.contains("two\\nlines.png") && table.contains("\\u{1b}[31mred.png"), "{table}");
    assert!(table.chars().all(|c| c == '\n' || !c.is_control()), "{table:?}");

    // As lines of standard input; one name has two lines, which are two files that are not there.
    let mut command = command(&["predict", "--run", &run, "--json", "-"], place.path());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for path in names.iter().chain([&raw]) {
        stdin.write_all(path.as_os_str().as_bytes()).unwrap();
        stdin.write_all(b"\n\n").unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let out = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines.iter().filter(|line| line.get("error").is_some()).count(), 2);
    assert_eq!(lines[6]["path_base64"], found[5]["path_base64"]);
}

/// `count` names for one photo.
fn many(dir: &Path, count: usize) -> String {
    let folder = dir.join(format!("many{count}"));
    let first = folder.join("00000.png");
    photo(&first, 3);
    (1..count).for_each(|i| std::fs::hard_link(&first, folder.join(format!("{i:05}.png"))).unwrap());
    folder.display().to_string()
}

#[cfg(target_os = "linux")]
#[test]
fn thousands_of_photos_take_no_more_memory_than_a_few() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let peak = |count: usize| {
        let folder = many(place.path(), count);
        let args = ["predict", "--run", &run, "--json", "--batch-size", "7", &folder];
        let mut child = command(&args, place.path())
            .env("RAYON_NUM_THREADS", "2")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut peak, mut first) = (0, None);
        for (i, line) in BufReader::new(child.stdout.take().unwrap()).lines().enumerate() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(line["path"], format!("{folder}/{i:05}.png"));
            let expected = first.get_or_insert_with(|| line["predictions"].clone());
            assert_eq!(line["predictions"][0]["index"], expected[0]["index"], "line {i}");
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
            peak = peak.max(kib.map_or(0, |kib| kib.trim().parse::<u64>().unwrap()));
            assert!(i < count);
        }
        assert!(child.wait().unwrap().success());
        assert!(peak > 0, "the memory is known");
        peak
    };
    let (few, thousands) = (peak(100), peak(2000));
    // The pixels of 1,900 photos alone would be 5.6 MiB at the model's size, 7.2 MiB as they are.
    assert!(thousands < few + 4096, "{few} KiB for 100 photos, {thousands} KiB for 2,000");
}

#[test]
fn a_reader_that_goes_away_ends_the_work_without_an_error() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let folder = many(place.path(), 2000);
    for form in ["--json", "--csv"] {
        let args = ["predict", "--run", &run, form, "--batch-size", "2", &folder];
        let mut child =
            command(&args, place.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty());
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{err}");
        assert!(!err.contains("error"), "{err}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_whole_lines_and_says_how_many() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let folder = many(place.path(), 2000);
    let args = ["predict", "--run", &run, "--json", "--batch-size", "4", &folder];
    let mut child =
        command(&args, place.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    std::process::Command::new("kill")
        .args(["-s", interrupt_signal(), &child.id().to_string()])
        .status()
        .unwrap();
    let found: Vec<Value> = out.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let count = found.len() + 1;
    assert!(count < 2000 && count.is_multiple_of(4), "{count} lines");
    assert!(err.contains(&format!("error: interrupted after {count} of 2000 photos")), "{err}");
}

#[test]
fn runs_and_photos_that_are_not_there_are_named_with_a_remedy() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let at = |name: &str| place.path().join(name).display().to_string();
    let (image, empty) = (at("a.png"), at("empty"));
    photo(Path::new(&image), 1);
    std::fs::create_dir_all(format!("{empty}/deeper")).unwrap();
    std::fs::write(format!("{empty}/deeper/notes.txt"), "no photo").unwrap();
    let cache = place.path();
    fail(1, &["predict", "--run", &run, &image, &empty], cache, &[&empty, "no images in it"]);
    fail(1, &["predict", "--run", &run, "-"], cache, &["standard input", "one path a line"]);
    fail(1, &["predict", "--run", &at("none"), &image], cache, &["none", "config.toml"]);

    let predict = ["predict", "--run", &run, &image, "--json"];
    let before = succeed(&predict, cache).out;
    let config = Path::new(&run).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let model = tiny_model().display().to_string();
    std::fs::write(&config, text.replace(&model, &at("moved"))).unwrap();
    fail(1, &predict, cache, &[&at("moved"), "--model"]);
    assert_eq!(succeed(&[&predict[..], &["--model", &model]].concat(), cache).out, before);
    let other = demo_model().display().to_string();
    fail(1, &[&predict[..], &["--model", &other]].concat(), cache, &["head.safetensors", "another model"]);
    std::fs::write(&config, text).unwrap();

    let head = Path::new(&run).join("head.safetensors");
    let whole = std::fs::read(&head).unwrap();
    std::fs::write(&head, &whole[..whole.len() / 2]).unwrap();
    fail(1, &predict, cache, &["head.safetensors"]);
    std::fs::remove_file(&head).unwrap();
    fail(1, &predict, cache, &["linear", "no head.safetensors", "first epoch"]);
    write_head(Path::new(&run), &["a", "b"], &[f32::NAN; 2 * WIDTH], &[0.0; 2]);
    fail(1, &predict, cache, &["head.safetensors", "head.weight has values that are not finite"]);
}

#[test]
fn a_demo_run_brings_its_model() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("demo");
    std::fs::create_dir(&run).unwrap();
    let config = "demo = true\nrecipe = \"linear\"\nmethod = \"linear\"\n";
    std::fs::write(run.join("config.toml"), config).unwrap();
    let weight: Vec<f32> = (0..3 * 512).map(|i| (i * 37 % 101) as f32 / 10.0 - 5.0).collect();
    write_head(&run, &["a", "b", "c"], &weight, &[0.0; 3]);
    let (run, image) = (run.display().to_string(), place.path().join("a.png").display().to_string());
    photo(Path::new(&image), 1);
    let predict = ["predict", "--run", &run, &image, "--json"];
    let bundled = succeed(&predict, place.path()).out;
    let model = demo_model().display().to_string();
    assert_eq!(bundled, succeed(&[&predict[..], &["--model", &model]].concat(), place.path()).out);
    assert_eq!(bundled.lines().count(), 1);
}

#[test]
fn a_few_photos_are_laid_out_one_below_the_other_and_many_in_rows() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let images: Vec<String> =
        (0..5).map(|i| place.path().join(format!("{i}.png")).display().to_string()).collect();
    images.iter().zip(0..).for_each(|(path, number)| photo(Path::new(path), number));
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let predict = |images: &[&str]| {
        succeed(&[&["predict", "--run", &run, "--top-k", "2"], images].concat(), place.path()).out
    };
    let few = predict(&images[..2]);
    let few: Vec<&str> = few.lines().collect();
    assert_eq!((few.len(), few[0], few[3]), (6, images[0], images[1]));
    assert!(few[1].contains(" %  ") && few[2].contains(" %  "), "{few:?}");
    let rows = predict(&images);
    let rows: Vec<&str> = rows.lines().collect();
    assert_eq!(rows.len(), 7);
    assert!(rows[0].starts_with("| photo") && rows[1].starts_with("|---"), "{rows:?}");
    for (row, path) in rows[2..].iter().zip(&images) {
        assert!(row.starts_with(&format!("| {path} |")) && row.matches(" % |").count() == 2, "{row}");
    }
}

#[test]
fn embed_stops_at_a_bad_photo_or_leaves_it_out() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let at = |name: &str| place.path().join(name).display().to_string();
    let (all, good) = (at("all"), at("good"));
    for number in 0..5 {
        photo(&Path::new(&good).join(format!("{number}.png")), number);
        photo(&Path::new(&all).join(format!("{number}.png")), number);
    }
    for name in ["2bad.jpg", "3bad.jpg"] {
        std::fs::write(Path::new(&all).join(name), "not an image").unwrap();
    }
    let (out, expected) = (at("out.safetensors"), at("expected.safetensors"));
    let embed = ["embed", "--run", &run, "--batch-size", "2", "--out"];
    let stopped = [&embed[..], &[&out, "--images", &all]].concat();
    fail(1, &stopped, place.path(), &["2bad.jpg", "--skip-bad-images"]);
    assert!(!Path::new(&out).exists());
    let done = succeed(&[&stopped[..], &["--skip-bad-images"]].concat(), place.path());
    assert!(done.err.contains("2bad.jpg") && done.err.contains("3bad.jpg"), "{}", done.err);
    assert!(done.out.starts_with("5 features"), "{}", done.out);
    let warn = [&stopped[..], &["--skip-bad-images", "--log-level", "warn"]].concat();
    let said = succeed(&warn, place.path()).err;
    let left_out = said.lines().filter(|line| line.starts_with("warning: left out: "));
    // The others: the model does not say how images are prepared, and the run has not finished.
    assert_eq!((left_out.count(), said.lines().count()), (2, 4), "{said}");
    succeed(&[&embed[..], &[&expected, "--images", &good]].concat(), place.path());
    let [out, expected] = [out, expected].map(|path| std::fs::read(path).unwrap());
    let names: Vec<String> = metadata(&out, "paths");
    assert_eq!(names, (0..5).map(|i| format!("{i}.png")).collect::<Vec<_>>());
    let (out, expected) = (floats(&out, "features"), floats(&expected, "features"));
    assert_eq!(out.len(), 5 * WIDTH);
    assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "the others are what they were");
    let bad = at("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(Path::new(&bad).join("a.jpg"), "not an image").unwrap();
    let nothing = at("nothing.safetensors");
    let none = [&embed[..], &[&nothing, "--images", &bad, "--skip-bad-images"]].concat();
    fail(1, &none, place.path(), &[&bad, "no readable image"]);
}

#[test]
fn photos_are_turned_as_in_the_run_or_as_the_flag_says() {
    let place = tempfile::tempdir().unwrap();
    let run = linear_run(place.path());
    let at = |name: &str| place.path().join(name).display().to_string();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/photos");
    let images = at("images");
    std::fs::create_dir(&images).unwrap();
    // The same pixels stored twice, once with an orientation.
    for name in ["rgb.png", "turned_5.png"] {
        std::fs::copy(fixtures.join(name), Path::new(&images).join(name)).unwrap();
    }
    let same = |values: &[f64]| {
        let (a, b) = values.split_at(values.len() / 2);
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    let out = at("out.safetensors");
    let features = |more: &[&str]| {
        succeed(&[&["embed", "--images", &images, "--out", &out], more].concat(), place.path());
        same(&floats(&std::fs::read(&out).unwrap(), "features"))
    };
    let predicted = || {
        let done = succeed(&["predict", "--run", &run, "--json", &images], place.path());
        same(&lines(&done).iter().flat_map(|line| probabilities(line, CLASSES.len())).collect::<Vec<_>>())
    };
    let model = tiny_model().display().to_string();
    assert!(!features(&["--model", &model]) && features(&["--model", &model, "--orientation", "ignore"]));
    // A run of before there was a choice, and one of today.
    assert!(features(&["--run", &run]) && predicted());
    assert!(!features(&["--run", &run, "--orientation", "exif"]));
    let config = Path::new(&run).join("config.toml");
    let old = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{old}orientation = \"exif\"\n")).unwrap();
    assert!(!features(&["--run", &run]) && !predicted());
    assert!(features(&["--run", &run, "--orientation", "ignore"]));

    // Grey of 16 bits is said once, whatever the number of batches.
    let deep = at("deep");
    std::fs::create_dir(&deep).unwrap();
    for name in ["grey_16.png", "grey_16.tif", "rgb.png"] {
        std::fs::copy(fixtures.join(name), Path::new(&deep).join(name)).unwrap();
    }
    for command in
        [&["predict", "--run", &run, &deep][..], &["embed", "--run", &run, "--images", &deep, "--out", &out]]
    {
        let done = succeed(&[command, &["--batch-size", "1"]].concat(), place.path());
        let said: Vec<&str> = done.err.lines().filter(|line| line.contains("16-bit grey")).collect();
        assert!(
            matches!(said[..], [line] if line.contains("2 images") && line.ends_with("grey_16.png")),
            "{said:?}"
        );
    }
}

#[test]
fn a_cache_says_once_that_its_images_have_sixteen_bits() {
    let place = Place::new([4, 2, 2]);
    let deep = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/photos/grey_16.png");
    std::fs::copy(deep, place.class_dir("train").join("deep.png")).unwrap();
    let run = place.at("run");
    let crops = ["--augment", "crop-flip", "--epochs", "1", "--overwrite"];
    for _ in 0..2 {
        let done = succeed(&place.train(&run, &crops), place.path());
        let said = done.err.lines().filter(|line| line.contains("of 1 image of 16-bit grey")).count();
        assert_eq!(said, 1, "{}", done.err);
    }
    let config = std::fs::read_to_string(format!("{run}/config.toml")).unwrap();
    assert!(config.contains("orientation = \"exif\""), "{config}");
    let evaluated = ["eval", "--run", &run, "--split", "val"];
    succeed(&evaluated, place.path());
    // Photos that are not turned have a cache of their own.
    let args = ["prep", "--data", &place.data, "--model", &place.model];
    let reused = succeed(&args, place.path()).err;
    assert!(reused.contains("using the cache"), "{reused}");
    let stored = succeed(&[&args[..], &["--orientation", "ignore"]].concat(), place.path()).err;
    assert!(stored.contains("wrote the cache"), "{stored}");
}
