//! What was measured once and is kept: the algorithm of each product, and the choices of the launchers.
//!
//! One JSON file per device and set of libraries, written under a lock. Of several processes that measure the
//! same thing at the same time, the first to write it down decides for all: timings differ, and so would the
//! bits of runs that started together and are resumed from what one of them left.

use super::store;
use crate::backend::cuda::locked;
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The device and the libraries that choices hold for.
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
    Gemms,
    /// Choices of the launchers, under keys of their own.
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
            Map::Gemms => &mut self.products,
            Map::Choices => &mut self.choices,
        }
    }

    /// Takes over what `other` has and this has not.
    fn add_missing(&mut self, other: &Stored) {
        for (to, from) in [(&mut self.products, &other.products), (&mut self.choices, &other.choices)] {
            for (key, choice) in from {
                to.entry(key.clone()).or_insert_with(|| choice.clone());
            }
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
    /// Reads the choices kept in `folder`; without one there are none to begin with, and none are kept.
    pub fn open(folder: Option<&Path>, scope: Scope) -> Self {
        let path = folder.map(|folder| folder.join(file_name(&scope)));
        let stored = path.as_deref().map(|path| Stored::read(path, &scope));
        let stored = stored.unwrap_or_else(|| Stored { scope: scope.clone(), ..Stored::default() });
        Choices { path, scope, stored: Mutex::new(stored) }
    }

    pub fn recall(&self, map: Map, key: &str) -> Option<String> {
        locked(&self.stored).map(map).get(key).cloned()
    }

    /// Remembers a choice, in this process always and on the disk where that can be written, and returns the
    /// one that holds: that of another process, if one has put its own there since this one looked. What this
    /// process knew before is replaced, as it would not have chosen again if that had been of any use.
    pub fn remember(&self, map: Map, key: &str, choice: &str) -> String {
        let mut stored = locked(&self.stored);
        let Some(path) = &self.path else {
            stored.map(map).insert(key.to_owned(), choice.to_owned());
            return choice.to_owned();
        };
        let _held = hold(path);
        let mut on_disk = Stored::read(path, &self.scope);
        let known = stored.map(map).get(key);
        let first = on_disk.map(map).get(key).filter(|kept| Some(*kept) != known).cloned();
        let holds = first.unwrap_or_else(|| choice.to_owned());
        for stored in [&mut on_disk, &mut *stored] {
            stored.map(map).insert(key.to_owned(), holds.clone());
        }
        // What others have put there is not taken over beyond this: it may be about something that this
        // process is measuring right now, and has not seen.
        on_disk.add_missing(&stored);
        if let Ok(text) = serde_json::to_vec_pretty(&on_disk) {
            // Whoever cannot write here measures at every start; who opens the device and the probe say so.
            let _ = files::write_private(path, &text);
        }
        holds
    }

    /// Why they are gone when the process ends, if they are.
    pub fn forgotten(&self) -> Option<String> {
        match &self.path {
            Some(path) => store::unwritable(path.parent()?),
            None => Some(store::nowhere()),
        }
    }
}

/// The lock of the file `path`, for as long as it is kept; none where nothing can be written, or where the file
/// system has no locks: there, processes that start at the same moment may still miss each other's choices.
fn hold(path: &Path) -> Option<File> {
    let file = files::lock_file(&path.with_extension("lock")).ok()?;
    file.lock().ok()?;
    Some(file)
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
        second.remember(Map::Gemms, "m=1", "00ff");
        let later = Choices::open(Some(folder.path()), scope("NVIDIA H100/80"));
        assert_eq!(later.recall(Map::Choices, "lora").as_deref(), Some("fused"));
        assert_eq!(later.recall(Map::Gemms, "m=1").as_deref(), Some("00ff"));
        assert_eq!(later.recall(Map::Gemms, "lora"), None);
        let other = Choices::open(Some(folder.path()), scope("NVIDIA A100"));
        assert_eq!(other.recall(Map::Choices, "lora"), None);
    }

    #[test]
    fn the_first_of_several_processes_decides() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Choices::open(Some(folder.path()), scope("GPU"));
        let (first, second) = (open(), open());
        assert_eq!(first.remember(Map::Gemms, "m=1", "a"), "a");
        assert_eq!(second.remember(Map::Gemms, "m=1", "b"), "a");
        let later = open();
        for choices in [&first, &second, &later] {
            assert_eq!(choices.recall(Map::Gemms, "m=1").as_deref(), Some("a"));
        }
        // Whoever knew it and measures all the same could not use it.
        assert_eq!(later.remember(Map::Gemms, "m=1", "c"), "c");
        assert_eq!(open().recall(Map::Gemms, "m=1").as_deref(), Some("c"));
    }

    #[test]
    fn processes_that_write_at_once_agree_and_lose_nothing() {
        const WRITERS: usize = 8;
        let folder = tempfile::tempdir().unwrap();
        for round in 0..5 {
            let ready = std::sync::Barrier::new(WRITERS);
            let writer = |index: usize| {
                let choices = Choices::open(Some(folder.path()), scope("GPU"));
                ready.wait();
                choices.remember(Map::Choices, &format!("{round} of {index}"), "own");
                choices.remember(Map::Choices, &format!("{round} of all"), &index.to_string())
            };
            let agreed: Vec<String> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..WRITERS).map(|index| scope.spawn(move || writer(index))).collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            assert!(agreed.iter().all(|choice| *choice == agreed[0]), "{agreed:?}");
            let later = Choices::open(Some(folder.path()), scope("GPU"));
            assert_eq!(later.recall(Map::Choices, &format!("{round} of all")), Some(agreed[0].clone()));
            for index in 0..WRITERS {
                assert!(later.recall(Map::Choices, &format!("{round} of {index}")).is_some(), "{index}");
            }
        }
    }

    #[test]
    fn a_spoilt_file_and_a_folder_that_is_none_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(&scope("GPU")));
        std::fs::write(&path, "{\"scope\": 1").unwrap();
        let choices = Choices::open(Some(folder.path()), scope("GPU"));
        choices.remember(Map::Choices, "a", "b");
        assert_eq!(choices.forgotten(), None);
        assert_eq!(Stored::read(&path, &scope("GPU")).choices["a"], "b");
        // Below a file there can be no folder.
        let choices = Choices::open(Some(&path), scope("GPU"));
        choices.remember(Map::Choices, "a", "c");
        assert_eq!(choices.recall(Map::Choices, "a").as_deref(), Some("c"));
        assert!(choices.forgotten().is_some_and(|problem| problem.contains(".json: ")));
        let choices = Choices::open(None, scope("GPU"));
        assert!(choices.forgotten().is_some_and(|problem| problem.contains(store::FOLDER)));
    }
}
