//! `engine compare` and several seeds, on real files: what they write is what the runs wrote, and every way in
//! which runs cannot be compared.

use crate::command::{Done, Place, command, fail_of, interrupt_signal, json, metrics, succeed_of};
use clip_engine::data::Split;
use clip_engine::data::demo::demo_class_names;
use clip_engine::report::COMPARISON_FILES;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

impl Place {
    /// A command that runs where relative paths are of this place.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args, self.path());
        command.current_dir(self.path());
        command
    }

    fn succeed(&self, args: &[&str]) -> Done {
        succeed_of(&mut self.command(args))
    }

    fn fail(&self, code: i32, args: &[&str], expected: &[&str]) {
        fail_of(&mut self.command(args), code, expected);
    }

    /// `args` with data, model and a short training.
    fn short<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let mut all = args.to_vec();
        for [flag, value] in [
            ["--data", &self.data],
            ["--model", &self.model],
            ["--epochs", "2"],
            ["--batch-size", "4"],
            ["--early-stop", "off"],
        ] {
            if !args.contains(&flag) {
                all.extend([flag, value]);
            }
        }
        all
    }
}

/// Arguments that compare finished runs.
fn compare<'a>(out: &'a str, runs: &[&'a str]) -> Vec<&'a str> {
    [&["compare", "--out", out], runs].concat()
}

fn config(run: &str) -> toml::Table {
    std::fs::read_to_string(Path::new(run).join("config.toml")).unwrap().parse().unwrap()
}

/// Two numbers that are the same but for their last digit, which reading JSON may change.
fn assert_same(a: &Value, b: &Value, what: &str) {
    let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { panic!("{what}: {a} and {b}") };
    assert!((x - y).abs() <= 1e-14 * x.abs().max(1.0), "{what}: {x} and {y}");
}

/// A row of comparison.json tells what summary.json of its run tells.
fn assert_tells(row: &Value, summary: &Value) {
    assert_same(&row["val_top1"], &summary["val"]["top1"], "val_top1");
    for (column, key) in [
        ("test_top1", "top1"),
        ("test_top5", "top5"),
        ("text_top1", "text_top1"),
        ("macro_f1", "macro_f1"),
        ("ece", "ece"),
    ] {
        assert_same(&row[column], &summary["test"][key], column);
    }
    for key in ["trained_parameters", "epochs", "best_epoch", "seconds", "images_per_s"] {
        assert_same(&row[key], &summary[key], key);
    }
    assert_eq!(row["recipe"], summary["recipe"]);
}

/// The records of a CSV file by column.
fn records(path: &str) -> Vec<std::collections::HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.deserialize().map(|record| record.unwrap()).collect()
}

#[test]
fn recipes_are_trained_alike_and_compared_by_what_they_wrote() {
    let place = Place::new([2, 1, 2]);
    let [out, elsewhere, again] = ["out", "elsewhere", "again"].map(|name| place.at(name));
    let (linear, lora) = (format!("{out}/linear"), format!("{out}/lora"));
    let args =
        place.short(&["compare", "--recipes", "linear,lora", "--rank", "4", "--seed", "3", "--out", &out]);
    let done = place.succeed(&args);
    assert_eq!(done.err.matches("3 classes, images: 6 train, 3 val, 6 test").count(), 1, "{}", done.err);
    let (first, second) = (done.err.find("training linear, 1 of 2"), done.err.find("training lora, 2 of 2"));
    assert!(first.is_some() && first < second, "{}", done.err);
    let table: Vec<&str> = done.out.lines().map(|line| line.split('|').nth(1).unwrap_or("").trim()).collect();
    let names = ["technique", table[1], "plain CLIP", "logistic regression", "linear", "lora"];
    assert_eq!(table[..6], names, "{}", done.out);

    let comparison = json(&out, "comparison.json");
    assert_eq!((&comparison["split"], &comparison["classes"]), (&"test".into(), &3.into()));
    let rows = comparison["rows"].as_array().unwrap();
    let summaries = [json(&linear, "summary.json"), json(&lora, "summary.json")];
    let plain = &summaries[0]["zero_shot"];
    assert_eq!(rows.len(), 4);
    assert_same(&rows[0]["test_top1"], &plain["top1"], "top1");
    assert_same(&rows[0]["test_top5"], &plain["top5"], "top5");
    assert_eq!(rows[0]["name"], "plain CLIP");
    assert_eq!(rows[0]["val_top1"], summaries[0]["zero_shot_val"]["top1"]);
    let baseline = &summaries[0]["baseline"];
    assert_eq!((&rows[1]["name"], &rows[1]["test_top1"]), (&"logistic regression".into(), &baseline["top1"]));
    assert_eq!(
        (&rows[1]["seconds"], &summaries[1]["baseline"]),
        (&baseline["seconds"], baseline),
        "fitted once"
    );
    assert_tells(&rows[2], &summaries[0]);
    assert_tells(&rows[3], &summaries[1]);
    // No results on this data were published.
    assert!(rows.iter().all(|row| row["published"].is_null()) && !done.out.contains("published"));

    let records = records(&format!("{out}/comparison.csv"));
    assert_eq!(records.len(), 4);
    for (record, row) in records.iter().zip(rows) {
        assert_eq!((&record["kind"][..], &record["name"]), ("run", &row["name"].as_str().unwrap().into()));
        for column in ["val_top1", "test_top1", "test_top5", "macro_f1", "ece", "seconds", "best_epoch"] {
            match row[column].is_null() {
                true => assert_eq!(record[column], "", "{column}"),
                false => assert_same(&record[column].parse::<f64>().unwrap().into(), &row[column], column),
            }
        }
    }

    // A flag that only one recipe has a use for is that one's; the rest is the same for all.
    let (a, b) = (config(&linear), config(&lora));
    assert_eq!(b["rank"].as_integer(), Some(4));
    assert_eq!((a["seed"].as_integer(), a.get("data-seed")), (Some(3), b.get("data-seed")));
    for key in ["seed", "data", "model", "epochs", "batch-size", "shuffle", "templates", "precision"] {
        assert_eq!(a[key], b[key], "{key}");
    }

    // The runs by themselves say the same, and each repeats alone.
    place.succeed(&["compare", &linear, &lora, "--out", &elsewhere]);
    assert_eq!(json(&elsewhere, "comparison.json"), comparison);
    place.succeed(&["train", "--config", &format!("{lora}/config.toml"), "--output", &again]);
    assert_eq!(metrics(&again), metrics(&lora));

    // What is there is kept unless it may go.
    place.fail(1, &args, &[&out, "not empty", "--overwrite", "--out"]);
    place.fail(1, &["compare", &linear, "--out", &elsewhere], &["comparison.json", "--overwrite", "--out"]);
    for kept in ["report.html", "plots/classes.svg"] {
        let dir = place.at("kept");
        let file = Path::new(&dir).join(kept);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "mine").unwrap();
        place.fail(1, &["compare", &linear, "--out", &dir], &[kept, "--overwrite", "--out"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        std::fs::remove_dir_all(&dir).unwrap();
    }
    // A run's own page has the name of a comparison's.
    let page = std::fs::read(Path::new(&linear).join("report.html")).unwrap();
    for more in [&[][..], &["--overwrite"]] {
        place.fail(
            1,
            &[&["compare", &linear, &lora, "--out", &linear], more].concat(),
            &["linear", "a run itself", "--out"],
        );
    }
    assert!(std::fs::read(Path::new(&linear).join("report.html")).unwrap() == page);
    place.succeed(&["compare", &lora, "--out", &elsewhere, "--overwrite"]);
    assert_eq!(json(&elsewhere, "comparison.json")["rows"][2]["name"], "lora");
    std::fs::write(Path::new(&linear).join("notes.txt"), "mine").unwrap();
    let other = ["compare", "--recipes", "linear", "--out", &out, "--epochs", "1", "--overwrite"];
    place.succeed(&place.short(&other));
    assert!(!Path::new(&lora).exists(), "nothing is left of the earlier comparison");
    assert_eq!(std::fs::read_to_string(Path::new(&linear).join("notes.txt")).unwrap(), "mine");
    assert_eq!(json(&out, "comparison.json")["rows"].as_array().unwrap().len(), 3);
}

#[test]
fn several_seeds_scatter_and_each_repeats() {
    let place = Place::new([3, 3, 4]);
    let [out, alone] = ["out", "alone"].map(|name| place.at(name));
    let train = ["train", "--recipe", "linear", "--lr-head", "0.1", "--output"];
    let args = place.short(&[&train[..], &[&out, "--seeds", "3", "--seed", "5"]].concat());
    let done = place.succeed(&args);
    let runs = ["seed-5", "seed-6", "seed-7"].map(|name| format!("{out}/{name}"));
    let seeds = json(&out, "seeds.json");
    assert_eq!(seeds["seeds"], serde_json::json!([5, 6, 7]));
    assert_eq!(seeds["split"], "test");
    let summaries = runs.each_ref().map(|run| json(run, "summary.json"));
    for ((run, summary), seed) in seeds["runs"].as_array().unwrap().iter().zip(&summaries).zip(5..) {
        assert_eq!(run["seed"], seed);
        assert_same(&run["val_top1"], &summary["val"]["top1"], "val_top1");
        assert_same(&run["ece"], &summary["test"]["ece"], "ece");
    }
    for (key, split, metric) in
        [("val_top1", "val", "top1"), ("test_top1", "test", "top1"), ("ece", "test", "ece")]
    {
        let values = summaries.each_ref().map(|summary| summary[split][metric].as_f64().unwrap());
        let mean = values.iter().sum::<f64>() / 3.0;
        let std = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 2.0).sqrt();
        assert!((seeds["mean"][key].as_f64().unwrap() - mean).abs() < 1e-12, "{key}: {seeds}");
        assert!((seeds["std"][key].as_f64().unwrap() - std).abs() < 1e-12, "{key}: {seeds}");
    }
    assert!(seeds["std"]["ece"].as_f64().unwrap() > 0.0);
    let row = done.out.lines().find(|line| line.contains("mean ± std")).unwrap();
    let mean = 100.0 * seeds["mean"]["test_top1"].as_f64().unwrap();
    assert!(row.contains(&format!("{mean:.1} ± ")), "{row}");
    for run in &runs {
        assert_eq!(config(run)["data-seed"].as_integer(), Some(5), "all see the images of the first");
    }
    let of = runs.each_ref().map(|run| metrics(run));
    assert!(of[0] != of[1] && of[1] != of[2] && of[0] != of[2], "seeds make a difference");

    // One seed is a run like any other, without a deviation.
    let one = ["--seeds", "1", "--seed", "6"];
    place.succeed(&place.short(&[&train[..], &[&alone], &one].concat()));
    assert_eq!(metrics(&format!("{alone}/seed-6")), of[1]);
    assert!(json(&alone, "seeds.json")["std"].is_null());
    let again = place.at("again");
    place.succeed(&["train", "--config", &format!("{}/config.toml", runs[2]), "--output", &again]);
    assert_eq!(metrics(&again), of[2]);

    // Compared, they are one technique.
    let compared = place.at("compared");
    let done = place.succeed(&["compare", &runs[0], &runs[1], &runs[2], "--out", &compared]);
    let mean = json(&compared, "comparison.json")["means"][0].clone();
    assert_eq!((&mean["name"], &mean["seeds"]), (&"linear".into(), &seeds["seeds"]));
    for key in ["val_top1", "test_top1", "macro_f1", "ece"] {
        assert_same(&mean["mean"][key], &seeds["mean"][key], key);
        assert_same(&mean["std"][key], &seeds["std"][key], key);
    }
    assert!(done.out.contains(" ± ") && !done.out.contains("seed-5"), "{}", done.out);

    // The folder is replaced as a whole, or not at all.
    place.fail(1, &args, &[&out, "not empty", "--overwrite", "--output"]);
    let fewer = place.short(&[&train[..], &[&out, "--seeds", "1", "--overwrite"]].concat());
    place.succeed(&fewer);
    assert!(Path::new(&out).join("seed-42").is_dir() && !Path::new(&runs[0]).exists());
    std::fs::rename(Path::new(&out).join("seed-42"), Path::new(&out).join("mine")).unwrap();
    place.fail(1, &fewer, &["the run mine", "--output"]);
    place.fail(
        1,
        &place.short(&[&train[..], &[&again, "--seeds", "2", "--overwrite"]].concat()),
        &["a run itself"],
    );
    place.fail(
        1,
        &place.short(&[&train[..], &[&place.data, "--seeds", "2", "--overwrite"]].concat()),
        &["no run"],
    );
    for more in [&["--seeds", "0"][..], &["--seeds", "2", "--resume"]] {
        let mut train = place.command(&[&["train", "--output", &alone], more].concat());
        assert_eq!(train.output().unwrap().status.code(), Some(2), "{more:?}");
    }
    let last = ["--seeds", "2", "--seed", "9223372036854775807", "--overwrite"];
    place.fail(2, &place.short(&[&train[..], &[&alone], &last].concat()), &["--seeds", "--seed"]);
}

/// The files in a folder and in the folders in it, without those of runs and the runs' folders.
fn results(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let entries = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| !entry.path().join("config.toml").exists()) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(folder).unwrap().components();
            let parts: Vec<_> = name.map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
            found.push(parts.join("/"));
        }
    }
    found.sort();
    found
}

#[test]
fn recipes_of_several_seeds_have_a_folder_each() {
    let place = Place::new([2, 2, 2]);
    let out = place.at("out");
    let args = ["compare", "--recipes", "linear,vpt", "--seeds", "2", "--epochs", "1", "--out", &out];
    let done = place.succeed(&place.short(&args));
    let comparison = json(&out, "comparison.json");
    let names: Vec<&str> =
        comparison["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    let runs = ["linear/seed-42", "linear/seed-43", "vpt/seed-42", "vpt/seed-43"];
    assert_eq!(names, [&["plain CLIP", "logistic regression"], &runs[..]].concat());
    for (row, run) in comparison["rows"].as_array().unwrap()[2..].iter().zip(runs) {
        assert_tells(row, &json(&format!("{out}/{run}"), "summary.json"));
    }
    let means = comparison["means"].as_array().unwrap();
    assert_eq!(means.len(), 2);
    for (mean, name, pair) in [(&means[0], "linear", 2..4), (&means[1], "vpt", 4..6)] {
        assert_eq!((&mean["name"], &mean["recipe"]), (&name.into(), &name.into()));
        let [a, b] = [pair.start, pair.end - 1].map(|i| comparison["rows"][i]["ece"].as_f64().unwrap());
        assert!((mean["mean"]["ece"].as_f64().unwrap() - (a + b) / 2.0).abs() < 1e-12);
        assert!((mean["std"]["ece"].as_f64().unwrap() - (a - b).abs() / 2f64.sqrt()).abs() < 1e-12);
    }
    let records = records(&format!("{out}/comparison.csv"));
    let kinds: Vec<&str> = records.iter().map(|record| &record["kind"][..]).collect();
    assert_eq!(kinds, ["run", "run", "run", "run", "run", "run", "mean", "mean"]);
    assert_eq!((&records[6]["seeds"][..], &records[2]["seeds"][..]), ("42 43", "42"));
    let lines: Vec<&str> = done.out.lines().filter(|line| line.starts_with("| ")).collect();
    assert_eq!(lines.len(), 5, "title, plain CLIP, the baseline and two techniques:\n{}", done.out);
    assert_eq!(lines.iter().filter(|line| line.contains('±')).count(), 2, "{}", done.out);

    // The page knows the page of each run, and nothing else is left than what the next comparison removes.
    let html = std::fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert_eq!(html.matches("\"page\":true").count(), 4);
    assert!(runs.iter().all(|run| Path::new(&out).join(run).join("report.html").is_file()));
    let mut expected: Vec<String> = COMPARISON_FILES.map(String::from).to_vec();
    expected.sort();
    assert_eq!(results(&out), expected);

    // The same seed is the same run, whatever folder it is in; of the earlier ones nothing stays.
    let earlier = metrics(&format!("{out}/linear/seed-42"));
    let single = ["compare", "--recipes", "linear", "--epochs", "1", "--overwrite", "--out", &out];
    place.succeed(&place.short(&single));
    assert_eq!(metrics(&format!("{out}/linear")), earlier);
    for gone in ["vpt", "linear/seed-42", "linear/seed-43"] {
        assert!(!Path::new(&out).join(gone).exists(), "{gone}");
    }
    assert_eq!(results(&out), expected);
}

#[test]
fn runs_side_by_side_are_those_of_one_after_the_other() {
    let place = Place::new([3, 3, 4]);
    let [one, several] = ["one", "several"].map(|name| place.at(name));
    let recipes = ["compare", "--recipes", "linear,lora", "--seeds", "2", "--out"];
    place.succeed(&place.short(&[&recipes[..], &[&one, "--device", "cpu"]].concat()));
    let done = place.succeed(&place.short(&[&recipes[..], &[&several, "--devices", "cpu,cpu,cpu"]].concat()));
    for (number, run) in
        ["linear/seed-42", "linear/seed-43", "lora/seed-42", "lora/seed-43"].iter().enumerate()
    {
        let [alone, beside] = [&one, &several].map(|out| format!("{out}/{run}"));
        assert_eq!(metrics(&beside), metrics(&alone), "{run}");
        assert_eq!(config(&beside)["device"].as_str(), Some("cpu"));
        let said = format!("training {run}, {} of 4 on cpu", number + 1);
        assert_eq!(done.err.lines().filter(|line| **line == said).count(), 1, "{}", done.err);
    }
    assert!(!done.err.contains("epoch "), "{}", done.err);
    assert_eq!(results(&several), results(&one));
    let means =
        [&one, &several].map(|out| json(out, "comparison.json")["means"][1]["mean"]["test_top1"].clone());
    assert_same(&means[0], &means[1], "test_top1");

    let out = place.at("seeds");
    let seeds = ["train", "--recipe", "linear", "--seeds", "3", "--output", &out];
    place.succeed(&place.short(&[&seeds[..], &["--devices", "cpu,cpu"]].concat()));
    assert_eq!(json(&out, "seeds.json")["seeds"], serde_json::json!([42, 43, 44]));

    let out = place.at("none");
    let recipes = ["compare", "--recipes", "linear,lora", "--out", &out, "--devices"];
    for (devices, expected) in [
        ("cuda:0,cuda:1,cuda:0", "cuda:0 is named twice"),
        ("cuda,cuda:0", "cuda:0 is named twice"),
        ("cpu,cuda:0", "devices of one kind"),
        ("auto,auto", "name each device"),
        ("cpu,gpu", "not a device"),
    ] {
        place.fail(2, &place.short(&[&recipes[..], &[devices]].concat()), &[expected]);
    }
    for args in [
        &["train", "--demo", "--devices", "cpu,cpu"][..],
        &["compare", "--demo", "--recipes", "all", "--devices", "cpu,cpu", "--device", "cpu"],
    ] {
        assert_eq!(place.command(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn ctrl_c_stops_the_runs_on_every_device_where_they_are() {
    let place = Place::new([2, 1, 1]);
    let out = place.at("out");
    let args =
        ["compare", "--recipes", "mixup,lora", "--out", &out, "--epochs", "200", "--devices", "cpu,cpu"];
    let mut child =
        place.command(&place.short(&args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let runs = ["mixup", "lora"].map(|recipe| format!("{out}/{recipe}"));
    let state = |run: &String| Path::new(run).join("state.safetensors").exists();
    while !runs.iter().all(state) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-s", interrupt_signal(), &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("engine train --resume --output"), "{err}");
    for run in &runs {
        assert!(!Path::new(run).join("summary.json").exists());
        let epochs = metrics(run).iter().filter(|record| record["type"] == "epoch").count().to_string();
        place.succeed(&["train", "--resume", "--output", run, "--epochs", &epochs]);
    }
}

#[test]
fn runs_that_cannot_be_compared_are_named_with_the_reason() {
    let place = Place::new([2, 1, 2]);
    let [first, other] = ["a/run", "b/run"].map(|name| place.at(name));
    let train = |run: &str| {
        place.succeed(&place.short(&["train", "--recipe", "linear", "--epochs", "1", "--output", run]));
    };
    train(&first);
    let out = place.at("out");

    // Photos that have moved to other classes, or have gone.
    let data = Path::new(&place.data);
    let class = demo_class_names()[1].replace(' ', "_");
    let rename = |split: &str, from: &str, to: &str| {
        std::fs::rename(data.join(split).join(from), data.join(split).join(to)).unwrap();
    };
    Split::ALL.iter().for_each(|split| rename(split.name(), &class, "zinnia"));
    train(&other);
    let named = format!("{:?}", class);
    place.fail(1, &compare(&out, &[&first, &other]), &["a/run and b/run", "different classes", &named]);
    Split::ALL.iter().for_each(|split| rename(split.name(), "zinnia", &class));
    std::fs::remove_dir_all(&other).unwrap();
    let photo = data.join("test").join(&class).join("001.png");
    let kept = std::fs::read(&photo).unwrap();
    std::fs::remove_file(&photo).unwrap();
    train(&other);
    place.fail(1, &compare(&out, &[&first, &other]), &["a/run and b/run", "different images", "6 and 5"]);
    std::fs::write(&photo, kept).unwrap();
    std::fs::remove_dir_all(&other).unwrap();
    std::fs::rename(data.join("test"), place.path().join("kept")).unwrap();
    train(&other);
    place.fail(1, &compare(&out, &[&first, &other]), &["a/run and b/run", "different splits (test and val)"]);
    let done = place.succeed(&["compare", &other]);
    assert!(done.out.contains("on the val split") && !done.out.contains("test"), "{}", done.out);
    let [row, plain] = ["run", "plain CLIP"].map(|name| {
        done.out.lines().find(|line| line.starts_with(&format!("| {name} "))).unwrap().matches('|').count()
    });
    assert_eq!(row, plain, "{}", done.out);

    place.fail(
        2,
        &compare(&out, &[&first, &format!("{}/../a/run", place.at("b"))]),
        &["a/run", "named twice"],
    );
    place.fail(1, &compare(&out, &[&first, &place.at("nowhere")]), &["nowhere", "config.toml"]);
    place.fail(1, &compare(&out, &[&first, &place.data]), &[&place.data, "config.toml"]);
    std::fs::remove_file(Path::new(&other).join("summary.json")).unwrap();
    place.fail(1, &compare(&out, &[&first, &other]), &["b/run/summary.json", "has not finished", "--resume"]);
    std::fs::write(Path::new(&other).join("summary.json"), "{}").unwrap();
    place.fail(1, &compare(&out, &[&first, &other]), &["b/run/summary.json", "recipe"]);
    assert!(!Path::new(&out).exists(), "nothing was written");
}

#[test]
fn wrong_usage_is_refused_before_anything_is_written() {
    let place = Place::new([1, 1, 1]);
    let out = place.at("out");
    let with = |recipes: &'static str, more: &[&'static str]| -> Vec<String> {
        let args = [&["compare", "--recipes", recipes, "--out", &out], more].concat();
        place.short(&args).into_iter().map(String::from).collect()
    };
    for (recipes, more, expected) in [
        ("linear,lore", &[][..], &["--recipes", "\"lore\"", "triplet"][..]),
        ("all,lora", &[], &["--recipes", "\"all\"", "lora"]),
        ("linear,lora,linear", &[], &["--recipes", "linear is named twice"]),
        ("linear", &["--rank", "4"], &["--rank", "none of the recipes"]),
        ("lora,mixup", &["--prompt-count", "4"], &["--prompt-count", "none of the recipes"]),
        ("lora,triplet", &["--mixup-on", "features"], &["--mixup-on", "none of the recipes"]),
        ("all", &["--recipe", "lora"], &["--recipe", "--recipes"]),
        ("all", &["--init-from", "somewhere"], &["--init-from", "plain CLIP"]),
        ("lora,triplet", &["--batch-size", "2"], &["recipe triplet", "--batch-size"]),
        ("linear,lora", &["--triplet", "0.3"], &["--triplet", "recipe triplet"]),
        ("all", &["--method", "lora"], &["--method", "a recipe has its own"]),
        ("lora,vpt", &["--with-lora"], &["--with-lora", "a recipe has its own"]),
        ("all", &["--demo"], &["recipe linear", "--demo", "--data"]),
    ] {
        let args = with(recipes, more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        place.fail(2, &args, expected);
    }
    place.fail(2, &["compare", "run", "--epochs", "3"], &["--recipes", "finished runs"]);
    for args in [
        &["compare"][..],
        &["compare", "run", "--recipes", "lora", "--demo"],
        &["compare", "run", "--seeds", "2"],
        &["compare", "--recipes", "lora", "--demo", "--seeds", "0"],
    ] {
        assert_eq!(place.command(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
    assert!(!Path::new(&out).exists());
    std::fs::create_dir(&out).unwrap();
    std::fs::write(Path::new(&out).join("notes.txt"), "mine").unwrap();
    let plain: Vec<String> = with("lora", &[]);
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    place.fail(1, &plain, &["not empty", "--overwrite", "--out"]);
    place.fail(1, &[&plain[..], &["--overwrite"]].concat(), &["no run", "--out"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn a_demo_replaces_no_more_than_a_demo() {
    let place = Place::new([1, 1, 1]);
    let run = place.at("runs/compare/linear");
    place.succeed(&place.short(&["train", "--recipe", "linear", "--epochs", "1", "--output", &run]));
    let demo = ["compare", "--demo", "--recipes", "linear", "--device", "cuda"];
    place.fail(1, &demo, &["runs/compare", "not empty"]);
    let path = Path::new(&run).join("config.toml");
    let mut config = config(&run);
    config.retain(|key, _| key != "data" && key != "model");
    config.insert("demo".into(), true.into());
    std::fs::write(&path, config.to_string()).unwrap();
    // It may go now: the missing device is what ends this, and nothing is removed before that is known.
    place.fail(1, &demo, &["--device cuda"]);
    assert!(path.is_file());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_runs_that_are_finished() {
    let place = Place::new([2, 1, 1]);
    let out = place.at("out");
    let args = ["compare", "--recipes", "linear,lora", "--out", &out, "--epochs", "60"];
    let mut child =
        place.command(&place.short(&args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let state = Path::new(&out).join("lora/state.safetensors");
    while !state.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-s", interrupt_signal(), &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let resume = format!("engine train --resume --output {out}/lora");
    assert!(err.trim_end().ends_with(&resume), "{err}");
    assert!(!Path::new(&out).join("comparison.json").exists());
    let linear = format!("{out}/linear");
    place.succeed(&["compare", &linear]);
    place.fail(1, &["compare", &linear, &format!("{out}/lora")], &["lora", "has not finished"]);
}
