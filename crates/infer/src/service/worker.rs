//! The thread of a service: takes requests in, runs passes, tells.

use super::{Event, ServiceOptions, ServiceRequest, ServiceStats, Shared};
use crate::Error;
use crate::scheduler::Scheduler;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use taper_kernels::rows;
use taper_models::CausalLm;
use taper_text::Tokenizer;

/// A request as it was taken.
pub(super) struct Job {
    pub(super) request: ServiceRequest,
    pub(super) sink: Box<dyn FnMut(Event) + Send>,
    pub(super) is_cancelled: Arc<AtomicBool>,
}

/// Who is told of a request.
struct Caller {
    sink: Box<dyn FnMut(Event) + Send>,
    is_cancelled: Arc<AtomicBool>,
}

pub(super) struct Worker {
    inbox: Receiver<Job>,
    /// Weak, so that the thread ends when the last handle of the service goes.
    shared: Weak<Shared>,
    callers: HashMap<usize, Caller>,
    next_key: usize,
    /// What the cache held, used and kept, when that was last counted: it takes a look at every page.
    cache: (Instant, (usize, usize)),
}

/// How old that count may be while there is work.
const COUNT_EVERY: Duration = Duration::from_millis(200);

impl Worker {
    pub(super) fn start(
        model: Arc<dyn CausalLm>,
        tokenizer: Arc<Tokenizer>,
        options: ServiceOptions,
        inbox: Receiver<Job>,
        shared: Weak<Shared>,
    ) -> crate::Result<()> {
        let mut worker =
            Self { inbox, shared, callers: HashMap::new(), next_key: 0, cache: (Instant::now(), (0, 0)) };
        let body = move || {
            let mut scheduler =
                Scheduler::new(model.as_ref(), &tokenizer, options.engine, options.cache_bytes, true);
            worker.run(&mut scheduler, options.cache_bytes);
        };
        let started = std::thread::Builder::new().name("engine".into()).spawn(body);
        started.map(drop).map_err(|source| Error::PassFailed { reason: source.to_string() })
    }

    fn run(&mut self, scheduler: &mut Scheduler<'_>, cache_bytes: usize) {
        while self.take_in(scheduler) {
            self.forget_cancelled(scheduler);
            if !scheduler.is_idle() {
                self.step(scheduler);
            }
            self.tell_stats(scheduler, cache_bytes);
        }
        self.fail_all(&|| Error::PassFailed { reason: "the service was shut down".into() });
    }

    /// Take new requests, waiting for one where there is nothing to do; false at the end.
    fn take_in(&mut self, scheduler: &mut Scheduler<'_>) -> bool {
        let is_aborted = |shared: &Weak<Shared>| {
            shared.upgrade().is_none_or(|shared| shared.is_aborted.load(Ordering::Relaxed))
        };
        if scheduler.is_idle() {
            match self.inbox.recv() {
                Ok(job) => self.submit(job, scheduler),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(job) => self.submit(job, scheduler),
                Err(TryRecvError::Empty) => return !is_aborted(&self.shared),
                Err(TryRecvError::Disconnected) => {
                    return !is_aborted(&self.shared) && !scheduler.is_idle();
                }
            }
        }
    }

    fn submit(&mut self, job: Job, scheduler: &mut Scheduler<'_>) {
        self.next_key += 1;
        let Job { request, sink, is_cancelled } = job;
        self.callers.insert(self.next_key, Caller { sink, is_cancelled });
        scheduler.submit(self.next_key, request);
    }

    fn forget_cancelled(&mut self, scheduler: &mut Scheduler<'_>) {
        let before = self.callers.len();
        self.callers.retain(|_, caller| !caller.is_cancelled.load(Ordering::Relaxed));
        if self.callers.len() < before {
            let callers = &self.callers;
            scheduler.remove_where(|key| !callers.contains_key(&key));
            self.note_ended(before - self.callers.len());
        }
    }

    /// A pass. Whatever goes wrong in it ends the requests that were in it and no other.
    fn step(&mut self, scheduler: &mut Scheduler<'_>) {
        let before = self.callers.len();
        let callers = &mut self.callers;
        let mut emit = |key: usize, event: Event| {
            let ends = matches!(event, Event::Finished(_) | Event::Failed(_));
            let Some(caller) = callers.get_mut(&key) else { return ControlFlow::Break(()) };
            // Of what was given up nothing more is heard.
            let goes_on = !caller.is_cancelled.load(Ordering::Relaxed);
            if goes_on {
                (caller.sink)(event);
            }
            if ends {
                callers.remove(&key);
            }
            if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // Within the pool, since a loop that is shared out from outside of it wakes and waits for a thread each time.
        // A thread of the pool that waits can be handed this while it is within a step of another service.
        let step = || rows::by_number(|| scheduler.step(&mut emit));
        let outcome = rayon::scope(|_| catch_unwind(AssertUnwindSafe(step)));
        let reason = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("a fault of the engine".to_owned()),
        };
        if let Some(reason) = reason {
            for key in scheduler.clear_batch() {
                if let Some(mut caller) = self.callers.remove(&key) {
                    (caller.sink)(Event::Failed(Error::PassFailed { reason: reason.clone() }));
                }
            }
        }
        self.note_ended(before - self.callers.len());
    }

    fn fail_all(&mut self, error: &dyn Fn() -> Error) {
        let count = self.callers.len();
        for (_, mut caller) in self.callers.drain() {
            (caller.sink)(Event::Failed(error()));
        }
        self.note_ended(count);
    }

    fn note_ended(&self, count: usize) {
        let Some(shared) = self.shared.upgrade().filter(|_| count > 0) else { return };
        let mut state = shared.state();
        state.unfinished = state.unfinished.saturating_sub(count);
        shared.ended.notify_all();
    }

    fn tell_stats(&mut self, scheduler: &Scheduler<'_>, cache_bytes: usize) {
        let Some(shared) = self.shared.upgrade() else { return };
        let (running, waiting) = scheduler.sizes();
        if scheduler.is_idle() || self.cache.0.elapsed() >= COUNT_EVERY {
            self.cache = (Instant::now(), scheduler.cache_bytes());
        }
        let (cache_used_bytes, cache_kept_bytes) = self.cache.1;
        let counts = scheduler.counts;
        shared.state().stats = ServiceStats {
            running,
            waiting,
            cache_used_bytes,
            cache_kept_bytes,
            cache_bytes,
            prompt_tokens: counts.prompt_tokens,
            cached_prompt_tokens: counts.cached_prompt_tokens,
            generation_tokens: counts.generation_tokens,
            preemptions: counts.preemptions,
        };
    }
}
