//! The verbs, one file each.

mod adapter;
mod bench;
mod chat;
mod check;
mod combine;
pub(crate) mod eval;
mod explain;
pub(crate) mod export;
mod generate;
mod plan;
mod recipe;
mod run;
pub(crate) mod serve;
mod smoke;
mod train;
mod verify;

use crate::cli::{Cli, Verb};
use taper_diagnostics::ExitCode;

/// Carry out what the command line says.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Check(args) => check::check(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Train(args) => train::train(&args),
        Verb::Eval(args) => eval::eval(&args),
        Verb::Verify(args) => verify::verify(&args),
        Verb::Export(args) => export::export(&args),
        Verb::Smoke(args) => smoke::smoke(&args),
        Verb::Generate(args) => generate::generate(&args),
        Verb::Chat(args) => chat::chat(&args),
        Verb::Serve(args) => serve::serve(&args),
        Verb::Adapter { verb } => adapter::adapter(&verb),
        Verb::Recipe { verb } => recipe::recipe(&verb),
        Verb::Bench { verb } => bench::bench(&verb),
    }
}
