//! `taper plan`: what a recipe will take, before it runs.

mod probe;
mod resolution;
mod settings;
mod tell;
mod work;

use crate::cli::{FolderArgs, PlanArgs};
use crate::memory::available_bytes;
use crate::output::print;
use crate::session::Session;
use probe::probe;
use settings::{Setting, settings_that_fit};
use taper_diagnostics::ExitCode;
use taper_train::plan::MemoryPlan;
use taper_train::resident_bytes;
use work::Work;

/// What is told.
struct Planned<'s> {
    work: Work<'s>,
    memory: MemoryPlan,
    /// Memory that the run may take: what is free, and what this process holds of it.
    available: Option<u64>,
    /// Settings with which it would fit, when it does not.
    settings: Vec<Setting>,
    probed: Option<probe::Probed>,
}

impl Planned<'_> {
    /// Whether the peak fits; `None` when the system does not say.
    fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.memory.peak().bytes.total() <= available)
    }
}

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let session = Session::open(&FolderArgs { recipe: args.recipe.clone(), out: None })?;
    let work = Work::of(&session)?;
    let memory = work.memory();
    let available = available_bytes().map(|free| free + resident_bytes().unwrap_or(0));
    let too_much = available.filter(|available| memory.peak().bytes.total() > *available);
    let settings = match too_much {
        Some(available) => settings_that_fit(&work, available)?,
        None => Vec::new(),
    };
    let probed = if args.probe { Some(probe(&work)?) } else { None };
    let planned = Planned { work, memory, available, settings, probed };
    if args.recipe.common.json {
        print(&tell::json(&planned).to_string())?;
    } else {
        tell::people(&planned);
    }
    Ok(ExitCode::Passed)
}
