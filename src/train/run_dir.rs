//! The run directory: what is where, and the metrics file.

use super::files::write_atomic;
use super::settings::Settings;
use super::{Result, TrainError};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Everything a run may leave behind; what `--overwrite` removes.
const FILES: [&str; 20] = [
    "config.toml",
    "metrics.jsonl",
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
    "head.safetensors",
    "prompts.safetensors",
    "state.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

/// A directory that holds one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory of a run that exists already.
    pub fn existing(path: &Path) -> Result<Self> {
        let run = RunDir { path: path.to_path_buf() };
        if !run.config().is_file() {
            return Err(TrainError::file(path, "no config.toml here; name the --output of a training run"));
        }
        Ok(run)
    }

    /// The directory of a run to come. One that holds anything is refused unless it may be overwritten.
    /// Nothing is written yet: that is [`RunDir::begin`]'s, once all else is known to be right.
    pub fn vacant(path: &Path, overwrite: bool) -> Result<Self> {
        match std::fs::read_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(TrainError::io(path, "list the folder")(e)),
            Ok(mut entries) => {
                let occupied = entries.next().is_some();
                if occupied && !overwrite {
                    return Err(TrainError::RunExists { path: path.to_path_buf() });
                }
                if occupied && RunDir::existing(path).and_then(|run| run.read_settings()).is_err() {
                    let problem = "holds something that is no run; choose another --output";
                    return Err(TrainError::file(path, problem));
                }
            }
        }
        Ok(RunDir { path: path.to_path_buf() })
    }

    /// Makes the directory, removes the files of an earlier run, and writes config.toml.
    pub fn begin(&self, settings: &Settings) -> Result<()> {
        std::fs::create_dir_all(&self.path).map_err(TrainError::io(&self.path, "create the folder"))?;
        self.clear()?;
        self.write_settings(settings)
    }

    fn clear(&self) -> Result<()> {
        for file in FILES.map(|name| self.path.join(name)) {
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io(&file, "remove the file")(e));
                }
                _ => {}
            }
        }
        // Whatever else is in there is the user's, and keeps the folder.
        for folder in ["adapter", "plots"] {
            let _ = std::fs::remove_dir(self.path.join(folder));
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    pub fn evaluation(&self) -> PathBuf {
        self.path.join("evaluation.json")
    }

    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    pub fn prompts(&self) -> PathBuf {
        self.path.join("prompts.safetensors")
    }

    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    pub fn head(&self) -> PathBuf {
        self.path.join("head.safetensors")
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("state.safetensors")
    }

    /// Writes config.toml.
    pub fn write_settings(&self, settings: &Settings) -> Result<()> {
        let path = self.config();
        let text = toml::to_string(settings)
            .map_err(|e| TrainError::file(&path, format!("cannot be stored ({e})")))?;
        write_atomic(&path, text.as_bytes())
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

    /// Writes summary.json.
    pub fn write_summary(&self, summary: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(summary);
        write_json(&self.summary(), text)
    }

    /// Writes evaluation.json.
    pub fn write_evaluation(&self, evaluation: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(evaluation);
        write_json(&self.evaluation(), text)
    }
}

fn write_json(path: &Path, text: serde_json::Result<String>) -> Result<()> {
    let text = text.map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    write_atomic(path, (text + "\n").as_bytes())
}

/// metrics.jsonl: one JSON object a line, appended as the run goes.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsFile {
    /// Opens the file and cuts it to its first `bytes` bytes: 0 for a new run, more to resume one.
    pub fn open(path: &Path, bytes: u64) -> Result<Self> {
        let io = |e| TrainError::io(path, "open the file")(e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let found = file.metadata().map_err(io)?.len();
        if found < bytes {
            return Err(TrainError::Resume {
                path: path.to_path_buf(),
                problem: format!("has {found} bytes where the saved state knows {bytes}"),
            });
        }
        file.set_len(bytes).map_err(io)?;
        Ok(MetricsFile { path: path.to_path_buf(), file, bytes })
    }

    /// Appends one line.
    pub fn append(&mut self, entry: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(entry)
            .map_err(|e| TrainError::file(&self.path, format!("cannot be stored ({e})")))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // Half a line would spoil the file for every reader.
            let _ = self.file.set_len(self.bytes);
            return Err(TrainError::io(&self.path, "append to the file")(error));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Forces the lines so far to the disk and returns their length.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(TrainError::io(&self.path, "write the file"))?;
        Ok(self.bytes)
    }
}
