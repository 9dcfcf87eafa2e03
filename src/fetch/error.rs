//! What can go wrong between a name and the files it stands for.

use crate::files::FileError;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why something could not be fetched. Every message is one line that names the address, file or variable,
/// says what is wrong and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No answer, or one that broke off or makes no sense.
    #[error("{url}: {problem}; check the network and run the same command again")]
    Request {
        /// The address that was asked.
        url: String,
        /// Description of the failure, on one line.
        problem: String,
    },
    /// The server refused.
    #[error("{url}: the server answers {status}; check the address, or try again later")]
    Status {
        /// The address that was asked.
        url: String,
        /// The HTTP status of its answer.
        status: u16,
    },
    /// More came than can be meant.
    #[error("{url}: more than {limit} bytes; this is not the file that was asked for")]
    TooLarge {
        /// The address that was asked.
        url: String,
        /// The most bytes that such a file may have.
        limit: u64,
    },
    /// A whole file, and another one.
    #[error(
        "{url}: the checksum is {found} where {expected} is right; the server has another file, or a damaged one"
    )]
    Checksum {
        /// The address that was asked.
        url: String,
        /// The right checksum in hexadecimal digits, or `of N bytes` where the length alone is wrong.
        expected: String,
        /// The checksum of what came, or `of N` for its length.
        found: String,
    },
    /// A file that was changed on its way.
    #[error(
        "{url}: {problem}, though it was asked for as it is; name a server that does not compress its files"
    )]
    Encoded {
        /// The address that was asked.
        url: String,
        /// Sign of the change: the server's Content-Encoding.
        problem: String,
    },
    /// The operating system refused.
    #[error("{0}; check the path, its permissions and the free space")]
    Io(#[from] FileError),
    /// The user asked to stop.
    #[error("interrupted; what was fetched so far is kept, run the same command again to go on")]
    Interrupted,
    /// An archive that is damaged, or would write where it must not.
    #[error("{}: {problem}; nothing was unpacked, delete the archive and run the same command again", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Fault of the archive.
        problem: String,
    },
    /// Flowers-102 could not be fetched.
    #[error(
        "--data flowers102: {source}; or put 102flowers.tgz, imagelabels.mat and setid.mat into {} yourself",
        folder.display()
    )]
    Flowers {
        /// The error that prevented it.
        source: Box<FetchError>,
        /// Where the files belong.
        folder: PathBuf,
    },
    /// An environment variable that cannot be followed.
    #[error("{name}={value}: {problem}")]
    Variable {
        /// Name of the variable.
        name: &'static str,
        /// Value that the variable is set to.
        value: String,
        /// Fault of the value, and what to do about it.
        problem: &'static str,
    },
    /// There is no place for the hub's files.
    #[error("--model: none of HF_HOME, XDG_CACHE_HOME and HOME is set; set HF_HOME to a folder for models")]
    NoHubCache,
    /// A model that cannot be had: there is no answer, no such model, or none that is read.
    #[error("--model {id}: {problem}")]
    Model {
        /// The model as it was named, its revision included if one was.
        id: String,
        /// Reason why the model cannot be had, and what to do about it.
        problem: String,
    },
    /// 401 or 403.
    #[error(
        "--model {id}: neither a folder here nor a model that {endpoint} shows {credentials} ({status}); check the \
         name, or set HF_TOKEN to a token that may read it, after accepting its terms at {endpoint}/{repository}"
    )]
    NotAllowed {
        /// The model as it was named, its revision included if one was.
        id: String,
        /// `owner/name`.
        repository: String,
        /// The address of the hub.
        endpoint: String,
        /// The token that was sent, if any: `with the token in HF_TOKEN`, `without a token`.
        credentials: String,
        /// 401 or 403.
        status: u16,
    },
    /// The hub says something that is not understood.
    #[error("{url}: {problem}; check HF_ENDPOINT")]
    Hub {
        /// The address that was asked.
        url: String,
        /// Fault of the answer.
        problem: String,
    },
}

impl FetchError {
    /// Wraps an operating system error for `map_err`.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FetchError {
        move |error| FileError::of(path, action)(error).into()
    }

    /// The error without what the user could do: the next try is made without them.
    pub(super) fn brief(&self) -> String {
        let text = self.to_string();
        text.rsplit_once("; ").map_or(text.clone(), |(problem, _)| problem.to_owned())
    }

    /// Whether the same request may have an answer a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            FetchError::Request { .. } | FetchError::Checksum { .. } => true,
            FetchError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            _ => false,
        }
    }
}

/// Result of fetching.
pub type Result<T, E = FetchError> = std::result::Result<T, E>;
