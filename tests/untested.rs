//! The last lines of `cargo test`: which tests did not run, why, and how to run them. Cargo runs its test programs in
//! the order of their names, and this one has no tests.

use std::collections::BTreeMap;
use std::path::Path;

/// What tests may need: how their `ignore` names it, whether the build script found it, and how to get it on Debian
/// and Ubuntu.
const NEEDS: [(&str, bool, &str); 8] = [
    ("c++", cfg!(cxx), "apt-get install g++"),
    (
        "NVRTC",
        cfg!(nvrtc),
        "python3 -m venv target/nvrtc && target/nvrtc/bin/pip install 'nvidia-cuda-nvrtc==13.0.*' && \
         export CLIP_ENGINE_CUDA_LIBRARIES=$(echo $PWD/target/nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)",
    ),
    ("nvdisasm", cfg!(nvdisasm), "target/nvrtc/bin/pip install 'nvidia-cuda-nvdisasm==13.5.*'"),
    ("Chromium", cfg!(chromium), "apt-get install chromium"),
    ("script", cfg!(script), "apt-get install bsdutils"),
    ("bash", cfg!(bash), "apt-get install bash"),
    ("Python", cfg!(python), "apt-get install python3"),
    ("no NVIDIA driver", !cfg!(nvidia_driver), "a machine without a GPU"),
];

/// How many tests each reason in an attribute `ignore` of the sources leaves out.
fn reasons() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for folder in ["src", "tests"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap()) {
            if entry.path().extension().is_none_or(|end| end != "rs") {
                continue;
            }
            for line in std::fs::read_to_string(entry.path()).unwrap().lines() {
                let line = line.trim_start();
                let attribute = ["#[ignore", "#[cfg_attr("].iter().any(|start| line.starts_with(start));
                let reason = line.split_once("ignore = \"").and_then(|(_, rest)| rest.split_once('"'));
                if let (true, Some((reason, _))) = (attribute, reason) {
                    *found.entry(reason.to_owned()).or_default() += 1;
                }
            }
        }
    }
    found
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A part of the tests was asked for, or a list of them.
    let part = |arg: &String| !arg.starts_with('-') || arg == "--ignored" || arg == "--list";
    if args.iter().any(part) {
        return;
    }
    if args.iter().any(|arg| arg == "--include-ignored") {
        println!("\nNothing was left out.\n");
        return;
    }
    println!("\nNot run:");
    let (mut absent, mut long) = (BTreeMap::<Vec<&str>, usize>::new(), 0);
    for (reason, count) in reasons() {
        let needs: Vec<&str> = reason.strip_prefix("needs ").unwrap_or_default().split(" and ").collect();
        let missing = NEEDS.iter().filter(|(name, met, _)| !met && needs.contains(name));
        let missing: Vec<&str> = missing.map(|(name, ..)| *name).collect();
        if !missing.is_empty() {
            *absent.entry(missing).or_default() += count;
        }
        long += if reason.starts_with("long: ") { count } else { 0 };
    }
    for (missing, count) in &absent {
        println!("  {count} tests for want of {}", missing.join(" and "));
    }
    println!("  {long} long tests: they run too with  -- --include-ignored");
    for (name, _, how) in NEEDS.iter().filter(|need| absent.keys().any(|names| names.contains(&need.0))) {
        println!("To get {name}: {how}");
    }
    if !absent.is_empty() {
        println!("And then, for the build script to find it: touch build.rs");
    }
    println!();
}
