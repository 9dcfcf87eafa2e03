//! The kernels of layer norm, activation, embedding, L2 norm, head and loss and AdamW on the host twin,
//! against the CPU forms.

use clip_engine::backend::cuda::twin::Twin;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::check::device::{Scope, check_small};
use clip_engine::tensor::DType;
use std::sync::Arc;

fn cuda(twin: &Arc<Twin>, dtype: DType) -> Cuda {
    Cuda::new(twin.clone(), dtype, LoraForm::Auto).unwrap()
}

fn passes(dtype: DType, capability: u32) {
    let twin = Arc::new(Twin::new(dtype, capability).unwrap());
    let rows = check_small(&cuda(&twin, dtype), Scope::Quick).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed()).collect();
    for row in &failed {
        eprintln!("{} at {}: {:e}, bound {:e}", row.name, row.at, row.error, row.bound);
    }
    assert!(failed.is_empty(), "{} of {} rows are above their bounds", failed.len(), rows.len());
}

#[test]
fn f32_matches_the_definitions() {
    passes(DType::F32, 90);
}

#[test]
fn f16_matches_the_definitions() {
    passes(DType::F16, 90);
}

#[test]
fn bf16_matches_the_definitions() {
    passes(DType::BF16, 90);
}

#[test]
fn f16_before_sm_80_matches_the_definitions() {
    passes(DType::F16, 75);
}
