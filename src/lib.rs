//! Fine-tunes CLIP image classifiers with hand-written forward and backward passes.
//!
//! Data flows one way: [`data`] turns photos into batches of pixels, [`clip`] turns pixels into
//! features (with the trained parts of [`tune`] inside its linear layers), [`objective`] turns features
//! into a loss, and the gradients walk back to the first trained tensor, where [`optim`] takes over.
//! [`train`] is the loop around it, and [`settings`] has all that a run can be told. The model is written once,
//! over a [`backend`]; the backend knows no model, the model knows no training, and the loop knows no command line.
//! What only those who work on the engine use, checks and benchmarks, is in [`dev`]. [`commands`] has what the subcommands
//! of the program do, for it and for other languages.

#![warn(missing_docs)]

pub mod backend;
mod cli;
pub mod clip;
pub mod commands;
pub mod data;
pub mod dev;
pub mod fetch;
pub mod files;
mod guard;
mod hash;
mod model_files;
pub mod objective;
pub mod optim;
pub mod progress;
pub mod random;
pub mod report;
pub mod settings;
pub mod stats;
pub mod tensor;
pub mod train;
pub mod tune;
mod words;

pub use cli::run as command;
pub use train::TrainError;
