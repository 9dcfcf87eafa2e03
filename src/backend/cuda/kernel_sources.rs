//! The kernels' source text: embedded, or from a folder that overrides it.

use super::CudaError;
use super::driver::Result;
use crate::hash::Parts;
use crate::tensor::DType;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The environment variable that names a folder to take the kernels from, so that they can be edited and
/// tried without a build.
pub const OVERRIDE: &str = "CLIP_ENGINE_KERNELS";

/// Kernels for heads of other sizes than the 64 of nearly every CLIP, which take long to compile, and those
/// that only some recipes need.
const RARE: [&str; 12] = [
    "accumulate",
    "attention_mma_32",
    "attention_mma_80",
    "attention_mma_96",
    "attention_mma_128",
    "class_features",
    "crop_resize",
    "dropout",
    "lora_linear_dropout",
    "mix_rows",
    "prompts",
    "triplet",
];

/// Every file of kernels/, by its path there.
#[derive(Debug, Clone)]
pub struct Sources {
    files: Vec<(String, String)>,
    /// The folder they were read from; none for the embedded ones.
    pub folder: Option<PathBuf>,
}

impl Sources {
    /// Reads the files of [`OVERRIDE`]'s folder if it is set, else takes the embedded ones.
    pub fn load() -> Result<Self> {
        match std::env::var_os(OVERRIDE).filter(|v| !v.is_empty()) {
            Some(folder) => Sources::from_folder(Path::new(&folder)),
            None => Ok(Sources::embedded()),
        }
    }

    /// The files that kernels/ held when the library was built.
    pub fn embedded() -> Self {
        let files = FILES.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Sources { files, folder: None }
    }

    /// The files that the embedded ones are named after, from `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|e| CudaError::File { path, problem: e.to_string() })
        };
        let files = FILES.iter().map(|(name, _)| Ok(((*name).to_owned(), read(name)?)));
        Ok(Sources { files: files.collect::<Result<_>>()?, folder: Some(folder.to_path_buf()) })
    }

    /// Adds a file, which replaces one of that name.
    pub fn with_file(mut self, name: &str, text: &str) -> Self {
        self.files.retain(|(n, _)| n != name);
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Path below kernels/ and text of every file.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Those of [`Sources::kernel_files`] that nearly every run needs; the others are compiled when a kernel
    /// of theirs is first launched.
    pub fn common_kernel_files(&self) -> impl Iterator<Item = &str> {
        self.kernel_files().filter(|file| !RARE.contains(file))
    }

    /// The files with kernels, without ".cu".
    pub fn kernel_files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|(name, _)| name.strip_suffix(".cu"))
    }

    /// The text of one file.
    pub fn text(&self, name: &str) -> Result<&str> {
        let found = self.files.iter().find(|(n, _)| n == name);
        found.map(|(_, text)| text.as_str()).ok_or_else(|| CudaError::File {
            path: PathBuf::from("kernels").join(name),
            problem: "no such kernel file".into(),
        })
    }

    /// Whether every kernel begins with `begin_kernel`, by which its launch may begin early.
    pub fn all_begin(&self) -> bool {
        let begins = |text: &str| {
            let kernels = text.split("extern \"C\" __global__").skip(1);
            let mut bodies = kernels.map(|kernel| kernel.split_once(") {").map_or("", |(_, body)| body));
            bodies.all(|body| body.trim_start_matches(['\\', '\n', ' ']).starts_with("begin_kernel();"))
        };
        self.files.iter().all(|(_, text)| begins(text))
    }

    /// SHA-256 over the names and texts of `names`.
    pub fn hash(&self, names: &[&str]) -> Result<[u8; 32]> {
        let mut hash = Parts::default();
        for name in names {
            hash.add(name);
            hash.add(self.text(name)?);
        }
        Ok(hash.finish())
    }
}

/// The macro that chooses the activation type.
pub fn real_macro(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F16 => Ok("REAL_F16"),
        DType::BF16 => Ok("REAL_BF16"),
        DType::F32 => Ok("REAL_F32"),
        other => Err(CudaError::Unsupported(format!("the kernels compute in f16, bf16 or f32, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_begin_as_others_do_is_noticed() {
        assert!(Sources::embedded().all_begin());
        let kernel =
            |body: &str| format!("extern \"C\" __global__ void f(int* x, const int (&y)[2]) {{ {body} }}\n");
        let with = |text: String| Sources::embedded().with_file("new.cu", &text);
        assert!(with(kernel("\\\n    begin_kernel(); *x = y[0];")).all_begin());
        assert!(!with(kernel("*x = y[0];")).all_begin());
        assert!(!with(kernel("begin_kernel();") + &kernel("*x = 1; begin_kernel();")).all_begin());
    }
}
