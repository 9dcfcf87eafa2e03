//! How long-running library work reports its progress and learns that it should stop.

/// Watches one piece of long-running work. The command line draws bars with it; a library user can pass
/// [`Silent`].
pub trait Monitor: Send + Sync {
    /// The task that starts next is a part of something longer.
    fn part(&self, _part: RunPart) {}
    /// A task of `total` units starts; tasks do not nest. A total of 0 is not known.
    fn begin(&self, task: &str, total: u64);
    /// A task starts whose units are bytes.
    fn begin_bytes(&self, task: &str, total: u64) {
        self.begin(task, total);
    }
    /// `units` more are done. Called from any thread.
    fn advance(&self, units: u64);
    /// A short state to show beside the bar, such as the current loss.
    fn state(&self, text: &str);
    /// The task is over.
    fn finish(&self);
    /// A line worth keeping: shown above the bar.
    fn line(&self, text: &str);
    /// A line about what the user may have to look after.
    fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }
    /// A line for those who want to know every step.
    fn debug(&self, _text: &str) {}
    /// A line of metrics.jsonl, as it is written: a JSON object of a training step or of an epoch.
    fn record(&self, _line: &str) {}
    /// True once the user asked to stop (Ctrl-C): finish cleanly, as soon as possible.
    fn stopped(&self) -> bool;
}

/// A task's place among others that take as long as it does, such as an epoch's among the epochs of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPart {
    /// Number of parts before it.
    pub index: u32,
    /// Number of all parts.
    pub of: u32,
    /// Units of other tasks that follow before the next part begins, such as an epoch's validation images.
    pub after: u64,
    /// Whether it may end before the last of them.
    pub at_most: bool,
}

/// Tasks whose beginning and end do not show: parts of one that shows, or such as draw no bar.
pub(crate) struct Within<'a>(pub &'a dyn Monitor);

impl Monitor for Within<'_> {
    fn begin(&self, _task: &str, _total: u64) {}
    fn advance(&self, units: u64) {
        self.0.advance(units);
    }
    fn state(&self, text: &str) {
        self.0.state(text);
    }
    fn finish(&self) {}
    fn line(&self, text: &str) {
        self.0.line(text);
    }
    fn warn(&self, text: &str) {
        self.0.warn(text);
    }
    fn debug(&self, text: &str) {
        self.0.debug(text);
    }
    fn stopped(&self) -> bool {
        self.0.stopped()
    }
}

/// Shows nothing and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn begin(&self, _task: &str, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn state(&self, _text: &str) {}
    fn finish(&self) {}
    fn line(&self, _text: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Heard {
        fn hear(&self, kind: &str, text: &str) {
            self.0.lock().unwrap().push(format!("{kind} {text}"));
        }
    }

    impl Monitor for Heard {
        fn begin(&self, task: &str, _total: u64) {
            self.hear("begin", task);
        }
        fn advance(&self, units: u64) {
            self.hear("advance", &units.to_string());
        }
        fn state(&self, text: &str) {
            self.hear("state", text);
        }
        fn finish(&self) {
            self.hear("finish", "");
        }
        fn line(&self, text: &str) {
            self.hear("line", text);
        }
        fn warn(&self, text: &str) {
            self.hear("warn", text);
        }
        fn debug(&self, text: &str) {
            self.hear("debug", text);
        }
        fn stopped(&self) -> bool {
            true
        }
    }

    #[test]
    fn within_a_task_all_but_its_beginning_and_end_comes_through() {
        let heard = Heard::default();
        let monitor = Within(&heard);
        monitor.begin("task", 2);
        monitor.warn("one");
        monitor.line("two");
        monitor.debug("three");
        monitor.advance(2);
        monitor.finish();
        assert_eq!(*heard.0.lock().unwrap(), ["warn one", "line two", "debug three", "advance 2"]);
        assert!(monitor.stopped());
    }
}
