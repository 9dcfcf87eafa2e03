//! Photos in, batches of pixels out.

pub mod demo;
