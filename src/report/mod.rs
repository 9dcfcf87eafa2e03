//! What is drawn and written about finished runs: pictures, pages, tables.

pub mod compare;
pub mod data;
pub mod seeds;

pub use compare::Comparison;
pub use data::RunData;
