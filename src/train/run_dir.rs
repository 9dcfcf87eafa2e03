//! The run directory: what is where, and the metrics file.

use super::error::elsewhere;
use super::records::{Record, Summary};
use super::tensorboard::{self, EventFile};
use super::{Result, TrainError};
use crate::files::{is_unfinished, remove, remove_unfinished, write_atomic};
use crate::progress::Monitor;
use crate::settings::Settings;
use crate::settings::flag;
use serde::Serialize;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Remedy for a file of a run that was changed or lost.
fn restore() -> String {
    format!("restore it from a copy, or {}", elsewhere())
}

/// Settings of a run; a folder without this file holds no run.
const CONFIG: &str = "config.toml";

/// Results of a run that has ended; they are outdated when it goes on.
const RESULTS: [&str; 17] = [
    "summary.json",
    "evaluation.json",
    "report.html",
    "plots/curves.png",
    "plots/curves.svg",
    "plots/losses.png",
    "plots/losses.svg",
    "plots/classes.png",
    "plots/classes.svg",
    "plots/confusion.png",
    "plots/confusion.svg",
    "plots/calibration.png",
    "plots/calibration.svg",
    "plots/triplets.png",
    "plots/triplets.svg",
    "plots/ladder.png",
    "plots/ladder.svg",
];

/// Files of a run beside [`RESULTS`] and [`CONFIG`].
const FILES: [&str; 6] = [
    // First, so that a run which is half removed does not go on.
    "state.safetensors",
    "metrics.jsonl",
    "head.safetensors",
    "prompts.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

/// Lock file, where a folder itself cannot be locked.
const LOCK: &str = ".engine.lock";

/// Folders of a run.
const FOLDERS: [&str; 3] = ["adapter", "plots", EVENTS];

/// Folder of TensorBoard's event files.
const EVENTS: &str = "tensorboard";

/// A directory that holds one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    /// False where whatever is in there must stay.
    overwrite: bool,
    /// Lock that [`RunDir::lock`] took, held for as long as any clone lives.
    lock: Arc<Mutex<Option<File>>>,
}

impl RunDir {
    /// The directory of a run that exists already.
    pub fn existing(path: &Path) -> Result<Self> {
        let run = RunDir::at(path);
        if !run.config().is_file() {
            return Err(TrainError::file(
                path,
                format!("no config.toml here; name the {} of a training run", flag::OUTPUT),
            ));
        }
        Ok(run)
    }

    /// The directory of a run to come, whatever it holds.
    pub fn at(path: &Path) -> Self {
        RunDir { path: path.to_path_buf(), overwrite: true, lock: Arc::default() }
    }

    /// The directory of a run to come. One that holds anything is refused unless it may be overwritten.
    /// Nothing is written yet: that is [`RunDir::begin`]'s, once all else is known to be right.
    pub fn vacant(path: &Path, overwrite: bool) -> Result<Self> {
        let run = RunDir { overwrite, ..RunDir::at(path) };
        run.check_vacant()?;
        Ok(run)
    }

    fn check_vacant(&self) -> Result<()> {
        let path = &self.path;
        let entries = match std::fs::read_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(TrainError::io(path, "list the folder"))?,
        };
        // A process that is killed before it has written config.toml leaves no more than this.
        let leftover = |name: &OsStr| is_unfinished(name) || name == LOCK;
        let occupied = entries.flatten().any(|entry| !leftover(&entry.file_name()));
        if occupied && !self.overwrite {
            return Err(TrainError::RunExists { path: path.clone() });
        }
        if occupied && RunDir::existing(path).and_then(|run| run.read_settings()).is_err() {
            let problem = format!("holds something that is no run; choose another {}", flag::OUTPUT);
            return Err(TrainError::file(path, problem));
        }
        Ok(())
    }

    /// Keeps other processes from training into the directory, which is made if it is not there, for as long
    /// as this value or a clone of it lives.
    ///
    /// # Errors
    /// A directory that another process, or another value of this one, has locked. A file system that knows
    /// no locks is none.
    pub fn lock(&self, monitor: &dyn Monitor) -> Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.path).map_err(TrainError::io(&self.path, "create the folder"))?;
        match open_lock(&self.path).map_err(TryLockError::Error).and_then(|file| {
            file.try_lock()?;
            Ok(file)
        }) {
            Ok(file) => *held = Some(file),
            Err(TryLockError::WouldBlock) => return Err(TrainError::Locked { path: self.path.clone() }),
            Err(TryLockError::Error(error)) => {
                let path = self.path.display();
                monitor.warn(&format!("{path}: no locks here ({error}); let no other process train into it"));
            }
        }
        Ok(())
    }

    fn unlock(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Makes the directory and locks it, removes the files of an earlier run, and writes config.toml.
    pub fn begin(&self, settings: &Settings, monitor: &dyn Monitor) -> Result<()> {
        self.lock(monitor)?;
        if !self.overwrite {
            // Another process may have been quicker.
            self.check_vacant()?;
        }
        // The old config.toml stays until the new one takes its place: whenever the process is killed, the
        // folder is that of a run, which --overwrite may replace.
        self.clear()?;
        self.write_settings(settings)
    }

    /// Makes the directory ready for a run that goes on: locks it, removes what a killed process left
    /// half-written and, where there are epochs `to_train`, the results that they outdate; writes config.toml.
    pub fn resume(&self, settings: &Settings, to_train: bool, monitor: &dyn Monitor) -> Result<()> {
        self.lock(monitor)?;
        self.remove_unfinished()?;
        if to_train {
            RESULTS.iter().try_for_each(|name| self.remove_file(name))?;
        }
        self.write_settings(settings)
    }

    /// Removes the run, and its folder unless something else is in there.
    pub fn remove(&self, monitor: &dyn Monitor) -> Result<()> {
        self.lock(monitor)?;
        self.clear()?;
        self.remove_file(CONFIG)?;
        self.unlock();
        self.remove_file(LOCK)?;
        // Whatever else is in there is the user's, and keeps the folder.
        let _ = std::fs::remove_dir(&self.path);
        Ok(())
    }

    /// Removes everything but config.toml.
    fn clear(&self) -> Result<()> {
        self.remove_unfinished()?;
        FILES.iter().chain(&RESULTS).try_for_each(|name| self.remove_file(name))?;
        tensorboard::remove(&self.path.join(EVENTS))?;
        // Whatever else is in there is the user's, and keeps the folder.
        for folder in FOLDERS {
            let _ = std::fs::remove_dir(self.path.join(folder));
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<()> {
        remove_unfinished(&self.path)?;
        Ok(FOLDERS.iter().try_for_each(|folder| remove_unfinished(&self.path.join(folder)))?)
    }

    /// Removes one file of the run, if it is there.
    fn remove_file(&self, name: &str) -> Result<()> {
        Ok(remove(&self.path.join(name))?)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.toml: every setting of the run.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// metrics.jsonl: a [`Record`] a line.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// summary.json, there once the run has ended.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// evaluation.json: the kept epoch on each image of the tested split, there once the run has ended.
    pub fn evaluation(&self) -> PathBuf {
        self.path.join("evaluation.json")
    }

    /// report.html: the page about the finished run.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// prompts.safetensors: the prompts of the best epoch so far, where prompts are trained.
    pub fn prompts(&self) -> PathBuf {
        self.path.join("prompts.safetensors")
    }

    /// adapter/: the adapter of the best epoch so far in PEFT's format, where adapters are trained.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// head.safetensors: the head of the best epoch so far, or the class features in the form of one.
    pub fn head(&self) -> PathBuf {
        self.path.join("head.safetensors")
    }

    /// state.safetensors: what `--resume` goes on from, written at the end of every epoch.
    pub fn state(&self) -> PathBuf {
        self.path.join("state.safetensors")
    }

    /// Writes config.toml.
    pub fn write_settings(&self, settings: &Settings) -> Result<()> {
        let path = self.config();
        let text = toml::to_string(settings)
            .map_err(|e| TrainError::file(&path, format!("cannot be stored ({e})")))?;
        Ok(write_atomic(&path, text.as_bytes())?)
    }

    /// Reads config.toml.
    pub fn read_settings(&self) -> Result<Settings> {
        let path = self.config();
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path, "read the file"))?;
        let settings: Settings = toml::from_str(&text).map_err(|e| {
            TrainError::file(&path, format!("not the configuration of a run ({})", e.message()))
        })?;
        settings.validate()?;
        Ok(settings)
    }

    /// Reads summary.json, where the run has got so far.
    pub(crate) fn read_summary(&self) -> Result<Option<Summary>> {
        let path = self.summary();
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(TrainError::io(&path, "read the file"))?,
        };
        let summary = serde_json::from_str(&text).map_err(|e| {
            TrainError::file(
                &path,
                format!("not the summary of a run ({e}); write it again with {}", flag::RESUME),
            )
        })?;
        Ok(Some(summary))
    }

    pub(crate) fn write_summary(&self, summary: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(summary);
        write_json(&self.summary(), text)
    }

    pub(crate) fn write_evaluation(&self, evaluation: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(evaluation);
        write_json(&self.evaluation(), text)
    }
}

/// Opens what is locked: the folder itself, so that no file is left behind.
#[cfg(unix)]
fn open_lock(folder: &Path) -> std::io::Result<File> {
    File::open(folder)
}

#[cfg(not(unix))]
fn open_lock(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(folder.join(LOCK))
}

fn write_json(path: &Path, text: serde_json::Result<String>) -> Result<()> {
    let text = text.map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    Ok(write_atomic(path, (text + "\n").as_bytes())?)
}

/// metrics.jsonl: one JSON object a line, appended as the run goes; the same for TensorBoard where it is asked
/// for.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    events: Option<EventFile>,
}

impl MetricsFile {
    /// Makes sure, and changes nothing, that [`MetricsFile::open`] finds the first `bytes` bytes of the metrics
    /// as they were.
    pub fn check(dir: &RunDir, bytes: u64) -> Result<()> {
        let path = dir.metrics();
        let io = |e| TrainError::io(&path, "read the file")(e);
        let mut text = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            file => file.map_err(io)?.take(bytes).read_to_end(&mut text).map_err(io)?,
        };
        let found = text.len();
        if (found as u64) < bytes {
            let problem = format!("has {found} bytes where the saved state knows {bytes}");
            return Err(TrainError::Resume { path, problem, remedy: restore() });
        }
        parse_lines(&path, &String::from_utf8_lossy(&text)).map(drop)
    }

    /// Opens the metrics of the run in `dir` and cuts them to their first `bytes` bytes: 0 for a new run, more
    /// to resume one, which [`MetricsFile::check`] has seen. With `tensorboard`, TensorBoard's file is written
    /// anew from what is left of them.
    pub fn open(dir: &RunDir, bytes: u64, tensorboard: bool) -> Result<Self> {
        let path = dir.metrics();
        let io = |e| TrainError::io(&path, "open the file")(e);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
        file.set_len(bytes).map_err(io)?;
        let folder = dir.path().join(EVENTS);
        let events = match tensorboard {
            true => Some(EventFile::create(&folder, &read_lines(&path)?)?),
            false => {
                tensorboard::remove(&folder)?;
                None
            }
        };
        Ok(MetricsFile { path, file, bytes, events })
    }

    /// Appends one line and returns it.
    pub fn append(&mut self, record: &Record) -> Result<String> {
        let problem = |e| TrainError::file(&self.path, format!("a record cannot be stored ({e})"));
        let entry = serde_json::to_value(record).map_err(problem)?;
        let line = format!("{entry}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line would spoil the file for every reader.
            let _ = self.file.set_len(self.bytes);
            return Err(TrainError::io(&self.path, "append to the file")(error));
        }
        self.bytes += line.len() as u64;
        self.events.as_mut().map_or(Ok(()), |events| events.append(&entry))?;
        Ok(line)
    }

    /// Forces the lines so far to the disk and returns their length.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(TrainError::io(&self.path, "write the file"))?;
        Ok(self.bytes)
    }
}

fn read_lines(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(TrainError::io(path, "read the file"))?;
    parse_lines(path, &text)
}

fn parse_lines(path: &Path, text: &str) -> Result<Vec<Value>> {
    let line = |line: &str| {
        serde_json::from_str(line).map_err(|e| TrainError::Resume {
            path: path.to_path_buf(),
            problem: format!("holds a line that is no JSON ({e})"),
            remedy: restore(),
        })
    };
    text.lines().map(line).collect()
}
