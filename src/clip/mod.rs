//! The frozen model: CLIP's two towers as `transformers.CLIPModel` defines them.
//!
//! [`config`], [`weights`] and [`tokenizer`] read a Hugging Face directory; [`vision`] and [`text`] are the
//! towers, both made of the blocks in `block`, written once over a backend.

pub(crate) mod block;
pub mod config;
mod end;
mod error;
pub mod random;
pub mod text;
pub mod tokenizer;
pub mod vision;
pub mod weight_source;
pub mod weights;

pub use error::ClipError;
