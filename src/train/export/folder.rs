//! A folder that is either whole or not there: filled beside its place, then renamed.

use super::LABELS;
use super::onnx::file as onnx;
use crate::model_files::{CONFIG, PROCESSOR_FILES, WEIGHTS};
use crate::settings::flag;
use crate::train::{Result, TrainError};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files and folders that an export may hold beside [`PROCESSOR_FILES`]; a folder with anything else is not replaced.
const ENTRIES: [&str; 9] = [
    "README.md",
    "adapter",
    "head.safetensors",
    "prompts.safetensors",
    CONFIG,
    WEIGHTS,
    onnx::MODEL,
    onnx::DATA,
    LABELS,
];

/// The line of a model card by which an export is known.
pub(crate) const MARK: &str = "- clip-engine";

/// A folder in the making.
pub(crate) struct NewFolder {
    staged: TempDir,
    to: PathBuf,
}

impl NewFolder {
    /// Starts the folder `to`. One that holds anything is refused, unless it may be overwritten and is an
    /// earlier export; so is one that any of `sources` lies in.
    pub fn beside(to: &Path, overwrite: bool, sources: &[&Path]) -> Result<Self> {
        let to = check(to, overwrite, sources)?;
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(TrainError::io(parent, "create the folder"))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".export-");
        #[cfg(unix)]
        {
            // As any other new folder: the user's umask decides.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        let staged = builder.tempdir_in(parent).map_err(TrainError::io(&to, "create the folder"))?;
        Ok(NewFolder { staged, to })
    }

    /// Where its files go for now.
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Gives the folder its name.
    pub fn finish(self) -> Result<()> {
        let NewFolder { staged, to } = self;
        let io = |e| TrainError::io(&to, "write the folder")(e);
        // Whatever is there is empty, or an export that goes; until the new one has its name it is kept aside.
        let aside = match std::fs::remove_dir(&to) {
            Ok(()) => None,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => {
                let aside = staged.path().with_extension("old");
                std::fs::rename(&to, &aside).map_err(io)?;
                Some(aside)
            }
        };
        if let Err(error) = std::fs::rename(staged.path(), &to) {
            if let Some(aside) = aside {
                // The first error is the one to tell of.
                let _ = std::fs::rename(&aside, &to);
            }
            return Err(io(error));
        }
        // It has another name now: nothing is left to remove.
        let _ = staged.keep();
        aside.map_or(Ok(()), |aside| {
            std::fs::remove_dir_all(&aside).map_err(TrainError::io(&aside, "remove the earlier export"))
        })
    }
}

/// Refuses what must not be replaced; the path without links.
fn check(to: &Path, overwrite: bool, sources: &[&Path]) -> Result<PathBuf> {
    let mut entries = match std::fs::read_dir(to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(to.to_path_buf()),
        entries => entries.map_err(TrainError::io(to, "list the folder"))?,
    };
    let place = to.canonicalize().map_err(TrainError::io(to, "find the folder"))?;
    if entries.next().is_none() {
        return Ok(place);
    }
    if !overwrite {
        let problem =
            format!("not empty; replace an earlier export with {}, or name another folder", flag::OVERWRITE);
        return Err(TrainError::file(to, problem));
    }
    for source in sources {
        if source.canonicalize().is_ok_and(|source| source.starts_with(&place)) {
            let problem = format!("holds {}, which is exported; name another folder", source.display());
            return Err(TrainError::file(to, problem));
        }
    }
    if !is_export(to)? {
        return Err(TrainError::file(to, "holds something that is no export; name another folder"));
    }
    Ok(place)
}

/// True for a folder that holds an export and nothing else.
fn is_export(dir: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(TrainError::io(dir, "list the folder"))? {
        let entry = entry.map_err(TrainError::io(dir, "list the folder"))?;
        if !ENTRIES.iter().chain(&PROCESSOR_FILES).any(|name| entry.file_name() == *name) {
            return Ok(false);
        }
    }
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    Ok(card.lines().any(|line| line == MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    }

    fn export(to: &Path, overwrite: bool, text: &str) -> Result<()> {
        let folder = NewFolder::beside(to, overwrite, &[])?;
        write(folder.path(), "README.md", &format!("{MARK}\n{text}"));
        folder.finish()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_appears_whole_and_leaves_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("a/b");
        export(&to, false, "one").unwrap();
        assert_eq!(names(&place.path().join("a")), ["b"]);
        assert_eq!(names(&to), ["README.md"]);
        // Given up half-way.
        let folder = NewFolder::beside(&place.path().join("a/c"), false, &[]).unwrap();
        write(folder.path(), "README.md", "half");
        drop(folder);
        assert_eq!(names(&place.path().join("a")), ["b"]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = place.path().join("plain");
            std::fs::create_dir(&plain).unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&to), mode(&plain));
        }
    }

    #[test]
    fn only_an_earlier_export_is_replaced_and_only_when_asked() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("out");
        std::fs::create_dir(&to).unwrap();
        export(&to, false, "one").unwrap();
        let refused = export(&to, false, "two").unwrap_err().to_string();
        assert!(refused.contains("--overwrite"), "{refused}");
        export(&to, true, "two").unwrap();
        assert_eq!(std::fs::read_to_string(to.join("README.md")).unwrap(), format!("{MARK}\ntwo"));
        assert_eq!(names(place.path()), ["out"]);
        write(&to, "thesis.txt", "years of work");
        assert!(export(&to, true, "three").unwrap_err().to_string().contains("no export"));
        assert!(to.join("thesis.txt").is_file());
        // A checkpoint from elsewhere has files of the same names.
        let checkpoint = place.path().join("checkpoint");
        write(&checkpoint, "config.json", "{}");
        write(&checkpoint, "README.md", "# CLIP");
        assert!(export(&checkpoint, true, "four").unwrap_err().to_string().contains("no export"));
        assert!(checkpoint.join("config.json").is_file());
    }

    #[test]
    fn a_folder_that_holds_what_is_exported_stays() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("out");
        export(&to, false, "one").unwrap();
        let inside = to.join("adapter");
        std::fs::create_dir(&inside).unwrap();
        let refused = NewFolder::beside(&to, true, &[&inside]).err().unwrap().to_string();
        assert!(refused.contains("which is exported"), "{refused}");
        assert!(to.join("README.md").is_file());
    }
}
