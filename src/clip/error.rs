//! What can be wrong with a CLIP checkpoint on disk.

use std::path::PathBuf;

use thiserror::Error;

use crate::backend::BackendError;
use crate::tensor::TensorError;

/// Why a checkpoint directory cannot be used. Every message is one line: the file, what is wrong with it,
/// what to do about it.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ClipError {
    #[error("{}: cannot be read ({source}); check the path and the permissions", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    /// A JSON file is no JSON, or not of the structure its name promises.
    #[error("{}: {problem}; fetch the file again from where the model came from", path.display())]
    Json { path: PathBuf, problem: String },

    /// A value in `config.json` is missing, of the wrong type, out of range, or describes another model.
    #[error("{}: {key} {problem}", path.display())]
    Config {
        path: PathBuf,
        /// The value's key, that of its section in front: `vision_config.hidden_size`.
        key: String,
        /// Fault of the value, worded to follow the key.
        problem: String,
    },

    #[error(
        "{}: tensor {name} holds {value} at element {index}; the file is damaged, or overflowed when it was made \
         f16: fetch it again, or convert it anew", path.display()
    )]
    NotFinite {
        path: PathBuf,
        name: String,
        /// The first of them: `NaN`, `inf` or `-inf`.
        value: f64,
        index: usize,
    },

    #[error(
        "{}: neither model.safetensors nor model.safetensors.index.json is there; \
         pass the directory of a Hugging Face CLIP checkpoint", dir.display()
    )]
    NoWeights { dir: PathBuf },

    /// The directory holds weights as a Python pickle only, which is code as much as data and is not read.
    #[error(
        "{}: only pickled weights here; convert them once with: python -c \"from transformers import CLIPModel; \
         CLIPModel.from_pretrained('{}').save_pretrained('{}')\"", file.display(), dir.display(), dir.display()
    )]
    PickledWeights {
        dir: PathBuf,
        /// The pickle, or the index of several.
        file: PathBuf,
    },

    /// A safetensors file is truncated, longer than its header says, or has a header that contradicts itself.
    #[error("{}: not a complete safetensors file ({problem}); delete it and fetch it again", path.display())]
    Safetensors { path: PathBuf, problem: String },

    /// The index of a sharded checkpoint points outside the directory, or at a tensor that is not there.
    #[error("{}: {problem}; fetch the index and every shard again from the same revision", path.display())]
    Index { path: PathBuf, problem: String },

    /// A tensor that the configuration calls for is not in the weights.
    #[error(
        "{}: tensor {name} {shape:?} is missing ({missing} of {expected} are); \
         config.json disagrees with the weights: take both from the same CLIP checkpoint", path.display()
    )]
    Missing { path: PathBuf, name: String, shape: Vec<usize>, missing: usize, expected: usize },

    #[error(
        "{}: tensor {name} has shape {found:?} where {expected:?} is needed; \
         config.json disagrees with the weights: take both from the same CLIP checkpoint", path.display()
    )]
    TensorShape { path: PathBuf, name: String, expected: Vec<usize>, found: Vec<usize> },

    /// A tensor holds elements of a type that weights cannot have.
    #[error("{}: tensor {name} holds {dtype}; save the checkpoint as f32, f16 or bf16", path.display())]
    TensorType { path: PathBuf, name: String, dtype: String },

    /// There is neither `tokenizer.json` nor the pair `vocab.json` and `merges.txt`.
    #[error(
        "{}: no tokenizer here; add tokenizer.json, or vocab.json and merges.txt, of the same checkpoint",
        dir.display()
    )]
    NoTokenizer { dir: PathBuf },

    /// The tokenizer's files do not make a CLIP tokenizer, or one of another model.
    #[error("{}: {problem}; take the tokenizer files of the same checkpoint as config.json", path.display())]
    Tokenizer { path: PathBuf, problem: String },

    #[error("text {text:?}: {problem}; take the tokenizer files of the same checkpoint as config.json")]
    Encode { text: String, problem: String },

    /// A tensor that was handed over has the wrong type or size.
    #[error(transparent)]
    Tensor(Box<TensorError>),

    #[error(transparent)]
    Backend(Box<BackendError>),

    #[error("interrupted; run the same command again to start over")]
    Interrupted,
}

impl From<TensorError> for ClipError {
    fn from(error: TensorError) -> Self {
        ClipError::Tensor(Box::new(error))
    }
}

impl From<BackendError> for ClipError {
    fn from(error: BackendError) -> Self {
        ClipError::Backend(Box::new(error))
    }
}
