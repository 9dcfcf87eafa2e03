//! A monitor of a run that may finish though the user asked to stop.

use crate::progress::{Monitor, RunPart};
use std::sync::atomic::{AtomicBool, Ordering};

/// Passes everything on to another monitor, until the run is to finish in spite of a request to stop.
pub(super) struct Patience<'a> {
    monitor: &'a dyn Monitor,
    finishes: AtomicBool,
}

impl<'a> Patience<'a> {
    pub fn new(monitor: &'a dyn Monitor) -> Self {
        Patience { monitor, finishes: AtomicBool::new(false) }
    }

    /// From now on it says nothing of stopping.
    pub fn finish_in_spite(&self) {
        self.finishes.store(true, Ordering::Relaxed);
    }
}

impl Monitor for Patience<'_> {
    fn part(&self, part: RunPart) {
        self.monitor.part(part);
    }
    fn begin(&self, task: &str, total: u64) {
        self.monitor.begin(task, total);
    }
    fn begin_bytes(&self, task: &str, total: u64) {
        self.monitor.begin_bytes(task, total);
    }
    fn advance(&self, units: u64) {
        self.monitor.advance(units);
    }
    fn state(&self, text: &str) {
        self.monitor.state(text);
    }
    fn finish(&self) {
        self.monitor.finish();
    }
    fn line(&self, text: &str) {
        self.monitor.line(text);
    }
    fn warn(&self, text: &str) {
        self.monitor.warn(text);
    }
    fn debug(&self, text: &str) {
        self.monitor.debug(text);
    }
    fn record(&self, line: &str) {
        self.monitor.record(line);
    }
    fn stopped(&self) -> bool {
        !self.finishes.load(Ordering::Relaxed) && self.monitor.stopped()
    }
}
