//! What `--resume` needs: the state at the end of an epoch.

use super::files::{TensorFile, stage_tensors};
use super::learner::Learner;
use super::metrics::{ClassMetrics, EvalMetrics};
use super::stamp::WeightsId;
use super::{Result, TrainError};
use crate::backend::{Backend, Control, DeviceTensor};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The best epoch so far.
#[derive(Debug, Clone)]
pub struct Best {
    pub epoch: u32,
    pub val: EvalMetrics,
    /// Values of all trained tensors, in the order of [`Learner::params`].
    pub values: Vec<Tensor>,
}

/// What plain CLIP makes of the split where the final result is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlainResult {
    pub metrics: EvalMetrics,
    /// By its text logits.
    pub classes: Vec<ClassMetrics>,
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
    /// Those that the run began with; none as above.
    #[serde(default)]
    pub weights: Option<WeightsId>,
    /// The last finished epoch, counted from 1.
    pub epoch: u32,
    /// Training steps so far, skipped ones included.
    pub steps: u64,
    /// True when early stopping ended the run.
    pub stopped: bool,
    pub early_stop_reference: Option<f64>,
    pub early_stop_stale: u32,
    pub best_epoch: u32,
    pub best_val: EvalMetrics,
    pub zero_shot: PlainResult,
    /// Length of metrics.jsonl.
    pub metrics_bytes: u64,
    /// Seconds of training and validation so far; of training steps alone, and their images.
    pub seconds: f64,
    pub step_seconds: f64,
    pub step_images: usize,
}

const METADATA: &str = "progress";

/// The optimizer's own state, see [`Control`].
const CONTROL: &str = "optimizer.control";

/// The four tensors that are stored of every trained one.
const PARTS: [&str; 4] = ["value", "first_moment", "second_moment", "best"];

/// Writes the state of `learner` and `progress`; `best` are the values of the best epoch.
pub fn save<B: Backend>(
    path: &Path,
    learner: &Learner<B>,
    progress: &Progress,
    best: &[Tensor],
) -> Result<()> {
    let backend = learner.backend();
    let mut tensors = BTreeMap::new();
    for ((name, param), best) in learner.param_names().iter().zip(learner.params()).zip(best) {
        let [value, first, second, best] = [
            backend.download(&param.value)?,
            backend.download(&param.first_moment)?,
            backend.download(&param.second_moment)?,
            best.clone(),
        ];
        for (part, tensor) in PARTS.into_iter().zip([value, first, second, best]) {
            tensors.insert(format!("{name}.{part}"), tensor);
        }
    }
    tensors.insert(CONTROL.to_string(), learner.control()?);
    let progress = serde_json::to_string(progress)
        .map_err(|e| TrainError::file(path, format!("cannot be stored ({e})")))?;
    stage_tensors(path, &tensors, HashMap::from([(METADATA.to_string(), progress)]))?.persist()
}

/// Reads a state into `learner`; returns the numbers and the values of the best epoch.
pub fn load<B: Backend>(path: &Path, learner: &mut Learner<B>) -> Result<(Progress, Vec<Tensor>)> {
    let mut file = TensorFile::read(path)?;
    let progress = file.metadata.get(METADATA).and_then(|text| serde_json::from_str::<Progress>(text).ok());
    let progress = progress.ok_or_else(|| TrainError::Resume {
        path: path.to_path_buf(),
        problem: "holds no state of this version".into(),
        remedy: "resume it with the version that wrote it, or train into another --output",
    })?;
    let names = learner.param_names();
    let mut best = Vec::new();
    let backend = learner.backend().clone();
    for (name, param) in names.iter().zip(learner.params_mut()) {
        let shape = param.value.shape();
        let mut take = |part: &str| file.take(path, &format!("{name}.{part}"), shape);
        backend.write(take("value")?.view(), &mut param.value)?;
        backend.write(take("first_moment")?.view(), &mut param.first_moment)?;
        backend.write(take("second_moment")?.view(), &mut param.second_moment)?;
        best.push(take("best")?);
    }
    let control = file.take(path, CONTROL, [Control::COUNT].into())?;
    learner.resume(progress.steps, control.view())?;
    Ok((progress, best))
}
