//! Work that is captured once, as a CUDA graph, and replayed.

use crate::backend::{Backend, Result};
use std::collections::HashMap;
use std::hash::Hash;

/// Graphs of the work that has run so far, by its key, one for each memory that a batch may be in. A piece of work is
/// captured from the second time on that it runs, because the first time may choose algorithms and allocate.
pub(super) struct Graphs<B: Backend, K> {
    pub captured: HashMap<K, Vec<Option<B::Graph>>>,
    pub enabled: bool,
}

impl<B: Backend, K> Default for Graphs<B, K> {
    fn default() -> Self {
        Graphs { captured: HashMap::new(), enabled: false }
    }
}

impl<B: Backend, K: Hash + Eq + Copy> Graphs<B, K> {
    /// Does `work` on the batch in memory `set`: from its graph, where there is one.
    pub fn run(&mut self, backend: &B, key: K, set: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.enabled {
            return work();
        }
        let Some(graphs) = self.captured.get_mut(&key) else {
            work()?;
            self.captured.insert(key, Vec::new());
            return Ok(());
        };
        if graphs.len() <= set {
            graphs.resize_with(set + 1, || None);
        }
        match &mut graphs[set] {
            Some(graph) => backend.replay(graph),
            graph => backend.replay(graph.insert(backend.capture(work)?)),
        }
    }

    /// Forgets what is no longer as it was captured.
    pub fn forget(&mut self, is_outdated: impl Fn(&K) -> bool) {
        self.captured.retain(|key, _| !is_outdated(key));
    }
}
