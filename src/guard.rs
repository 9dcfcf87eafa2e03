//! Calls into libraries that parse files from anywhere and may panic on a malformed one.
//!
//! A bug that a file meets in a decoder costs that file, not the run. What cannot be caught this way, running
//! out of memory or of stack, is kept away by limits in front of the call.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; None when it panics. What `work` writes to must not be used after that.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.ok()
}

/// True on a thread that is inside [`guarded`].
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_the_mark_goes() {
        assert!(!is_guarded());
        assert_eq!(guarded(|| usize::from(is_guarded())), Some(1));
        let work = || -> u8 { std::panic::resume_unwind(Box::new("malformed")) };
        assert_eq!(guarded(|| (guarded(work), is_guarded())), Some((None, true)));
        assert!(!is_guarded());
    }
}
