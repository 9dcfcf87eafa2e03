//! `engine train --dry-run`: what it says is what the run then does, and it leaves nothing behind.

use crate::command::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Everything below a folder, with the times of the last change.
fn everything(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap());
    entries.map(|e| (e.path().to_path_buf(), e.metadata().unwrap().modified().unwrap())).collect()
}

/// The comment line that begins with `name`, without it.
fn line<'a>(out: &'a str, name: &str) -> &'a str {
    let prefix = format!("# {name}: ");
    out.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {prefix}in\n{out}"))
}

fn number(text: &str) -> f64 {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap().parse().unwrap()
}

#[test]
fn a_dry_run_says_what_the_run_does_and_writes_nothing() {
    let place = Place::new([3, 2, 2]);
    let run = place.at("run");
    let file = place.at("dry.toml");
    for (more, trained) in [
        (&["--recipe", "linear"][..], "head"),
        (&["--recipe", "lora", "--rank", "3", "--targets", "q_proj,v_proj"], "adapters"),
        (&["--recipe", "vpt", "--with-lora", "--prompts", "per-layer", "--shots", "2"], "prompts"),
    ] {
        let train = place.train(&run, &[more, &["--epochs", "1", "--template", "a {}"]].concat());
        let dry = [&train[..], &["--dry-run"]].concat();
        let before = everything(place.path());
        let said = succeed(&dry, place.path()).out;
        assert_eq!(everything(place.path()), before, "a dry run writes nothing: {more:?}");
        std::fs::write(&file, &said).unwrap();
        let done = succeed(&train, place.path());
        let settings = |text: &str| text.parse::<toml::Table>().unwrap();
        let config = String::from_utf8(bytes(&run, "config.toml")).unwrap();
        assert_eq!(settings(&said), settings(&config), "{more:?}");
        let summary = json(&run, "summary.json");
        let parameters = line(&said, "trained parameters");
        assert_eq!(number(parameters), summary["trained_parameters"].as_f64().unwrap(), "{parameters}");
        assert!(parameters.contains(trained), "{parameters}");
        let groups = parameters.split_once('(').unwrap().1.split(|c: char| !c.is_ascii_digit());
        let sum: f64 = groups.filter_map(|word| word.parse::<f64>().ok()).sum();
        assert_eq!(sum, number(parameters), "{parameters}");
        assert!(done.err.contains("3 classes, images: 9 train, 6 val, 6 test"), "{}", done.err);
        let data = said.lines().find(|line| line.starts_with("# 3 classes, images: 9 train, 6 val, 6 test"));
        assert_eq!(data.unwrap().contains("6 take part"), more.contains(&"--shots"), "{data:?}");
        let steps = metrics(&run).iter().filter(|line| line["type"] == "step").count();
        assert!(line(&said, "work").contains(&format!(" {steps} steps ")), "{said}");
        // The output is a configuration, and repeats the run.
        let again = place.at("again");
        succeed(&["train", "--config", &file, "--output", &again, "--overwrite"], place.path());
        assert_eq!(metrics(&run), metrics(&again));
        std::fs::remove_dir_all(&run).unwrap();
        std::fs::remove_dir_all(place.path().join("clip-engine")).unwrap();
    }
}

#[test]
fn memory_and_work_grow_as_they_must() {
    let place = Place::new([6, 4, 2]);
    let say = |more: &[&str]| {
        let args = ["train", "--data", &place.data, "--model", &place.model, "--dry-run"];
        succeed(&[&args[..], more].concat(), place.path()).out
    };
    let memory = |out: &str| {
        let line = line(out, "memory, estimated");
        assert!(line.ends_with(" MiB are free"), "{line}");
        number(line)
    };
    let work = |out: &str| number(line(out, "work"));
    let frozen = |out: &str| number(line(out, "frozen parameters"));
    let [four, eight] = ["4", "8"].map(|batch| say(&["--batch-size", batch]));
    assert!(memory(&eight) > 1.5 * memory(&four), "{four}{eight}");
    assert!((work(&eight) / work(&four) - 2.0).abs() < 0.01, "{four}{eight}");
    let vpt = |mode| say(&["--recipe", "vpt", "--batch-size", "8", "--prompt-mode", mode]);
    let linear = say(&["--recipe", "linear", "--batch-size", "8"]);
    let ordered = [linear, eight, vpt("replace"), vpt("accumulate")];
    assert!(ordered.windows(2).all(|pair| work(&pair[0]) < work(&pair[1])), "{ordered:?}");
    assert!(ordered.windows(2).all(|pair| memory(&pair[0]) < memory(&pair[1])), "{ordered:?}");
    assert!(ordered.iter().all(|out| frozen(out) == frozen(&ordered[0])), "{ordered:?}");
    let weights = std::fs::read(demo_model().join("model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let elements: usize = weights.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum();
    assert_eq!(frozen(&ordered[0]), elements as f64);
}

#[test]
fn a_dry_run_meets_the_errors_of_the_run() {
    let place = Place::new([3, 2, 2]);
    let dry = ["train", "--data", &place.data, "--model", &place.model, "--dry-run"];
    let with = |more: &[&'static str]| [&dry[..], more].concat();
    fail(2, &with(&["--shots", "0"]), place.path(), &["--shots", "0"]);
    fail(1, &with(&["--init-from", "nowhere"]), place.path(), &["nowhere", "--init-from"]);
    fail(2, &with(&["--epochs", "0"]), place.path(), &["--epochs"]);
    let run = place.at("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(Path::new(&run).join("notes.txt"), "mine").unwrap();
    let output = [&dry[..], &["--output", &run]].concat();
    fail(1, &output, place.path(), &["not empty", "--overwrite"]);
    assert_eq!(engine(&with(&["--seeds", "2"]), place.path()).code, 2);
    assert_eq!(engine(&["train", "--resume", "--dry-run", "--output", &run], place.path()).code, 2);
}
