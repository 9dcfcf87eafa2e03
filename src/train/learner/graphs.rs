//! Work that is captured once, as a CUDA graph, and replayed.

use crate::backend::{Backend, Result};
use std::collections::HashMap;
use std::hash::Hash;

/// Graphs of the work that has run so far, by its key; a piece of work is captured when it runs for the second time,
/// because the first time may choose algorithms and allocate.
pub(super) struct Graphs<B: Backend, K> {
    pub captured: HashMap<K, Option<B::Graph>>,
    pub enabled: bool,
}

impl<B: Backend, K> Default for Graphs<B, K> {
    fn default() -> Self {
        Graphs { captured: HashMap::new(), enabled: false }
    }
}

impl<B: Backend, K: Hash + Eq + Copy> Graphs<B, K> {
    /// Does `work`: from its graph, where there is one.
    pub fn run(&mut self, backend: &B, key: K, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.enabled {
            return work();
        }
        match self.captured.get(&key) {
            Some(Some(graph)) => backend.replay(graph),
            Some(None) => {
                let graph = backend.capture(work)?;
                backend.replay(&graph)?;
                self.captured.insert(key, Some(graph));
                Ok(())
            }
            None => {
                work()?;
                self.captured.insert(key, None);
                Ok(())
            }
        }
    }

    /// Forgets what is no longer as it was captured.
    pub fn forget(&mut self, is_outdated: impl Fn(&K) -> bool) {
        self.captured.retain(|key, _| !is_outdated(key));
    }
}
