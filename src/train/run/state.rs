//! What `--resume` needs: the state at the end of an epoch.

use super::ladder::Climb;
use crate::backend::{Backend, Control, DeviceTensor};
use crate::train::error::elsewhere;
use crate::train::keep::{Candidate, Candidates, KeepBy};
use crate::train::learner::Learner;
use crate::train::metrics::{ClassMetrics, EvalMetrics};
use crate::train::provenance::WeightsId;
use crate::train::records::Baseline;
use crate::train::tensor_files::{TensorFile, stage_tensors};
use crate::train::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Results of plain CLIP on the split where the final result is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlainResult {
    pub metrics: EvalMetrics,
    /// Results on each class by the text logits, in label order.
    pub classes: Vec<ClassMetrics>,
    /// Results on the validation split.
    pub val: EvalMetrics,
    /// Results of a logistic regression on plain CLIP's features; none where none was fitted.
    pub baseline: Option<Baseline>,
}

/// The numbers of a saved state; the tensors stand beside them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The classes and [`crate::data::Cache::fingerprint`] of the images that the run began with.
    pub class_names: Vec<String>,
    pub data: String,
    /// [`crate::data::Cache::photos`]; none in a state from before it was recorded.
    #[serde(default)]
    pub photos: Option<String>,
    /// Weights that the run began with; none in a state from before they were recorded.
    #[serde(default)]
    pub weights: Option<WeightsId>,
    /// The last finished epoch, counted from 1.
    pub epoch: u32,
    /// Training steps so far, skipped ones included.
    pub steps: u64,
    /// The validation loss of every epoch so far.
    pub val_losses: Vec<f64>,
    /// The epochs that may be the one to keep, with their results on the validation split.
    pub candidates: Vec<(u32, EvalMetrics)>,
    pub zero_shot: PlainResult,
    /// Length of metrics.jsonl.
    pub metrics_bytes: u64,
    /// Seconds of training and validation so far; of training steps alone, and their images.
    pub seconds: f64,
    pub step_seconds: f64,
    pub step_images: usize,
}

const METADATA: &str = "progress";

/// The ladder of a run that climbs one, and the heads on it.
const LADDER: &str = "ladder";
const HEADS: [&str; 2] = ["ladder.weight", "ladder.bias"];

/// The optimizer's own state, see [`Control`].
const CONTROL: &str = "optimizer.control";

/// Names of what is stored of every trained tensor besides its value in each of the candidates.
const PARTS: [&str; 3] = ["value", "first_moment", "second_moment"];

/// The name of a trained tensor's value at the end of a candidate's epoch.
fn at_epoch(name: &str, epoch: u32) -> String {
    format!("{name}.epoch-{epoch}")
}

/// Writes the state of `learner` and `progress`, whose candidates are `candidates`.
pub fn save<B: Backend>(
    path: &Path,
    learner: &Learner<B>,
    progress: &Progress,
    candidates: &Candidates,
    ladder: Option<&Climb>,
) -> Result<()> {
    let backend = learner.backend();
    let mut tensors = BTreeMap::new();
    for (i, (name, param)) in learner.param_names().iter().zip(learner.params()).enumerate() {
        for (part, tensor) in PARTS.into_iter().zip([&param.value, &param.first_moment, &param.second_moment])
        {
            tensors.insert(format!("{name}.{part}"), backend.download(tensor)?);
        }
        for candidate in candidates.iter() {
            tensors.insert(at_epoch(name, candidate.epoch), candidate.values[i].clone());
        }
    }
    tensors.insert(CONTROL.to_string(), learner.control()?);
    let json = |text: serde_json::Result<String>| {
        text.map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))
    };
    let mut metadata = HashMap::from([(METADATA.to_string(), json(serde_json::to_string(progress))?)]);
    if let Some(climb) = ladder {
        metadata.insert(LADDER.into(), json(serde_json::to_string(climb))?);
        for (name, tensor) in HEADS.into_iter().zip(climb.tensors.iter().flatten()) {
            tensors.insert(name.into(), tensor.clone());
        }
    }
    Ok(stage_tensors(path, &tensors, metadata)?.persist()?)
}

/// How far the run in a state climbed its ladder; none where it has none, or there is no such file.
pub fn ladder(path: &Path) -> Option<Climb> {
    let mut file = TensorFile::read(path).ok()?;
    let mut climb = serde_json::from_str::<Climb>(file.metadata.get(LADDER)?).ok()?;
    let [weights, biases] = HEADS.map(|name| file.tensors.remove(name));
    climb.tensors = Some([weights?, biases?]);
    Some(climb)
}

/// Reads a state into `learner`; returns the numbers and the candidates, of which one is kept `by` what it is good for.
pub fn load<B: Backend>(path: &Path, learner: &mut Learner<B>, by: KeepBy) -> Result<(Progress, Candidates)> {
    let mut file = TensorFile::read(path)?;
    let progress = file.metadata.get(METADATA).and_then(|text| serde_json::from_str::<Progress>(text).ok());
    let progress = progress.ok_or_else(|| TrainError::Resume {
        path: path.to_path_buf(),
        problem: "holds no state of this version".into(),
        remedy: format!("resume it with the version that wrote it, or {}", elsewhere()),
    })?;
    let names = learner.param_names();
    let candidate =
        |(epoch, val): &(u32, EvalMetrics)| Candidate { epoch: *epoch, val: val.clone(), values: Vec::new() };
    let mut candidates: Vec<Candidate> = progress.candidates.iter().map(candidate).collect();
    let backend = learner.backend().clone();
    for (name, param) in names.iter().zip(learner.params_mut()) {
        let shape = param.value.shape();
        for (part, tensor) in
            PARTS.into_iter().zip([&mut param.value, &mut param.first_moment, &mut param.second_moment])
        {
            backend.copy_from_host(file.take(path, &format!("{name}.{part}"), shape)?.view(), tensor)?;
        }
        for candidate in &mut candidates {
            candidate.values.push(file.take(path, &at_epoch(name, candidate.epoch), shape)?);
        }
    }
    let control = file.take(path, CONTROL, [Control::COUNT].into())?;
    learner.resume(progress.steps, control.view())?;
    Ok((progress, Candidates::new(by, candidates)))
}
