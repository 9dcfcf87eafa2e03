//! The model and training through the library: checkpoints, whole steps and runs on both backends.

mod clip_loading;
mod demo_model;
mod parity;
mod techniques;
#[cfg(target_os = "linux")]
mod twin_launches;
#[cfg(target_os = "linux")]
mod twin_runs;
#[cfg(target_os = "linux")]
mod twin_training;
