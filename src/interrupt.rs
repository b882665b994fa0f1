//! Ctrl-C: the first one asks the run to end at the next step, with a checkpoint; the second ends the process.

use crate::output::say;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use taper_diagnostics::ExitCode;

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The flag that Ctrl-C, SIGTERM and SIGHUP set; the handler is installed the first time.
///
/// # Errors
/// When the system refuses a handler.
pub(crate) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    if let Some(flag) = FLAG.get() {
        return Ok(flag.clone());
    }
    let flag = FLAG.get_or_init(Arc::default).clone();
    let set = flag.clone();
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(ExitCode::Interrupted as i32);
        }
        say("\ninterrupted: ending at the next step, a checkpoint follows (again to end at once)");
    })?;
    Ok(flag)
}
