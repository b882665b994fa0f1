//! Models behind an address: a blocking client of any server that speaks OpenAI's `/chat/completions`, and of `/completions` where it
//! tells the log-probabilities of a prompt.
//!
//! - The key is read from the environment when the endpoint is opened, goes into the `Authorization` header and nowhere else: no
//!   `Debug`, no error and no text of the server that is told has it.
//! - Redirects are not followed, so the header never goes to another host.
//! - Proxies are those of the environment, as ureq reads them: the first that is set of `ALL_PROXY`, `HTTPS_PROXY` and `HTTP_PROXY`
//!   (or in small letters), for `http` and `https` alike, but for the hosts of `NO_PROXY`. A server on this machine (`localhost`,
//!   127.0.0.0/8, ::1) is asked directly.
//! - Certificates are held against Mozilla's roots that are built in, not against those of the machine.
//! - What comes back is not trusted: a body has a limit, any JSON is an answer or an error, and words of the server are cut and freed of
//!   control characters before they are told.

mod clock;
mod endpoint;
mod error;
mod failure;
mod judge;
mod key;
mod log_likelihood;
mod many;
mod pace;
mod reply;
mod request;
mod section;
#[cfg(test)]
mod server_for_tests;
#[cfg(test)]
mod tests;
mod verdict;

pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use judge::{Judge, JudgeItem, JudgeSection};
pub use log_likelihood::LogLikelihood;
pub use reply::Reply;
pub use request::ChatRequest;
pub use section::EndpointSection;
pub use verdict::{Choice, Judged, Outcome, PositionBias, position_bias};
