//! The training loop and everything a run needs: checkpoints, metrics, the run directory.

pub mod adapter;
mod balance;
mod baseline;
pub mod demo;
pub mod embed;
mod error;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod keep;
pub mod learner;
mod memory;
pub mod metrics;
pub mod model;
mod parts;
mod photos;
pub mod plan;
pub mod predict;
pub mod run;
pub mod run_dir;
pub mod session;
pub mod stamp;
mod state;
mod tensorboard;
pub mod tuned;

pub use crate::settings::{self, Settings};
pub use error::{Result, TrainError};
