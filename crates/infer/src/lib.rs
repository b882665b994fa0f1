//! Generate with a model, many prompts at a time, each with adapters of its own.
//!
//! [`Engine`] answers a list of prompts, [`Service`] requests that come and go; [`Sampler`] turns logits into tokens, [`token_losses`] asks a model how surprised it is by
//! given text. Letters: T tokens of a pass, H hidden size, V vocabulary.

mod adjust;
mod completion;
mod config;
mod engine;
mod error;
mod grammar;
mod logprobs;
mod pass;
mod prefix;
mod sampler;
mod scheduler;
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
    AdapterError, AdapterInfo, AdapterPool, AdapterPoolOptions, Admission, Event, Finished, Piece,
    ScaledAdapter, ServedAdapter, Service, ServiceOptions, ServiceRequest, ServiceStats, StopCause,
    SubmitError, Ticket, Times, WrittenToken, head_layout,
};
pub use stop::StopScanner;
