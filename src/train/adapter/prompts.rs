//! Prompts, as files.

use crate::backend::Backend;
use crate::files::Staged;
use crate::settings::Key;
use crate::tensor::{Shape, Tensor};
use crate::train::provenance::Stamp;
use crate::train::tensor_files::{TensorFile, stage_tensors};
use crate::train::{Result, TrainError};
use crate::tune::{PromptMode, PromptSharing, PromptSpec, Prompts};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Prepares a file of `prompts`: \[m, D\] where all blocks share them, else \[L, m, D\]; with the mode in the
/// metadata, which the shape does not tell.
pub fn stage_prompts<B: Backend>(
    path: &Path,
    backend: &B,
    prompts: &Prompts<B>,
    spec: &PromptSpec,
    stamp: Option<&Stamp>,
) -> Result<Staged> {
    let mut values = backend.download(&prompts.param.value)?;
    if spec.sharing == PromptSharing::Shared {
        let width = values.shape().columns();
        values = values.reshape([spec.count, width])?;
    }
    let mut metadata = HashMap::from([(MODE.to_string(), spec.mode.name().to_string())]);
    Stamp::put(stamp, &mut metadata);
    stage_tensors(path, &BTreeMap::from([("prompts".to_string(), values)]), metadata)
}

/// The metadata entry for [`PromptMode`].
const MODE: &str = "mode";

/// Reads the number, the sharing and the mode of the prompts in a file.
///
/// # Errors
/// A file without prompts, or without their mode.
pub fn prompt_spec(path: &Path) -> Result<PromptSpec> {
    let file = TensorFile::read(path)?;
    let shape = file.tensors.get("prompts").map(Tensor::shape).filter(|shape| shape.elements() > 0);
    let (count, sharing) = match shape.as_ref().map(Shape::dims) {
        Some(&[count, _]) => (count, PromptSharing::Shared),
        Some(&[_, count, _]) => (count, PromptSharing::PerLayer),
        _ => return Err(TrainError::file(path, "holds no prompts [m, D] or [L, m, D]; save them again")),
    };
    let mode = file.metadata.get(MODE).and_then(|name| PromptMode::from_name(name));
    let mode = mode.ok_or_else(|| {
        TrainError::file(
            path,
            "does not say in its metadata whether mode is replace or accumulate; save it again",
        )
    })?;
    Ok(PromptSpec { count, sharing, mode })
}

/// Reads prompts for a tower of `layers` blocks, `width` wide: \[sets, m, D\].
///
/// # Errors
/// Prompts of another shape than `spec` asks for.
pub fn load_prompts(path: &Path, spec: &PromptSpec, layers: usize, width: usize) -> Result<Tensor> {
    let found = prompt_spec(path)?;
    if found.mode != spec.mode {
        let mode = found.mode.name();
        return Err(TrainError::file(
            path,
            format!("prompts were trained with {} {mode}; set it", Key::prompt_mode),
        ));
    }
    let mut file = TensorFile::read(path)?;
    let shape = match spec.sharing {
        PromptSharing::Shared => Shape::from([spec.count, width]),
        PromptSharing::PerLayer => Shape::from([layers, spec.count, width]),
    };
    let found = file.tensors.get("prompts").map(Tensor::shape);
    if let Some(found) = found.filter(|&found| found != shape) {
        let problem = format!(
            "prompts have shape {found} where {shape} is needed; set {} and {} to theirs, or use the model they were \
             trained with",
            Key::prompts,
            Key::prompt_count,
        );
        return Err(TrainError::file(path, problem));
    }
    Ok(file.take(path, "prompts", shape)?.reshape([spec.sets(layers), spec.count, width])?)
}
