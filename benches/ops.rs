//! The operations of a training step of ViT-B/32 at batch 8, on the GPU where there is one, else on the CPU.
//!
//! `cargo bench` runs them all, `cargo bench -- attention` those whose name contains the word. The same
//! operations with percentiles, bandwidths and JSON: `engine bench ops`.

use clip_engine::backend::Result;
use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::Cuda;
use clip_engine::backend::prelude::*;
use clip_engine::dev::bench::Op;
use clip_engine::dev::ops::bench::{Made, Sizes, benches, each};
use clip_engine::tensor::DType;
use divan::Bencher;
use std::sync::OnceLock;

const SIZES: Sizes = Sizes {
    batch: 8,
    tokens: 50,
    width: 768,
    heads: 12,
    mlp: 3072,
    features: 512,
    classes: 102,
    rank: 8,
    side: 224,
    patch: 32,
};

fn main() {
    divan::main();
}

fn gpu() -> Option<&'static Cuda> {
    static GPU: OnceLock<Option<Cuda>> = OnceLock::new();
    GPU.get_or_init(|| Cuda::open(0, DType::F16).ok()).as_ref()
}

/// Hands out the operations one after the other.
fn visit(made: Made<'_>, visit: &mut dyn FnMut(Op<'_>) -> Result<()>) -> Result<()> {
    match gpu() {
        Some(cuda) => each(cuda, &SIZES, made, visit),
        None => each(&Cpu::<f32>::new(), &SIZES, made, visit),
    }
}

fn label(op: &Op<'_>) -> String {
    format!("{} {}", op.name, op.at)
}

fn labels() -> Vec<String> {
    let mut labels = Vec::new();
    let listed = visit(Made::All, &mut |op| {
        labels.push(label(&op));
        Ok(())
    });
    if let Err(error) = listed {
        eprintln!("the operations cannot be set up: {error}");
    }
    labels
}

#[divan::bench(args = labels(), sample_count = 10, sample_size = 1)]
fn op(bencher: Bencher, wanted: &String) {
    let mut bencher = Some(bencher);
    // "attention_backward 8x50" is of the group "attention".
    let mut groups = benches().filter(|group| wanted.starts_with(group));
    let done = groups.try_for_each(|group| {
        visit(Made::Group(group), &mut |mut op| {
            if label(&op) != *wanted {
                return Ok(());
            }
            if let Some(bencher) = bencher.take() {
                bencher
                    .bench_local(|| (op.run)().and_then(|()| gpu().map_or(Ok(()), |gpu| gpu.synchronize())));
            }
            Ok(())
        })
    });
    if let Err(error) = done {
        eprintln!("{wanted}: {error}");
    }
}
