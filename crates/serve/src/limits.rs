//! What a request may ask for at most.

use std::time::Duration;

/// Limits of what clients can ask for. None is there to be reached by honest use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Time for a request's head to come, an idle connection's next one included.
    pub head_timeout: Duration,
    /// Time for a request's body to come.
    pub body_timeout: Duration,
    /// Time for which a client may take none of what is written to it.
    pub write_timeout: Duration,
    /// Time from a request to the end of its answer.
    pub request_timeout: Duration,
    /// Choices for one prompt (`n`).
    pub choices: usize,
    /// Texts of one request: prompts times choices.
    pub texts: usize,
    /// Messages of a conversation.
    pub messages: usize,
    /// Tools of a request.
    pub tools: usize,
    /// Bytes of all tools of a request, as JSON.
    pub tools_bytes: usize,
    /// Bytes of a JSON schema.
    pub schema_bytes: usize,
    /// Stop strings.
    pub stops: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Entries of `logit_bias`.
    pub logit_biases: usize,
    /// Ids in `stop_token_ids`.
    pub stop_ids: usize,
    /// Likeliest tokens told beside each (`top_logprobs`).
    pub top_logprobs: usize,
    /// Adapters summed in one request.
    pub adapters: usize,
    /// Bytes of `chat_template_kwargs`, as JSON.
    pub template_kwargs_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            head_bytes: 32 << 10,
            headers: 64,
            connections: 256,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            choices: 16,
            texts: 128,
            messages: 1024,
            tools: 128,
            tools_bytes: 256 << 10,
            schema_bytes: 64 << 10,
            stops: 16,
            stop_bytes: 512,
            logit_biases: 1024,
            stop_ids: 64,
            top_logprobs: 20,
            adapters: 8,
            template_kwargs_bytes: 16 << 10,
        }
    }
}
