//! The engine on a thread of its own, for callers that come and go: what `serve` stands on.

mod adapter_pool;
mod event;
mod request;

pub use adapter_pool::{AdapterError, AdapterInfo, AdapterPool, AdapterPoolOptions, ServedAdapter};
pub use event::{Event, Finished, Piece, StopCause, Times, WrittenToken};
pub use request::{ScaledAdapter, ServiceRequest};

use crate::{Engine, EngineOptions, Request};
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use taper_models::CausalLm;
use taper_text::Tokenizer;

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
    #[error("{waiting} requests are waiting")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The service takes no more requests.
    #[error("the service is shutting down")]
    Draining,
    /// The request cannot be served: settings out of range, a prompt that does not fit.
    #[error(transparent)]
    Refused(#[from] crate::Error),
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

/// A request in the service. Dropping it ends the request at once.
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<std::sync::atomic::AtomicBool>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

type Sink = Box<dyn FnMut(Event) + Send>;

struct Job {
    request: ServiceRequest,
    sink: Sink,
    cancelled: Arc<std::sync::atomic::AtomicBool>,
}

/// The service. Cheap to clone; the thread ends when all clones are gone or [`Service::shut_down`] was called.
#[derive(Clone)]
pub struct Service {
    jobs: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
    adapters: Arc<AdapterPool>,
}

impl Service {
    /// Start the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        model: Arc<dyn CausalLm>,
        tokenizer: Arc<Tokenizer>,
        options: ServiceOptions,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let adapters = Arc::new(AdapterPool::new(options.adapters));
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            let engine = Engine::new(model.as_ref(), &tokenizer, options.engine);
            for mut job in inbox {
                let requests = [Request { number: job.request.number, prompt_ids: job.request.prompt_ids }];
                let done = engine.generate_with(&requests, &job.request.config, &mut |delta| {
                    (job.sink)(Event::Piece(Piece { text: delta.text.to_owned(), tokens: Vec::new() }));
                    match job.cancelled.load(std::sync::atomic::Ordering::Relaxed) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                });
                match done {
                    Ok(mut done) => {
                        if let Some(completion) = done.pop() {
                            let times = Times::default();
                            (job.sink)(Event::Finished(Finished {
                                completion,
                                stop: None,
                                cached_tokens: 0,
                                times,
                            }));
                        }
                    }
                    Err(error) => (job.sink)(Event::Failed(error)),
                }
            }
        })?;
        Ok(Self { jobs: Arc::new(Mutex::new(Some(jobs))), adapters })
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
        let cancelled = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let job = Job { request, sink: Box::new(sink), cancelled: cancelled.clone() };
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(Ticket { cancelled }) } else { Err(SubmitError::Draining) }
    }

    /// The adapters.
    pub fn adapters(&self) -> &AdapterPool {
        &self.adapters
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> ServiceStats {
        ServiceStats::default()
    }

    /// Take no more requests, let those that were taken end, for so long at most; whether all have ended.
    pub fn shut_down(&self, _within: Duration) -> bool {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        true
    }
}
