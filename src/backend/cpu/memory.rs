//! What the operating system has left for this process.

use sysinfo::{MemoryRefreshKind, System};

/// Bytes that can be allocated without swapping, a container's limit included; none where the system does not
/// say.
pub fn available() -> Option<usize> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // sysinfo looks for limits only once it knows the memory.
    if system.total_memory() == 0 {
        return None;
    }
    // What a container has in use counts cached files, which make room; these are not in its resident set.
    let limit = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let free = system.available_memory().min(limit.unwrap_or(u64::MAX));
    Some(usize::try_from(free).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_some_of_what_there_is() {
        let mut system = System::new();
        system.refresh_memory();
        let (free, all) = (available().unwrap(), system.total_memory() as usize);
        assert!(free > 1 << 24 && free < all, "{free} of {all}");
    }
}
