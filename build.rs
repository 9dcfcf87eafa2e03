//! Gathers kernels/ into the binary: `FILES`, the name and text of every file.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let kernels = root.join("kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());
    let mut files = Vec::new();
    gather(&kernels, &mut files);
    files.sort();
    let mut code = String::from(
        "/// Path below kernels/ and text of every file there, in the order of the paths.\n\
         static FILES: &[(&str, &str)] = &[\n",
    );
    for file in &files {
        let name = file.strip_prefix(&kernels).expect("found below it").to_string_lossy().replace('\\', "/");
        let path = file.to_string_lossy().into_owned();
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a String takes everything");
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    fs::write(out, code).expect("the build folder is writable");
}

fn gather(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("kernels/ is part of the package") {
        let path = entry.expect("readable").path();
        let kind = path.extension().and_then(|e| e.to_str());
        if path.is_dir() {
            gather(&path, files);
        } else if matches!(kind, Some("cu" | "cuh" | "h" | "cpp")) {
            files.push(path);
        }
    }
}
