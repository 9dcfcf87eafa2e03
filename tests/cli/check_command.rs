//! `engine check`: passes as it is, and leaves with 1 when the numbers are not those of the reference.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/tiny").join(name)
}

fn check(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .arg("check")
        .args(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_gradient_checks_print_a_table_and_pass() {
    let (code, out, err) = check(&["--device", "cpu"]);
    assert_eq!(code, 0, "{out}{err}");
    for op in ["layer_norm dx", "lora_linear dA", "attention dqkv", "head_loss df", "step: q k v out"] {
        assert!(out.contains(op), "{op} is not in\n{out}");
    }
}

#[test]
fn a_model_that_is_not_the_references_fails_with_a_table_and_json() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("config.json"), dir.path().join("config.json")).unwrap();
    let mut model = std::fs::read(fixture("model.safetensors")).unwrap();
    let end = model.len();
    // The last tensor of the file is visual_projection: every feature changes a little.
    let last = f32::from_le_bytes(model[end - 4..].try_into().unwrap());
    model[end - 4..].copy_from_slice(&(last + 0.01).to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), model).unwrap();
    let json = dir.path().join("errors.json");
    let (reference, model) = (fixture("lora.safetensors"), dir.path().display().to_string());
    let args =
        ["--reference", reference.to_str().unwrap(), "--model", &model, "--json", json.to_str().unwrap()];
    let (code, out, err) = check(&args);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("FAILED") && err.contains("above their bounds"), "{out}{err}");
    let rows: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let rows = rows["rows"].as_array().unwrap().clone();
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!(row("features")["passed"], false);
    assert_eq!(row("logit scale")["passed"], true);
}

#[test]
fn a_file_that_is_no_reference_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nothing.safetensors");
    std::fs::write(&file, "nothing").unwrap();
    let model = fixture("");
    let args = ["--reference", file.to_str().unwrap(), "--model", model.to_str().unwrap()];
    let (code, _, err) = check(&args);
    assert_eq!(code, 1);
    assert!(err.contains("nothing.safetensors") && err.contains("tools/reference.py"), "{err}");
}
