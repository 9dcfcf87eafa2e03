//! `engine bench ops` on the CPU: every type that the processor multiplies, beside the rate of its instruction.

use crate::command::succeed;
use clip_engine::backend::cpu::{Features, Isa};
use serde_json::Value;
use std::collections::BTreeSet;

/// What is printed of some operations, and the file.
fn ops(more: &[&str]) -> (String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ops.json");
    let own = ["bench", "ops", "--device", "cpu", "--only", "l2_norm,linear", "--reps", "1", "--json"];
    let args = [&own[..], &[file.to_str().unwrap()], more].concat();
    let done = succeed(&args, dir.path());
    (done.out, serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
}

#[test]
fn operations_are_timed_in_every_type() {
    let (printed, report) = ops(&[]);
    let expected = match Isa::best(Features::found()) {
        Isa::Plain => vec!["f32"],
        _ => vec!["bf16", "f32"],
    };
    let rows = report["ops"].as_array().unwrap();
    for name in ["l2_norm", "linear", "linear_backward"] {
        let of_name = rows.iter().filter(|row| row["op"] == name);
        let types: BTreeSet<&str> = of_name.map(|row| row["dtype"].as_str().unwrap()).collect();
        assert_eq!(types.into_iter().collect::<Vec<_>>(), expected, "{name}\n{printed}");
    }
    for row in rows.iter().filter(|row| row["op"] == "linear") {
        let of_type = &report["types"][row["dtype"].as_str().unwrap()];
        let share = |rate: &Value| Some(row["flop_per_s"].as_f64().unwrap() / rate.as_f64()?);
        assert_eq!(row["of_instruction"].as_f64(), share(&of_type["instruction_flop_per_s"]), "{row}");
        assert_eq!(row["of_best_product"].as_f64(), share(&of_type["best_product_flop_per_s"]), "{row}");
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        let rate = report["types"]["f32"]["instruction_flop_per_s"].as_f64().unwrap();
        // A thread of the slowest processor that has it does some billions.
        assert!((1e9..1e15).contains(&rate), "{rate}");
    }
    assert_eq!(printed.contains("\ntype "), expected.len() > 1, "{printed}");

    let (printed, report) = ops(&["--precision", "f32"]);
    let rows = report["ops"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["dtype"] == "f32") && !printed.contains("type"), "{printed}");
}
