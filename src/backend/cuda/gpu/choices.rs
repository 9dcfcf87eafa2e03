//! What was measured once and is kept: the algorithm of each product, and the choices of the launchers.
//!
//! One JSON file per device and set of libraries. Each write takes up what other processes have written
//! since, so that they lose nothing to each other but a race within the same moment.

use super::store;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What choices hold for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    pub device: String,
    pub driver: String,
    pub cublaslt: String,
}

/// The two maps of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Algorithms of cuBLASLt, as hex.
    Products,
    /// What the launchers remember.
    Choices,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Stored {
    scope: Scope,
    products: BTreeMap<String, String>,
    choices: BTreeMap<String, String>,
}

impl Stored {
    fn map(&mut self, map: Map) -> &mut BTreeMap<String, String> {
        match map {
            Map::Products => &mut self.products,
            Map::Choices => &mut self.choices,
        }
    }

    /// The file's content; empty where there is none, or none that can be read, or that of another device.
    fn read(path: &Path, scope: &Scope) -> Self {
        let text = std::fs::read(path).unwrap_or_default();
        let stored = serde_json::from_slice::<Stored>(&text).ok().filter(|stored| stored.scope == *scope);
        stored.unwrap_or_else(|| Stored { scope: scope.clone(), ..Stored::default() })
    }
}

/// Choices of one device.
pub struct Choices {
    path: Option<PathBuf>,
    scope: Scope,
    stored: Mutex<Stored>,
}

impl Choices {
    /// Those kept in `folder`, or none to begin with and none kept.
    pub fn open(folder: Option<&Path>, scope: Scope) -> Self {
        let path = folder.map(|folder| folder.join(file_name(&scope)));
        let stored = path.as_deref().map(|path| Stored::read(path, &scope));
        let stored = stored.unwrap_or_else(|| Stored { scope: scope.clone(), ..Stored::default() });
        Choices { path, scope, stored: Mutex::new(stored) }
    }

    pub fn recall(&self, map: Map, key: &str) -> Option<String> {
        self.lock().map(map).get(key).cloned()
    }

    /// Remembers a choice: in this process always, on the disk where that can be written.
    pub fn remember(&self, map: Map, key: &str, choice: &str) {
        let mut stored = self.lock();
        stored.map(map).insert(key.to_owned(), choice.to_owned());
        let Some(path) = &self.path else { return };
        let mut merged = Stored::read(path, &self.scope);
        merged.products.extend(stored.products.clone());
        merged.choices.extend(stored.choices.clone());
        if let Ok(text) = serde_json::to_vec_pretty(&merged) {
            // Whoever cannot write here measures at every start; `engine doctor` says so.
            let _ = store::write_whole(path, &text);
        }
        *stored = merged;
    }

    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// "NVIDIA-H100-80GB-HBM3-driver-580.95.05-cuBLASLt-13.1.0.json".
fn file_name(scope: &Scope) -> String {
    let name = format!("{} driver {} cuBLASLt {}", scope.device, scope.driver, scope.cublaslt);
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    name.chars().map(plain).collect::<String>() + ".json"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(device: &str) -> Scope {
        Scope { device: device.into(), driver: "580.95".into(), cublaslt: "13.1.0".into() }
    }

    #[test]
    fn choices_outlive_the_process_and_two_writers_keep_each_others() {
        let folder = tempfile::tempdir().unwrap();
        let first = Choices::open(Some(folder.path()), scope("NVIDIA H100/80"));
        let second = Choices::open(Some(folder.path()), scope("NVIDIA H100/80"));
        first.remember(Map::Choices, "lora", "fused");
        second.remember(Map::Products, "m=1", "00ff");
        let later = Choices::open(Some(folder.path()), scope("NVIDIA H100/80"));
        assert_eq!(later.recall(Map::Choices, "lora").as_deref(), Some("fused"));
        assert_eq!(later.recall(Map::Products, "m=1").as_deref(), Some("00ff"));
        assert_eq!(later.recall(Map::Products, "lora"), None);
        let other = Choices::open(Some(folder.path()), scope("NVIDIA A100"));
        assert_eq!(other.recall(Map::Choices, "lora"), None);
    }

    #[test]
    fn a_spoilt_file_and_a_folder_that_is_none_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(&scope("GPU")));
        std::fs::write(&path, "{\"scope\": 1").unwrap();
        let choices = Choices::open(Some(folder.path()), scope("GPU"));
        choices.remember(Map::Choices, "a", "b");
        assert_eq!(Stored::read(&path, &scope("GPU")).choices["a"], "b");
        // Below a file there can be no folder.
        let choices = Choices::open(Some(&path), scope("GPU"));
        choices.remember(Map::Choices, "a", "c");
        assert_eq!(choices.recall(Map::Choices, "a").as_deref(), Some("c"));
    }
}
