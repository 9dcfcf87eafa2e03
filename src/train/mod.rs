//! The training loop and everything a run needs.

pub mod learner;
