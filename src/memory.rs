//! What the system says of memory: Linux's `/proc`. Elsewhere nothing is said, and nothing is made up.

use taper_train::resident_bytes;

/// The most memory the process has held since it began or since [`reset_peak`]; what it holds now where the system does not say.
pub(crate) fn peak_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:").or_else(resident_bytes)
}

/// Let the peak begin again at what is held now; false where the system does not let us.
pub(crate) fn reset_peak() -> bool {
    fs_err::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory that can be taken before others are pushed out: what the machine has available, or less where a control group allows less.
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = kib_of("/proc/meminfo", "MemAvailable:")?;
    let number = |path: &str| fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let allowed = number("/sys/fs/cgroup/memory.max")
        .map(|most| most.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(allowed.map_or(machine, |allowed| machine.min(allowed)))
}

fn kib_of(path: &str, key: &str) -> Option<u64> {
    let text = fs_err::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_what_is_free_and_what_was_held() {
        assert!(available_bytes().unwrap() > 1 << 20);
        assert!(peak_bytes().unwrap() >= 1 << 20);
    }
}
