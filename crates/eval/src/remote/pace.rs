//! When the next request may go out, and how long one that failed waits.

use super::clock::Clock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use taper_kernels::rng::{CounterRng, stream_of};

/// The longest that a server can make us wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// What is waited before the first repetition, at most; it doubles with each.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The most that is waited before a repetition, where the server does not say.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The pace of all threads that ask one server.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    /// Before this moment none goes out.
    next: Mutex<Duration>,
    jitter: CounterRng,
    drawn: AtomicU64,
}

impl Pace {
    pub(super) fn new(requests_per_minute: Option<u32>) -> Self {
        let interval =
            requests_per_minute.map_or(Duration::ZERO, |limit| Duration::from_secs(60) / limit.max(1));
        let jitter = CounterRng::new(0, stream_of("remote.backoff"));
        Self { interval, next: Mutex::new(Duration::ZERO), jitter, drawn: AtomicU64::new(0) }
    }

    /// Wait for the turn of this request.
    pub(super) fn wait_turn(&self, clock: &dyn Clock, stop: &AtomicBool) {
        let (now, turn) = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = clock.now();
            let turn = now.max(*next);
            *next = turn.saturating_add(self.interval);
            (now, turn)
        };
        if turn > now {
            clock.sleep(turn - now, stop);
        }
    }

    /// Let no request of any thread begin for so long: the server asked for it.
    pub(super) fn hold(&self, time: Duration, clock: &dyn Clock) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(clock.now().saturating_add(time));
    }

    /// What to wait before a request is sent again that has failed so often: half of 1, 2, 4, ... seconds and up to as much again by
    /// chance, so that threads that failed together do not come back together.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_BACKOFF);
        let chance = self.jitter.uniform_f64_at(self.drawn.fetch_add(1, Ordering::Relaxed));
        doubled.mul_f64(0.5 + 0.5 * chance)
    }
}

/// What `Retry-After` asks for: seconds or a date, no more than ten minutes. `None` where it is neither.
pub(super) fn retry_after(value: &str, date: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let asked = match value.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER),
        Ok(_) => return None,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(date).unwrap_or_default(),
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::server_for_tests::FakeClock;

    #[test]
    fn requests_of_all_threads_keep_their_distance() {
        let (clock, stop) = (FakeClock::default(), AtomicBool::new(false));
        let pace = Pace::new(Some(120));
        for _ in 0..4 {
            pace.wait_turn(&clock, &stop);
        }
        assert_eq!(clock.slept(), [0.5, 0.5, 0.5]);
        pace.hold(Duration::from_secs(7), &clock);
        pace.wait_turn(&clock, &stop);
        pace.wait_turn(&clock, &stop);
        assert_eq!(clock.slept()[3..], [7.0, 0.5]);
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let (clock, stop) = (FakeClock::default(), AtomicBool::new(false));
        let pace = Pace::new(None);
        (0..10).for_each(|_| pace.wait_turn(&clock, &stop));
        assert!(clock.slept().is_empty());
    }

    #[test]
    fn backoff_doubles_to_a_limit_and_is_drawn_by_counter() {
        let draw = || {
            let pace = Pace::new(None);
            [1, 2, 3, 4, 20, 200].map(|failures| pace.backoff(failures).as_secs_f64())
        };
        let drawn = draw();
        for (time, most) in drawn.iter().zip([1.0, 2.0, 4.0, 8.0, 60.0, 60.0]) {
            assert!((most / 2.0..=most).contains(time), "{drawn:?}");
        }
        assert_eq!(draw(), drawn);
        let pace = Pace::new(None);
        assert_ne!(pace.backoff(1), pace.backoff(1));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = httpdate::parse_http_date("Fri, 01 May 2026 10:00:00 GMT").unwrap();
        let seconds = |value: &str| retry_after(value, date).map(|time| time.as_secs_f64());
        assert_eq!(seconds("7"), Some(7.0));
        assert_eq!(seconds(" 0.5 "), Some(0.5));
        assert_eq!(seconds("Fri, 01 May 2026 10:00:30 GMT"), Some(30.0));
        assert_eq!(seconds("Fri, 01 May 2026 09:00:00 GMT"), Some(0.0));
        for long in ["86400", "1e300", "inf", "Fri, 01 May 2099 10:00:00 GMT"] {
            assert_eq!(seconds(long), Some(600.0), "{long}");
        }
        for wrong in ["", "soon", "-3", "NaN", "Fri, 41 May 2026 10:00:00 GMT"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
