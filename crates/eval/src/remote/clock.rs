//! Time, so that tests need not wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long a sleeper sleeps before it looks whether it is still to wait.
const NAP: Duration = Duration::from_millis(100);

/// Tells the time and waits.
pub(super) trait Clock: Send + Sync {
    /// Since a moment that stays the same.
    fn now(&self) -> Duration;

    /// The time of day, which others' dates are held against.
    fn date(&self) -> SystemTime;

    /// Wait, but not much longer than until `stop` is set.
    fn sleep(&self, time: Duration, stop: &AtomicBool);
}

/// The machine's clock.
#[derive(Debug)]
pub(super) struct SystemClock(Instant);

impl SystemClock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn date(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration, stop: &AtomicBool) {
        let end = self.now().saturating_add(time);
        while !stop.load(Ordering::Relaxed) {
            let left = end.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_woken() {
        let clock = SystemClock::start();
        clock.sleep(Duration::from_secs(3600), &AtomicBool::new(true));
        clock.sleep(Duration::from_millis(20), &AtomicBool::new(false));
        let slept = clock.now();
        assert!(slept >= Duration::from_millis(20) && slept < Duration::from_secs(60), "{slept:?}");
    }
}
