//! What there is of CUDA: libraries, devices, caches. Nothing here fails or changes a file.

use super::{cubins, device, libraries, store};
use crate::backend::cuda::CudaError;
use crate::backend::cuda::driver::Result;
use serde::Serialize;
use std::path::PathBuf;

/// A library, found or not.
#[derive(Debug, Clone, Serialize)]
pub struct LibraryReport {
    /// "libcuda", "libnvrtc" or "libcublasLt".
    pub name: &'static str,
    pub found: Option<libraries::Loaded>,
    /// Why the library cannot be used, and what to do about it.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct DeviceReport {
    /// The driver's number for it, from 0: that of "cuda:0".
    pub index: usize,
    /// As the driver names it: "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// "9.0".
    pub compute_capability: String,
    pub multiprocessors: u32,
    pub memory: usize,
}

/// The folder where compiled kernels and choices are kept.
#[derive(Debug, Clone, Serialize)]
pub struct CacheReport {
    /// None where the environment names no place for one; it need not exist yet.
    pub folder: Option<PathBuf>,
    /// Compiled kernels in it: one for each kernel file, architecture, number type and version so far.
    pub kernel_files: usize,
    pub bytes: u64,
    /// Why nothing can be kept, which makes every start slower.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// The driver, NVRTC and cuBLASLt, in this order.
    pub libraries: Vec<LibraryReport>,
    /// The version of the driver's kernel module.
    pub kernel_driver: Option<String>,
    /// All that the driver finds; empty where one of them could not be asked.
    pub devices: Vec<DeviceReport>,
    /// Why there are no devices, or why they cannot be used.
    pub problem: Option<String>,
    /// Where a later start finds its kernels compiled.
    pub cache: CacheReport,
}

impl Probe {
    /// Why no GPU can be used; empty where one can.
    pub fn problems(&self) -> Vec<&str> {
        let libraries = self.libraries.iter().filter_map(|library| library.problem.as_deref());
        libraries.chain(self.problem.as_deref()).collect()
    }
}

/// Looks at everything that the CUDA backend needs.
pub fn probe() -> Probe {
    let (devices, problem) = match devices() {
        Ok(devices) if devices.is_empty() => (devices, Some("the driver finds no CUDA device".to_owned())),
        Ok(devices) => (devices, device::check_driver().err().map(|e| e.to_string())),
        // The library's own line says so already.
        Err(CudaError::Missing { .. }) => (Vec::new(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Probe {
        libraries: vec![
            library("libcuda", libraries::driver()),
            library("libnvrtc", libraries::nvrtc()),
            library("libcublasLt", libraries::cublaslt()),
        ],
        kernel_driver: libraries::kernel_driver(),
        devices,
        problem,
        cache: cache(store::folder()),
    }
}

fn library(name: &'static str, outcome: Result<&libraries::Loaded>) -> LibraryReport {
    match outcome {
        Ok(found) => LibraryReport { name, found: Some(found.clone()), problem: None },
        Err(error) => LibraryReport { name, found: None, problem: Some(error.to_string()) },
    }
}

fn devices() -> Result<Vec<DeviceReport>> {
    let report = |index| {
        let info = device::open(index)?.info;
        Ok(DeviceReport {
            index,
            name: info.name,
            compute_capability: format!("{}.{}", info.compute_capability / 10, info.compute_capability % 10),
            multiprocessors: info.multiprocessors,
            memory: info.memory,
        })
    };
    (0..device::count()?).map(report).collect()
}

fn cache(folder: Option<PathBuf>) -> CacheReport {
    let Some(folder) = folder else {
        return CacheReport { folder: None, kernel_files: 0, bytes: 0, problem: Some(store::nowhere()) };
    };
    let (kernel_files, bytes) = cubins::content(&folder.join("kernels"));
    let problem = store::unwritable(&folder);
    CacheReport { folder: Some(folder), kernel_files, bytes, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_tells_about_every_library_and_can_be_stored() {
        let probe = probe();
        let names: Vec<_> = probe.libraries.iter().map(|l| l.name).collect();
        assert_eq!(names, ["libcuda", "libnvrtc", "libcublasLt"]);
        for library in &probe.libraries {
            assert!(library.found.is_some() != library.problem.is_some(), "{library:?}");
        }
        assert!(serde_json::to_string(&probe).unwrap().contains("\"cache\""));
    }

    #[test]
    fn a_cache_that_cannot_be_is_reported() {
        assert!(cache(None).problem.is_some_and(|text| text.contains(store::FOLDER)));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cache(Some(folder.path().join("not/yet"))).problem, None);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(cache(Some(file.join("below"))).problem.is_some());
    }
}
