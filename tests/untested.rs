//! The last lines of `cargo test`: which tests did not run, why, and how to run them. Cargo runs its test programs in
//! the order of their names, and this one has no tests.

use std::collections::BTreeMap;
use std::path::Path;

/// What tests may need: how their `ignore` names it, whether the build script found it, and how to get it on Debian
/// and Ubuntu.
const NEEDS: [(&str, bool, &str); 6] = [
    ("c++", cfg!(cxx), "apt-get install g++"),
    (
        "NVRTC",
        cfg!(nvrtc),
        "python3 -m venv target/nvrtc && target/nvrtc/bin/pip install 'nvidia-cuda-nvrtc==13.0.*' && \
         export CLIP_ENGINE_CUDA_LIBRARIES=$(echo $PWD/target/nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)",
    ),
    ("Chromium", cfg!(chromium), "apt-get install chromium"),
    ("script", cfg!(script), "apt-get install bsdutils"),
    ("bash", cfg!(bash), "apt-get install bash"),
    ("no NVIDIA driver", !cfg!(nvidia_driver), "on a machine without a GPU"),
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
    // Some tests were asked for by their names, or only for what there is.
    if args.iter().any(|arg| !arg.starts_with('-') || arg == "--list") {
        return;
    }
    println!();
    if args.iter().any(|arg| arg == "--include-ignored") {
        println!("Every test was run.\n");
        return;
    }
    for (reason, count) in reasons() {
        let names = reason.strip_prefix("needs ").unwrap_or_default();
        let needs = NEEDS.iter().filter(|(name, ..)| names.split(" and ").any(|n| n == *name));
        let missing: Vec<_> = needs.filter(|(_, found, _)| !found).collect();
        if reason.starts_with("long: ") {
            println!("Not run, {count} of the long tests ({reason}): add -- --include-ignored");
        } else if !missing.is_empty() {
            println!("Not run, {count} tests that need {names}:");
            missing.iter().for_each(|(_, _, how)| println!("    {how}"));
        }
    }
    println!();
}
