//! The plan, for people and for scripts.

use super::probe::Probed;
use super::{Planned, resolution};
use crate::output::say;
use serde_json::{Value, json};
use taper_train::plan::{Bytes, Cause, MemoryPlan, Phase, PhaseName};

pub(super) fn people(planned: &Planned<'_>) {
    let work = &planned.work;
    let (all, trained) = (work.parameters(), work.trained_parameters());
    let share = 100.0 * trained as f64 / all as f64;
    say(&format!("parameters  {} in all, {} trained ({share:.2} %)", grouped(all), grouped(trained)));
    let (steps, per_step) = (work.steps, work.tokens / work.steps.max(1));
    say(&format!(
        "steps       {} in all, {} an epoch; {} tokens a step",
        grouped(steps),
        grouped(work.steps_per_epoch),
        grouped(per_step)
    ));
    let longest = &work.longest;
    say(&format!(
        "longest     {} tokens in {} examples, {} of them learned",
        grouped(longest.tokens() as u64),
        longest.segments.len(),
        grouped(longest.target_tokens as u64)
    ));
    memory(planned);
    resolution::lines(work.session).iter().for_each(|line| say(line));
    match &planned.probed {
        Some(probed) => tell_probe(planned, probed),
        None => say("time        not known before a step was made: `--probe` makes two"),
    }
}

fn memory(planned: &Planned<'_>) {
    let peak = planned.memory.peak();
    let of = if planned.place.is_gpu { " of the GPU's" } else { "" };
    say(&format!("memory      {}{of} at its peak, {}", size(peak.bytes.total()), described(peak.name)));
    for cause in Cause::ALL {
        let bytes = peak.bytes.of(cause);
        if bytes > 0 {
            say(&format!("  {:>9}  {}", size(bytes), explained(cause, planned)));
        }
    }
    let others = planned.memory.phases.iter().filter(|phase| phase.name != peak.name);
    let others: Vec<String> =
        others.map(|phase| format!("{} {}", described(phase.name), size(phase.bytes.total()))).collect();
    say(&format!("  elsewhere  {}", others.join("; ")));
    if let Some(host) = &planned.host {
        tell_host(host);
    }
    match (planned.place.available, planned.fits()) {
        (Some(available), Some(true)) => say(&format!("available   {}: it fits", size(available))),
        (Some(available), _) => {
            say(&format!("available   {}: it does not fit", size(available)));
            for setting in &planned.settings {
                say(&format!(
                    "  {:>9}  with --set {}",
                    size(setting.peak_bytes),
                    setting.keys.join(" --set ")
                ));
            }
            if planned.settings.is_empty() {
                say("  no setting of the recipe makes it fit: take a smaller base");
            }
        }
        (None, _) if planned.place.is_gpu => {
            say("available   no such GPU is here: `--gpu-memory 24GiB` plans for a card of that size");
        }
        (None, _) => say("available   this system does not say"),
    }
}

/// What a run on a GPU holds on the host.
fn tell_host(host: &MemoryPlan) {
    let peak = host.peak();
    let step = host.phase(PhaseName::Step).unwrap_or_default();
    let mut parts = vec!["the program and its data".to_owned()];
    if step.of(Cause::Weights) > 0 {
        parts.push(format!(
            "{} of weights beside those on the GPU (pages of the file where it is a GGUF file)",
            size(step.of(Cause::Weights))
        ));
    }
    if step.of(Cause::Activations) > 0 {
        parts.push(format!("{} of inputs of blocks", size(step.of(Cause::Activations))));
    }
    say(&format!(
        "host        {} at its peak, {}; {} in a step: {}",
        size(peak.bytes.total()),
        described(peak.name),
        size(step.total()),
        parts.join(", ")
    ));
}

fn tell_probe(planned: &Planned<'_>, probed: &Probed) {
    let predicted = size(probed.predicted_bytes);
    match (probed.measured_bytes, probed.off_by()) {
        (Some(measured), Some(off)) => {
            let how = if probed.was_reset { "reset before it" } else { "of the whole process" };
            let what = if probed.on_gpu { "tensors on the GPU" } else { "VmHWM" };
            say(&format!(
                "probe       planned {predicted}, measured {} (off by {:+.1} %): {what}, {how}",
                size(measured),
                100.0 * off
            ));
        }
        _ => say(&format!("probe       planned {predicted}; this system does not say what was held")),
    }
    say(&format!(
        "time        {:.2} s for the longest batch ({:.0} tokens/s): about {} for all steps, without evaluations",
        probed.seconds_per_step,
        probed.tokens as f64 / probed.seconds_per_step,
        duration(seconds(planned, probed))
    ));
}

/// Of all training steps, at the speed of the probe.
fn seconds(planned: &Planned<'_>, probed: &Probed) -> f64 {
    probed.seconds_per_step * planned.work.tokens as f64 / probed.tokens.max(1) as f64
}

pub(super) fn json(planned: &Planned<'_>) -> Value {
    let work = &planned.work;
    let peak = planned.memory.peak();
    let phases: Vec<Value> = planned.memory.phases.iter().map(phase_json).collect();
    let settings: Vec<Value> =
        planned.settings.iter().map(|s| json!({ "set": s.keys, "peak_bytes": s.peak_bytes })).collect();
    json!({
        "parameters": work.parameters(),
        "trained_parameters": work.trained_parameters(),
        "weights": { "held_in": work.formats, "bytes": work.weight_bytes },
        "steps": work.steps,
        "steps_per_epoch": work.steps_per_epoch,
        "tokens": work.tokens,
        "tokens_per_step": work.tokens as f64 / work.steps.max(1) as f64,
        "longest_batch": {
            "examples": work.longest.segments.len(),
            "tokens": work.longest.tokens(),
            "supervised_tokens": work.longest.target_tokens,
        },
        "memory": {
            "peak_bytes": peak.bytes.total(),
            "peak_phase": peak.name.name(),
            "phases": phases,
            "available_bytes": planned.place.available,
            "fits": planned.fits(),
            "on": if planned.place.is_gpu { "cuda" } else { "cpu" },
            "host": planned.host.as_ref().map(host_json),
        },
        "settings_that_fit": settings,
        "evaluations": work.session.tasks.iter().map(resolution::json).collect::<Vec<_>>(),
        "probe": planned.probed.as_ref().map(|probed| probe_json(planned, probed)),
    })
}

fn phase_json(phase: &Phase) -> Value {
    json!({ "name": phase.name.name(), "bytes": phase.bytes.total(), "by_cause": by_cause(&phase.bytes) })
}

fn host_json(host: &MemoryPlan) -> Value {
    let peak = host.peak();
    json!({
        "peak_bytes": peak.bytes.total(),
        "peak_phase": peak.name.name(),
        "phases": host.phases.iter().map(phase_json).collect::<Vec<_>>(),
    })
}

fn by_cause(bytes: &Bytes) -> Value {
    Cause::ALL.iter().map(|cause| (cause.name().to_owned(), json!(bytes.of(*cause)))).collect()
}

fn probe_json(planned: &Planned<'_>, probed: &Probed) -> Value {
    json!({
        "predicted_bytes": probed.predicted_bytes,
        "measured_bytes": probed.measured_bytes,
        "peak_was_reset": probed.was_reset,
        "off_by": probed.off_by(),
        "seconds_per_step": probed.seconds_per_step,
        "tokens_per_second": probed.tokens as f64 / probed.seconds_per_step,
        "estimated_seconds": seconds(planned, probed),
    })
}

fn described(phase: PhaseName) -> &'static str {
    match phase {
        PhaseName::Load => "while the weights are read",
        PhaseName::SelfTest => "in the self-test",
        PhaseName::Step => "in a step on the longest batch",
        PhaseName::Validation => "in a validation",
        PhaseName::Checkpoint => "while a checkpoint is written",
        PhaseName::Evaluation => "in the evaluation",
    }
}

fn explained(cause: Cause, planned: &Planned<'_>) -> String {
    let work = &planned.work;
    match cause {
        Cause::Weights => format!("frozen weights in {}", work.formats.join(" and ")),
        Cause::Parameters => format!("{} trained parameters in f32", grouped(work.trained_parameters())),
        Cause::Gradients => "their gradients".to_owned(),
        Cause::Optimizer => "the optimiser's moments".to_owned(),
        Cause::Activations => match work.session.run.recipe.train.gradient_checkpointing {
            true => "activations: the inputs of the blocks, and one block's graph".to_owned(),
            false => "activations: what all blocks keep for the backward".to_owned(),
        },
        Cause::Temporaries if planned.place.is_gpu => {
            "gradients of activations, rounded copies, a part of a weight that is decoded".to_owned()
        }
        Cause::Temporaries => "gradients of activations".to_owned(),
        Cause::Logits => "logits of a chunk of learned tokens, with their gradients".to_owned(),
        Cause::Cache => "keys and values of answers that are being written".to_owned(),
        Cause::Copies => "copies of parameters".to_owned(),
        Cause::Reading => "the weight that is being read".to_owned(),
        Cause::Overhead if planned.place.is_gpu => {
            "context of the driver, cuBLAS, code of the kernels: an estimate".to_owned()
        }
        Cause::Overhead => "program, tokenizer, data, scratch of threads, slack of the allocator".to_owned(),
    }
}

/// Bytes in units of 1000, as memory is sold.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e8 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.1} MB", b / 1e6),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut out = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&String::from_utf8_lossy(group));
    }
    out
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1_500_000, 123_400_000, 2_250_000_000].map(size), ["1.5 MB", "123 MB", "2.25 GB"]);
        assert_eq!([12.0, 600.0, 7200.0].map(duration), ["12 s", "10 minutes", "2.0 hours"]);
    }
}
