//! A run as its directory tells it.

use crate::objective::Objective;
use crate::train::metrics::{EvalMetrics, Evaluation, nan, number};
use crate::train::run::{Summary, ZeroShot};
use crate::train::run_dir::RunDir;
use crate::train::{Result, Settings, TrainError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::SystemTime;

/// Everything that a finished run left behind for reading.
#[derive(Debug, Clone)]
pub struct RunData {
    /// What the run is called in tables and legends: its folder's name, with those of the folders around it
    /// where that alone says too little.
    pub name: String,
    /// From config.toml.
    pub settings: Settings,
    /// From summary.json.
    pub summary: Summary,
    /// Of all epochs, in their order.
    pub steps: Vec<StepRecord>,
    /// Those that ran, in their order.
    pub epochs: Vec<EpochRecord>,
    /// From evaluation.json: the kept epoch on the tested split.
    pub evaluation: Evaluation,
    /// When summary.json was written, where the file system knows.
    pub ended: Option<SystemTime>,
}

/// A step in metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StepRecord {
    /// Counted from 1 over the whole run.
    pub step: u64,
    /// Counted from 1.
    pub epoch: u32,
    /// The objective. This and its parts are null, here not a number, where an overflow left none.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The head's, before it is weighted. Not a number, as the two below, where the run has no such part.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_head: f64,
    /// That of the text logits, before it is weighted.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_text: f64,
    /// Before it is weighted.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_triplet: f64,
    /// Share of the triplets whose loss is not 0; this and the distances are none where no triplets are formed.
    #[serde(default)]
    pub triplets_active: Option<f64>,
    /// Mean distance of an image to the one of its class.
    #[serde(default)]
    pub distance_positive: Option<f64>,
    /// Mean distance of an image to the one of another class.
    #[serde(default)]
    pub distance_negative: Option<f64>,
    /// Length of all gradients as one vector, before it is clipped.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Images of the step by the seconds since the one before, or since the epoch began.
    pub images_per_s: f64,
}

/// An epoch in metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: u32,
    /// On the training images, while they were trained on.
    pub train: TrainRecord,
    /// On the validation split, at the end of the epoch.
    pub val: EvalMetrics,
}

/// Means over the steps of an epoch.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrainRecord {
    /// The objective; batches whose loss is not a number are left out of this and the losses below.
    pub loss: f64,
    /// The head's, before it is weighted. Not a number, as the two below, where the run has no such part.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_head: f64,
    /// That of the text logits, before it is weighted.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_text: f64,
    /// Before it is weighted.
    #[serde(default = "nan", deserialize_with = "number")]
    pub loss_triplet: f64,
    /// Fraction of images whose class is the head's first choice, or without a head that of the text logits.
    pub top1: f64,
    /// The same for the text logits alone.
    pub text_top1: f64,
}

/// What became of an epoch's triplets: means over its steps, none where it is not known.
pub(crate) struct TripletMeans {
    pub epoch: u32,
    pub active: Option<f64>,
    pub positive: Option<f64>,
    pub negative: Option<f64>,
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
        let ended = std::fs::metadata(dir.summary()).and_then(|file| file.modified()).ok();
        Ok(RunData { name, settings, summary, steps, epochs, evaluation, ended })
    }

    /// What was minimised.
    pub(crate) fn objective(&self) -> Objective {
        let objective = self.settings.objective();
        Objective { text: if self.summary.text_left_out { 0.0 } else { objective.text }, ..objective }
    }

    /// Means over the steps of each epoch; nothing where no triplets were formed.
    pub(crate) fn triplets(&self) -> Vec<TripletMeans> {
        let epochs = self.steps.chunk_by(|a, b| a.epoch == b.epoch).map(|steps| {
            let mean = |value: fn(&StepRecord) -> Option<f64>| {
                let values: Vec<f64> = steps.iter().filter_map(value).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            TripletMeans {
                epoch: steps[0].epoch,
                active: mean(|step| step.triplets_active),
                positive: mean(|step| step.distance_positive),
                negative: mean(|step| step.distance_negative),
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
