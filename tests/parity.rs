//! What PyTorch computes, this engine computes: features, losses, gradients and AdamW steps of small
//! models, against fixtures made by tools/reference.py, on the CPU and, by way of the host twin, on the CUDA
//! backend in f32.

use clip_engine::backend::Backend;
use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::Cuda;
use clip_engine::check::reference;
use clip_engine::tensor::DType;
use std::path::Path;

fn compare(size: &str, variant: &str, least_rows: usize) {
    compare_on(&Cpu::<f32>::new(), size, variant, least_rows);
}

fn compare_on<B: Backend>(backend: &B, size: &str, variant: &str, least_rows: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference").join(size);
    let file = dir.join(format!("{variant}.safetensors"));
    let rows = reference::check(backend, &dir, &file).unwrap();
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

#[cfg(target_os = "linux")]
#[test]
fn the_cuda_backend() {
    let twin = Cuda::on_twin(DType::F32, 90).unwrap();
    compare_on(&twin, "tiny", "lora", 98);
    compare_on(&twin, "odd", "lora", 98);
    compare_on(&twin, "gelu", "lora", 60);
    compare_on(&twin, "tiny", "linear", 10);
}
