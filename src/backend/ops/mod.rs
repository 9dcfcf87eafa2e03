//! What every operation computes, and the shapes that it takes: a trait for each, whose own methods check the arguments and
//! hand them on to the form that a device has for them.
//!
//! Conventions: matrices are row-major and `y = x·Wᵀ + b`; an operation writes every element of its
//! outputs unless it says "adds to"; shapes come from the tensors themselves and are checked; nothing is
//! allocated inside an operation, callers pass the scratch memory. Frozen weights have no gradient here.

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod class_features;
mod class_tail;
mod crop_resize;
mod dropout;
mod head_loss;
mod l2_norm;
mod layer_norm;
mod linear;
mod lora_fold;
mod lora_gradients;
mod lora_linear;
mod mix_rows;
mod patch_embed;
mod prompts;
mod take_rows;
mod triplet;

use super::{BackendError, Checked, DeviceTensor, Memory, Result, expect_matrix, expect_shape};
use crate::tensor::{DType, Shape};
use adamw::expect_control;
use linear::{expect_bias, expect_layer, expect_output};

pub use accumulate::*;
pub use activation::*;
pub use adamw::*;
pub use attention::*;
pub use class_features::*;
pub use class_tail::*;
pub use crop_resize::*;
pub use dropout::*;
pub use head_loss::*;
pub use l2_norm::*;
pub use layer_norm::*;
pub use linear::*;
pub use lora_fold::*;
pub use lora_gradients::*;
pub use lora_linear::*;
pub use mix_rows::*;
pub use patch_embed::*;
pub use prompts::*;
pub use take_rows::*;
pub use triplet::*;

copyable!(Memory: AttentionInput, Lora, Dropout, Counting, Targets, Classifier);
