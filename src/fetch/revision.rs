//! What a hub says of the files of a revision.

use super::sum::Sum;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The answer to a question for files with `blobs=true`.
#[derive(Debug, Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<File>,
}

/// A file of the revision. Mirrors may leave out all but its name.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    rfilename: String,
    pub size: Option<u64>,
    /// Git's name for the content, of a large file for what stands in its place.
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Large>,
}

/// A large file, which git does not hold.
#[derive(Debug, Deserialize)]
struct Large {
    sha256: Option<String>,
}

impl File {
    /// Checksum of the file's bytes: SHA-256 of a large file, git's name of a small one.
    pub fn sum(&self) -> Sum {
        let name = match &self.lfs {
            Some(large) => &large.sha256,
            None => &self.blob_id,
        };
        name.as_deref().map_or(Sum::Unknown, Sum::of_digits)
    }
}

/// A commit and its files by their names.
#[derive(Debug)]
pub(super) struct Revision {
    pub commit: String,
    pub files: BTreeMap<String, File>,
}

impl Revision {
    /// Reads an answer; None for what is none.
    pub fn parse(text: &[u8]) -> Option<Revision> {
        let answer: Answer = serde_json::from_slice(text).ok()?;
        let files = answer.siblings.into_iter().map(|file| (file.rfilename.clone(), file)).collect();
        Some(Revision { commit: answer.sha, files })
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_known_by_its_own_sum_and_not_by_its_pointer_s() {
        let (git, sha256) = ("a".repeat(40), "b".repeat(64));
        let sum = |file: &str| {
            let text = format!(r#"{{"sha": "c", "siblings": [{{"rfilename": "x"{file}}}]}}"#);
            Revision::parse(text.as_bytes()).unwrap().files["x"].sum()
        };
        assert_eq!(sum(&format!(r#", "blobId": "{git}""#)), Sum::GitBlob(git.clone()));
        let large = |lfs: &str| sum(&format!(r#", "blobId": "{git}", "lfs": {lfs}"#));
        assert_eq!(large(&format!(r#"{{"sha256": "{sha256}", "pointerSize": 134}}"#)), Sum::Sha256(sha256));
        assert_eq!(large("{}"), Sum::Unknown);
        assert_eq!(large("null"), Sum::GitBlob(git.clone()));
        assert_eq!(sum(""), Sum::Unknown);
        assert!(Revision::parse(b"[]").is_none());
    }
}
