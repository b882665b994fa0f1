//! Generate with a model and the adapters attached to it, many prompts at a time.
//!
//! [`Engine`] keeps a batch full, [`Sampler`] turns logits into tokens, [`token_losses`] asks a model how surprised it is by
//! given text. Letters: T tokens of a pass, H hidden size, V vocabulary.

mod adjust;
mod completion;
mod config;
mod engine;
mod error;
mod grammar;
mod logprobs;
mod pass;
mod sampler;
mod score;
mod select;
mod sequence;
mod service;
mod stop;

pub use completion::{Completion, FinishReason};
pub use config::GenerationConfig;
pub use engine::{Delta, Engine, EngineOptions, Listener, Request};
pub use error::{Error, Result};
pub use grammar::{CompiledGrammar, Grammar, GrammarCompiler, GrammarError, GrammarMatcher, TokenMask};
pub use logprobs::token_logprobs;
pub use pass::longest_sequence;
pub use sampler::{Sampler, SamplerInput, distribution};
pub use score::{Scored, token_losses};
pub use service::{
    AdapterError, AdapterInfo, AdapterPool, AdapterPoolOptions, Event, Finished, Piece, ScaledAdapter,
    ServedAdapter, Service, ServiceOptions, ServiceRequest, ServiceStats, StopCause, SubmitError, Ticket,
    Times, WrittenToken,
};
pub use stop::StopScanner;
