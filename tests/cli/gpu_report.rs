//! tools/gpu_report.sh, with a script in the place of the engine: what it runs, what it makes of failures, of what
//! hangs and of what is not there, and that its three files are whole.

use clip_engine::dev::ops::Group;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Answers as the engine would. Variables: NO_GPU, FAILS and HANGS (a group, as "f16_attention", which hangs when it
/// first runs), DIFFERS (a run).
const ENGINE: &str = r#"#!/usr/bin/env bash
all=" $* "
value() { sed -n "s/.* $1 \([^ ]*\) .*/\1/p" <<<"$all"; }
json=$(value --json)
[[ -n $json ]] && printf '{"said": "%s"}' "$1" >"$json"
case $1 in
doctor) [[ -z ${NO_GPU:-} ]] || exit 1 ;;
check)
    group=$(value --precision)_$(value --only)
    echo "group $group, graphs ${CLIP_ENGINE_GRAPHS:-on}, measure ${CLIP_ENGINE_MEASURE:-on}"
    [[ $group == "${HANGS:-}" && -z ${CLIP_ENGINE_GRAPHS:-}${SANITIZED:-} ]] && sleep 60
    [[ $group == "${FAILS:-}" ]] && echo 'a library says why' >>"$CUDA_LOG_FILE" && exit 1
    ;;
train)
    run=$(value --output)
    mkdir -p "$run/adapter"
    touch "$run/state.safetensors"
    printf 'debug: %s s\n' 'epoch 1/1: 10 in 0.5' 'val: 10 in 0.25' 'test: 5 in 0.125'
    echo '{"epochs": 1, "device": "none", "seconds": 0.75, "images_per_s": 20.0}' >"$run/summary.json"
    # Until a signal comes.
    [[ $run == *three && $all != *--resume* ]] && sleep 5 && exit 9
    for file in head adapter/adapter_model; do
        [[ $run == *"${DIFFERS:-nothing}" ]] && echo other >"$run/$file.safetensors" || echo same >"$run/$file.safetensors"
    done
    ;;
esac
exit 0
"#;

/// Runs what it is given, but for its own options.
const SANITIZER: &str = r#"#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift 2; done
SANITIZED=1 exec "$@"
"#;

/// Draws no photos, for which it would need PyTorch.
const PYTHON: &str = r#"#!/usr/bin/env bash
[[ $1 == *flowers_sized.py ]] || exec python3 "$@"
"#;

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("engine", ENGINE), ("bin/compute-sanitizer", SANITIZER), ("python", PYTHON)] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Place { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Runs the script; its exit status, and the status of each step by name.
    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> (i32, Vec<(String, String)>) {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.dir.path().join("bin").display());
        let output = Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu_report.sh"))
            .args(args)
            .env("ENGINE", self.dir.path().join("engine"))
            .env("OUT", self.out())
            .env("PATH", path)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert!(!complaints.contains("gpu_report.sh: line "), "bash: {complaints}");
        let said = String::from_utf8(output.stdout).unwrap() + &complaints;
        let results = std::fs::read(self.out().join("results.json")).expect(&said);
        let results: Value = serde_json::from_slice(&results).expect(&said);
        assert_eq!(results["about"]["commit"].as_str().map(str::len), Some(12), "{said}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let steps = results["steps"].as_array().unwrap();
        let steps = steps.iter().map(|step| (text(&step["step"]), text(&step["status"]))).collect();
        (output.status.code().unwrap(), steps)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.out().join("report.log")).unwrap()
    }
}

fn status<'a>(steps: &'a [(String, String)], name: &str) -> Option<&'a str> {
    steps.iter().find(|(step, _)| step == name).map(|(_, status)| status.as_str())
}

#[test]
fn the_script_knows_every_group_of_checks() {
    let script = include_str!("../../tools/gpu_report.sh");
    let (_, list) = script.split_once("\ngroups=(").unwrap();
    let listed: Vec<&str> = list.split_once(')').unwrap().0.split_whitespace().collect();
    assert_eq!(listed, Group::ALL.map(Group::name));
}

#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn the_first_call_runs_everything_and_leaves_three_files() {
    let place = Place::new();
    let (code, steps) = place.run(&["first"], &[]);
    let bad: Vec<_> = steps.iter().filter(|(_, status)| status != "ok").collect();
    assert!(code == 0 && bad.is_empty(), "{code}: {bad:?}");
    // Two of doctor; three to compile, all groups in three types and one whole; three of bench; six of demo; three of
    // the sanitizer.
    assert_eq!(steps.len(), 2 + 3 + 3 * Group::ALL.len() + 1 + 3 + 6 + 3, "{steps:?}");
    let results: Value =
        serde_json::from_slice(&std::fs::read(place.out().join("results.json")).unwrap()).unwrap();
    for name in ["bench_step_32", "bench_step_256", "bench_ops", "check_f16"] {
        assert!(results["results"][name]["said"].is_string(), "{name}: {results:#}");
    }
    let summary = std::fs::read_to_string(place.out().join("summary.txt")).unwrap();
    assert!(summary.trim_end().ends_with("every check passed"), "{summary}");
    assert!(place.log().contains("===== environment: "), "{}", place.log());
}

#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn a_group_that_fails_runs_again_one_call_at_a_time_and_is_sanitized() {
    let place = Place::new();
    let (code, steps) = place.run(&["doctor", "check"], &[("FAILS", "bf16_attention")]);
    assert_eq!(code, 1, "{steps:?}");
    let failed: Vec<&str> = steps.iter().filter(|(_, s)| s == "failed").map(|(step, _)| &**step).collect();
    assert_eq!(failed, ["bf16_attention", "again_bf16_attention", "memcheck_bf16_attention"]);
    let log = place.log();
    assert!(log.contains("group bf16_attention, graphs 0, measure 0"), "{log}");
    assert!(log.contains("a library says why"), "{log}");
    assert_eq!(status(&steps, "check_f16"), Some("ok"), "the rest follows");
}

#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn a_group_that_hangs_is_stopped_and_what_has_no_time_is_listed() {
    let place = Place::new();
    let limits = [("HANGS", "f32_steps"), ("GPU_REPORT_GROUP_SECONDS", "1"), ("GPU_REPORT_SECONDS", "60")];
    let (code, steps) = place.run(&["check"], &limits);
    assert_eq!((code, status(&steps, "f32_steps")), (1, Some("time limit")), "{steps:?}");
    let (code, steps) = place.run(&["check"], &[("GPU_REPORT_SECONDS", "1")]);
    assert_eq!((code, status(&steps, "f16_steps")), (3, Some("no time")), "{steps:?}");
}

#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn without_a_gpu_nothing_else_is_run() {
    let place = Place::new();
    let (code, steps) = place.run(&["first"], &[("NO_GPU", "1")]);
    assert_eq!((code, steps), (2, vec![("doctor".into(), "failed".into())]));
}

#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn runs_that_differ_in_a_bit_are_found() {
    let place = Place::new();
    let (code, steps) = place.run(&["demo"], &[("DIFFERS", "two")]);
    assert_eq!((code, status(&steps, "demo_same_bits")), (1, Some("failed")), "{steps:?}");
    assert_eq!(status(&steps, "demo_resumed_same_bits"), Some("ok"));
}

#[test]
#[cfg_attr(not(all(bash, python)), ignore = "needs bash and Python")]
fn where_the_seconds_of_a_large_run_went_is_among_the_results() {
    let place = Place::new();
    let python = place.dir.path().join("python");
    let (code, steps) = place.run(&["flowers"], &[("PYTHON", python.to_str().unwrap())]);
    assert_eq!((code, status(&steps, "flowers")), (0, Some("ok")), "{steps:?}");
    let results: Value =
        serde_json::from_slice(&std::fs::read(place.out().join("results.json")).unwrap()).unwrap();
    let run = &results["results"]["flowers"]["runs"]["flowers_two"];
    assert_eq!(run["training"]["images_per_s"].as_f64(), Some(20.0), "{results:#}");
    assert_eq!(run["validation"]["seconds"].as_f64(), Some(0.25), "{results:#}");
}

/// What the tables need of a report: the engine's step, one form of PyTorch that is half as fast, and checks.
const RESULTS: &str = r#"{
"about": {"started": "now", "commit": null, "engine_sha256": "", "gpu": "a GPU"}, "steps": [],
"results": {
    "bench_step_32": {"batch_size": 32, "machine": {"backend": "a GPU", "software": "none", "cpu": "none"},
        "train": {"p20_s": 0.002, "p50_s": 0.002, "p80_s": 0.002, "in_a_row_s": 0.001, "images_per_s": 32000.0,
            "gflop": 500.0, "gflops_per_s": 500000.0},
        "eval": {"p20_s": 0.001, "p50_s": 0.001, "p80_s": 0.001, "in_a_row_s": 0.0005, "images_per_s": 64000.0,
            "gflop": 250.0, "gflops_per_s": 500000.0}},
    "peer_step_32": {"machine": null, "variants": [{"variant": "sdpa", "title": "eager, SDPA", "batch_size": 32,
        "dtype": "f16", "status": "ok", "train_resident": {"p50_s": 0.002, "images_per_s": 16000.0}}]},
    "check_f16": {"rows": [
        {"name": "a", "at": "1", "error": 0.001, "bound": 0.002, "passed": true},
        {"name": "b", "at": "2", "error": null, "bound": null, "passed": false}]}
}}"#;

#[test]
#[cfg_attr(not(python), ignore = "needs Python")]
fn tables_are_the_same_from_what_is_kept_of_the_results() {
    let dir = tempfile::tempdir().unwrap();
    let [results, kept] = ["results.json", "kept.json"].map(|name| dir.path().join(name));
    std::fs::write(&results, RESULTS).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu_tables.py");
    let tables = |args: &[&Path]| {
        let output = Command::new("python3").arg(&script).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = tables(&[&results, Path::new("--trimmed"), &kept]);
    assert!(said.contains("| PyTorch, eager, SDPA | 16,000 | 2.00 |"), "{said}");
    assert!(said.contains("| f16, in full | 2 | 1 | 0.50 | a, 1 |"), "{said}");
    assert_eq!(tables(&[&kept]), said);
}
