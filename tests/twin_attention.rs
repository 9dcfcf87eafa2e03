//! Attention's kernels, run by the host twin, against their definition.

use clip_engine::backend::cuda::twin::Twin;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::check::device::{Scope, check_attention};
use clip_engine::tensor::DType;
use std::sync::Arc;

fn passes(dtype: DType, compute_capability: u32) {
    let twin = Arc::new(Twin::new(dtype, compute_capability).unwrap());
    let cuda = Cuda::new(twin, dtype, LoraForm::default()).unwrap();
    let rows = check_attention(&cuda, Scope::Quick).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed()).collect();
    for row in &failed {
        println!("{} at {}: {:.1e}, bound {:.1e}", row.name, row.at, row.error, row.bound);
    }
    assert!(!rows.is_empty() && failed.is_empty(), "{} of {} rows failed", failed.len(), rows.len());
}

#[test]
fn attention_in_f32() {
    passes(DType::F32, 90);
}

#[test]
fn attention_in_f16() {
    passes(DType::F16, 90);
}

#[test]
fn attention_in_bf16() {
    passes(DType::BF16, 90);
}

#[test]
fn attention_without_tensor_cores() {
    passes(DType::F16, 75);
}
