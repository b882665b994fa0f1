//! `taper plan`: what a recipe will take, before it runs.

mod place;
mod probe;
mod resolution;
mod settings;
mod tell;
mod work;

use crate::cli::{FolderArgs, PlanArgs};
use crate::device::DeviceChoice;
use crate::output::print;
use crate::session::Session;
use candle_core::Device;
use place::{Place, available_on, limit_after_failure};
use probe::probe;
use settings::{Setting, settings_that_fit};
use taper_diagnostics::ExitCode;
use taper_train::plan::MemoryPlan;
use work::Work;

/// What is told.
struct Planned<'s> {
    work: Work<'s>,
    place: Place,
    memory: MemoryPlan,
    /// On a GPU what stays on the host.
    host: Option<MemoryPlan>,
    /// Settings with which it would fit, when it does not.
    settings: Vec<Setting>,
    probed: Option<probe::Probed>,
}

impl Planned<'_> {
    /// Whether the peak fits; `None` when the system does not say.
    fn fits(&self) -> Option<bool> {
        self.place.available.map(|available| self.memory.peak().bytes.total() <= available)
    }
}

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let place = Place::of(args)?;
    let mut recipe = args.recipe.clone();
    if place.device.is_none() {
        // Nothing will be computed on the card that is planned for.
        recipe.common.device = DeviceChoice::Cpu;
    }
    let session = Session::open(&FolderArgs { recipe, out: None })?;
    let work = Work::of(&session, place.is_gpu)?;
    let memory = work.memory();
    let too_much = place.available.filter(|available| memory.peak().bytes.total() > *available);
    let settings = match too_much {
        Some(available) => settings_that_fit(&work, available)?,
        None => Vec::new(),
    };
    let probed = if args.probe { Some(probe(&work, place.device.as_ref())?) } else { None };
    let host = work.host_memory();
    let planned = Planned { work, place, memory, host, settings, probed };
    if args.recipe.common.json {
        print(&tell::json(&planned).to_string())?;
    } else {
        tell::people(&planned);
    }
    Ok(ExitCode::Passed)
}

/// Settings with which a run would fit that was out of memory on `device`, each as flags with the bytes that the plan says; none when nothing can
/// be said.
pub(crate) fn settings_for(session: &Session, device: &Device) -> Vec<String> {
    let Some(available) = available_on(device) else { return Vec::new() };
    let settings = Work::of(session, true).and_then(|work| {
        let limit = limit_after_failure(work.memory().peak().bytes.total(), available);
        settings_that_fit(&work, limit)
    });
    let flags = |setting: &Setting| {
        format!("`--set {}` ({})", setting.keys.join(" --set "), tell::size(setting.peak_bytes))
    };
    settings.unwrap_or_default().iter().map(flags).collect()
}
