//! `engine bench step --launches`: what it prints is what docs/performance.md shows, and adds up.

use crate::command::{command, fail, succeed_of};
use clip_engine::backend::cpu::Cpu;
use clip_engine::clip::config::ClipConfig;
use clip_engine::dev::bench::step::StepSizes;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The tables of kernels and how often each is launched.
fn tables(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = (0..lines.len()).filter(|&at| lines[at].starts_with("| kernel"));
    let table = |at: usize| lines[at..].iter().take_while(|line| line.starts_with('|'));
    starts.map(|at| table(at).map(|line| line.to_string()).collect()).collect()
}

#[test]
fn the_documentation_shows_the_launches_of_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("launches.json");
    // NVRTC would compile for as long as all else takes, for registers that are not looked at.
    let mut engine = command(&["bench", "step", "--launches", "--json", json.to_str().unwrap()], dir.path());
    let done = succeed_of(engine.env_remove("CLIP_ENGINE_CUDA_LIBRARIES"));
    let printed = tables(&done.out);
    assert_eq!(printed.len(), 3, "{}", done.out);

    let note = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let shown = tables(&fs::read_to_string(&note).unwrap());
    assert_eq!(shown.len(), printed.len());
    for (shown, printed) in shown.concat().iter().zip(printed.concat()) {
        assert_eq!(*shown, printed, "docs/performance.md shows the left, the program prints the right");
    }
    assert_eq!(shown, printed, "not every line is shown");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let sizes = StepSizes { batch: 32, classes: 102, rank: 8 };
    let work = sizes.work(&Cpu::<f32>::new(), &ClipConfig::vit_b_32()).unwrap();
    for form in report["forms"].as_array().unwrap() {
        let rows = form["launches"].as_array().unwrap();
        assert_eq!(form["all"]["launches"], rows.len());
        let sum = |field: &str| rows.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!(form["all"]["bytes"], sum("bytes"));
        // The kernels compute attention's scores again, a fifth of what their backward pass multiplies.
        let backward = |row: &&Value| row["name"].as_str().unwrap().starts_with("attention_backward");
        let again: u64 = rows.iter().filter(backward).map(|row| row["flop"].as_u64().unwrap() / 5).sum();
        // One query of each image, where that is part of a larger launch.
        let tails = rows.iter().filter(|row| row["name"] == "class_tail_backward").count() as u64;
        let again = again + tails * 2 * 32 * 50 * 768;
        let of = |prefix: &str| -> u64 {
            let named = rows.iter().filter(|row| row["name"].as_str().unwrap().starts_with(prefix));
            named.map(|row| row["flop"].as_u64().unwrap()).sum()
        };
        // Adapters in the weights: they are multiplied once more, and u·Bᵀ and du·A are not, half as much as u, du and
        // the gradients of A and B. The first block's q, k and v have no du·A in any form.
        let (folds, without) = (of("lora_fold"), of("lora_gradients") / 2);
        let first = if folds > 0 { 2 * 32 * 50 * 24 * 768 } else { 0 };
        let counted = sum("flop") - again - folds + without - first;
        assert_eq!(counted, work.train.flop, "{}", form["form"]);
        assert!(
            rows.iter().all(|row| row["bytes"].as_u64() > Some(0)),
            "a launcher says nothing of its bytes"
        );
    }
}

#[test]
fn launches_are_those_of_a_gpu_and_of_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let on_the_cpu = ["bench", "step", "--launches", "--device", "cpu"];
    fail(2, &on_the_cpu, dir.path(), &["--device cpu", "--device cuda"]);
    fail(2, &["bench", "ops", "--launches"], dir.path(), &["--launches", "engine bench step"]);
}
