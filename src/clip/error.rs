//! What can be wrong with a CLIP checkpoint on disk.

use std::path::PathBuf;

use thiserror::Error;

use crate::backend::BackendError;
use crate::tensor::TensorError;

/// Why a checkpoint directory cannot be used. Every message is one line: the file, what is wrong with it,
/// what to do about it.
#[derive(Debug, Error)]
pub enum ClipError {
    /// The operating system refused to open, read or map a file.
    #[error("{}: cannot be read ({source}); check the path and the permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A JSON file is no JSON, or not of the structure its name promises.
    #[error("{}: {problem}; fetch the file again from where the model came from", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, or that the file is no object.
        problem: String,
    },

    /// A value in `config.json` is missing, of the wrong type, out of range, or describes another model.
    #[error("{}: {key} {problem}", path.display())]
    Config {
        /// The `config.json`.
        path: PathBuf,
        /// The value's key, that of its section in front: `vision_config.hidden_size`.
        key: String,
        /// What is wrong, worded to follow the key.
        problem: String,
    },

    /// A tensor holds numbers that are none.
    #[error(
        "{}: tensor {name} holds {value} at element {index}; the file is damaged, or overflowed when it was made \
         f16: fetch it again, or convert it anew", path.display()
    )]
    NotFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor, by its name in the checkpoint.
        name: String,
        /// The first of them: `NaN`, `inf` or `-inf`.
        value: f64,
        /// Where it is.
        index: usize,
    },

    /// The directory holds no weights at all.
    #[error(
        "{}: neither model.safetensors nor model.safetensors.index.json is there; \
         pass the directory of a Hugging Face CLIP checkpoint", dir.display()
    )]
    NoWeights {
        /// The checkpoint's directory.
        dir: PathBuf,
    },

    /// The directory holds weights as a Python pickle only, which is code as much as data and is not read.
    #[error(
        "{}: only pickled weights here; convert them once with: python -c \"from transformers import CLIPModel; \
         CLIPModel.from_pretrained('{}').save_pretrained('{}')\"", file.display(), dir.display(), dir.display()
    )]
    PickledWeights {
        /// The checkpoint's directory.
        dir: PathBuf,
        /// The pickle, or the index of several.
        file: PathBuf,
    },

    /// A safetensors file is truncated, longer than its header says, or has a header that contradicts itself.
    #[error("{}: not a complete safetensors file ({problem}); delete it and fetch it again", path.display())]
    Safetensors {
        /// The file of weights.
        path: PathBuf,
        /// What the safetensors crate said, on one line.
        problem: String,
    },

    /// The index of a sharded checkpoint points outside the directory, or at a tensor that is not there.
    #[error("{}: {problem}; fetch the index and every shard again from the same revision", path.display())]
    Index {
        /// The `model.safetensors.index.json`.
        path: PathBuf,
        /// Which of its entries is wrong, and how.
        problem: String,
    },

    /// A tensor that the configuration calls for is not in the weights.
    #[error(
        "{}: tensor {name} {shape:?} is missing ({missing} of {expected} are); \
         config.json disagrees with the weights: take both from the same CLIP checkpoint", path.display()
    )]
    Missing {
        /// The first file of the weights.
        path: PathBuf,
        /// The first tensor that is missing, by its name in the checkpoint.
        name: String,
        /// The extents that it should have.
        shape: Vec<usize>,
        /// How many tensors are missing.
        missing: usize,
        /// How many tensors were looked for.
        expected: usize,
    },

    /// A tensor is there under another shape.
    #[error(
        "{}: tensor {name} has shape {found:?} where {expected:?} is needed; \
         config.json disagrees with the weights: take both from the same CLIP checkpoint", path.display()
    )]
    TensorShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor, by its name in the checkpoint.
        name: String,
        /// The extents that the configuration gives it.
        expected: Vec<usize>,
        /// Those in the file's header.
        found: Vec<usize>,
    },

    /// A tensor holds elements of a type that weights cannot have.
    #[error("{}: tensor {name} holds {dtype}; save the checkpoint as f32, f16 or bf16", path.display())]
    TensorType {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor, by its name in the checkpoint.
        name: String,
        /// Its type in the words of the safetensors crate.
        dtype: String,
    },

    /// There is neither `tokenizer.json` nor the pair `vocab.json` and `merges.txt`.
    #[error(
        "{}: no tokenizer here; add tokenizer.json, or vocab.json and merges.txt, of the same checkpoint",
        dir.display()
    )]
    NoTokenizer {
        /// The checkpoint's directory.
        dir: PathBuf,
    },

    /// The tokenizer's files do not make a CLIP tokenizer, or one of another model.
    #[error("{}: {problem}; take the tokenizer files of the same checkpoint as config.json", path.display())]
    Tokenizer {
        /// The `tokenizer.json`, `vocab.json` or `merges.txt`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A text could not be encoded.
    #[error("text {text:?}: {problem}; take the tokenizer files of the same checkpoint as config.json")]
    Encode {
        /// The whole text.
        text: String,
        /// What the tokenizer said, or which token has no embedding.
        problem: String,
    },

    /// A tensor that was handed over has the wrong type or size.
    #[error(transparent)]
    Tensor(Box<TensorError>),

    /// The backend refused an operation.
    #[error(transparent)]
    Backend(Box<BackendError>),

    /// The user asked to stop.
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
