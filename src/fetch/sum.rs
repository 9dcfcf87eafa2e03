//! Checksums of files, as those publish them who offer the files.

use super::{FetchError, Result};
use crate::hash::hex;
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Checksum that a file's bytes must have, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sum {
    /// MD5, 32 digits.
    Md5(String),
    /// SHA-256, 64 digits.
    Sha256(String),
    /// Git's name for the content: SHA-1 behind a header with the length.
    GitBlob(String),
    /// Nothing is known.
    Unknown,
}

impl Sum {
    /// The sum by which a hub names a file's bytes: git's own of a small file, SHA-256 of a large one.
    pub(super) fn of_digits(digits: &str) -> Sum {
        let hexadecimal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match digits.len() {
            40 if hexadecimal => Sum::GitBlob(digits.to_owned()),
            64 if hexadecimal => Sum::Sha256(digits.to_owned()),
            _ => Sum::Unknown,
        }
    }

    /// The expected sum and the found one where they differ; none where the file is right, or no sum is known.
    pub(super) fn mismatch(&self, path: &Path) -> Result<Option<(String, String)>> {
        let (expected, found) = match self {
            Sum::Md5(expected) => (expected, digest(Md5::new(), path)?),
            Sum::Sha256(expected) => (expected, digest(Sha256::new(), path)?),
            Sum::GitBlob(expected) => {
                let length = std::fs::metadata(path).map_err(FetchError::io(path, "read the file"))?.len();
                (expected, digest(Sha1::new_with_prefix(format!("blob {length}\0")), path)?)
            }
            Sum::Unknown => return Ok(None),
        };
        Ok((*expected != found).then(|| (expected.clone(), found)))
    }
}

fn digest(mut hash: impl Digest, path: &Path) -> Result<String> {
    let io = |e| FetchError::io(path, "read the file")(e);
    let mut file = File::open(path).map_err(io)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of "hello\n" by md5sum, sha256sum and git hash-object.
    #[test]
    fn sums_are_those_of_the_usual_tools() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sums = [
            Sum::Md5("b1946ac92492d2347c6235b4d2611184".into()),
            Sum::of_digits(sha256),
            Sum::of_digits(git),
        ];
        for sum in &sums {
            assert_eq!(sum.mismatch(file.path()).unwrap(), None, "{sum:?}");
        }
        std::fs::write(file.path(), "hullo\n").unwrap();
        for sum in sums {
            let (expected, found) = sum.mismatch(file.path()).unwrap().unwrap();
            assert_ne!(expected, found, "{sum:?}");
        }
        assert_eq!(Sum::of_digits("W/some-tag"), Sum::Unknown);
    }
}
