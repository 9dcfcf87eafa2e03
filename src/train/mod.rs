//! The training loop and everything a run needs: settings, checkpoints, metrics, the run directory.

pub mod adapter;
pub mod error;
pub mod files;
pub mod learner;
pub mod metrics;
pub mod model;
pub mod run;
pub mod run_dir;
pub mod settings;
pub mod state;

pub use error::TrainError;
pub use settings::Settings;
