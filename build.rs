//! Gathers kernels/ into the binary: `FILES`, the name and text of every file. And looks for the programs and the
//! library that some tests need, so that cargo counts those tests as ignored where they are missing.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "src/backend/cuda/gpu/folders.rs"]
mod folders;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
    needs_of_tests();
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

/// Sets a cfg for each of the tests' needs that is met. What is found is watched, so that a build after it has gone
/// knows; what is missing cannot be watched, and tests/untested.rs says what to do once it is there.
fn needs_of_tests() {
    println!(
        "cargo::rustc-check-cfg=cfg(cxx, nvrtc, nvdisasm, chromium, script, bash, python, nvidia_driver)"
    );
    let cxx = env::var("CXX").ok().and_then(|words| words.split_whitespace().next().map(str::to_owned));
    let chromium = on_path(&["chromium", "chromium-browser", "google-chrome"]);
    let nvrtc = library("libnvrtc.so.");
    // Its wheel lays it beside the libraries.
    let beside = nvrtc.as_deref().and_then(|library| Some(library.parent()?.parent()?.join("bin/nvdisasm")));
    let nvdisasm = beside.filter(|path| path.is_file()).or_else(|| on_path(&["nvdisasm"]));
    for (name, found) in [
        ("cxx", on_path(&[cxx.as_deref().unwrap_or("c++")])),
        ("nvrtc", nvrtc),
        ("nvdisasm", nvdisasm.clone()),
        ("chromium", chromium.clone()),
        ("script", on_path(&["script"])),
        ("bash", on_path(&["bash"])),
        ("python", on_path(&["python3"])),
        ("nvidia_driver", known_to_the_loader("libcuda.so.1")),
    ] {
        if let Some(path) = found {
            println!("cargo::rustc-cfg={name}");
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    for (variable, program) in [("CLIP_ENGINE_CHROMIUM", chromium), ("CLIP_ENGINE_NVDISASM", nvdisasm)] {
        if let Some(path) = program {
            println!("cargo::rustc-env={variable}={}", path.display());
        }
    }
    for variable in ["CXX", folders::FOLDERS] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}

/// The first file of one of these names in the folders of PATH; a name may be a path itself.
fn on_path(names: &[&str]) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let files = env::split_paths(&folders).flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    files.into_iter().find(|path| path.is_file())
}

/// A library of CUDA whose file's name begins so, where the engine will find it.
fn library(prefix: &str) -> Option<PathBuf> {
    let named = folders::explicit_folders().into_iter();
    let others = folders::other_folders(&|name| env::var_os(name)).into_iter();
    let found = named.chain(others).find_map(|folder| {
        let file = folders::files_like(&folder.path, prefix).into_iter().next()?;
        println!("{} is in a folder named by {}", file.display(), folder.named_by);
        Some(file)
    });
    found.or_else(|| known_to_the_loader(prefix))
}

/// A library that the system's loader finds by a name that begins so.
fn known_to_the_loader(prefix: &str) -> Option<PathBuf> {
    let folders = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut files = env::split_paths(&folders).flat_map(|folder| folders::files_like(&folder, prefix));
    files.next().or_else(|| {
        // On the path of an administrator alone in some systems.
        let listed = ["ldconfig", "/sbin/ldconfig"].iter().find_map(|program| {
            let output = Command::new(program).arg("-p").output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        let line = listed.lines().find(|line| line.trim_start().starts_with(prefix))?;
        Some(PathBuf::from(line.split("=> ").nth(1)?))
    })
}
