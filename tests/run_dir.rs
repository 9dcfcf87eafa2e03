//! A run directory from outside: who may write to it and when, what a run that goes on insists on, and what
//! belongs together in it.

mod common;

use clip_engine::progress::Silent;
use clip_engine::train::run_dir::RunDir;
use common::command::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
