//! Generate with a model and the adapters attached to it, many prompts at a time.
//!
//! [`Engine`] keeps a batch full, [`Sampler`] turns logits into tokens, [`token_losses`] asks a model how surprised it is by
//! given text. Letters: T tokens of a pass, H hidden size, V vocabulary.

mod completion;
mod config;
mod engine;
mod error;
mod pass;
mod sampler;
mod score;
mod sequence;
mod service;
mod stop;

pub use completion::{Completion, FinishReason};
pub use config::GenerationConfig;
pub use engine::{Delta, Engine, EngineOptions, Listener, Request};
pub use error::{Error, Result};
pub use pass::longest_sequence;
pub use sampler::{Sampler, distribution};
pub use score::{Scored, token_losses};
pub use service::{
    AdapterError, AdapterInfo, AdapterPool, AdapterPoolOptions, Event, Finished, Piece, ScaledAdapter,
    ServedAdapter, Service, ServiceOptions, ServiceRequest, ServiceStats, StopCause, SubmitError, Ticket,
    Times, WrittenToken,
};
pub use stop::StopScanner;
