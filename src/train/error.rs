//! What can end a run.

use crate::backend::BackendError;
use crate::clip::ClipError;
use crate::data::DataError;
use crate::files::FileError;
use crate::settings::flag;
use crate::settings::{Key, SettingError};
use crate::stats::StatsError;
use crate::tensor::TensorError;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a run did not happen or did not finish. Every message is one line that names the file or flag, says
/// what is wrong and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The device, or what it was asked to do.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The model's configuration, weights or tokenizer.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// The photos or their cache.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Tensors that do not fit together.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Features or labels that no head can be fitted to.
    #[error("a head on plain features: {0}")]
    Stats(#[from] StatsError),
    /// The operating system refused.
    #[error("{0}; check the path, its permissions and the free space")]
    Io(#[from] FileError),
    /// The run directory holds something.
    #[error(
        "{}: not empty; continue that run with {}, replace it with {}, or choose another {}",
        path.display(), flag::RESUME, flag::OVERWRITE, flag::OUTPUT
    )]
    RunExists {
        /// The directory.
        path: PathBuf,
    },
    /// No run to resume.
    #[error("{}: {problem}; {remedy}", path.display())]
    Resume {
        /// The file of the run that is missing or does not fit.
        path: PathBuf,
        /// Problem with the file.
        problem: String,
        /// Remedy, for the end of the message.
        remedy: String,
    },
    /// Two processes in one run directory.
    #[error("{}: another process is training into it; wait for it or choose another {}", path.display(), flag::OUTPUT)]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A file of a run, or an adapter, that cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Problem with it, and its remedy.
        problem: String,
    },
    /// Two runs whose results mean different things.
    #[error("{first} and {second} {difference}; compare runs on the same data")]
    Incomparable {
        /// Name of the one run.
        first: String,
        /// Name of the other run.
        second: String,
        /// Difference between them, as the predicate of a sentence about both.
        difference: String,
    },
    /// Two settings that contradict each other, or one out of range.
    #[error("{0}")]
    Setting(String),
    /// Found out before the first step.
    #[error(
        "{}: {batch} images need {} of {memory} and {} are free; {}",
        Key::batch_size,
        mib(*.needed),
        mib(*.free),
        match fits {
            0 => format!("not even one image fits beside the {} of any batch", mib(*.fixed)),
            fits => format!("up to {fits} fit"),
        }
    )]
    DeviceMemory {
        /// Name of the memory, such as "GPU memory".
        memory: &'static str,
        /// Images of the batch that was asked for.
        batch: usize,
        /// Bytes that work on such a batch takes, as estimated; the weights are on the device already.
        needed: usize,
        /// Bytes of these that any batch takes, however small.
        fixed: usize,
        /// Bytes that are left for it: 95 % of the device's free memory, or less where there is little.
        free: usize,
        /// Images of the largest batch that fits; 0 where none does.
        fits: usize,
    },
    /// The loss is not a number any more.
    #[error(
        "step {step} of epoch {epoch}: the loss or its gradient is not finite (loss {loss}); lower {flags} or check the images"
    )]
    NotFinite {
        /// Training step, counted from 1 over the whole run.
        step: u64,
        /// Counted from 1.
        epoch: u32,
        /// Loss of the step, or of the validation split after it.
        loss: f64,
        /// The flags that make the run's steps smaller.
        flags: String,
    },
    /// The user asked to stop, and nothing was finished that could be continued.
    #[error("interrupted before the first epoch ended; start again with {}", flag::OVERWRITE)]
    InterruptedEarly,
    /// The user asked to stop.
    #[error(
        "interrupted after epoch {epoch}; continue with: engine train {} {} {}", flag::RESUME, flag::OUTPUT, path.display()
    )]
    Interrupted {
        /// The last finished epoch, counted from 1.
        epoch: u32,
        /// The run directory.
        path: PathBuf,
    },
}

impl From<SettingError> for TrainError {
    fn from(SettingError(text): SettingError) -> Self {
        TrainError::Setting(text)
    }
}

impl TrainError {
    /// Wraps an operating system error for `map_err`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> TrainError {
        move |error| FileError::of(path, action)(error).into()
    }

    /// A file that cannot be used, for `map_err`.
    pub fn file(path: &Path, problem: impl Into<String>) -> TrainError {
        TrainError::File { path: path.to_path_buf(), problem: problem.into() }
    }
}

/// A result whose error is a [`TrainError`].
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

fn mib(bytes: usize) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The remedy that always is left.
pub(super) fn elsewhere() -> String {
    format!("train into another {}", flag::OUTPUT)
}
