//! Linear layers with and without adapters on the host twin, in both forms, against the CPU's in f64.

use clip_engine::backend::cuda::twin::Twin;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::check::device::{Scope, check_lora_linear};
use clip_engine::tensor::DType;
use std::sync::Arc;

fn check(dtype: DType, compute_capability: u32, form: LoraForm) {
    let twin = Twin::new(dtype, compute_capability).unwrap();
    let cuda = Cuda::new(Arc::new(twin), dtype, form).unwrap();
    let rows = check_lora_linear(&cuda, Scope::Quick).unwrap();
    assert!(!rows.is_empty());
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed())
        .map(|row| format!("{} at {}: {:.2e}, bound {:.2e}", row.name, row.at, row.error, row.bound))
        .collect();
    assert!(failed.is_empty(), "{dtype} on sm_{compute_capability}, {form:?}:\n{}", failed.join("\n"));
}

#[test]
fn f32_matches_the_definition() {
    check(DType::F32, 90, LoraForm::Product);
}

#[test]
fn f16_matches_the_definition_in_the_fused_form() {
    check(DType::F16, 90, LoraForm::Fused);
}

#[test]
fn f16_matches_the_definition_in_the_product_form() {
    check(DType::F16, 90, LoraForm::Product);
}

#[test]
fn bf16_matches_the_definition_in_the_fused_form() {
    check(DType::BF16, 90, LoraForm::Fused);
}

#[test]
fn bf16_matches_the_definition_in_the_product_form() {
    check(DType::BF16, 90, LoraForm::Product);
}

#[test]
fn f16_matches_the_definition_without_tensor_cores() {
    check(DType::F16, 75, LoraForm::Auto);
}
