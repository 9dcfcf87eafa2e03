//! Hashes as names of things: SHA-256 of parts, and any hash in hexadecimal digits.

use sha2::{Digest, Sha256};

/// Hexadecimal digits in lower case, two a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of parts, each preceded by its length, so that no other parts come to the same bytes.
#[derive(Default)]
pub(crate) struct Parts(Sha256);

impl Parts {
    /// Behind a hash, which is as long as any other.
    pub fn behind(hash: [u8; 32]) -> Parts {
        Parts(Sha256::new_with_prefix(hash))
    }

    pub fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
