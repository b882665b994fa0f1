//! The server over real sockets, with a tiny model behind it.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod completions;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod ollama;
#[cfg(test)]
mod security;
#[cfg(test)]
mod support;
#[cfg(test)]
mod watch;
