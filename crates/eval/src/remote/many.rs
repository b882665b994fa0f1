//! Many requests, some at a time.

use super::{ChatRequest, Endpoint, Error, Reply, Result};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether the work is to be broken off.
const LOOK: Duration = Duration::from_millis(100);

impl Endpoint {
    /// Ask all requests, `concurrency` at a time. `on_reply` is called on this thread with the place of each in the list, as the
    /// replies come; a request that failed is an error of its own and does not end the rest.
    ///
    /// On [`ControlFlow::Break`] no further request is sent and this returns at once; replies to those that are under way are
    /// thrown away.
    pub fn run_all(
        &self,
        requests: Vec<ChatRequest>,
        on_reply: impl FnMut(usize, Result<Reply>) -> ControlFlow<()>,
    ) {
        self.run_each(requests, Endpoint::chat, || false, on_reply);
    }

    /// As [`Endpoint::run_all`], with any kind of request: `ask` sends one through the endpoint that it is given. `is_interrupted` is
    /// asked ten times a second, also while no reply comes; when it says so the work is broken off.
    pub fn run_each<J, R>(
        &self,
        jobs: Vec<J>,
        ask: impl Fn(&Endpoint, &J) -> Result<R> + Send + Sync + 'static,
        is_interrupted: impl Fn() -> bool,
        mut on_reply: impl FnMut(usize, Result<R>) -> ControlFlow<()>,
    ) where
        J: Send + Sync + 'static,
        R: Send + 'static,
    {
        let (endpoint, stop) = self.with_stop();
        let (replies, threads) = start(&endpoint, jobs, ask);
        loop {
            let is_broken_off = match replies.recv_timeout(LOOK) {
                Ok((index, reply)) => on_reply(index, reply).is_break() || is_interrupted(),
                Err(RecvTimeoutError::Timeout) => is_interrupted(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if is_broken_off {
                stop.store(true, Ordering::Relaxed);
                return;
            }
        }
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

type Replies<R> = Receiver<(usize, Result<R>)>;

/// Threads that take the jobs in their order. They end with the last job, or when nobody listens.
fn start<J, R>(
    endpoint: &Endpoint,
    jobs: Vec<J>,
    ask: impl Fn(&Endpoint, &J) -> Result<R> + Send + Sync + 'static,
) -> (Replies<R>, Vec<JoinHandle<()>>)
where
    J: Send + Sync + 'static,
    R: Send + 'static,
{
    let threads = endpoint.section().concurrency.clamp(1, jobs.len().max(1));
    let (sender, replies) = sync_channel(threads);
    let work = Arc::new((jobs, ask, AtomicUsize::new(0)));
    let spawn = |_| {
        let (endpoint, sender, work) = (endpoint.clone(), sender.clone(), Arc::clone(&work));
        std::thread::spawn(move || {
            let (jobs, ask, next) = &*work;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { return };
                let reply = ask(&endpoint, job);
                if matches!(reply, Err(Error::GivenUp { .. })) || sender.send((index, reply)).is_err() {
                    return;
                }
            }
        })
    };
    (replies, (0..threads).map(spawn).collect())
}
