//! A run as its directory tells it.

use crate::train::metrics::{EvalMetrics, Evaluation, number};
use crate::train::run::Summary;
use crate::train::run_dir::RunDir;
use crate::train::{Result, Settings, TrainError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Everything that a finished run left behind for reading.
#[derive(Debug, Clone)]
pub struct RunData {
    /// What the run is called in tables and legends: its folder's name, with those of the folders around it
    /// where that alone says too little.
    pub name: String,
    pub settings: Settings,
    pub summary: Summary,
    pub steps: Vec<StepRecord>,
    pub epochs: Vec<EpochRecord>,
    pub evaluation: Evaluation,
}

/// A step in metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StepRecord {
    pub step: u64,
    pub epoch: u32,
    /// The objective, and its parts before they are weighted. Null, here not a number, where an overflow
    /// left none.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    #[serde(deserialize_with = "number")]
    pub loss_head: f64,
    #[serde(deserialize_with = "number")]
    pub loss_text: f64,
    #[serde(deserialize_with = "number")]
    pub loss_triplet: f64,
    pub lr: f64,
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    pub images_per_s: f64,
}

/// An epoch in metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EpochRecord {
    pub epoch: u32,
    pub train: TrainRecord,
    pub val: EvalMetrics,
}

/// Means over the steps of an epoch.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrainRecord {
    pub loss: f64,
    pub loss_head: f64,
    pub loss_text: f64,
    pub loss_triplet: f64,
    pub top1: f64,
    pub text_top1: f64,
}

/// A line of metrics.jsonl.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Record {
    Step(StepRecord),
    Epoch(EpochRecord),
}

impl RunData {
    /// Reads the finished run in `dir`.
    ///
    /// # Errors
    /// A directory that holds no run, or one that has not finished.
    pub fn load(dir: &RunDir) -> Result<Self> {
        let settings = dir.read_settings()?;
        let metrics = read(&dir.metrics())?;
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        for (line, text) in metrics.lines().enumerate() {
            let wrong = |e| TrainError::file(&dir.metrics(), format!("line {} is no record ({e})", line + 1));
            match serde_json::from_str(text).map_err(wrong)? {
                Record::Step(step) => steps.push(step),
                Record::Epoch(epoch) => epochs.push(epoch),
            }
        }
        let path = std::path::absolute(dir.path()).unwrap_or_else(|_| dir.path().to_path_buf());
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let (summary, evaluation) = (read_json(&dir.summary())?, read_json(&dir.evaluation())?);
        Ok(RunData { name, settings, summary, steps, epochs, evaluation })
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            TrainError::file(path, "is missing; the run has not finished, continue it with --resume")
        }
        _ => TrainError::io(path, "read the file")(e),
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read(path)?)
        .map_err(|e| TrainError::file(path, format!("is not what a run writes there ({e})")))
}
