//! Where the files of a run come from: an entry in the metadata of each of its safetensors files.

use super::error::elsewhere;
use super::{Result, TrainError};
use crate::hash::hex;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The metadata entry.
const KEY: &str = "clip-engine";

/// Headers are much shorter.
const LONGEST_HEADER: u64 = 64 << 20;

/// Identity of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsId {
    /// See [`crate::clip::weights::Weights::fingerprint`].
    pub hash: String,
    /// Commit of the hub's repository, for a snapshot in its cache.
    pub commit: Option<String>,
}

impl WeightsId {
    /// Names the weights in a message: by their commit if both have one.
    pub(super) fn name(&self) -> String {
        // Whole, as --model takes it.
        self.commit
            .as_ref()
            .map_or_else(|| format!("hash {:.12}", self.hash), |commit| format!("commit {commit}"))
    }
}

/// The epoch that a file of a run is of, and the weights that the run was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Counted from 1.
    pub epoch: u32,
    /// A hash of all trained values, those in the other files too.
    pub trained: String,
    /// Weights of the model that the run was trained on.
    pub weights: WeightsId,
}

impl Stamp {
    /// For files that hold the trained `values` of the end of `epoch`.
    pub fn new(epoch: u32, values: &[Tensor], weights: &WeightsId) -> Self {
        let mut hash = Sha256::new();
        values.iter().for_each(|value| hash.update(value.bytes()));
        Stamp { epoch, trained: hex(&hash.finalize()[..16]), weights: weights.clone() }
    }

    /// Adds the stamp, if there is one, to the metadata of a file.
    pub fn put(stamp: Option<&Stamp>, metadata: &mut HashMap<String, String>) {
        if let Some(text) = stamp.and_then(|stamp| serde_json::to_string(stamp).ok()) {
            metadata.insert(KEY.into(), text);
        }
    }

    /// The stamp of a safetensors file. None in a file of PEFT's or of an older run, and in one that cannot be
    /// read, which is for the one to say who reads the tensors.
    pub fn read(path: &Path) -> Option<Stamp> {
        #[derive(Deserialize)]
        struct Header {
            #[serde(rename = "__metadata__", default)]
            metadata: HashMap<String, String>,
        }
        let mut file = File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let length = u64::from_le_bytes(length).min(LONGEST_HEADER);
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).ok()?;
        let header: Header = serde_json::from_slice(&header).ok()?;
        serde_json::from_str(header.metadata.get(KEY)?).ok()
    }
}

/// Refuses to go on with a run of other weights.
pub(super) fn check_weights(path: &Path, known: &WeightsId, found: &WeightsId) -> Result<()> {
    if known.hash == found.hash {
        return Ok(());
    }
    let (known, found) = (known.name(), found.name());
    Err(TrainError::Resume {
        path: path.to_path_buf(),
        problem: format!("the model has other weights ({found}) than the run began with ({known})"),
        remedy: format!(
            "name those by model = \"DIR\" or \"owner/name@commit\" in its config.toml, or {}",
            elsewhere()
        ),
    })
}
