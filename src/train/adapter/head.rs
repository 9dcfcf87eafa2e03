//! Heads with their class names, as files.

use crate::backend::Backend;
use crate::tensor::Tensor;
use crate::train::files::{Staged, TensorFile, stage_tensors};
use crate::train::stamp::Stamp;
use crate::train::{Result, TrainError};
use crate::tune::Head;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Prepares a file of head.weight \[C, E\] and head.bias \[C\], with the class names as a JSON list in the metadata.
pub fn stage_head(
    path: &Path,
    weight: Tensor,
    bias: Tensor,
    class_names: &[String],
    stamp: Option<&Stamp>,
) -> Result<Staged> {
    let tensors = BTreeMap::from([("head.weight".to_string(), weight), ("head.bias".to_string(), bias)]);
    let mut metadata = HashMap::from([("class_names".to_string(), json!(class_names).to_string())]);
    Stamp::put(stamp, &mut metadata);
    stage_tensors(path, &tensors, metadata)
}

/// The head's tensors as host copies: weight, bias.
pub fn head_tensors<B: Backend>(backend: &B, head: &Head<B>) -> Result<(Tensor, Tensor)> {
    Ok((backend.download(&head.weight.value)?, backend.download(&head.bias.value)?))
}

/// A head read from its file.
#[derive(Debug)]
pub struct HeadFile {
    /// \[C, E\]
    pub weight: Tensor,
    /// \[C\]
    pub bias: Tensor,
    /// In label order, one at least.
    pub class_names: Vec<String>,
}

impl HeadFile {
    /// Reads a head for features of width `width`.
    pub fn load(path: &Path, width: usize) -> Result<Self> {
        let mut file = TensorFile::read(path)?;
        let names = file.metadata.get("class_names");
        let names = names.and_then(|names| serde_json::from_str::<Vec<String>>(names).ok());
        let names = names.filter(|names| !names.is_empty());
        let class_names = names
            .ok_or_else(|| TrainError::file(path, "has no class names in its metadata; save it again"))?;
        let classes = class_names.len();
        Ok(HeadFile {
            weight: file.take(path, "head.weight", [classes, width].into())?,
            bias: file.take(path, "head.bias", [classes].into())?,
            class_names,
        })
    }

    /// Makes sure that the head was trained for the classes of the data at hand.
    pub fn check_classes(&self, path: &Path, class_names: &[String]) -> Result<()> {
        if self.class_names == class_names {
            return Ok(());
        }
        let (ours, theirs) = (self.class_names.len(), class_names.len());
        let first = self.class_names.iter().zip(class_names).find(|(a, b)| a != b);
        let difference = match first {
            Some((a, b)) => format!("{a:?} where the data has {b:?}"),
            None => format!("{ours} classes where the data has {theirs}"),
        };
        Err(TrainError::file(
            path,
            format!("knows {difference}; use data with the classes it was trained on"),
        ))
    }
}
