//! What PyTorch computes, this engine computes: features, losses, gradients and AdamW steps of small
//! models, against fixtures made by tools/reference.py.

use clip_engine::backend::cpu::Cpu;
use clip_engine::check::reference;
use std::path::Path;

fn compare(size: &str, variant: &str, least_rows: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference").join(size);
    let file = dir.join(format!("{variant}.safetensors"));
    let rows = reference::check(&Cpu::<f32>::new(), &dir, &file).unwrap();
    assert!(rows.len() >= least_rows, "{} quantities compared", rows.len());
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed())
        .map(|row| {
            format!("{}: {:.2e} above {:.0e} (PyTorch f32: {:?})", row.name, row.error, row.bound, row.peer)
        })
        .collect();
    assert!(failed.is_empty(), "{size}/{variant}:\n{}", failed.join("\n"));
}

#[test]
fn lora_on_all_attention_layers() {
    compare("tiny", "lora", 98);
}

#[test]
fn lora_on_queries_and_values_only() {
    compare("tiny", "lora_q_v", 60);
}

#[test]
fn lora_at_odd_sizes() {
    compare("odd", "lora", 98);
}

#[test]
fn lora_with_gelu_and_the_legacy_end_token() {
    compare("gelu", "lora", 60);
}

#[test]
fn head_only() {
    for size in ["tiny", "odd", "gelu"] {
        compare(size, "linear", 10);
    }
}
