//! Photos in, batches of pixels out.

pub mod cache;
pub mod demo;
pub mod flowers102;
pub mod folder;
pub mod preprocess;
pub mod source;
