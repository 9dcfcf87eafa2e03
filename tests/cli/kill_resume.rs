//! A run that is killed and resumed, again and again, ends with the bits of one that nobody disturbed.
//!
//! Half of the kills come after a random time. That rarely hits a write, so the others wait for one: they look
//! at the run directory in a tight loop and kill as soon as they see the chosen change.

use crate::command::*;
use crate::events::{event_files, scalars};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// CLIP_ENGINE_KILLS takes another number, for a quick look.
const KILLS: usize = 50;

/// CLIP_ENGINE_KILL_SEED takes another one.
const SEED: u64 = 20;

/// Four ways to train, with all that a resumed run must pick up: schedules, early stopping, augmentation,
/// mixing, prompts beside adapters, event files, a ladder.
const RECIPES: [(&str, &[&str]); 4] = [
    ("lora", &["--recipe", "lora", "--schedule", "cosine", "--warmup", "3", "--tensorboard"]),
    ("vpt", &["--recipe", "vpt", "--with-lora", "--prompts", "per-layer", "--early-stop-min-delta", "0"]),
    ("mixup", &["--recipe", "mixup", "--augment", "crop-flip", "--shots", "3", "--text-weight", "0.1"]),
    ("auto", &["--recipe", "auto", "--lr-lora", "search", "--augment", "off", "--final-fit"]),
];

fn from_environment(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap())
}

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    After(Duration),
    /// When so many files were begun that have not got their names yet.
    Unfinished(usize),
    /// When one of these files has changed so many times.
    Changed(&'static str, usize),
}

impl Moment {
    fn draw(rng: &mut ChaCha8Rng, whole: Duration) -> Moment {
        match rng.random_range(0..10) {
            0..5 => Moment::After(whole.mul_f64(rng.random_range(0.0..1.1))),
            5..8 => Moment::Unfinished(rng.random_range(1..20)),
            8 => Moment::Changed("metrics.jsonl", rng.random_range(1..30)),
            _ => Moment::Changed("state.safetensors", rng.random_range(1..4)),
        }
    }

    /// Waits for it; false when the process ended before.
    pub fn wait(self, child: &mut Child, run: &Path) -> bool {
        let started = Instant::now();
        let mut unfinished = self.watched(run);
        let (mut known, mut seen) = (identity(self, run), 0);
        loop {
            let come = match self {
                Moment::After(time) => started.elapsed() >= time,
                Moment::Unfinished(count) => {
                    unfinished.extend(self.watched(run));
                    unfinished.len() >= count
                }
                Moment::Changed(_, count) => {
                    let now = identity(self, run);
                    seen += usize::from(now != known && now.is_some());
                    known = now;
                    seen >= count
                }
            };
            if come || child.try_wait().unwrap().is_some() {
                return come;
            }
            if let Moment::After(_) = self {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn watched(self, run: &Path) -> HashSet<PathBuf> {
        if let Moment::Unfinished(_) = self { unfinished(run).into_iter().collect() } else { HashSet::new() }
    }
}

/// What changes of a file when it is appended to or replaced.
fn identity(moment: Moment, run: &Path) -> Option<(u64, u64)> {
    let Moment::Changed(file, _) = moment else { return None };
    std::fs::metadata(run.join(file)).ok().map(|metadata| (metadata.ino(), metadata.len()))
}

/// Files below `run` that have not got their names yet.
fn unfinished(run: &Path) -> Vec<PathBuf> {
    let folders = ["", "adapter", "plots", "tensorboard"].map(|folder| run.join(folder));
    let entries = folders.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "tmp")).collect()
}

/// Arguments of a short run. One template is less work for the text tower at every start.
fn train<'a>(place: &'a Place, run: &'a str, more: &'a [&'a str]) -> Vec<&'a str> {
    let common = ["--epochs", "4", "--batch-size", "5", "--template", "a {}"];
    let rate: &[&str] = if more.contains(&"--lr-lora") { &[] } else { &["--lr-lora", "0.003"] };
    let start = ["train", "--data", &place.data, "--model", &place.model, "--output", run];
    [&start[..], &common, rate, more].concat()
}

pub fn spawn(args: &[&str], cache: &Path) -> Child {
    command(args, cache).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the kills met.
#[derive(Debug, Default)]
struct Met {
    /// A file that had not got its name.
    unfinished: usize,
    /// Steps in metrics.jsonl after the last saved state.
    ahead: usize,
    /// No state yet.
    nothing: usize,
}

/// One process: it goes on with the run if it can, and is killed at `moment` if there is one. True when the
/// run has ended.
fn live(place: &Place, run: &str, start: &[&str], moment: Option<Moment>) -> bool {
    let dir = Path::new(run);
    let resume = ["train", "--resume", "--output", run];
    let overwrite = [start, &["--overwrite"]].concat();
    let args = match (dir.join("state.safetensors").is_file(), dir.join("config.toml").is_file()) {
        (true, _) => &resume[..],
        (false, true) => {
            fail(1, &resume, place.path(), &["state.safetensors: no saved state", "again with --overwrite"]);
            &overwrite
        }
        (false, false) => {
            fail(1, &resume, place.path(), &[run, "no config.toml"]);
            &overwrite
        }
    };
    let mut child = spawn(args, place.path());
    let killed = moment.is_some_and(|moment| moment.wait(&mut child, dir));
    if killed {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    if killed && output.status.signal() == Some(9) {
        return false;
    }
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    true
}

fn look(run: &str, met: &mut Met) {
    let dir = Path::new(run);
    met.unfinished += usize::from(!unfinished(dir).is_empty());
    let state = dir.join("state.safetensors");
    let Ok(state) = std::fs::read(state) else {
        met.nothing += 1;
        return;
    };
    let metrics = std::fs::metadata(dir.join("metrics.jsonl")).unwrap().len();
    met.ahead += usize::from(metrics > progress(&state)["metrics_bytes"].as_u64().unwrap());
}

/// The numbers in a state file.
fn progress(state: &[u8]) -> Value {
    let (_, header) = SafeTensors::read_metadata(state).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["progress"]).unwrap()
}

/// Everything but measured times must be the same to the last bit.
pub fn compare(whole: &str, parts: &str, context: &str) {
    assert_eq!(metrics(whole), metrics(parts), "{context}: metrics.jsonl");
    let text = String::from_utf8(bytes(parts, "metrics.jsonl")).unwrap();
    assert!(text.ends_with('\n'), "{context}: half a line at the end of metrics.jsonl");
    let without = |mut value: Value, times: &[&str]| {
        times.iter().for_each(|&time| drop(value.as_object_mut().unwrap().remove(time).unwrap()));
        value
    };
    let timeless = |mut baseline: Value| {
        if !baseline.is_null() {
            baseline = without(baseline, &["seconds"]);
        }
        baseline
    };
    let summary = |run| {
        let mut summary = without(json(run, "summary.json"), &["seconds", "images_per_s"]);
        summary["baseline"] = timeless(summary["baseline"].take());
        let rungs = summary.pointer_mut("/ladder/rungs").and_then(Value::as_array_mut);
        rungs.into_iter().flatten().for_each(|rung| *rung = without(rung.take(), &["seconds"]));
        summary
    };
    assert_eq!(summary(whole), summary(parts), "{context}: summary.json");
    let mut files = vec!["config.toml", "evaluation.json", "head.safetensors"];
    files.extend(["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]);
    if context.contains("vpt") {
        files.push("prompts.safetensors");
    }
    for file in files {
        assert!(bytes(whole, file) == bytes(parts, file), "{context}: {file} differs");
    }
    let [a, b] = [whole, parts].map(|run| bytes(run, "state.safetensors"));
    let times = ["seconds", "step_seconds", "metrics_bytes"];
    let state = |state| {
        let mut progress = without(progress(state), &times);
        let baseline = &mut progress["zero_shot"]["baseline"];
        *baseline = timeless(baseline.take());
        progress
    };
    assert_eq!(state(&a), state(&b), "{context}: state");
    let [a, b] = [&a, &b].map(|state| SafeTensors::deserialize(state).unwrap());
    for (name, tensor) in a.tensors() {
        assert!(tensor.data() == b.tensor(&name).unwrap().data(), "{context}: {name} of the state differs");
    }
    let left = unfinished(Path::new(parts));
    assert!(left.is_empty(), "{context}: left behind: {left:?}");
    assert!(Path::new(parts).join("report.html").is_file(), "{context}");
    assert_eq!(event_files(whole).len(), event_files(parts).len(), "{context}");
    if !event_files(whole).is_empty() {
        let points = |run| {
            let mut points = scalars(run);
            points.remove("images_per_s").unwrap();
            points
        };
        assert_eq!(points(whole), points(parts), "{context}: event files");
    }
}

#[test]
fn a_run_survives_being_killed() {
    kill(10);
}

#[test]
#[ignore = "long: ten kills stay"]
fn a_run_survives_being_killed_at_any_moment() {
    let kills = from_environment("CLIP_ENGINE_KILLS").map_or(KILLS, |kills| kills as usize);
    let met = kill(kills);
    println!("{kills} kills: {met:?}");
    // Otherwise the test does not test what it says.
    assert!(met.unfinished * 10 >= kills, "few kills hit a write: {met:?}");
    assert!(met.ahead * 10 >= kills, "few kills hit an epoch: {met:?}");
}

/// Kills runs this often, and compares each in the end with one that was left alone.
fn kill(kills: usize) -> Met {
    let seed = from_environment("CLIP_ENGINE_KILL_SEED").unwrap_or(SEED);
    let place = Place::new([4, 2, 2]);
    let whole = |name: &str| place.at(&format!("whole-{name}"));
    let mut longest = Duration::ZERO;
    for (name, more) in RECIPES {
        let run = whole(name);
        // The first builds the cache, so that its time is not that of the others.
        let started = Instant::now();
        succeed(&train(&place, &run, more), place.path());
        longest = started.elapsed();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut met, mut done) = (Met::default(), 0);
    let mut recipes = RECIPES.into_iter().cycle().zip(1..);
    while done < kills {
        let ((name, more), number) = recipes.next().unwrap();
        let run = place.at(&format!("{name}-{number}"));
        let start = train(&place, &run, more);
        loop {
            let moment = (done < kills).then(|| Moment::draw(&mut rng, longest));
            let context = format!("seed {seed}, kill {done} of {kills}, run {number} ({name}), {moment:?}");
            let guard = Context(&context);
            let ended = live(&place, &run, &start, moment);
            if ended {
                compare(&whole(name), &run, &context);
            } else {
                done += 1;
                look(&run, &mut met);
            }
            drop(guard);
            if ended {
                break;
            }
        }
    }
    met
}

/// Says where a panic came from.
struct Context<'a>(&'a str);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
