//! The `engine` command on small folders of drawn flowers, for the tests that run it.

use clip_engine::data::demo::{IMAGE_SIZE, demo_class_names, demo_dataset};
use clip_engine::data::{MemoryImage, Split};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// What a finished command left.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn command(args: &[&str], cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    // The CPU, also on machines with a GPU.
    command.args(args).env("XDG_CACHE_HOME", cache).env("CUDA_VISIBLE_DEVICES", "").stdin(Stdio::null());
    command
}

/// Runs the engine with caches below `cache`.
pub fn engine(args: &[&str], cache: &Path) -> Done {
    done(&mut command(args, cache))
}

fn done(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the engine and insists on success.
pub fn succeed(args: &[&str], cache: &Path) -> Done {
    succeed_of(&mut command(args, cache))
}

/// The same for a command that was made apart.
pub fn succeed_of(command: &mut Command) -> Done {
    let done = done(command);
    let args: Vec<_> = command.get_args().collect();
    assert_eq!(done.code, 0, "{args:?}\n{}{}", done.out, done.err);
    done
}

/// Runs the engine and insists on one error line that contains every part of `expected`.
pub fn fail(code: i32, args: &[&str], cache: &Path, expected: &[&str]) -> Done {
    fail_of(&mut command(args, cache), code, expected)
}

/// The same for a command that was made apart.
pub fn fail_of(command: &mut Command, code: i32, expected: &[&str]) -> Done {
    let done = done(command);
    let args: Vec<_> = command.get_args().collect();
    assert_eq!(done.code, code, "{args:?}\n{}{}", done.out, done.err);
    let errors: Vec<&str> = done.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{args:?}: one error line, found\n{}", done.err);
    assert!(done.err.trim_end().ends_with(errors[0]), "nothing after the error line:\n{}", done.err);
    for part in expected {
        assert!(errors[0].contains(part), "{args:?}: {part:?} is not in\n{}", errors[0]);
    }
    assert!(!done.err.contains("panicked"), "{}", done.err);
    done
}

pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-clip")
}

/// A copy of the demo model that a test may damage.
pub fn model_copy(to: &Path) -> PathBuf {
    let dir = to.join("model");
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    dir
}

/// An image folder of drawn flowers: three classes, this many of each in train, val and test.
pub fn flowers(to: &Path, counts: [usize; 3]) -> PathBuf {
    let root = to.join("flowers");
    let names = demo_class_names();
    let mut written = std::collections::HashMap::new();
    static DRAWN: LazyLock<Vec<MemoryImage>> =
        LazyLock::new(|| demo_dataset(7).filter(|image| image.label < 3).collect());
    for image in DRAWN.iter() {
        let wanted = counts[Split::ALL.iter().position(|&s| s == image.split).unwrap()];
        let count = written.entry((image.split, image.label)).or_insert(0usize);
        if *count == wanted {
            continue;
        }
        let dir = root.join(image.split.name()).join(names[image.label as usize].replace(' ', "_"));
        std::fs::create_dir_all(&dir).unwrap();
        let side = IMAGE_SIZE as u32;
        let png = image::RgbImage::from_raw(side, side, image.pixels.clone()).unwrap();
        png.save(dir.join(format!("{count:03}.png"))).unwrap();
        *count += 1;
    }
    root
}

pub struct Place {
    dir: TempDir,
    pub data: String,
    pub model: String,
}

impl Place {
    pub fn new(counts: [usize; 3]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let data = flowers(dir.path(), counts).display().to_string();
        Place { dir, data, model: demo_model().display().to_string() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    pub fn class_dir(&self, split: &str) -> PathBuf {
        Path::new(&self.data).join(split).join(demo_class_names()[1].replace(' ', "_"))
    }

    /// Arguments of a short run into `run`; `more` goes before the defaults of a test run.
    pub fn train<'a>(&'a self, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["train", "--data", &self.data, "--model", &self.model, "--output", run];
        for [flag, value] in
            [["--epochs", "3"], ["--batch-size", "5"], ["--lr-lora", "0.001"], ["--early-stop", "off"]]
        {
            let prompts_alone = more.contains(&"vpt") && !more.contains(&"--with-lora");
            let unused = flag == "--lr-lora" && (more.contains(&"linear") || prompts_alone);
            if !more.contains(&flag) && !unused {
                args.extend([flag, value]);
            }
        }
        args.extend(more);
        args
    }
}

/// The signal that stops the engine: SIGINT, or SIGTERM where these tests run in a background that ignores it.
pub fn interrupt_signal() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
    // SIGINT is number 2.
    if mask & 2 == 0 { "INT" } else { "TERM" }
}

/// The lines of metrics.jsonl without what depends on the clock.
pub fn metrics(run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|mut line| {
            line.as_object_mut().unwrap().remove("images_per_s");
            line
        })
        .collect()
}

pub fn bytes(run: &str, file: &str) -> Vec<u8> {
    std::fs::read(Path::new(run).join(file)).unwrap()
}

pub fn json(run: &str, file: &str) -> Value {
    serde_json::from_slice(&bytes(run, file)).unwrap()
}
