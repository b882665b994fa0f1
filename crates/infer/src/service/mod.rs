//! The engine on a thread of its own, for callers that come and go: what `serve` stands on.

mod adapter;
mod adapter_pool;
mod event;
mod request;
mod worker;

pub use adapter::{ServedAdapter, head_layout};
pub use adapter_pool::{AdapterError, AdapterInfo, AdapterPool, AdapterPoolOptions, Admission};
pub use event::{Event, Finished, Piece, StopCause, Times, WrittenToken};
pub use request::{ScaledAdapter, ServiceRequest};

use crate::error::doing;
use crate::scheduler::longest_held;
use crate::{EngineOptions, Error};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use taper_models::CausalLm;
use taper_nn::PAGE_TOKENS;
use taper_text::Tokenizer;
use worker::{Job, Worker};

/// How a service works.
#[derive(Debug, Clone, Copy)]
pub struct ServiceOptions {
    /// The batch.
    pub engine: EngineOptions,
    /// Most requests that wait for a place in the batch; the next one is turned away.
    pub max_waiting: usize,
    /// Bytes for keys and values, those of prefixes kept for later requests included.
    pub cache_bytes: usize,
    /// How many adapters are kept in memory.
    pub adapters: AdapterPoolOptions,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many wait as may.
    #[error("{waiting} requests are waiting, which is the most there may be")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The service takes no more requests.
    #[error("the service is shutting down")]
    Draining,
    /// The request cannot be served: settings out of range, a prompt that does not fit.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// Numbers since the start, and what is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// In the batch now.
    pub running: usize,
    /// Waiting for a place now.
    pub waiting: usize,
    /// Bytes of keys and values that running requests hold.
    pub cache_used_bytes: usize,
    /// Bytes of keys and values that are kept for later requests alone.
    pub cache_kept_bytes: usize,
    /// Bytes that keys and values may take.
    pub cache_bytes: usize,
    /// Prompt tokens read, those found in the cache included.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the cache.
    pub cached_prompt_tokens: u64,
    /// Tokens written.
    pub generation_tokens: u64,
    /// Requests that had to give their cache back and were read again.
    pub preemptions: u64,
}

/// A request in the service. Dropping it ends the request at once, and nothing more is heard of it.
#[derive(Debug)]
pub struct Ticket {
    is_cancelled: Arc<AtomicBool>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

/// The service. Cheap to clone; its thread ends when all clones are gone or [`Service::shut_down`] was called.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    /// Most tokens of prompt and answer together.
    sequence: usize,
    batch_size: usize,
    max_waiting: usize,
}

/// What callers and the thread have in common.
struct Shared {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    state: Mutex<State>,
    /// Told when a request has ended.
    ended: Condvar,
    /// Whether what is still there is to be dropped.
    is_aborted: AtomicBool,
    adapters: AdapterPool,
}

#[derive(Default)]
struct State {
    /// Requests that were taken and have not ended.
    unfinished: usize,
    is_draining: bool,
    stats: ServiceStats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Start the thread. `admission` is asked about each adapter before it is read.
    ///
    /// # Errors
    /// When the bytes for keys and values hold not even a page, or the thread cannot be started.
    pub fn start(
        mut model: Box<dyn CausalLm>,
        tokenizer: Arc<Tokenizer>,
        options: ServiceOptions,
        admission: Box<Admission>,
    ) -> crate::Result<Self> {
        taper_nn::number_modules(model.as_mut()).map_err(doing("number the model's layers"))?;
        let model: Arc<dyn CausalLm> = Arc::from(model);
        let sequence = longest_held(model.as_ref(), options.cache_bytes);
        if sequence == 0 {
            let least = page_bytes(model.as_ref());
            return Err(Error::CacheTooSmall { given: options.cache_bytes, least });
        }
        let limits = Limits {
            sequence,
            batch_size: options.engine.batch_size.max(1),
            max_waiting: options.max_waiting,
        };
        let (jobs, inbox) = mpsc::channel();
        let adapters = AdapterPool::new(model.clone(), options.adapters, admission);
        let shared = Arc::new(Shared {
            jobs: Mutex::new(Some(jobs)),
            state: Mutex::default(),
            ended: Condvar::new(),
            is_aborted: AtomicBool::new(false),
            adapters,
        });
        Worker::start(model, tokenizer, options, inbox, Arc::downgrade(&shared))?;
        Ok(Self { shared, limits })
    }

    /// Take a request. `sink` hears of it on the service's thread, so it must not block; after [`Event::Finished`] or
    /// [`Event::Failed`] it hears no more.
    ///
    /// # Errors
    /// When it is turned away.
    pub fn submit(
        &self,
        request: ServiceRequest,
        sink: impl FnMut(Event) + Send + 'static,
    ) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let job = Job { request, sink: Box::new(sink), is_cancelled: is_cancelled.clone() };
        let mut state = self.shared.state();
        if state.is_draining {
            return Err(SubmitError::Draining);
        }
        let waiting = state.unfinished.saturating_sub(self.limits.batch_size);
        if state.unfinished >= self.limits.batch_size + self.limits.max_waiting {
            return Err(SubmitError::Busy { waiting });
        }
        let jobs = self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            return Err(SubmitError::Draining);
        }
        state.unfinished += 1;
        Ok(Ticket { is_cancelled })
    }

    fn check(&self, request: &ServiceRequest) -> Result<(), Error> {
        request.config.check().into_result().map_err(Error::Config)?;
        let (tokens, limit) = (request.prompt_ids.len(), self.limits.sequence);
        if tokens == 0 {
            return Err(Error::EmptyPrompt { prompt: 0 });
        }
        if tokens >= limit {
            return Err(Error::PromptTooLong { prompt: 0, tokens, limit });
        }
        let is_sum = request.adapters.len() > 1;
        for scaled in &request.adapters {
            let asked = match (is_sum, scaled.scale == 1.0) {
                (true, _) => "summed with others",
                (false, false) => "scaled",
                (false, true) => continue,
            };
            if let Some(module) = scaled.adapter.first_whole() {
                let (name, module) = (scaled.adapter.name().to_owned(), module.to_owned());
                return Err(Error::NotAdditive { name, asked, module });
            }
        }
        Ok(())
    }

    /// Most tokens of prompt and answer together: what the model can, as far as the memory for keys and values holds it.
    pub fn longest_sequence(&self) -> usize {
        self.limits.sequence
    }

    /// The adapters.
    pub fn adapters(&self) -> &AdapterPool {
        &self.shared.adapters
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> ServiceStats {
        let state = self.shared.state();
        let running = state.stats.running.min(state.unfinished);
        ServiceStats { running, waiting: state.unfinished - running, ..state.stats }
    }

    /// Take no more requests, let those that were taken end, for so long at most, and end the thread; whether all have ended.
    pub fn shut_down(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.shared.state();
        state.is_draining = true;
        while state.unfinished > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                break;
            };
            state = self.shared.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all = state.unfinished == 0;
        drop(state);
        self.shared.is_aborted.store(true, Ordering::Relaxed);
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        all
    }
}

/// Bytes of a page of keys and values, as the model's shape and the type of its activations say.
pub(crate) fn page_bytes(model: &dyn CausalLm) -> usize {
    let config = model.config();
    let numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * PAGE_TOKENS;
    numbers * model.activation_dtype().size_in_bytes()
}
