//! The load itself: clients that take requests off one schedule.
//!
//! A closed loop is some clients and requests that are due at once; an open loop is many clients and requests with times of their own.
//! A request's times are counted from when it was due, not from when a client was free for it: a server that stalls is charged for the
//! requests that would have come meanwhile ("coordinated omission", Gil Tene).

use super::client::{Client, Outcome};
use super::traffic::{Traffic, arrival_gap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A client's stack: a request needs little, and an open loop has hundreds.
const STACK_BYTES: usize = 512 << 10;

/// When requests are begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Most requests.
    pub(super) requests: Option<usize>,
    /// No request is begun later than this.
    pub(super) duration: Option<Duration>,
    /// Arrivals a second; none: as soon as a client is free.
    pub(super) rate: Option<f64>,
}

/// One request and how it ended.
#[derive(Debug)]
pub(super) struct Sample {
    /// Which of the models.
    pub(super) model: usize,
    /// When it should have been sent.
    pub(super) due: Instant,
    /// When it was sent.
    pub(super) sent: Instant,
    pub(super) outcome: Outcome,
}

/// What a load left.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) samples: Vec<Sample>,
    /// From the beginning to the end of the last request.
    pub(super) elapsed: Duration,
}

/// Run `clients` clients over the requests from number `first` on.
pub(super) fn run(
    client: &Client,
    traffic: &Traffic,
    tokens: usize,
    clients: usize,
    first: u64,
    pace: Pace,
) -> anyhow::Result<Load> {
    let schedule = Schedule::new(first, traffic.seed, pace);
    let clients = pace.requests.map_or(clients, |requests| clients.min(requests));
    let work = || {
        let mut samples = Vec::new();
        while let Some(ticket) = schedule.take() {
            std::thread::sleep(ticket.due.saturating_duration_since(Instant::now()));
            let model = traffic.model(ticket.number);
            let prompt = traffic.prompt(ticket.number);
            let sent = Instant::now();
            let outcome = client.ask(&traffic.models[model], &prompt, tokens);
            samples.push(Sample { model, due: ticket.due, sent, outcome });
        }
        samples
    };
    let samples = std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let workers = (0..clients).map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        let mut samples = Vec::new();
        for worker in workers {
            samples.extend(worker.join().map_err(|_| anyhow::anyhow!("a client ended by a panic"))?);
        }
        anyhow::Ok(samples)
    })?;
    Ok(Load { samples, elapsed: schedule.started.elapsed() })
}

/// A request that a client has taken.
struct Ticket {
    number: u64,
    due: Instant,
}

/// Which request is next, and when.
struct Schedule {
    started: Instant,
    seed: u64,
    pace: Pace,
    /// The number of the next request and, in an open loop, the arrival of the last one in seconds.
    next: Mutex<(u64, f64)>,
    end: Option<u64>,
}

impl Schedule {
    fn new(first: u64, seed: u64, pace: Pace) -> Self {
        let end = pace.requests.map(|requests| first + requests as u64);
        Self { started: Instant::now(), seed, pace, next: Mutex::new((first, 0.0)), end }
    }

    fn take(&self) -> Option<Ticket> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, arrived) = *next;
        if self.end.is_some_and(|end| number >= end) {
            return None;
        }
        let (due, arrived) = match self.pace.rate {
            Some(rate) => {
                let arrives = arrived + arrival_gap(self.seed, number, rate);
                (self.started + Duration::from_secs_f64(arrives), arrives)
            }
            None => (Instant::now(), arrived),
        };
        if self.pace.duration.is_some_and(|duration| due >= self.started + duration) {
            return None;
        }
        *next = (number + 1, arrived);
        Some(Ticket { number, due })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(requests: Option<usize>, seconds: Option<f64>, rate: Option<f64>) -> Pace {
        Pace { requests, duration: seconds.map(Duration::from_secs_f64), rate }
    }

    fn tickets(schedule: &Schedule) -> Vec<Ticket> {
        std::iter::from_fn(|| schedule.take()).collect()
    }

    #[test]
    fn requests_are_numbered_on_and_end_with_their_count() {
        let schedule = Schedule::new(5, 1, pace(Some(3), None, None));
        let taken: Vec<u64> = tickets(&schedule).iter().map(|ticket| ticket.number).collect();
        assert_eq!(taken, [5, 6, 7]);
    }

    #[test]
    fn a_closed_loop_ends_with_its_time() {
        let schedule = Schedule::new(0, 1, pace(None, Some(0.05), None));
        assert!(schedule.take().is_some());
        std::thread::sleep(Duration::from_millis(60));
        assert!(schedule.take().is_none());
    }

    #[test]
    fn an_open_loop_knows_its_arrivals_beforehand() {
        let schedule = Schedule::new(0, 1, pace(None, Some(100.0), Some(20.0)));
        let due: Vec<Instant> = tickets(&schedule).iter().map(|ticket| ticket.due).collect();
        assert!(due.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(due.iter().all(|due| *due < schedule.started + Duration::from_secs(100)));
        // 2000 are expected; the standard deviation is 45.
        assert!((1800..2200).contains(&due.len()), "{}", due.len());
    }
}
