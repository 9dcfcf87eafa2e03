//! One process at a time fetches into a folder.

use super::{FetchError, Result};
use crate::files::lock_file;
use crate::progress::Monitor;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// Held as long as it lives; the operating system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until no other process holds the lock `path`.
    pub fn hold(path: &Path, monitor: &dyn Monitor) -> Result<Lock> {
        let file = lock_file(path)?;
        let mut waiting = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
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
                    monitor
                        .line(&format!("{place}: no locks here; run no other command that fetches the same"));
                    return Ok(Lock { _file: file });
                }
                Err(TryLockError::Error(e)) => return Err(FetchError::io(path, "take the lock")(e)),
            }
        }
    }
}
