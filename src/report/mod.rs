//! What is drawn and written about finished runs: pictures, pages, tables.

pub mod compare;
pub mod data;
mod published;
pub mod seeds;
mod table;
#[cfg(test)]
mod test_run;

pub use compare::Comparison;
pub use data::RunData;
