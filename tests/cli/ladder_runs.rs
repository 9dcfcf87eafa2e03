//! `--recipe auto` from outside: its runs are read, killed, stopped, repeated and compared as those of other recipes.

use crate::command::*;
use crate::kill_resume::{Moment, compare, spawn};
use clip_engine::tensor::Tensor;
use clip_engine::train::tensor_files::TensorFile;
use safetensors::SafeTensors;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Adapters left out.
const HEADS: [&str; 2] = ["--minutes", "0.000001"];

const PLAIN: [&str; 2] = ["--augment", "off"];

/// Arguments of a short run that looks for its learning rate.
fn auto<'a>(place: &'a Place, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = ["--recipe", "auto", "--lr-lora", "search", "--template", "a {}"];
    place.train(run, &[&own, more].concat())
}

fn ladder(run: &str) -> Value {
    let ladder = json(run, "summary.json")["ladder"].take();
    assert!(ladder["rungs"].is_array(), "{ladder}");
    ladder
}

fn kinds(run: &str) -> Vec<String> {
    let ladder = ladder(run);
    let rungs = ladder["rungs"].as_array().unwrap().iter();
    rungs.map(|rung| rung["kind"].as_str().unwrap().to_owned()).collect()
}

/// The rung that a run's files hold.
fn kept(run: &str) -> Value {
    let mut ladder = ladder(run);
    let place = ladder["kept"].as_u64().unwrap() as usize;
    ladder["rungs"][place].take()
}

fn is_below(a: f64, b: f64, bound: f64) -> bool {
    (a - b).abs() <= bound * b.abs().max(1.0)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn features(place: &Place, images: &str, how: &[&str]) -> Tensor {
    let out = place.at("features.safetensors");
    succeed(&[&["embed", "--images", images, "--out", &out], how].concat(), place.path());
    TensorFile::read(Path::new(&out)).unwrap().tensors.remove("features").unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.typed::<f32>().unwrap().iter().zip(b.typed::<f32>().unwrap());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

const OF_HEADS: [&str; 4] = ["plain-clip", "discriminant", "logistic-regression", "mean"];

#[test]
fn what_it_leaves_is_read_as_any_run_is() {
    let place = Place::new([4, 3, 3]);
    let test = format!("{}/test", place.data);
    let plain = features(&place, &test, &["--model", &place.model]);
    for (name, more) in [("adapters", &PLAIN[..]), ("head", &HEADS)] {
        let run = place.at(name);
        let done = succeed(&auto(&place, &run, more), place.path());
        let summary = json(&run, "summary.json");
        let (kept, adapters) = (kept(&run), name == "adapters");
        let kind = kept["kind"].as_str().unwrap();
        assert_eq!(OF_HEADS.contains(&kind), !adapters, "{name}: {kind}");
        assert_eq!(kinds(&run)[..4], OF_HEADS);
        assert_eq!(&kinds(&run)[4..], if adapters { &["lora", "blend"][..] } else { &[] });
        assert_eq!(number(&summary["best_epoch"]) > 0.0, adapters);
        assert_eq!(done.err.contains("left out by --minutes"), !adapters, "{}", done.err);
        // The summary is of what is kept.
        for split in ["val", "test"] {
            for key in ["images", "top1", "nll"] {
                let [a, b] = [&kept[split][key], &summary[split][key]].map(number);
                assert!(is_below(a, b, 1e-4), "{name} {split} {key}: {a} and {b}");
            }
        }
        for split in ["val", "test"] {
            let done = succeed(&["eval", "--run", &run, "--split", split, "--json"], place.path());
            let found: Value = serde_json::from_str(&done.out).unwrap();
            for (key, expected) in summary[split].as_object().unwrap() {
                let [a, b] = [&found[key], expected].map(number);
                assert!(is_below(a, b, 1e-6), "{name} {split} {key}: {a} and {b}");
            }
        }
        let images = json(&run, "evaluation.json")["images"].take();
        let done = succeed(&["predict", "--run", &run, &test, "--json"], place.path());
        assert_eq!(done.out.lines().count(), 9);
        for (line, image) in done.out.lines().zip(images.as_array().unwrap()) {
            let line: Value = serde_json::from_str(line).unwrap();
            let first = &line["predictions"][0];
            assert_eq!(first["index"], image["predicted"], "{name}");
            let [a, b] = [&first["probability"], &image["confidence"]].map(number);
            assert!(is_below(a, b, 1e-6), "{name}: {a} and {b}");
        }

        let tuned = features(&place, &test, &["--run", &run]);
        assert_eq!(largest_difference(&plain, &tuned) > 0.0, adapters, "{name}: adapters have an effect");
        let (peft, merged) = (place.at("peft"), place.at("merged"));
        for (form, to) in [("--peft", &peft), ("--merged", &merged)] {
            succeed(&["export", "--run", &run, form, to, "--overwrite"], place.path());
            assert!(bytes(to, "head.safetensors") == bytes(&run, "head.safetensors"), "{name} {form}");
        }
        let again = features(&place, &test, &["--model", &place.model, "--init-from", &peft]);
        assert_eq!(largest_difference(&again, &tuned), 0.0, "{name}");
        let error = largest_difference(&features(&place, &test, &["--model", &merged]), &tuned);
        assert!(error < 1e-6, "{name}: {error}");
    }
}

/// How far a state file says that a run has come: learning rates looked at, and epochs.
fn come_to(run: &str) -> (usize, u64) {
    let file = bytes(run, "state.safetensors");
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let part = |name: &str| serde_json::from_str::<Value>(&metadata[name]).unwrap();
    (part("ladder")["looks"].as_array().unwrap().len(), part("progress")["epoch"].as_u64().unwrap())
}

/// Starts a process, waits for the run to save its state so often, and lets it go on for a moment; then `end`s it.
/// False when it was done before.
fn cut(
    place: &Place,
    args: &[&str],
    run: &str,
    saves: usize,
    end: impl Fn(&mut std::process::Child),
) -> (bool, Output) {
    let mut child = spawn(args, place.path());
    let come = Moment::Changed("state.safetensors", saves).wait(&mut child, Path::new(run));
    if come {
        std::thread::sleep(Duration::from_millis(5));
        end(&mut child);
    }
    (come, child.wait_with_output().unwrap())
}

#[test]
fn killed_after_every_save_it_ends_with_the_same_bits() {
    let place = Place::new([4, 2, 2]);
    let (whole, parts) = (place.at("whole"), place.at("parts"));
    let more = ["--final-fit", "--epochs", "4"];
    succeed(&auto(&place, &whole, &more), place.path());
    let start = auto(&place, &parts, &more);
    let resume = ["train", "--resume", "--output", &parts];
    let mut met = Vec::new();
    loop {
        let args = if met.is_empty() { &start[..] } else { &resume };
        let (_, output) = cut(&place, args, &parts, 1, |child| child.kill().unwrap());
        if output.status.signal() != Some(9) {
            assert!(output.status.success(), "{met:?}\n{}", String::from_utf8_lossy(&output.stderr));
            break;
        }
        met.push(come_to(&parts));
        assert!(met.len() < 20, "{met:?}");
    }
    // Otherwise the test does not test what it says.
    assert!(met.iter().any(|&(looks, _)| (1..3).contains(&looks)), "no kill hit a look: {met:?}");
    assert!(met.iter().any(|&(_, epoch)| (1..4).contains(&epoch)), "no kill hit an epoch: {met:?}");
    compare(&whole, &parts, &format!("{met:?}"));
}

fn interrupt(child: &mut std::process::Child) {
    Command::new("kill").args(["-s", interrupt_signal(), &child.id().to_string()]).status().unwrap();
}

#[test]
fn ctrl_c_leaves_the_best_so_far_and_the_run_goes_on() {
    let place = Place::new([4, 2, 2]);
    let (whole, parts) = (place.at("whole"), place.at("parts"));
    let more = [&PLAIN[..], &["--epochs", "9"]].concat();
    succeed(&auto(&place, &whole, &more), place.path());
    let start = auto(&place, &parts, &more);
    let resume = ["train", "--resume", "--output", &parts];
    // In the first look; then in an epoch.
    for (args, saves, in_epochs) in [(&start[..], 1, false), (&resume, 5, true)] {
        let (_, output) = cut(&place, args, &parts, saves, interrupt);
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{err}");
        assert!(err.contains(&format!("--resume --output {parts} goes on")), "{err}");
        let (summary, (_, epoch)) = (json(&parts, "summary.json"), come_to(&parts));
        assert_eq!((epoch > 0, epoch < 9), (in_epochs, true), "where it was stopped: {epoch}");
        assert_eq!(summary["epochs"], epoch);
        let reason = summary["ladder"]["reason"].as_str().unwrap();
        assert!(reason.contains("stopped before the end"), "{reason}");
        assert!(Path::new(&parts).join("report.html").is_file());
        assert_eq!(kinds(&parts).contains(&"lora".into()), in_epochs);
        let eval = succeed(&["eval", "--run", &parts, "--json"], place.path());
        let found: Value = serde_json::from_str(&eval.out).unwrap();
        let [a, b] = [&found["nll"], &summary["test"]["nll"]].map(number);
        assert!(is_below(a, b, 1e-6), "{a} and {b}");
    }
    succeed(&resume, place.path());
    compare(&whole, &parts, "after two stops");
}

/// Its numbers would be taken for those of a whole run.
#[test]
fn ctrl_c_ends_a_set_of_runs_without_a_result() {
    let place = Place::new([4, 2, 2]);
    let (set, run) = (place.at("set"), place.at("set/seed-42"));
    let more = [&PLAIN[..], &["--epochs", "9", "--seeds", "1"]].concat();
    let (_, output) = cut(&place, &auto(&place, &set, &more), &run, 5, interrupt);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.trim_end().ends_with(&format!("engine train --resume --output {run}")), "{err}");
    assert!(!Path::new(&set).join("seeds.json").exists());
    assert!(Path::new(&run).join("summary.json").is_file());
}

#[test]
fn a_seed_and_a_config_repeat_and_another_seed_does_not() {
    let place = Place::new([4, 2, 2]);
    let [first, again, other] = ["first", "again", "other"].map(|name| place.at(name));
    let seed = |seed| ["--shots", "3", "--epochs", "2", "--seed", seed];
    succeed(&auto(&place, &first, &seed("5")), place.path());
    succeed(&auto(&place, &again, &seed("5")), place.path());
    compare(&first, &again, "the same seed");
    succeed(&auto(&place, &other, &seed("6")), place.path());
    assert!(bytes(&first, "head.safetensors") != bytes(&other, "head.safetensors"));
    assert_ne!(metrics(&first), metrics(&other));
    let config = format!("{first}/config.toml");
    succeed(&["train", "--config", &config, "--output", &again, "--overwrite"], place.path());
    compare(&first, &again, "from config.toml");
}

#[test]
fn the_other_commands_know_it() {
    let place = Place::new([3, 2, 2]);
    let [run, seeds, out] = ["run", "seeds", "out"].map(|name| place.at(name));
    let more = ["--shots", "2", "--epochs", "2", "--augment", "off"];
    let train = auto(&place, &run, &more);
    let dry = succeed(&[&train[..], &["--dry-run"]].concat(), place.path()).out;
    assert!(!Path::new(&run).exists());
    succeed(&train, place.path());
    let settings = |text: &str| text.parse::<toml::Table>().unwrap();
    let config = String::from_utf8(bytes(&run, "config.toml")).unwrap();
    assert_eq!(settings(&dry), settings(&config));
    let said = format!("# trained parameters: {} ", json(&run, "summary.json")["trained_parameters"]);
    assert!(dry.contains(&said), "{dry}");
    let file = place.at("dry.toml");
    std::fs::write(&file, &dry).unwrap();
    let again = place.at("again");
    succeed(&["train", "--config", &file, "--output", &again], place.path());
    compare(&run, &again, "from what a dry run said");

    let args = auto(&place, &seeds, &[&more[..], &["--seeds", "2"]].concat());
    let done = succeed(&args, place.path());
    assert!(done.out.contains("mean ± std"), "{}", done.out);
    let runs = [42, 43].map(|seed| format!("{seeds}/seed-{seed}"));
    // The second is as it would be alone, on the images of the first.
    assert!(bytes(&runs[0], "head.safetensors") == bytes(&run, "head.safetensors"));
    let config = format!("{}/config.toml", runs[1]);
    succeed(&["train", "--config", &config, "--output", &again, "--overwrite"], place.path());
    compare(&runs[1], &again, "the second of two seeds");
    assert_ne!(metrics(&runs[0]), metrics(&runs[1]));

    let both =
        ["compare", "--data", &place.data, "--model", &place.model, "--recipes", "lora,auto", "--out", &out];
    let short = ["--epochs", "2", "--batch-size", "5", "--template", "a {}"];
    let done = succeed(&[&both[..], &short].concat(), place.path());
    let comparison = json(&out, "comparison.json");
    let rows: Vec<&str> =
        comparison["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(rows[rows.len() - 2..], ["lora", "auto"], "{}", done.out);
    let top1 = &json(&format!("{out}/auto"), "summary.json")["test"]["top1"];
    assert_eq!(&comparison["rows"][rows.len() - 1]["test_top1"], top1);

    // All are more than those that have a use for its flags, and it is one of them.
    let all = ["compare", "--data", &place.data, "--model", &place.model, "--out", &out, "--final-fit"];
    fail(2, &[&all[..], &["--recipes", "lora,linear"]].concat(), place.path(), &["--final-fit"]);
    fail(1, &[&all[..], &["--recipes", "all"]].concat(), place.path(), &[&out, "not empty"]);
    let known = engine(&["train", "--demo", "--recipe", "nothing"], place.path());
    assert!(known.code == 2 && known.err.contains("auto"), "{}", known.err);
}

#[test]
fn what_it_has_no_use_for_and_what_only_it_has_is_refused() {
    let place = Place::new([2, 1, 1]);
    let run = place.at("run");
    let train = ["train", "--data", &place.data, "--model", &place.model, "--output", &run];
    for (flag, value) in [
        ("--method", "vpt"),
        ("--method", "linear"),
        ("--classifier", "text"),
        ("--init-from", "X"),
        ("--head-init", "text"),
    ] {
        let args = [&train[..], &["--recipe", "auto", flag, value]].concat();
        fail(2, &args, place.path(), &[flag, "auto"]);
    }
    for recipe in ["lora", "linear"] {
        let args = [&train[..], &["--recipe", recipe, "--final-fit"]].concat();
        fail(2, &args, place.path(), &["--final-fit", "--recipe auto"]);
        let args = [&train[..], &["--recipe", recipe, "--minutes", "3"]].concat();
        fail(2, &args, place.path(), &["--minutes", "--recipe auto"]);
    }
    let args = [&train[..], &["--recipe", "lora", "--lr-lora", "search"]].concat();
    fail(2, &args, place.path(), &["--lr-lora", "--recipe auto"]);
    for minutes in ["0", "-1", "NaN"] {
        let args = [&train[..], &["--recipe", "auto", "--minutes", minutes]].concat();
        assert_eq!(engine(&args, place.path()).code, 2, "{minutes}");
    }
    assert!(!Path::new(&run).exists());
}

#[test]
fn a_final_fit_is_the_last_rung_and_another_model() {
    let place = Place::new([4, 3, 3]);
    for (name, more) in [("adapters", &PLAIN[..]), ("head", &HEADS)] {
        let (without, with) = (place.at(name), place.at(&format!("{name}-final")));
        succeed(&auto(&place, &without, more), place.path());
        succeed(&auto(&place, &with, &[more, &["--final-fit"]].concat()), place.path());
        let ([a, b], last) = ([&without, &with].map(|run| ladder(run)), kept(&with));
        let [a, b] = [&a, &b].map(|ladder| ladder["rungs"].as_array().unwrap());
        assert_eq!((b.len(), kinds(&with).last().unwrap().as_str()), (a.len() + 1, "final-fit"), "{name}");
        assert_eq!(last["kind"], "final-fit");
        // What was climbed before is the same.
        assert_eq!(metrics(&without), metrics(&with));
        for (a, b) in a.iter().zip(b) {
            assert_eq!(
                (&a["kind"], &a["val"], &a["chosen"]),
                (&b["kind"], &b["val"], &b["chosen"]),
                "{name}"
            );
            let [a, b] = [a, b].map(|rung| number(&rung["test"]["nll"]));
            assert!(is_below(a, b, 1e-4), "{name}: {a} and {b}");
        }
        assert!(last["val"].is_null());
        assert!(bytes(&without, "head.safetensors") != bytes(&with, "head.safetensors"), "{name}");
        let summary = json(&with, "summary.json");
        for key in ["images", "top1", "nll"] {
            assert_eq!(last["test"][key], summary["test"][key], "{name} {key}");
        }
        let done = succeed(&["eval", "--run", &with, "--json"], place.path());
        let found: Value = serde_json::from_str(&done.out).unwrap();
        let [a, b] = [&found["nll"], &summary["test"]["nll"]].map(number);
        assert!(is_below(a, b, 1e-6), "{name}: {a} and {b}");
        let adapter = |run: &str| {
            let path = Path::new(run).join("adapter/adapter_model.safetensors");
            let tensors = TensorFile::read(&path).unwrap().tensors;
            tensors.values().flat_map(|tensor| tensor.bytes().to_vec()).collect::<Vec<u8>>()
        };
        assert_eq!(adapter(&with) != adapter(&without), name == "adapters");
    }
}

/// Class folders of a split.
fn classes(place: &Place, split: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(&place.data).join(split)).unwrap();
    let mut classes: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    classes.sort();
    classes
}

#[test]
fn balanced_heads_are_fair_to_a_rare_class() {
    let place = Place::new([12, 4, 6]);
    let mut photos: Vec<_> =
        std::fs::read_dir(&classes(&place, "train")[2]).unwrap().map(|entry| entry.unwrap().path()).collect();
    photos.sort();
    photos[1..].iter().for_each(|photo| std::fs::remove_file(photo).unwrap());
    let test = classes(&place, "test")[2].display().to_string();
    let photos = features(&place, &test, &["--model", &place.model]);
    let photos = photos.typed::<f32>().unwrap();
    // Of each head: how many photos of the rare class are taken for it, and how sure of it heads are.
    let of_rare = |more: &[&str]| {
        let run = place.at(&format!("run{}", more.len()));
        succeed(&auto(&place, &run, &[&HEADS[..], &PLAIN, more].concat()), place.path());
        let path = PathBuf::from(&run).join("state.safetensors");
        let state = TensorFile::read(&path).unwrap().tensors;
        let [weights, biases] = ["ladder.weight", "ladder.bias"].map(|name| &state[name]);
        let width = photos.len() / 6;
        let heads =
            weights.typed::<f32>().unwrap().chunks(3 * width).zip(biases.typed::<f32>().unwrap().chunks(3));
        let heads = heads.map(|(weight, bias)| {
            let (mut recall, mut sure) = (0, 0.0);
            for photo in photos.chunks(width) {
                let z: Vec<f32> = weight
                    .chunks(width)
                    .zip(bias)
                    .map(|(w, b)| w.iter().zip(photo).map(|(w, x)| w * x).sum::<f32>() + b)
                    .collect();
                recall += usize::from(z[2] > z[0] && z[2] > z[1]);
                sure += 1.0 / z.iter().map(|x| (x - z[2]).exp()).sum::<f32>();
            }
            (recall, sure)
        });
        heads.collect::<Vec<_>>()
    };
    let (plain, fair) = (of_rare(&[]), of_rare(&["--class-weights", "balanced"]));
    for head in 1..3 {
        let ((few, unsure), (more, sure)) = (plain[head], fair[head]);
        // Half of what is missing of certainty.
        let is_fairer = more > few && 6.0 - sure < 0.5 * (6.0 - unsure);
        assert!(is_fairer, "{}: {plain:?} {fair:?}", OF_HEADS[head]);
    }
}

#[test]
fn few_photos_and_few_classes_are_enough() {
    // A photo of each class and split; two classes; a validation split that is drawn, with a test split and without.
    let one = Place::new([1, 1, 1]);
    let two = Place::new([3, 2, 2]);
    for split in ["train", "val", "test"] {
        std::fs::remove_dir_all(&classes(&two, split)[1]).unwrap();
    }
    let (no_val, train_alone) = (Place::new([6, 0, 2]), Place::new([6, 0, 0]));
    for (place, [train, val, test]) in
        [(&one, [3, 3, 3]), (&two, [6, 4, 4]), (&no_val, [15, 3, 6]), (&train_alone, [15, 3, 0])]
    {
        let run = place.at("run");
        let done = succeed(&auto(place, &run, &["--epochs", "2", "--final-fit"]), place.path());
        let images = format!("images: {train} train, {val} val, {test} test");
        assert!(done.err.contains(&images), "{}", done.err);
        for rung in ladder(&run)["rungs"].as_array().unwrap() {
            let scores = [("val", val, rung["kind"] != "final-fit"), ("test", test, test > 0)];
            for (split, images, there) in scores {
                assert_eq!(rung[split].is_object(), there, "{split} of {rung}");
                assert!(!there || rung[split]["images"] == images, "{rung}");
                assert!(!there || number(&rung[split]["nll"]).is_finite(), "{rung}");
            }
        }
        succeed(&["predict", "--run", &run, &format!("{}/train", place.data)], place.path());
    }
}
