//! The frozen model: CLIP's two towers as `transformers.CLIPModel` defines them.
//!
//! [`config`], [`weights`] and [`tokenizer`] read a Hugging Face directory; [`vision`] and [`text`] are the
//! towers, both made of the blocks in `block`, written once over a backend.

pub(crate) mod block;
pub mod config;
mod error;
pub mod flops;
pub mod random;
pub mod text;
pub mod tokenizer;
pub mod vision;
pub mod weight_source;
pub mod weights;

pub use block::Evaluated;
pub use error::ClipError;

/// What a tokenizer and an image processor are made of, as far as a checkpoint has it.
pub(crate) const PROCESSOR_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
];
