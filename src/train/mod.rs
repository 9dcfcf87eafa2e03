//! The training loop and everything a run needs: checkpoints, metrics, the run directory.
//!
//! From the bottom: what a run writes down (`metrics`, `records`, `run_dir`), what it trains (`model`, `adapter`),
//! one step (`learner`), the run itself (`run`), and what is done with a finished one (`evaluate`, `predict`, `embed`,
//! `export`).

pub mod adapter;
pub mod base_model;
mod batches;
mod decode_ahead;
pub mod demo;
pub mod dry_run;
pub mod embed;
mod error;
pub mod evaluate;
pub mod export;
pub mod inference;
pub mod keep;
pub mod learner;
mod memory;
pub mod metrics;
pub mod model;
pub mod other_models;
pub mod predict;
pub mod provenance;
pub mod records;
pub mod run;
pub mod run_dir;
pub mod saved_run;
pub mod tensor_files;
mod tensorboard;
mod work;

pub use decode_ahead::{DecodedPhoto, Photo};
pub use error::{Result, TrainError};
