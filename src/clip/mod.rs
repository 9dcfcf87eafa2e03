//! The frozen model.

pub mod config;
mod error;
pub mod tokenizer;
pub mod weights;

pub use error::ClipError;
