//! `taper run`: check, train, evaluate base and adapter, gate, export, report.

use super::{eval, export, train};
use crate::cli::RunArgs;
use crate::session::Session;
use crate::summary;
use taper_diagnostics::ExitCode;
use taper_train::Outcome;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let started = std::time::Instant::now();
    let session = Session::open(&args.folder)?;
    let outcome = train::train_session(&session, args)?;
    if let Outcome::Interrupted { checkpoint, .. } = &outcome {
        return Ok(train::tell_interrupted(&session, checkpoint, "run"));
    }
    let Some(judged) = eval::evaluate_trained(&session)? else {
        return Ok(eval::tell_interrupted(&session));
    };
    let exports = export::export_if_passed(&session, &judged)?;
    let Some(judged) = eval::evaluate_exported(&session, judged, &exports)? else {
        return Ok(eval::tell_interrupted(&session));
    };
    let code = summary::write(&session, &outcome, &judged, &exports, started.elapsed())?;
    exports.failure.map_or(Ok(code), Err)
}
