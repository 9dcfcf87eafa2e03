//! Where the CUDA libraries may lie on a disk.
//!
//! build.rs is made with this file too, to know whether tests that need NVRTC can run: it uses the standard library
//! alone.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that names folders to look for the libraries in, before all others.
pub const FOLDERS: &str = "CLIP_ENGINE_CUDA_LIBRARIES";

/// A folder and why it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    pub path: PathBuf,
    pub named_by: String,
}

/// Those that the environment names.
pub fn explicit_folders() -> Vec<Folder> {
    let Some(list) = env::var_os(FOLDERS) else { return Vec::new() };
    let folders = env::split_paths(&list).filter(|path| !path.as_os_str().is_empty());
    folders.map(|path| Folder { path, named_by: FOLDERS.to_owned() }).collect()
}

/// Toolkits, then Python's wheels; `variable` reads the environment.
pub fn other_folders(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<Folder> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut folders = Vec::new();
    let mut add =
        |path: PathBuf, named_by: &str| folders.push(Folder { path, named_by: named_by.to_owned() });
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = set(name) {
            add(home.join("lib64"), name);
            add(home.join("lib"), name);
        }
    }
    add("/usr/local/cuda/lib64".into(), "CUDA toolkit");
    add("/usr/lib/wsl/lib".into(), "WSL");
    add("/usr/local/nvidia/lib64".into(), "container");
    for (packages, named_by) in site_packages(&set) {
        for wheel in ["cu13/lib", "cuda_nvrtc/lib", "cublas/lib", "cu12/lib"] {
            add(packages.join("nvidia").join(wheel), &named_by);
        }
    }
    folders
}

/// The folders that Python packages are installed in, those of an active environment first.
fn site_packages(set: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<(PathBuf, String)> {
    let mut prefixes: Vec<(PathBuf, &str)> = Vec::new();
    prefixes.extend(set("VIRTUAL_ENV").map(|path| (path, "VIRTUAL_ENV")));
    prefixes.extend(set("CONDA_PREFIX").map(|path| (path, "CONDA_PREFIX")));
    let path = set("PATH").unwrap_or_default();
    let pythons = env::split_paths(&path).filter(|bin| bin.join("python3").exists());
    prefixes.extend(pythons.filter_map(|bin| Some((bin.parent()?.to_path_buf(), "python3 on PATH"))));
    prefixes.extend(set("HOME").map(|home| (home.join(".local"), "~/.local")));
    prefixes.extend(["/usr/local", "/usr"].map(|prefix| (PathBuf::from(prefix), "the system's Python")));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (prefix, named_by) in prefixes {
        for python in files_like(&prefix.join("lib"), "python3") {
            for kind in ["site-packages", "dist-packages"] {
                let packages = python.join(kind);
                if packages.join("nvidia").is_dir() && seen.insert(packages.clone()) {
                    found.push((packages, format!("Python's packages ({named_by})")));
                }
            }
        }
    }
    found
}

/// The files in a folder whose names begin so, in order.
pub fn files_like(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).filter(named).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Python prefix with a wheel's folder in it.
    fn prefix_with(root: &Path, name: &str, wheel: &str) -> PathBuf {
        let prefix = root.join(name);
        std::fs::create_dir_all(prefix.join("lib/python3.12/site-packages/nvidia").join(wheel)).unwrap();
        prefix
    }

    #[test]
    fn toolkits_come_before_wheels_and_the_active_environment_before_others() {
        let root = tempfile::tempdir().unwrap();
        let venv = prefix_with(root.path(), "venv", "cu13/lib");
        let conda = prefix_with(root.path(), "conda", "cublas/lib");
        let variables = |name: &str| match name {
            "CUDA_HOME" => Some(OsString::from("/toolkit")),
            "VIRTUAL_ENV" => Some(venv.clone().into_os_string()),
            "CONDA_PREFIX" => Some(conda.clone().into_os_string()),
            _ => None,
        };
        let folders = other_folders(&variables);
        let position = |path: &Path| folders.iter().position(|f| f.path == path);
        let toolkit = position(Path::new("/toolkit/lib64"));
        let in_venv = position(&venv.join("lib/python3.12/site-packages/nvidia/cu13/lib"));
        let in_conda = position(&conda.join("lib/python3.12/site-packages/nvidia/cublas/lib"));
        assert!(toolkit.is_some() && toolkit < in_venv && in_venv < in_conda, "{folders:#?}");
    }

    #[test]
    fn a_python_on_the_path_leads_to_its_packages() {
        let root = tempfile::tempdir().unwrap();
        let prefix = prefix_with(root.path(), "elsewhere", "cuda_nvrtc/lib");
        std::fs::create_dir_all(prefix.join("bin")).unwrap();
        std::fs::write(prefix.join("bin/python3"), "").unwrap();
        let variables = |name: &str| (name == "PATH").then(|| prefix.join("bin").into_os_string());
        let wanted = prefix.join("lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib");
        assert!(other_folders(&variables).iter().any(|f| f.path == wanted));
    }
}
