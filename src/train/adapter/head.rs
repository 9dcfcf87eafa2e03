//! Heads with their class names, as files.

use crate::backend::Backend;
use crate::files::Staged;
use crate::tensor::Tensor;
use crate::train::provenance::Stamp;
use crate::train::tensor_files::{TensorFile, stage_tensors};
use crate::train::{Result, TrainError};
use crate::tune::Head;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Prepares a file of head.weight \[C, E\], head.bias \[C\] and temperature \[1\], with the class names as a
/// JSON list in the metadata.
pub fn stage_head(path: &Path, head: &HeadFile, stamp: Option<&Stamp>) -> Result<Staged> {
    let temperature = Tensor::from_slice([1], &[head.temperature as f32])?;
    let tensors = [(WEIGHT, head.weight.clone()), (BIAS, head.bias.clone()), (TEMPERATURE, temperature)];
    let tensors = BTreeMap::from(tensors.map(|(name, tensor)| (name.to_string(), tensor)));
    let mut metadata = HashMap::from([("class_names".to_string(), json!(head.class_names).to_string())]);
    Stamp::put(stamp, &mut metadata);
    stage_tensors(path, &tensors, metadata)
}

const WEIGHT: &str = "head.weight";
const BIAS: &str = "head.bias";
const TEMPERATURE: &str = "temperature";

/// A head as its file holds it.
#[derive(Debug, Clone)]
pub struct HeadFile {
    /// \[C, E\]
    pub weight: Tensor,
    /// \[C\]
    pub bias: Tensor,
    /// T > 0: probabilities are softmax(logits/T).
    pub temperature: f64,
    /// In label order, one at least.
    pub class_names: Vec<String>,
}

impl HeadFile {
    /// Copies a head from the device; its temperature is 1.
    pub fn of<B: Backend>(backend: &B, head: &Head<B>, class_names: &[String]) -> Result<Self> {
        let (weight, bias) = (backend.download(&head.weight.value)?, backend.download(&head.bias.value)?);
        Ok(HeadFile { weight, bias, temperature: 1.0, class_names: class_names.to_vec() })
    }

    /// The classes of a head alone.
    pub(crate) fn load_class_names(path: &Path) -> Result<Vec<String>> {
        class_names(path, &TensorFile::read(path)?)
    }

    /// Reads a head for features of width `width`.
    pub fn load(path: &Path, width: usize) -> Result<Self> {
        let mut file = TensorFile::read(path)?;
        let class_names = class_names(path, &file)?;
        let classes = class_names.len();
        let temperature = match file.tensors.contains_key(TEMPERATURE) {
            true => f64::from(file.take(path, TEMPERATURE, [1].into())?.typed::<f32>()?[0]),
            // A file from before there was one.
            false => 1.0,
        };
        if !temperature.is_finite() || temperature <= 0.0 {
            let problem =
                format!("holds the temperature {temperature}, which is no number above 0; train it again");
            return Err(TrainError::file(path, problem));
        }
        Ok(HeadFile {
            weight: file.take(path, WEIGHT, [classes, width].into())?,
            bias: file.take(path, BIAS, [classes].into())?,
            temperature,
            class_names,
        })
    }

    /// Makes sure that the head was trained for the classes of the data at hand.
    pub(crate) fn check_classes(&self, path: &Path, class_names: &[String]) -> Result<()> {
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
fn class_names(path: &Path, file: &TensorFile) -> Result<Vec<String>> {
    let names = file.metadata.get("class_names");
    let names = names.and_then(|names| serde_json::from_str::<Vec<String>>(names).ok());
    let names = names.filter(|names| !names.is_empty());
    names.ok_or_else(|| TrainError::file(path, "has no class names in its metadata; save it again"))
}
