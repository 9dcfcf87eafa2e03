//! The `engine` command on real files: whole runs, and every kind of bad input.

use crate::command::*;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const TRAINED: [&str; 3] =
    ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "head.safetensors"];

#[test]
fn a_run_on_photos_leaves_everything_it_promises() {
    let place = Place::new([6, 4, 5]);
    let run = place.at("run");
    let done = succeed(&place.train(&run, &["--text-alignment", "always"]), place.path());
    assert!(done.err.contains("device: CPU") && !done.err.contains("install"), "{}", done.err);
    for word in ["plain CLIP, test", "fine-tuned, val", "fine-tuned, test", "trained parameters"] {
        assert!(done.out.contains(word), "{word} is not in\n{}", done.out);
    }
    let lines = metrics(&run);
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of("step"), of("epoch"), lines.len()), (3 * 4, 3, 15));
    assert_eq!(lines[0]["step"], 1);
    for key in ["loss", "loss_head", "loss_text", "lr", "grad_norm", "loss_scale"] {
        assert!(lines[0][key].as_f64().unwrap().is_finite(), "{key}");
    }
    let summary = json(&run, "summary.json");
    assert_eq!(summary["test"]["images"], 15);
    let best = summary["best_epoch"].as_u64().unwrap();
    let epochs: Vec<&Value> = lines.iter().filter(|line| line["type"] == "epoch").collect();
    // But for the probabilities, which have a temperature at the end.
    let of_epoch = &epochs[best as usize - 1]["val"];
    for (key, value) in of_epoch.as_object().unwrap() {
        let tempered = ["nll", "brier", "ece"].contains(&key.as_str());
        assert!(tempered || *value == summary["val"][key], "{key}");
    }
    let of = |key: &str| of_epoch[key].as_f64().unwrap();
    assert!((of("nll") - of("loss_head")).abs() < 1e-12 * of("nll"), "{of_epoch}");
    let (top1, loss) =
        (|line: &Value| line["val"]["top1"].as_f64(), |line: &Value| line["val"]["loss"].as_f64());
    // No epoch is better in both.
    let better = |line: &&&Value| {
        top1(line) >= top1(epochs[best as usize - 1]) && loss(line) < of_epoch["loss"].as_f64()
    };
    assert_eq!(epochs.iter().find(better), None);

    // What was saved is what was tested.
    let eval = succeed(&["eval", "--run", &run, "--json"], place.path());
    let tested = serde_json::from_str::<Value>(&eval.out).unwrap();
    for (name, value) in summary["test"].as_object().unwrap() {
        assert_eq!(&tested[name], value, "{name}");
    }
    let evaluation = json(&run, "evaluation.json");
    assert_eq!(tested["confusion"], evaluation["confusion"]);
    let classes = tested["classes"].as_array().unwrap();
    assert_eq!(classes.len(), evaluation["class_names"].as_array().unwrap().len());
    let right: f64 = classes.iter().map(|class| class["right"].as_f64().unwrap()).sum();
    let images: f64 = classes.iter().map(|class| class["images"].as_f64().unwrap()).sum();
    assert_eq!(right / images, tested["top1"].as_f64().unwrap());

    // Adapters of all layers moved, B from zero; nothing frozen is stored.
    let adapter = bytes(&run, TRAINED[0]);
    let adapter = safetensors::SafeTensors::deserialize(&adapter).unwrap();
    assert!(adapter.names().iter().all(|n| n.ends_with("lora_A.weight") || n.ends_with("lora_B.weight")));
    let config = json(&run, "adapter/adapter_config.json");
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(8), Some(16.0)));
    for (name, view) in adapter.tensors() {
        assert!(view.data().iter().any(|&b| b != 0), "{name} is still zero");
    }
}

#[test]
fn the_best_epoch_is_tested_and_not_the_last() {
    let place = Place::new([6, 4, 5]);
    let run = place.at("run");
    // Learning rates this high make validation go up and down; some seed ends below its best.
    let wild = ["--lr-lora", "0.03", "--lr-head", "0.01", "--epochs", "5", "--overwrite", "--seed"];
    for seed in ["1", "2", "3", "4", "5", "6"] {
        succeed(&place.train(&run, &[&wild[..], &[seed]].concat()), place.path());
        let summary = json(&run, "summary.json");
        if summary["best_epoch"].as_u64() < Some(5) {
            let eval = succeed(&["eval", "--run", &run, "--json"], place.path());
            let tested = serde_json::from_str::<Value>(&eval.out).unwrap();
            assert_eq!(tested["top1"], summary["test"]["top1"]);
            let (a, b) = (tested["loss"].as_f64().unwrap(), summary["test"]["loss"].as_f64().unwrap());
            assert!((a - b).abs() < 1e-6 * b, "{a} and {b}");
            return;
        }
    }
    panic!("the last epoch was the best with every seed");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_config_toml_repeats_a_run() {
    let place = Place::new([6, 3, 2]);
    let (first, second, third) = (place.at("first"), place.at("second"), place.at("third"));
    succeed(&place.train(&first, &[]), place.path());
    succeed(&place.train(&second, &[]), place.path());
    let config = format!("{first}/config.toml");
    succeed(&["train", "--config", &config, "--output", &third], place.path());
    for other in [&second, &third] {
        assert_eq!(metrics(&first), metrics(other));
        for file in TRAINED {
            assert!(bytes(&first, file) == bytes(other, file), "{file} differs");
        }
    }
    let fourth = place.at("fourth");
    succeed(&place.train(&fourth, &["--seed", "43"]), place.path());
    assert_ne!(metrics(&first), metrics(&fourth));
}

#[test]
fn a_resumed_run_ends_where_an_unbroken_one_does() {
    let place = Place::new([6, 3, 2]);
    let (whole, parts) = (place.at("whole"), place.at("parts"));
    succeed(&place.train(&whole, &["--epochs", "4"]), place.path());
    succeed(&place.train(&parts, &["--epochs", "2"]), place.path());
    succeed(&["train", "--resume", "--output", &parts, "--epochs", "4"], place.path());
    assert_eq!(metrics(&whole), metrics(&parts));
    for file in TRAINED {
        assert!(bytes(&whole, file) == bytes(&parts, file), "{file} differs");
    }
    let (a, b) = (json(&whole, "summary.json"), json(&parts, "summary.json"));
    assert_eq!((&a["test"], &a["best_epoch"]), (&b["test"], &b["best_epoch"]));
}

#[test]
fn the_head_alone_trains_and_starts_from_another_run() {
    let place = Place::new([5, 3, 2]);
    let (linear, lora) = (place.at("linear"), place.at("lora"));
    succeed(&place.train(&linear, &["--recipe", "linear"]), place.path());
    assert!(!Path::new(&linear).join("adapter").exists());
    let warm = place.train(&lora, &["--init-from", &linear, "--epochs", "1", "--schedule", "cosine"]);
    succeed(&warm, place.path());
    let loss = |run: &str| metrics(run)[0]["loss_head"].as_f64().unwrap();
    assert!(loss(&lora) < loss(&linear), "{} is not below {}", loss(&lora), loss(&linear));
}

#[test]
fn embed_and_zero_shot_read_the_same_model() {
    let place = Place::new([2, 2, 4]);
    let (out, again) = (place.at("features.safetensors"), place.at("again.safetensors"));
    let embed = ["embed", "--model", &place.model, "--images", &place.data, "--out"];
    succeed(&[&embed[..], &[&out, "--batch-size", "3"]].concat(), place.path());
    succeed(&[&embed[..], &[&again, "--batch-size", "7"]].concat(), place.path());
    let file = std::fs::read(&out).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let paths: Vec<String> = serde_json::from_str(&header.metadata().as_ref().unwrap()["paths"]).unwrap();
    assert_eq!(paths.len(), 3 * 8);
    assert!(paths.is_sorted());
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor("features").unwrap();
        assert_eq!(view.shape()[0], 24);
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (features, others) = (floats(&file), floats(&std::fs::read(&again).unwrap()));
    for row in features.chunks_exact(features.len() / 24) {
        let norm: f32 = row.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }
    assert!(features.iter().zip(&others).all(|(a, b)| (a - b).abs() < 1e-5), "batches make no difference");
    let done = succeed(&["zero-shot", "--model", &place.model, "--data", &place.data], place.path());
    let rows: Vec<&str> = done.out.lines().map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(rows[2..], ["images", "top-1", "loss"], "no top-5 of three classes: {}", done.out);
    assert!(done.out.contains(" plain CLIP, test |") && done.out.contains("| images |"), "{}", done.out);
}

#[test]
fn prep_writes_a_cache_that_training_uses_and_damage_is_noticed() {
    let place = Place::new([3, 2, 2]);
    let prep = ["prep", "--data", &place.data, "--model", &place.model];
    let first = succeed(&prep, place.path());
    assert!(first.err.contains("wrote the cache"), "{}", first.err);
    let run = place.at("run");
    let train = place.train(&run, &["--epochs", "1", "--overwrite"]);
    assert!(succeed(&train, place.path()).err.contains("using the cache"));
    let cache = std::fs::read_dir(place.path().join("clip-engine")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&cache).unwrap();
    std::fs::write(&cache, &whole[..whole.len() / 2]).unwrap();
    assert!(succeed(&train, place.path()).err.contains("wrote the cache"), "a cache cut short is rebuilt");
    assert!(std::fs::read(&cache).unwrap() == whole);
    // Another image size is another cache.
    let other = succeed(&["prep", "--data", &place.data], place.path());
    assert!(other.err.contains("wrote the cache") && other.out.contains("[224, 224, 3]"), "{}", other.out);
}

#[test]
fn the_demo_needs_no_file_and_no_flag() {
    let place = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut demo = command(&["train", "--demo", "--epochs", "1"], place.path());
        let output = demo.current_dir(place.path()).output().unwrap();
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{texts:?}");
        let wide = texts.iter().flat_map(|text| text.lines()).find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "more than 80 columns");
        assert!(texts[1].contains("run: runs/demo\n"), "{}", texts[1]);
    }
    let run = place.path().join("runs/demo").display().to_string();
    let summary = json(&run, "summary.json");
    assert!(summary["zero_shot"]["top1"].as_f64().unwrap() > 3.0 / 12.0, "well above chance: {summary}");
    succeed(&["eval", "--run", &run, "--split", "val"], place.path());
}

#[test]
fn bad_data_is_named_with_a_remedy() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    let with_data = |data: &str, expected: &[&str]| {
        let args = ["train", "--data", data, "--model", &place.model, "--output", &run];
        fail(1, &args, place.path(), expected);
        assert!(!Path::new(&run).exists(), "no run directory is left");
    };
    with_data(&place.at("nowhere"), &["nowhere", "check the path"]);
    std::fs::create_dir(place.at("empty")).unwrap();
    with_data(&place.at("empty"), &["empty", "--data takes"]);
    let class = place.class_dir("train");
    let kept = std::fs::read(class.join("000.png")).unwrap();
    for file in ["000.png", "001.png"] {
        std::fs::remove_file(class.join(file)).unwrap();
    }
    with_data(&place.data, &[&class.display().to_string(), "without images"]);
    std::fs::write(class.join("000.jpg"), "this is no photo\n").unwrap();
    with_data(&place.data, &["000.jpg", "--skip-bad-images"]);
    let jpeg = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/photos/base_420_q60.jpg");
    let jpeg = std::fs::read(jpeg).unwrap();
    std::fs::write(class.join("000.jpg"), &jpeg[..jpeg.len() * 2 / 3]).unwrap();
    with_data(&place.data, &["000.jpg", "--skip-bad-images"]);
    // With a good photo beside it, the bad one can be left out.
    std::fs::write(class.join("001.png"), kept).unwrap();
    let done = succeed(&place.train(&run, &["--skip-bad-images", "--epochs", "1"]), place.path());
    assert!(done.err.contains("left out 1"), "{}", done.err);
}

#[test]
fn a_bad_model_is_named_with_a_remedy() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    let model = model_copy(place.path());
    let name = model.display().to_string();
    let check = |expected: &[&str]| {
        let args = ["train", "--data", &place.data, "--model", &name, "--output", &run];
        fail(1, &args, place.path(), expected);
    };
    let tensors = std::fs::read(model.join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("model.safetensors"), &tensors[..tensors.len() - 100]).unwrap();
    check(&["model.safetensors", "fetch it again"]);
    let mut lying = tensors.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(model.join("model.safetensors"), lying).unwrap();
    check(&["model.safetensors", "fetch it again"]);
    std::fs::write(model.join("model.safetensors"), &tensors).unwrap();
    let mut other: Value = serde_json::from_str(&config).unwrap();
    let layers = other["vision_config"]["num_hidden_layers"].as_u64().unwrap();
    other["vision_config"]["num_hidden_layers"] = (layers + 1).into();
    std::fs::write(model.join("config.json"), other.to_string()).unwrap();
    check(&["config.json disagrees with the weights"]);
    std::fs::write(model.join("config.json"), &config).unwrap();
    std::fs::rename(model.join("tokenizer.json"), model.join("gone")).unwrap();
    check(&["no tokenizer", "add tokenizer.json"]);
    let nowhere = place.at("nowhere");
    let args = ["train", "--data", &place.data, "--model", &nowhere, "--output", &run];
    fail(1, &args, place.path(), &[&nowhere, "no such folder", "--model"]);
}

#[test]
fn flags_that_make_no_sense_are_wrong_usage() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    for (more, expected) in [
        (&["--epochs", "0"][..], &["--epochs"][..]),
        (&["--rank", "0"], &["--rank"]),
        (&["--lr-head=-1"], &["--lr-head"]),
        (&["--demo"], &["--demo", "--data"]),
        (&["--targets", "q_proj,q_proj"], &["--targets", "twice"]),
        (&["--template", "no place for the class"], &["--template"]),
        (&["--batch-size", "100000000"], &["--batch-size"]),
        (&["--accumulate", "9223372036854775807"], &["--accumulate", "1048576"]),
        (&["--alpha", "0"], &["--alpha", "above 0"]),
        (&["--alpha=-1"], &["--alpha", "above 0"]),
        (&["--device", "gpu"], &["--device gpu"]),
        (&["--device", "cpu", "--precision", "f16"], &["--precision", "f32"]),
    ] {
        fail(2, &place.train(&run, more), place.path(), expected);
    }
    for args in
        [&["train"][..], &["train", "--demo", "--nonsense"], &["train", "--demo", "--early-stop", "0"]]
    {
        assert_eq!(engine(args, place.path()).code, 2, "{args:?}");
    }
    let cuda = place.train(&run, &["--device", "cuda"]);
    fail(1, &cuda, place.path(), &["--device cuda", "engine doctor", "--device cpu"]);
    assert!(!Path::new(&run).exists());
}

#[test]
fn all_that_is_missing_is_named_with_an_example() {
    let place = tempfile::tempdir().unwrap();
    for (args, missing, example) in [
        (&["embed"][..], &["--images", "--out"][..], "engine embed --images"),
        (&["eval"], &["--run"], "engine eval --run"),
        (&["predict"], &["--run", "<IMAGE>"], "engine predict --run runs/flowers102 photo.jpg"),
        (&["export"], &["--run", "--peft", "--merged", "--onnx"], "engine export --run"),
        (&["zero-shot"], &["--data"], "engine zero-shot --data flowers102"),
        (&["prep"], &["--data"], "engine prep --data flowers102"),
        (&["compare"], &["<RUN>"], "engine compare --recipes all --demo"),
        (&["bench", "--quiet"], &["<WHAT>"], "engine bench step"),
    ] {
        let done = engine(args, place.path());
        assert_eq!(done.code, 2, "{args:?}: {}", done.err);
        let (problem, end) = done.err.split_once("Example").unwrap_or_else(|| panic!("{}", done.err));
        assert!(missing.iter().all(|name| problem.contains(name)), "{args:?}: {}", done.err);
        assert!(end.contains(example), "{args:?}: {}", done.err);
    }
    let train = ["engine train --data DIR", "engine train --demo"];
    fail(2, &["train"], place.path(), &[&["--data is missing"][..], &train].concat());
    fail(2, &["train", "--recipe", "linear"], place.path(), &train);
    fail(2, &["train", "--resume"], place.path(), &["--output is missing", "engine train --resume"]);
    let compare = ["compare", "--recipes", "linear"];
    fail(2, &compare, place.path(), &["--data is missing", "engine compare --recipes"]);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn a_negative_number_names_its_flag() {
    let place = tempfile::tempdir().unwrap();
    let least = |flag: &str, value: &str, least: u32| {
        let text = format!("error: {flag}: {value} is not a number of at least {least}");
        let done = fail(2, &["train", "--demo", flag, value], place.path(), &[]);
        assert_eq!(done.err.trim_end(), text);
    };
    for flag in
        ["--lr-head", "--wd-head", "--lr-lora", "--wd-lora", "--text-weight", "--early-stop-min-delta"]
    {
        least(flag, "-1", 0);
        least(flag, "-0.5", 0);
    }
    for flag in ["--epochs", "--batch-size", "--accumulate", "--seed", "--data-seed", "--shots", "--rank"] {
        least(flag, "-3", 0);
    }
    for flag in ["--warmup", "--prompt-count"] {
        least(flag, "-3", 0);
    }
    least("--seeds", "-1", 1);
    for flag in ["--alpha", "--dropout", "--mixup", "--triplet", "--clip-grad-norm", "--early-stop"] {
        let done = fail(2, &["train", "--demo", flag, "-1"], place.path(), &[]);
        assert!(done.err.starts_with(&format!("error: {flag}: ")), "{}", done.err);
    }
    for (args, text) in [
        (["predict", "--run", "r", "--top-k", "-1"], "error: --top-k: -1 is not a number of at least 1"),
        (["bench", "step", "--quiet", "--reps", "-1"], "error: --reps: -1 is not a number of at least 1"),
        (["train", "--demo", "--quiet", "--rank", "1.5"], "error: --rank: 1.5 is not a whole number"),
        (["train", "--demo", "--quiet", "--lr-head", "x"], "error: --lr-head: x is not a number"),
    ] {
        assert_eq!(fail(2, &args, place.path(), &[]).err.trim_end(), text);
    }
}

#[test]
fn the_help_is_in_groups_and_has_a_short_form() {
    let place = tempfile::tempdir().unwrap();
    let help = |args: &[&str]| succeed(args, place.path()).out;
    let groups = [
        "Data and model:",
        "What is trained:",
        "Loss:",
        "Optimisation:",
        "Stopping and keeping:",
        "Output and device:",
    ];
    let (long, short) = (help(&["train", "--help"]), help(&["train", "-h"]));
    let compare = help(&["compare", "--help"]);
    for text in [&long, &compare] {
        let places: Vec<_> = groups.iter().filter_map(|group| text.find(&format!("\n{group}\n"))).collect();
        assert_eq!(places.len(), groups.len(), "{text}");
        assert!(text.contains("--lr-prompt") && text.contains("--early-stop-against"), "{text}");
        let (_, rest) = text.split_once("\nOptions:\n").unwrap();
        let without: Vec<&str> =
            rest.lines().take_while(|line| line.is_empty() || line.starts_with(' ')).collect();
        let flags = without.iter().filter(|line| line.trim_start().starts_with("--"));
        assert_eq!(flags.count(), 0, "every setting has a group: {without:?}");
    }
    assert!(compare.contains("\nComparison:\n") && !compare.contains("--init-from"), "{compare}");
    assert!(short.contains("--epochs") && short.contains("see more with '--help'"), "{short}");
    assert!(!short.contains("--lr-prompt") && 2 * short.lines().count() < long.lines().count(), "{short}");
}

#[test]
fn the_doctor_ends_with_a_verdict() {
    let place = tempfile::tempdir().unwrap();
    let last = |out: &str| out.lines().last().unwrap().to_string();
    let done = succeed(&["doctor"], place.path());
    assert!(last(&done.out).starts_with("Ready: training on the CPU, "), "{}", done.out);
    let done = fail(1, &["doctor", "--gpu"], place.path(), &["no GPU can be used"]);
    assert!(last(&done.out).starts_with("Not ready: no GPU can be used"), "{}", done.out);
    let report = |args: &[&str]| serde_json::from_str::<Value>(&engine(args, place.path()).out).unwrap();
    let (ready, not) = (report(&["doctor", "--json"]), report(&["doctor", "--json", "--gpu"]));
    assert_eq!((&ready["ready"], &not["ready"]), (&true.into(), &false.into()));
    assert!(not["verdict"].as_str().unwrap().starts_with("Not ready: "), "{not}");
    let mut homeless = command(&["doctor"], place.path());
    homeless.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    let done = fail_of(&mut homeless, 1, &["--cache"]);
    assert!(last(&done.out).starts_with("Not ready: --cache"), "{}", done.out);
}

#[test]
fn settings_that_would_do_nothing_are_refused() {
    let place = Place::new([2, 2, 2]);
    let dry = |more: &[&'static str]| [&["train", "--dry-run", "--model", &place.model], more].concat();
    let of = |data: &'static str| ["--data", data];
    let data: &'static str = place.data.clone().leak();
    fail(2, &dry(&[&of(data)[..], &["--data-seed", "3"]].concat()), place.path(), &["--data-seed", "split"]);
    fail(2, &dry(&["--data", "flowers102", "--data-seed", "3"]), place.path(), &["--data-seed", "split"]);
    let classes: &'static str = format!("{data}/train").leak();
    let from = Path::new(&place.at("from")).to_path_buf();
    std::fs::create_dir(&from).unwrap();
    let init: &'static str = from.display().to_string().leak();
    std::fs::write(from.join("head.safetensors"), "never read").unwrap();
    for init_head in ["text", "random"] {
        let both = [&of(data)[..], &["--init-from", init, "--head-init", init_head]].concat();
        fail(2, &dry(&both), place.path(), &["--head-init", "head.safetensors", "leave out"]);
    }
    let (split, own) = (of(classes), ["--data-seed", "3", "--head-init", "text"]);
    // Three images of a class are the least that can be split.
    for class in std::fs::read_dir(classes).unwrap() {
        let class = class.unwrap().path();
        std::fs::copy(class.join("000.png"), class.join("002.png")).unwrap();
    }
    succeed(&dry(&[&split[..], &own].concat()), place.path());
}

#[test]
fn an_error_says_what_the_system_said() {
    let place = Place::new([2, 2, 2]);
    let config = place.at("none.toml");
    let train = ["train", "--demo", "--dry-run", "--config", &config];
    fail(1, &train, place.path(), &["--config", "none.toml", "No such file"]);
    let done = fail(1, &["predict", "--run", &config, "x.png"], place.path(), &["none.toml"]);
    assert_eq!(done.err.matches("none.toml").count(), 1, "{}", done.err);
}

#[test]
fn an_existing_run_is_not_touched_unasked() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    let train = place.train(&run, &["--epochs", "1"]);
    let overwrite = [&train[..], &["--overwrite"]].concat();
    std::fs::create_dir(&run).unwrap();
    let notes = Path::new(&run).join("notes.txt");
    std::fs::write(&notes, "mine").unwrap();
    fail(1, &train, place.path(), &["not empty", "--resume", "--overwrite"]);
    fail(1, &overwrite, place.path(), &["no run", "--output"]);
    fail(1, &["train", "--resume", "--output", &run], place.path(), &["config.toml"]);
    std::fs::remove_file(&notes).unwrap();
    succeed(&train, place.path());
    fail(1, &train, place.path(), &["not empty", "--resume", "--overwrite"]);
    for file in ["notes.txt", "adapter/notes.txt"] {
        std::fs::write(Path::new(&run).join(file), "mine").unwrap();
    }
    succeed(&overwrite, place.path());
    for file in ["notes.txt", "adapter/notes.txt"] {
        assert_eq!(bytes(&run, file), b"mine", "--overwrite removes a run's files only");
    }
    let resume = ["train", "--resume", "--output", &run, "--rank", "4"];
    fail(2, &resume, place.path(), &["--resume", "--epochs"]);
    let class = place.class_dir("train");
    std::fs::copy(class.join("000.png"), class.join("999.png")).unwrap();
    fail(1, &resume[..4], place.path(), &["state.safetensors", "photos", "another --output"]);
    std::fs::remove_file(class.join("999.png")).unwrap();
    std::fs::remove_file(Path::new(&run).join("state.safetensors")).unwrap();
    fail(1, &resume[..4], place.path(), &["state.safetensors", "--overwrite"]);
}

#[test]
fn numbers_that_are_none_end_a_run_and_are_not_kept() {
    let place = Place::new([4, 2, 2]);
    let run = place.at("run");
    for more in [["--lr-lora", "1e38"], ["--lr-head", "1e38"]] {
        let wild = place.train(&run, &[&more[..], &["--epochs", "2", "--overwrite"]].concat());
        fail(1, &wild, place.path(), &["not finite", "--lr-head, --lr-lora, --clip-grad-norm"]);
        for file in TRAINED {
            let file = Path::new(&run).join(file);
            assert!(!file.exists(), "{} must not be kept", file.display());
        }
    }
}

#[test]
fn settings_combine_as_their_names_say() {
    let place = Place::new([3, 3, 3]);
    let (lora, linear, text) = (place.at("lora"), place.at("linear"), place.at("text"));
    succeed(&place.train(&lora, &["--epochs", "1"]), place.path());
    // A recipe on the command line brings its own method, whatever the file says.
    let config = format!("{lora}/config.toml");
    succeed(&["train", "--config", &config, "--recipe", "linear", "--output", &linear], place.path());
    assert!(!Path::new(&linear).join("adapter").exists());
    let from = ["--recipe", "linear", "--init-from", &lora, "--overwrite"];
    fail(2, &place.train(&linear, &from), place.path(), &["--init-from", "--method"]);
    // The features of a head-only run are those of plain CLIP.
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| place.at(name));
    let images = ["--images", &place.data, "--out"];
    succeed(&[&["embed", "--run", &linear], &images[..], &[&a]].concat(), place.path());
    succeed(&[&["embed", "--model", &place.model], &images[..], &[&b]].concat(), place.path());
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
    // A head that starts from the text features and learns nothing is the text classifier.
    let still = ["--head-init", "text", "--epochs", "1", "--lr-head", "0", "--lr-lora", "0"];
    succeed(&place.train(&text, &still), place.path());
    let val = json(&text, "summary.json")["val"].clone();
    assert_eq!(val["top1"], val["text_top1"]);
    assert_eq!(val["top5"], val["text_top5"]);
}

#[test]
fn caches_of_every_type_train_alike() {
    let place = Place::new([3, 2, 2]);
    let losses: Vec<f64> = ["u8", "f32", "f16"]
        .map(|dtype| {
            let run = place.at(dtype);
            succeed(&place.train(&run, &["--dtype", dtype, "--epochs", "2"]), place.path());
            json(&run, "summary.json")["val"]["loss"].as_f64().unwrap()
        })
        .to_vec();
    assert!((losses[1] - losses[0]).abs() < 1e-5 * losses[0], "f32 holds the same pixels: {losses:?}");
    assert!((losses[2] - losses[0]).abs() < 1e-2 * losses[0], "f16 rounds them: {losses:?}");
}

#[test]
fn runs_are_read_from_any_directory_and_damaged_settings_are_named() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    let name = Path::new(&place.data).file_name().unwrap().to_str().unwrap();
    let train = ["train", "--data", name, "--model", &place.model, "--output", &run, "--epochs", "1"];
    let mut relative = command(&train, place.path());
    assert!(relative.current_dir(place.path()).output().unwrap().status.success());
    let mut elsewhere = command(&["eval", "--run", &run], place.path());
    assert!(elsewhere.current_dir("/").output().unwrap().status.success());
    let config = Path::new(&run).join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("batch-size = 32", "batch-size = 0")).unwrap();
    fail(2, &["eval", "--run", &run], place.path(), &["--batch-size"]);
    let other = place.at("other");
    let file = place.at("mine.toml");
    std::fs::write(&file, "seed = 1\nepohcs = 3\n").unwrap();
    let args = ["train", "--demo", "--config", &file, "--output", &other];
    fail(1, &args, place.path(), &["mine.toml line 2", "epohcs"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_or_closed_standard_output_is_no_panic() {
    let place = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&["doctor"], place.path()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: standard output"));
    let mut child = command(&["doctor"], place.path()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success(), "a reader that has gone away is no error");
}

#[test]
fn adapters_and_heads_of_something_else_are_refused() {
    let place = Place::new([2, 2, 2]);
    let (run, other) = (place.at("run"), place.at("other"));
    succeed(&place.train(&run, &["--epochs", "1"]), place.path());
    let from = ["--init-from", &run, "--epochs", "1", "--overwrite"];
    let with = |more: &[&'static str]| [&from[..], more].concat();
    fail(1, &place.train(&other, &with(&["--rank", "4"])), place.path(), &["rank 8", "--rank"]);
    fail(
        1,
        &place.train(&other, &["--init-from", &place.at("none")]),
        place.path(),
        &["none", "--init-from"],
    );
    let adapter = Path::new(&run).join(TRAINED[0]);
    let whole = std::fs::read(&adapter).unwrap();
    std::fs::write(&adapter, &whole[..whole.len() - 8]).unwrap();
    fail(1, &place.train(&other, &with(&[])), place.path(), &["adapter_model.safetensors"]);
    std::fs::write(&adapter, &whole).unwrap();
    let renamed = place.class_dir("train").with_file_name("zinnia");
    for split in ["train", "val", "test"] {
        let class = place.class_dir(split);
        std::fs::rename(&class, class.with_file_name("zinnia")).unwrap();
    }
    assert!(renamed.is_dir());
    fail(1, &place.train(&other, &with(&[])), place.path(), &["head.safetensors", "classes"]);
    fail(1, &["eval", "--run", &run], place.path(), &["head.safetensors", "classes"]);
}

#[cfg(unix)]
mod signals {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    fn send(signal: &str, child: &Child) {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Starts the engine, sends SIGINT once `ready` says so, and waits for the end.
    fn interrupt(args: &[&str], cache: &Path, ready: impl Fn() -> bool) -> Done {
        let mut child = command(args, cache).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while !ready() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "never ready");
            std::thread::sleep(Duration::from_millis(2));
        }
        send(interrupt_signal(), &child);
        let code = child.wait().unwrap().code().unwrap_or(-1);
        let mut done = Done { code, out: String::new(), err: String::new() };
        child.stdout.unwrap().read_to_string(&mut done.out).unwrap();
        child.stderr.unwrap().read_to_string(&mut done.err).unwrap();
        done
    }

    #[test]
    fn ctrl_c_in_training_stops_cleanly_and_the_run_goes_on_later() {
        let place = Place::new([8, 4, 4]);
        let (run, whole) = (place.at("run"), place.at("whole"));
        let state = Path::new(&run).join("state.safetensors");
        let long = ["--epochs", "400"];
        let done = interrupt(&place.train(&run, &long), place.path(), || state.exists());
        assert_eq!(done.code, 1, "{}", done.err);
        assert!(done.err.contains("--resume --output"), "{}", done.err);
        let epoch: u64 = done
            .err
            .split("interrupted after epoch ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let target = (epoch + 2).to_string();
        succeed(&["eval", "--run", &run], place.path());
        succeed(&["train", "--resume", "--output", &run, "--epochs", &target], place.path());
        succeed(&place.train(&whole, &["--epochs", &target]), place.path());
        assert_eq!(metrics(&run), metrics(&whole), "no line is lost or doubled");
        for file in TRAINED {
            assert!(bytes(&run, file) == bytes(&whole, file), "{file} differs");
        }
    }

    /// Waits until the metrics have so many lines, or the engine has ended; the lines there are.
    fn await_lines(run: &str, child: &mut Child, lines: usize) -> usize {
        let metrics = Path::new(run).join("metrics.jsonl");
        let found = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
        let deadline = Instant::now() + Duration::from_secs(120);
        while found() < lines && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} of {lines} lines", found());
            std::thread::sleep(Duration::from_millis(2));
        }
        found()
    }

    #[test]
    fn signals_that_the_caller_ignores_stay_ignored() {
        let place = Place::new([3, 2, 2]);
        for signal in ["HUP", "INT"] {
            let run = place.at(signal);
            let train =
                place.train(&run, &["--recipe", "linear", "--epochs", "100000", "--template", "a {}"]);
            // As nohup and a shell's & do.
            let script = format!("trap '' {signal}; exec \"$0\" \"$@\"");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_engine")]).args(&train).stdin(Stdio::null());
            shell.env("XDG_CACHE_HOME", place.path()).env("CUDA_VISIBLE_DEVICES", "");
            let mut child = shell.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let before = await_lines(&run, &mut child, 3);
            send(signal, &child);
            // Twenty epochs later it still trains.
            let after = await_lines(&run, &mut child, before + 60);
            assert!(after >= before + 60, "SIG{signal} ended it after {after} lines, sent after {before}");
            send("TERM", &child);
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
            assert!(said.contains("--resume --output"), "others stop it cleanly: {said}");
        }
    }

    #[test]
    fn ctrl_c_in_prep_leaves_nothing() {
        let place = Place::new([16, 10, 30]);
        // Large photos, so that there is time to interrupt.
        let class = place.class_dir("train");
        let large =
            image::RgbImage::from_fn(3000, 2000, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
        large.save(class.join("large.bmp")).unwrap();
        for i in 0..60 {
            std::fs::hard_link(class.join("large.bmp"), class.join(format!("large{i}.bmp"))).unwrap();
        }
        let cache = place.path().join("clip-engine");
        let started = || std::fs::read_dir(&cache).is_ok_and(|mut entries| entries.next().is_some());
        let prep = ["prep", "--data", &place.data, "--model", &place.model];
        let done = interrupt(&prep, place.path(), started);
        assert_eq!(done.code, 1, "{}", done.err);
        assert!(done.err.contains("interrupted"), "{}", done.err);
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0, "nothing is left in the cache folder");
        succeed(&prep, place.path());
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_nothing_half_written() {
        let place = Place::new([8, 4, 4]);
        let run = place.at("run");
        // A limit on file sizes stands in for the full disk: writes fail with an error just the same.
        let limited = |blocks: u32, args: &[&str]| {
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
            let output = Command::new("bash")
                .args(["-c", &script, env!("CARGO_BIN_EXE_engine")])
                .args(args)
                .env("XDG_CACHE_HOME", place.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let prep = ["prep", "--data", &place.data, "--model", &place.model];
        let (code, err) = limited(100, &prep);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("--cache"), "{err}");
        assert_eq!(std::fs::read_dir(place.path().join("clip-engine")).unwrap().count(), 0);
        succeed(&prep, place.path());
        let (code, err) = limited(100, &place.train(&run, &["--epochs", "1"]));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("cannot write") && err.contains(&run) && err.contains("free space"), "{err}");
        for entry in walkdir::WalkDir::new(&run) {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".safetensors") {
                let whole = std::fs::read(entry.path()).unwrap();
                assert!(safetensors::SafeTensors::deserialize(&whole).is_ok(), "{name} is whole");
            }
            assert!(!name.starts_with(".tmp"), "{name} is left over");
        }
    }
}

/// The whole program on the CUDA backend, by way of the host twin: the photos, the text tower, f16 with
/// loss scaling, captured steps, files. It ends where the CPU ends.
#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_cuda_backend_trains_as_the_cpu_does() {
    let place = Place::new([2, 1, 1]);
    let (cpu, twin) = (place.at("cpu"), place.at("twin"));
    let more = ["--epochs", "2", "--batch-size", "8"];
    succeed(&place.train(&cpu, &more), place.path());
    let on_twin = [&more[..], &["--device", "twin"]].concat();
    let done = succeed(&place.train(&twin, &on_twin), place.path());
    assert!(done.err.contains("host twin"), "{}", done.err);
    let config = std::fs::read_to_string(Path::new(&twin).join("config.toml")).unwrap();
    assert!(config.contains("precision = \"f16\""), "{config}");
    let (cpu, twin) = (metrics(&cpu), metrics(&twin));
    assert_eq!(cpu.len(), twin.len());
    for (cpu, twin) in cpu.iter().zip(&twin) {
        let loss = |line: &Value| match line["type"].as_str().unwrap() {
            "step" => line["loss"].as_f64().unwrap(),
            _ => line["val"]["loss"].as_f64().unwrap(),
        };
        assert!((loss(cpu) / loss(twin) - 1.0).abs() < 0.01, "{cpu}\n{twin}");
    }
    let steps = || twin.iter().filter(|line| line["type"] == "step");
    assert!(steps().all(|line| line["loss_scale"].as_f64().unwrap() >= 1024.0));
    assert!(steps().any(|line| line["skipped"] == false));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: resuming is the same code on both backends"]
fn a_resumed_run_on_the_cuda_backend_is_the_unbroken_one() {
    let place = Place::new([2, 1, 1]);
    let (whole, broken) = (place.at("whole"), place.at("broken"));
    let more = ["--batch-size", "8", "--device", "twin"];
    succeed(&place.train(&whole, &[&more[..], &["--epochs", "2"]].concat()), place.path());
    succeed(&place.train(&broken, &[&more[..], &["--epochs", "1"]].concat()), place.path());
    succeed(&["train", "--resume", "--output", &broken, "--epochs", "2"], place.path());
    assert_eq!(metrics(&whole), metrics(&broken));
    for file in TRAINED {
        assert_eq!(bytes(&whole, file), bytes(&broken, file), "{file}");
    }
}
