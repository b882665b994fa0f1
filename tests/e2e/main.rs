//! The built binary, driven as a user drives it: one module a journey.
//!
//! Every journey works in a folder of its own with a tiny base (two layers, random weights), a few dozen examples and the binary; the
//! network is out of reach. Whatever happens, no run may show the trace of a panic: [`desk::Desk::taper`] looks for it each time.

#[cfg(test)]
mod adapter;
#[cfg(test)]
mod bench_serve;
#[cfg(test)]
mod candidates;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod check;
#[cfg(test)]
mod ci_files;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod desk;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod eval;
#[cfg(test)]
mod evaluation;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod export;
#[cfg(test)]
mod finetune;
#[cfg(test)]
mod generate;
#[cfg(test)]
mod help;
#[cfg(test)]
mod hostile_data;
#[cfg(test)]
mod kept_tokens;
#[cfg(test)]
mod mock_server;
#[cfg(test)]
mod offline;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod quantised;
#[cfg(test)]
mod real_base;
#[cfg(test)]
mod recipe_errors;
#[cfg(test)]
mod recipe_verbs;
#[cfg(test)]
mod repeat;
#[cfg(test)]
mod reports;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod smoke;
#[cfg(test)]
mod verify;
