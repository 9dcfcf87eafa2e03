//! What was measured once and is kept: the algorithm of each product, and the choices of the launchers.
//!
//! One file of JSON lines per device and set of libraries, to which a choice is appended in a single write. Of several
//! processes that measure the same thing at the same time, the one whose line comes first decides for all: timings
//! differ, and so would the bits of runs that started together and are resumed from what one of them left. Each reads
//! the file behind its own line, so it sees all that were before. Where a file system does not append in one piece, as
//! over NFS, a line may be lost, and another process miss that choice.

use super::store;
use crate::backend::cuda::locked;
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The device and the libraries that choices hold for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    pub device: String,
    pub driver: String,
    pub cublaslt: String,
}

/// What a choice is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Map {
    /// Algorithms of cuBLASLt, as hex.
    Gemms,
    /// Choices of the launchers, under keys of their own.
    Choices,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    scope: Scope,
    map: Map,
    key: String,
    choice: String,
    /// The choice that was of no use to the process which wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
}

/// Begins a line of its own: one that another process did not finish ends here.
fn append(path: &Path, line: &Line) -> Option<()> {
    let text = format!("\n{}", serde_json::to_string(line).ok()?);
    files::make_folder_of(path).and_then(|()| files::append_private(path, text.as_bytes())).ok()
}

/// The choices that hold.
type Held = BTreeMap<(Map, String), String>;

/// What the lines of a file come to: the first of a key holds until one replaces it. Those of another scope, and those
/// that are not whole, say nothing.
fn read(path: &Path, scope: &Scope) -> Held {
    let text = std::fs::read(path).unwrap_or_default();
    let lines =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    let mut held = Held::new();
    for line in lines.filter(|line| line.scope == *scope) {
        let key = (line.map, line.key);
        if held.get(&key).is_none_or(|kept| Some(kept) == line.replaces.as_ref()) {
            held.insert(key, line.choice);
        }
    }
    held
}

/// Choices of one device.
pub struct Choices {
    path: Option<PathBuf>,
    scope: Scope,
    held: Mutex<Held>,
}

impl Choices {
    /// Reads the choices kept in `folder`; without one there are none to begin with, and none are kept.
    pub fn open(folder: Option<&Path>, scope: Scope) -> Self {
        let path = folder.map(|folder| folder.join(file_name(&scope)));
        let held = path.as_deref().map(|path| read(path, &scope)).unwrap_or_default();
        Choices { path, scope, held: Mutex::new(held) }
    }

    pub fn recall(&self, map: Map, key: &str) -> Option<String> {
        locked(&self.held).get(&(map, key.to_owned())).cloned()
    }

    /// Remembers a choice, in this process always and on the disk where that can be written, and returns the
    /// one that holds: that of another process, if one has put its own there since this one looked. What this
    /// process knew before is replaced, as it would not have chosen again if that had been of any use. What
    /// others have put there of other keys is not taken over: it may be about something that this process is
    /// measuring right now, and has not seen.
    pub fn remember(&self, map: Map, key: &str, choice: &str) -> String {
        let mut held = locked(&self.held);
        let at = (map, key.to_owned());
        let (known, choice) = (held.get(&at).cloned(), choice.to_owned());
        let line = Line {
            scope: self.scope.clone(),
            map,
            key: key.to_owned(),
            choice: choice.clone(),
            replaces: known.clone(),
        };
        let kept = self.path.as_deref().and_then(|path| {
            // Whoever cannot write here measures at every start; who opens the device and the probe say so.
            let _ = append(path, &line);
            read(path, &self.scope).remove(&at)
        });
        let holds = kept.filter(|kept| Some(kept) != known.as_ref()).unwrap_or(choice);
        held.insert(at, holds.clone());
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

/// "NVIDIA-H100-80GB-HBM3-driver-580.95.05-cuBLASLt-13.1.0.jsonl".
fn file_name(scope: &Scope) -> String {
    let name = format!("{} driver {} cuBLASLt {}", scope.device, scope.driver, scope.cublaslt);
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    name.chars().map(plain).collect::<String>() + ".jsonl"
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
    fn what_replaces_a_choice_does_so_for_every_reader() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Choices::open(Some(folder.path()), scope("GPU"));
        open().remember(Map::Gemms, "m=1", "a");
        // All three know "a", and none can use it: the first to replace it decides.
        let (first, second, third) = (open(), open(), open());
        assert_eq!(first.remember(Map::Gemms, "m=1", "b"), "b");
        assert_eq!(second.remember(Map::Gemms, "m=1", "c"), "b");
        assert_eq!(
            third.recall(Map::Gemms, "m=1").as_deref(),
            Some("a"),
            "nothing changes in the middle of a run"
        );
        third.remember(Map::Gemms, "m=2", "d");
        assert_eq!(third.recall(Map::Gemms, "m=1").as_deref(), Some("a"));
        for reader in [open(), open()] {
            assert_eq!(reader.recall(Map::Gemms, "m=1").as_deref(), Some("b"));
            assert_eq!(reader.recall(Map::Gemms, "m=2").as_deref(), Some("d"));
        }
    }

    #[test]
    fn a_line_that_was_not_finished_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Choices::open(Some(folder.path()), scope("GPU"));
        open().remember(Map::Choices, "whole", "a");
        let path = folder.path().join(file_name(&scope("GPU")));
        let line = std::fs::read(&path).unwrap();
        for length in 0..line.len() {
            let torn = String::from_utf8_lossy(&line[..length]).replace("whole", "torn");
            std::fs::write(&path, [&line, torn.as_bytes()].concat()).unwrap();
            assert_eq!(open().remember(Map::Choices, "next", "b"), "b", "behind {torn}");
            let later = open();
            for (key, choice) in [("whole", Some("a")), ("torn", None), ("next", Some("b"))] {
                assert_eq!(later.recall(Map::Choices, key).as_deref(), choice, "{key} behind {torn}");
            }
        }
    }

    #[test]
    fn lines_of_another_scope_say_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let open = |device| Choices::open(Some(folder.path()), scope(device));
        assert_eq!(file_name(&scope("GPU 1")), file_name(&scope("GPU-1")));
        assert_eq!(open("GPU 1").remember(Map::Choices, "a", "b"), "b");
        assert_eq!(open("GPU-1").recall(Map::Choices, "a"), None);
        assert_eq!(open("GPU-1").remember(Map::Choices, "a", "c"), "c");
        assert_eq!(open("GPU 1").recall(Map::Choices, "a").as_deref(), Some("b"));
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        Choices::open(Some(folder.path()), scope("GPU")).remember(Map::Choices, "a", "b");
        let made = std::fs::metadata(folder.path().join(file_name(&scope("GPU")))).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_spoilt_file_and_a_folder_that_is_none_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(&scope("GPU")));
        std::fs::write(&path, "{\"scope\": 1").unwrap();
        let choices = Choices::open(Some(folder.path()), scope("GPU"));
        choices.remember(Map::Choices, "a", "b");
        assert_eq!(choices.forgotten(), None);
        let later = Choices::open(Some(folder.path()), scope("GPU"));
        assert_eq!(later.recall(Map::Choices, "a").as_deref(), Some("b"));
        // Below a file there can be no folder.
        let choices = Choices::open(Some(&path), scope("GPU"));
        choices.remember(Map::Choices, "a", "c");
        assert_eq!(choices.recall(Map::Choices, "a").as_deref(), Some("c"));
        assert!(choices.forgotten().is_some_and(|problem| problem.contains(".jsonl: ")));
        let choices = Choices::open(None, scope("GPU"));
        assert!(choices.forgotten().is_some_and(|problem| problem.contains(store::FOLDER)));
    }
}
