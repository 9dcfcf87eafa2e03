//! The name that a snapshot has for a file among the blobs.

use crate::files;
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Makes `snapshots/COMMIT/NAME` mean `blobs/ETAG` as Hugging Face's own tools do: by a link, or where the
/// file system has none by the file itself. A blob that is not `new` may have other names, and is copied.
/// A link that leads nowhere is replaced.
pub(super) fn put(
    blob: &Path,
    new: bool,
    name: &Path,
    symlink: impl Fn(&Path, &Path) -> Result<()>,
) -> Result<()> {
    if name.is_symlink() {
        files::remove(name).map_err(|e| e.source)?;
    }
    let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
    match symlink(&target, name) {
        Ok(()) => Ok(()),
        // Another process put it there a moment ago.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && name.is_file() => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(e),
        Err(_) if new => std::fs::rename(blob, name),
        Err(_) => copy(blob, name),
    }
}

#[cfg(unix)]
pub(super) fn symlink(target: &Path, name: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, name)
}

/// Elsewhere they need a right of their own.
#[cfg(not(unix))]
pub(super) fn symlink(target: &Path, name: &Path) -> Result<()> {
    no_symlink(target, name)
}

pub(super) fn no_symlink(_target: &Path, _name: &Path) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// The name appears when the copy is whole.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let copied = std::fs::copy(from, &part).and_then(|_| std::fs::rename(&part, to));
    if copied.is_err() {
        // The first error is the one to tell of.
        let _ = std::fs::remove_file(&part);
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    struct Place {
        dir: TempDir,
        blob: PathBuf,
        name: PathBuf,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let (blob, name) = (dir.path().join("blobs/etag"), dir.path().join("snapshots/commit/file.json"));
            for path in [&blob, &name] {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            std::fs::write(&blob, "bytes").unwrap();
            Place { dir, blob, name }
        }

        fn files(&self) -> usize {
            let entries = walkdir::WalkDir::new(self.dir.path()).into_iter();
            entries.filter(|entry| !entry.as_ref().unwrap().file_type().is_dir()).count()
        }
    }

    #[test]
    fn without_links_a_new_blob_is_moved_and_another_copied() {
        let refuse = |_: &Path, _: &Path| -> Result<()> { Err(ErrorKind::PermissionDenied.into()) };
        for (new, files) in [(true, 1), (false, 2)] {
            let place = Place::new();
            put(&place.blob, new, &place.name, refuse).unwrap();
            assert_eq!(std::fs::read(&place.name).unwrap(), b"bytes");
            assert_eq!((place.blob.is_file(), place.files()), (!new, files));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_where_it_leads_nowhere_and_left_where_another_process_made_it() {
        let place = Place::new();
        symlink(Path::new("../../blobs/nothing"), &place.name).unwrap();
        put(&place.blob, true, &place.name, symlink).unwrap();
        assert_eq!(std::fs::read_link(&place.name).unwrap(), Path::new("../../blobs/etag"));
        assert_eq!(place.files(), 2);

        // Between the look and the link.
        let place = Place::new();
        let late = |target: &Path, name: &Path| {
            symlink(target, name)?;
            symlink(target, name)
        };
        put(&place.blob, true, &place.name, late).unwrap();
        assert!(place.name.is_symlink() && place.blob.is_file());

        let place = Place::new();
        std::fs::create_dir(&place.name).unwrap();
        assert_eq!(
            put(&place.blob, true, &place.name, symlink).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert!(place.blob.is_file());
    }
}
