//! A run as its directory tells it.

use crate::objective::Objective;
use crate::settings::Settings;
use crate::train::learner::LossParts;
use crate::train::metrics::Evaluation;
use crate::train::records::{EpochRecord, Record, StepRecord, Summary, ZeroShot};
use crate::train::run_dir::RunDir;
use crate::train::{Result, TrainError};
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::SystemTime;

/// Everything that a finished run left behind for reading.
#[derive(Debug, Clone)]
pub struct RunData {
    /// Name of the run in tables and legends: that of its folder, with those of the folders around it where that alone
    /// says too little.
    pub name: String,
    /// From config.toml.
    pub settings: Settings,
    /// From summary.json.
    pub summary: Summary,
    /// Records of the steps of all epochs, in their order.
    pub steps: Vec<StepRecord>,
    /// Records of the epochs that ran, in their order.
    pub epochs: Vec<EpochRecord>,
    /// From evaluation.json: the kept epoch on the tested split.
    pub evaluation: Evaluation,
    /// When summary.json was written, where the file system knows.
    pub ended: Option<SystemTime>,
}

/// Measures of an epoch's triplets: means over its steps, none where one is not known.
pub(crate) struct TripletMeans {
    pub epoch: u32,
    pub active: Option<f64>,
    pub positive: Option<f64>,
    pub negative: Option<f64>,
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
        let ended = std::fs::metadata(dir.summary()).and_then(|file| file.modified()).ok();
        Ok(RunData { name, settings, summary, steps, epochs, evaluation, ended })
    }

    /// Objective that the run minimised: without the text alignment where that was left out.
    pub(crate) fn objective(&self) -> Objective {
        let objective = self.settings.objective();
        Objective { text: if self.summary.text_left_out { 0.0 } else { objective.text }, ..objective }
    }

    /// Means over the steps of each epoch; nothing where no triplets were formed.
    pub(crate) fn triplets(&self) -> Vec<TripletMeans> {
        let epochs = self.steps.chunk_by(|a, b| a.epoch == b.epoch).map(|steps| {
            let mean = |value: fn(&LossParts) -> f64| {
                let values: Vec<f64> =
                    steps.iter().map(|step| value(&step.parts)).filter(|v| v.is_finite()).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            TripletMeans {
                epoch: steps[0].epoch,
                active: mean(|parts| parts.triplets_active),
                positive: mean(|parts| parts.distance_positive),
                negative: mean(|parts| parts.distance_negative),
            }
        });
        epochs.filter(|mean| mean.active.or(mean.positive).or(mean.negative).is_some()).collect()
    }

    /// Plain CLIP on the validation split, where it is known.
    pub(crate) fn plain_on_val(&self) -> Option<&ZeroShot> {
        let result = Some(&self.summary.zero_shot).filter(|plain| plain.split == "val");
        self.summary.zero_shot_val.as_ref().or(result)
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
