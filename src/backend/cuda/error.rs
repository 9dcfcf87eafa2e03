//! What can go wrong on the way to the GPU and on it.

use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum CudaError {
    /// A library that is not on this machine, and how to get it.
    #[error("{library} was not found; {hint}")]
    Missing { library: &'static str, hint: String },
    /// Found, but not able to do what is needed: a driver too old for the libraries, a device too old.
    #[error("{0}")]
    Unsupported(String),
    #[error("there is no CUDA device {index}; {}", match count {
        0 => "the driver finds none".to_owned(),
        1 => "the only one is cuda:0".to_owned(),
        n => format!("they are cuda:0 to cuda:{}", n - 1),
    })]
    NoDevice { index: usize, count: usize },
    /// A call that reported failure.
    #[error("{call}: {problem}")]
    Call { call: &'static str, problem: String },
    /// A failure after which the device answers nothing more in this process.
    #[error(
        "{call}: {problem}; the GPU context is lost with all that was in it: start the program again, a training run with --resume"
    )]
    Lost { call: &'static str, problem: String },
    #[error("out of GPU memory: {} more were asked for, {} of {} are free", mib(*.bytes), mib(*.free), mib(*.total))]
    OutOfMemory { bytes: usize, free: usize, total: usize },
    /// The compiler's log is part of the message.
    #[error("kernels/{file}.cu does not compile:\n{log}")]
    Compile { file: String, log: String },
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The host twin found a kernel doing something that a GPU might let pass.
    #[error("host twin: {0}")]
    Twin(String),
}

fn mib(bytes: usize) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
