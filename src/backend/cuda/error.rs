//! What can go wrong on the way to the GPU and on it.

use std::path::PathBuf;
use thiserror::Error;

/// Errors of the CUDA backend below its launchers.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum CudaError {
    /// A library that is not on this machine, and how to get it.
    #[error("{library} was not found; {hint}")]
    Missing {
        /// Its name, for people; for the host twin also the C++ compiler.
        library: &'static str,
        /// How to get it, after what was found and could not be loaded.
        hint: String,
    },
    /// Found, but not able to do what is needed: a driver too old for the libraries, a device too old.
    #[error("{0}")]
    Unsupported(String),
    /// The number of a device that the driver does not have.
    #[error("there is no CUDA device {index}; {}", match count {
        0 => "the driver finds none".to_owned(),
        1 => "the only one is cuda:0".to_owned(),
        n => format!("they are cuda:0 to cuda:{}", n - 1),
    })]
    NoDevice { index: usize, count: usize },
    #[error("{call}: {problem}")]
    Call {
        /// A function of a CUDA library, or a method of [`Driver`](super::driver::Driver).
        call: &'static str,
        /// Message of the library, or description of what is wrong with the call.
        problem: String,
    },
    /// A failure after which the device answers nothing more in this process.
    #[error(
        "{call}: {problem}; the GPU context is lost with all that was in it: start the program again and resume what it was doing"
    )]
    Lost {
        /// The call that reported it; the work that caused it may have been enqueued by an earlier one.
        call: &'static str,
        /// The driver's name and text for its status, and what the call was about.
        problem: String,
    },
    /// An allocation that the device has no room for.
    #[error("out of GPU memory: {} more were asked for, {} of {} are free", mib(*.bytes), mib(*.free), mib(*.total))]
    OutOfMemory { bytes: usize, free: usize, total: usize },
    /// The compiler's log is part of the message.
    #[error("kernels/{file}.cu does not compile:\n{log}")]
    Compile {
        /// The kernel file, without ".cu".
        file: String,
        /// Output of NVRTC, or of the host twin's C++ compiler.
        log: String,
    },
    /// A kernel's text that cannot be read, or a file of the host twin that cannot be made or used.
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The host twin found a kernel doing something that a GPU might let pass.
    #[error("host twin: {0}")]
    Twin(String),
}

fn mib(bytes: usize) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
