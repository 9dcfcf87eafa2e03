//! The GPU's driver layer on stand-ins for libcuda and libcublasLt. It needs a process of its own: the stand-ins take
//! the place of the libraries before anything else looks for them.
#![cfg(target_os = "linux")]

mod driver;
mod stand_in;
mod strictness;
mod training;
