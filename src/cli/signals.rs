//! Where Ctrl-C and the system's other requests to end arrive.

/// Calls `handler` for each SIGINT, SIGTERM and SIGHUP from now on, in a thread of its own. Those that the
/// process was started without stay ignored: `nohup` and a shell's `&` ask for that.
#[cfg(unix)]
pub fn on_stop(handler: impl Fn() + Send + 'static) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
    // Without a handler a signal ends the process, which no run minds.
    let Ok(mut signals) = signal_hook::iterator::Signals::new(wanted) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| handler()));
}

/// Calls `handler` for Ctrl-C and what else ends a program on systems without Unix signals.
#[cfg(not(unix))]
pub fn on_stop(handler: impl Fn() + Send + 'static) {
    // Without a handler Ctrl-C ends the process, which no run minds.
    let _ = ctrlc::set_handler(handler);
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing; where it returns 0 it has filled `action`, which
    // is plain data.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
