//! What several subcommands share in printing and writing.

use crate::TrainError;
use crate::files::write_atomic;
use anyhow::{Result, bail};
use serde_json::Value;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;

/// Prints to standard output. A reader that has gone away is no error.
pub fn say(text: impl Display) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => bail!("standard output: {e}"),
        _ => Ok(()),
    }
}

/// Writes a report as JSON for the flag `--json`.
pub fn write_json(path: &Path, report: &Value) -> Result<()> {
    write_file(path, format!("{report:#}\n").as_bytes())
}

/// Writes a whole file or none.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // With what to do about it.
    Ok(write_atomic(path, bytes).map_err(TrainError::from)?)
}

/// The commit of the working directory, where it is a git checkout.
pub fn commit() -> Value {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| Path::new("Cargo.toml").exists())
    else {
        return Value::Null;
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    serde_json::json!(if dirty { commit + "+changes" } else { commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_is_named_with_a_remedy() {
        let error = write_json(Path::new("no such folder/a.json"), &Value::Null).unwrap_err().to_string();
        assert!(error.starts_with("no such folder/a.json: cannot write the file"), "{error}");
        assert!(error.ends_with("check the path, its permissions and the free space"), "{error}");
    }
}
