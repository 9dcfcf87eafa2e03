//! One process at a time fetches into a folder.

use super::{FetchError, Result};
use crate::files::lock_file;
use crate::progress::Monitor;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// Waits until no other process holds the lock `path`, and holds it as long as the file that is returned is open.
pub(super) fn hold(path: &Path, monitor: &dyn Monitor) -> Result<File> {
    let file = lock_file(path)?;
    let mut waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if monitor.stopped() => return Err(FetchError::Interrupted),
            Err(TryLockError::WouldBlock) => {
                if !waiting {
                    monitor.line(&format!("waiting for another process that holds {}", path.display()));
                }
                waiting = true;
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                let place = path.display();
                monitor.line(&format!("{place}: no locks here; run no other command that fetches the same"));
                return Ok(file);
            }
            Err(TryLockError::Error(e)) => return Err(FetchError::io(path, "take the lock")(e)),
        }
    }
}
