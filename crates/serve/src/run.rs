//! Requests in the service, from the queue to their last event.

use crate::app::App;
use crate::error::ApiError;
use std::sync::Arc;
use std::time::Instant;
use taper_infer::{Event, FinishReason, Finished, ServiceRequest, SubmitError, Ticket};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;

/// What the log and the metrics call a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) request_id: String,
    /// The kind of request: chat, completion.
    pub(crate) kind: &'static str,
    /// The model as it was asked for.
    pub(crate) model: String,
    /// The adapters that are used.
    pub(crate) adapters: Vec<String>,
}

/// Tokens of all texts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
}

/// The texts of one request, all in the service. Dropped, they end at once and give their places free.
pub(crate) struct Run {
    app: Arc<App>,
    about: About,
    tickets: Vec<Option<Ticket>>,
    events: UnboundedReceiver<(usize, Event)>,
    cut: watch::Receiver<bool>,
    deadline: Instant,
    started: Instant,
    left: usize,
    outcome: &'static str,
    written: usize,
}

impl Run {
    /// Queue them, all or none.
    pub(crate) fn start(
        app: &Arc<App>,
        about: About,
        mut requests: Vec<ServiceRequest>,
    ) -> Result<Self, ApiError> {
        if app.is_draining() {
            return Err(ApiError::draining());
        }
        // More would be told to try again for ever.
        let most = app.service_options.max_waiting.saturating_add(app.service_options.engine.batch_size);
        if requests.len() > most {
            let message =
                format!("{} texts are asked for, and the server takes {most} at once", requests.len());
            return Err(ApiError::invalid("n", message));
        }
        let deadline = app.deadline();
        let (sender, events) = mpsc::unbounded_channel();
        let mut tickets = Vec::with_capacity(requests.len());
        for (index, mut request) in requests.drain(..).enumerate() {
            request.deadline = Some(deadline);
            let sender = sender.clone();
            let mut heard = Heard::new(app.clone(), &about);
            let sink = move |event: Event| {
                heard.see(&event);
                // Nobody listens any more: the ticket has been dropped too.
                let _ = sender.send((index, event));
            };
            tickets.push(Some(app.service.submit(request, sink).map_err(refused)?));
        }
        for name in &about.adapters {
            app.metrics.adapter_requests(name, tickets.len());
        }
        let (cut, left) = (app.until_cut(), tickets.len());
        let (outcome, started) = ("abort", Instant::now());
        let app = app.clone();
        Ok(Self { app, about, tickets, events, cut, deadline, started, left, outcome, written: 0 })
    }

    /// The next event and the text it is of; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        let next = self.wait().await;
        match &next {
            Ok(None) => self.outcome = "done",
            Ok(Some(_)) => {}
            Err(error) => {
                self.outcome = error.code.unwrap_or("error");
            }
        }
        next
    }

    async fn wait(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let (index, event) = tokio::select! {
            biased;
            event = self.events.recv() => event.ok_or_else(ApiError::draining)?,
            () = tokio::time::sleep_until(self.deadline.into()) => return Err(ApiError::timed_out()),
            _ = self.cut.wait_for(|cut| *cut) => return Err(ApiError::draining()),
        };
        if let (Event::Failed(_), Some(ticket)) = (&event, self.tickets.get_mut(index)) {
            *ticket = None;
        }
        match event {
            Event::Failed(_) if self.app.is_draining() => Err(ApiError::draining()),
            Event::Failed(error) => Err(error.into()),
            Event::Finished(finished) => {
                self.left -= 1;
                self.written += finished.completion.completion_tokens();
                if let Some(ticket) = self.tickets.get_mut(index) {
                    *ticket = None;
                }
                Ok(Some((index, Event::Finished(finished))))
            }
            event => Ok(Some((index, event))),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Of those that are broken off nothing more is heard.
        for _ in self.tickets.iter().flatten() {
            self.app.metrics.ended("abort", self.started.elapsed());
        }
        tracing::info!(
            request_id = self.about.request_id,
            kind = self.about.kind,
            model = self.about.model,
            outcome = self.outcome,
            completion_tokens = self.written,
            seconds = self.started.elapsed().as_secs_f64(),
            "generation ended"
        );
    }
}

fn refused(error: SubmitError) -> ApiError {
    error.into()
}

/// What the metrics hear of a text, on the engine's thread.
struct Heard {
    app: Arc<App>,
    adapters: Vec<String>,
    started: Instant,
    last: Option<Instant>,
}

impl Heard {
    fn new(app: Arc<App>, about: &About) -> Self {
        Self { app, adapters: about.adapters.clone(), started: Instant::now(), last: None }
    }

    fn see(&mut self, event: &Event) {
        let metrics = &self.app.metrics;
        match event {
            Event::Prompt(_) => {}
            Event::Piece(_) => {
                let now = Instant::now();
                match self.last.replace(now) {
                    None => metrics.first_token(now - self.started),
                    Some(last) => metrics.next_token(now - last),
                }
            }
            Event::Finished(finished) => self.finished(finished),
            Event::Failed(_) => metrics.ended("error", self.started.elapsed()),
        }
    }

    fn finished(&self, finished: &Finished) {
        if finished.completion.finish_reason == FinishReason::Cancelled {
            // Nobody listens any more: it was counted where the run was given up.
            return;
        }
        let metrics = &self.app.metrics;
        let tokens = finished.completion.completion_tokens();
        metrics.ended(reason(finished.completion.finish_reason), self.started.elapsed());
        metrics.times(finished.times, tokens);
        for name in &self.adapters {
            metrics.adapter_tokens(name, finished.completion.prompt_tokens, tokens);
        }
    }
}

/// vLLM's word for how a text ended.
fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "abort",
    }
}

/// OpenAI's word for how a text ended.
pub(crate) fn finish_reason(finished: &Finished) -> &'static str {
    match finished.completion.finish_reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}
