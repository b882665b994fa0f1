//! OpenAI-shaped HTTP over [`taper_infer::Service`]: validate, queue, stream, drain. It never sees a tensor.
//!
//! - [`Server::bind`] takes the address before a model is loaded; [`Server::run`] serves an [`App`] until it is asked to end, then
//!   takes no more requests, lets those in flight end and returns.
//! - [`App`] is what is served: a base, its adapters, the limits.
//! - Clients speak OpenAI's API (`openai`), vLLM's extras of it, or Ollama's (`ollama`).
//!
//! A request goes this way: the guard (Host, Origin, key), its body within a limit, its fields with their types and ranges, the chat
//! template and the tokenizer (both off the threads that serve connections), the service's bounded queue, and back as events that
//! a wire format turns into one answer or a stream. Whoever goes away drops his tickets, and with them his place in the batch.

mod adapters;
mod app;
mod around;
mod auth;
mod body;
mod catalogue;
mod error;
mod fields;
mod grammar;
mod guard;
mod info;
mod limits;
mod metrics;
mod ollama;
mod openai;
mod page;
mod prompt;
mod request_id;
mod routes;
mod run;
mod sampling;
mod section;
mod server;
mod stalled;
mod tls;
mod tools;
mod wire;

pub use app::{App, AppOptions, Model, ModelFacts};
pub use auth::{API_KEYS_VARIABLE, ApiKeys};
pub use catalogue::{OwnTemplate, is_adapter_name};
pub use limits::Limits;
pub use section::{ServeSection, is_model_name, parse_bytes};
pub use server::{Drained, Server, ServerOptions, Shutdown};
pub use tls::TlsFiles;

use std::net::SocketAddr;
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, ExitCode};

/// What keeps a server from starting, or an adapter from being served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk said no; the text names the file.
    #[error("{0}")]
    Io(std::io::Error),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Anyone who can reach the machine could use the server.
    #[error("{address} can be reached from other machines, and no API key is set")]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// A file for keys without one.
    #[error("`{}` has no API key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A key that is none.
    #[error("an API key of {origin} {what}")]
    BadKey {
        /// Where it stands.
        origin: String,
        /// What is wrong with it; the key itself is not shown.
        what: &'static str,
    },
    /// A certificate or a key that TLS cannot use.
    #[error("`{}` {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A name that no adapter can have.
    #[error("`{name}` cannot be an adapter's name: {why}")]
    AdapterName {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// An adapter that cannot be served.
    #[error("cannot serve the adapter `{name}`: {why}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// The system has no thread or no signal handler for us.
    #[error("cannot start the server: {0}")]
    Start(std::io::Error),
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Bind { .. } => "is another server running? `--port 0` takes a free port".into(),
            Self::Open { .. } => format!(
                "give keys with `--api-key-file FILE` or {API_KEYS_VARIABLE}, stay on 127.0.0.1, or say `--insecure-no-auth`"
            ),
            Self::NoKey { .. } => "put a key on each line; lines with `#` are passed over".into(),
            Self::BadKey { .. } => {
                "use 8 or more letters and digits, for example of `openssl rand -hex 24`".into()
            }
            Self::AdapterName { .. } => {
                "use letters, digits, `.`, `_` and `-`, beginning with a letter or digit, 128 at most".into()
            }
            _ => return None,
        })
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Start(_) => ExitCode::Fault,
            _ => ExitCode::UserError,
        }
    }
}
