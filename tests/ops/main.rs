//! Single operations: the CPU's form against finite differences, PyTorch and second forms of the same maths, CUDA's
//! against the CPU's by way of the host twin, and what NVRTC makes of every kernel.

mod adamw;
#[cfg(target_os = "linux")]
mod clocked;
mod crop_resize;
mod gradients;
#[cfg(target_os = "linux")]
mod host_twin;
mod nvrtc;
mod packed;
mod sass;
#[cfg(target_os = "linux")]
mod twin_attention;
#[cfg(target_os = "linux")]
mod twin_launches;
#[cfg(target_os = "linux")]
mod twin_lora;
#[cfg(target_os = "linux")]
mod twin_rounding;
#[cfg(target_os = "linux")]
mod twin_small;
