//! `taper bench`: throughput of training and decoding for a published model shape, and of a server under load.

mod generate;
mod random;
mod serve;
mod train;

use crate::cli::BenchVerb;
use crate::fault::user_error;
use crate::output::print;
use taper_diagnostics::ExitCode;

pub(crate) fn bench(verb: &BenchVerb) -> anyhow::Result<ExitCode> {
    refuse_zeros(verb)?;
    let figures = match verb {
        BenchVerb::Train(args) => train::train(args)?,
        BenchVerb::Generate(args) => generate::generate(args)?,
        BenchVerb::Serve(args) => return serve::serve(args),
    };
    print(&figures.to_string())?;
    Ok(ExitCode::Passed)
}

/// Nothing measured must not look like a measurement.
fn refuse_zeros(verb: &BenchVerb) -> anyhow::Result<()> {
    let sizes = match verb {
        BenchVerb::Train(args) => vec![("--batch", args.batch), ("--seq", args.seq), ("--steps", args.steps)],
        BenchVerb::Generate(args) => {
            vec![("--batch", args.batch), ("--prompt", args.prompt), ("--tokens", args.tokens)]
        }
        BenchVerb::Serve(args) => vec![
            ("--concurrency", args.concurrency),
            ("--max-in-flight", args.max_in_flight),
            ("--requests", args.requests.unwrap_or(1)),
            ("--duration", args.duration.unwrap_or(1) as usize),
            ("--prompt-tokens", args.prompt_tokens),
            ("--tokens", args.tokens),
            ("--timeout", args.timeout as usize),
        ],
    };
    match sizes.into_iter().find(|(_, size)| *size == 0) {
        Some((flag, _)) => Err(user_error(format!("`{flag}` is 0"), "it takes 1 or more")),
        None => Ok(()),
    }
}
