//! `taper adapter`: what an adapter is, and whether it works on a base.

use crate::adapters::load_adapter;
use crate::cli::{AdapterCheckArgs, AdapterShowArgs, AdapterVerb, ModelArgs, WeightedFolder};
use crate::device;
use crate::fault::OrFault;
use crate::output::{print, say};
use crate::workspace::Base;
use serde_json::json;
use std::fmt::Write;
use taper_diagnostics::ExitCode;
use taper_export::{LogitShift, ReferenceLogits};
use taper_peft::{InspectedModule, Inspection};
use taper_text::{Message, RenderOptions};

/// Texts that say little of a task: whatever an adapter was trained for, some of its change shows in them.
const PROMPTS: [&str; 4] = [
    "The capital of France is",
    "Write a short e-mail to a colleague about the meeting on Monday.",
    "def median(values):\n    \"\"\"Return the median of a list.\"\"\"\n",
    "Once upon a time there was a lighthouse keeper who",
];

/// Modules that are listed by name from each end of the norms.
const LISTED: usize = 3;

/// Largest difference of logits that is none: f32 sums in another order.
const ROUNDING: f64 = 1e-5;

pub(crate) fn adapter(verb: &AdapterVerb) -> anyhow::Result<ExitCode> {
    match verb {
        AdapterVerb::Show(args) => show(args),
        AdapterVerb::Check(args) => check(args),
        AdapterVerb::Combine(args) => super::combine::combine(args),
    }
}

fn show(args: &AdapterShowArgs) -> anyhow::Result<ExitCode> {
    let adapter = taper_peft::inspect(&args.dir).or_fault()?;
    if args.json {
        print(&serde_json::to_string(&adapter)?)?;
    } else {
        print(description(&adapter, args.modules).trim_end())?;
    }
    Ok(ExitCode::Passed)
}

fn check(args: &AdapterCheckArgs) -> anyhow::Result<ExitCode> {
    device::check(&args.common)?;
    // What is wrong with the adapter alone is told before a base is loaded.
    let adapter = taper_peft::inspect(&args.dir).or_fault()?;
    let named = ModelArgs {
        model: args.base.clone(),
        quantize: args.quantize.clone(),
        adapter: vec![WeightedFolder { folder: args.dir.clone(), weight: 1.0 }],
        force: false,
        common: args.common.clone(),
    };
    let (base, options) = Base::named(&named)?;
    let mut model = base.load(options)?;
    let reference = ReferenceLogits::of(model.as_ref(), sequences(args, &base)?).or_fault()?;
    load_adapter(&args.dir, model.as_mut())?;
    let shift = reference.shift(model.as_ref()).or_fault()?;
    let mut found = Found::of(&adapter, &shift, args);
    let differences = crate::contract::differences(&args.dir, &base)?;
    found
        .unsound
        .extend(differences.into_iter().map(|what| format!("it was trained over another base: {what}")));
    if args.common.json {
        print(&found.json(&adapter, &shift).to_string())?;
    } else {
        print(found.told(&adapter, &shift).trim_end())?;
    }
    if found.unsound.is_empty() {
        return Ok(ExitCode::Passed);
    }
    say("the adapter is not sound");
    Ok(ExitCode::GateFailed)
}

/// The prompts as the base reads them.
fn sequences(args: &AdapterCheckArgs, base: &Base) -> anyhow::Result<Vec<Vec<u32>>> {
    let given: Vec<&str> = args.prompt.iter().map(String::as_str).collect();
    let prompts: &[&str] = if given.is_empty() { &PROMPTS } else { &given };
    let encode = |prompt: &&str| match &base.template {
        Some(template) => {
            let messages = [Message::new("user", *prompt)];
            taper_text::encode_prompt_chat(&base.tokenizer, template, &messages, &RenderOptions::default())
                .or_fault()
        }
        None => taper_text::encode_prompt(&base.tokenizer, prompt).or_fault(),
    };
    prompts.iter().map(encode).collect()
}

/// What a check found.
struct Found {
    /// Each makes the adapter unsound.
    unsound: Vec<String>,
    /// Worth knowing.
    remarks: Vec<String>,
}

impl Found {
    fn of(adapter: &Inspection, shift: &LogitShift, args: &AdapterCheckArgs) -> Self {
        let (mut unsound, mut remarks) = (Vec::new(), Vec::new());
        let dead: Vec<&InspectedModule> = adapter.dead().collect();
        if shift.not_finite > 0 {
            unsound.push(format!("{} logits are NaN or infinite", shift.not_finite));
        } else if shift.max_abs <= ROUNDING {
            let cause = if !dead.is_empty() && dead.len() == adapter.modules.len() {
                "every B is zero, so that it was never trained"
            } else {
                "its values are too small to matter"
            };
            unsound.push(format!("it does not move the logits: {cause}"));
        }
        if !dead.is_empty() && dead.len() < adapter.modules.len() {
            let names: Vec<&str> = dead.iter().map(|m| m.path.as_str()).collect();
            remarks.push(format!(
                "{} of {} modules are zero and do nothing: {}",
                dead.len(),
                adapter.modules.len(),
                taper_diagnostics::list_names(names, LISTED)
            ));
        }
        if let Some(base) = adapter.base.as_deref().filter(|base| last_part(base) != last_part(&args.base)) {
            remarks.push(format!("it names the base `{base}`, and was checked on `{}`", args.base));
        }
        remarks.extend(adapter.notes.iter().cloned());
        Self { unsound, remarks }
    }

    fn told(&self, adapter: &Inspection, shift: &LogitShift) -> String {
        let mut out = String::new();
        let _ =
            writeln!(out, "fits       {} modules, {} parameters", adapter.modules.len(), adapter.parameters);
        let _ = writeln!(
            out,
            "logits     moved by {:.3e} on average, {:.3e} at most; KL {:.3e} nats; another likeliest token at {:.1} % of {} positions",
            shift.mean_abs,
            shift.max_abs,
            shift.mean_kl,
            100.0 * shift.top1_changed,
            shift.positions
        );
        for line in &self.unsound {
            let _ = writeln!(out, "unsound    {line}");
        }
        for line in &self.remarks {
            let _ = writeln!(out, "note       {line}");
        }
        consumers(adapter, &mut out);
        out
    }

    fn json(&self, adapter: &Inspection, shift: &LogitShift) -> serde_json::Value {
        json!({
            "sound": self.unsound.is_empty(),
            "unsound": self.unsound,
            "notes": self.remarks,
            "shift": shift,
            "adapter": adapter,
        })
    }
}

/// A folder's or an id's own name.
fn last_part(name: &str) -> &str {
    name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name)
}

/// An adapter for people; `all` lists every module.
fn description(adapter: &Inspection, all: bool) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    line("method", adapter.method.clone());
    line("written by", format!("{} ({} layout)", adapter.writer, adapter.layout));
    let revision = adapter.revision.as_ref().map(|r| format!(", revision {r}")).unwrap_or_default();
    line("base", format!("{}{revision}", adapter.base.as_deref().unwrap_or("(not named)")));
    let types: Vec<String> = adapter.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    line("file", format!("{}, {} bytes, {} tensors", adapter.file, adapter.bytes, types.join(", ")));
    line("parameters", adapter.parameters.to_string());
    line("rank", distinct(adapter, |m| m.rank.map(|r| r.to_string())));
    line("alpha", distinct(adapter, |m| m.alpha.map(|a| a.to_string())));
    line("scale", distinct(adapter, |m| m.scale.map(|s| s.to_string())));
    line("targets", targets(adapter));
    if !adapter.whole.is_empty() {
        line("in full", taper_diagnostics::list_names(&adapter.whole, 8));
    }
    if !adapter.tokens.is_empty() {
        line("tokens", format!("rows of their own in {}", taper_diagnostics::list_names(&adapter.tokens, 8)));
    }
    if !adapter.copies.is_empty() {
        line("copies", format!("of the base's own: {}", taper_diagnostics::list_names(&adapter.copies, 8)));
    }
    for note in &adapter.notes {
        line("note", note.clone());
    }
    norms(adapter, all, &mut out);
    consumers(adapter, &mut out);
    out
}

/// Each value with the number of modules that have it.
fn distinct(adapter: &Inspection, of: impl Fn(&InspectedModule) -> Option<String>) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for value in adapter.modules.iter().filter_map(of) {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    match counts.as_slice() {
        [] => "(none)".into(),
        [(value, _)] => value.clone(),
        many => many.iter().map(|(v, n)| format!("{v} ({n})")).collect::<Vec<_>>().join(", "),
    }
}

/// Names with the layers they are in.
fn targets(adapter: &Inspection) -> String {
    let mut names: Vec<&str> = Vec::new();
    for module in &adapter.modules {
        if !names.contains(&module.name()) {
            names.push(module.name());
        }
    }
    let layers: std::collections::BTreeSet<usize> = adapter.modules.iter().filter_map(|m| m.layer).collect();
    let layers = match (layers.first(), layers.last()) {
        (Some(first), Some(last)) if last - first + 1 == layers.len() => format!("layers {first} to {last}"),
        (Some(_), Some(_)) => {
            let all: Vec<String> = layers.iter().map(usize::to_string).collect();
            format!("layers {}", all.join(", "))
        }
        _ => "no numbered layer".into(),
    };
    format!("{} in {} modules, {layers}", names.join(", "), adapter.modules.len())
}

/// `||s B A||_F`, the largest and the smallest, and the zeros.
fn norms(adapter: &Inspection, all: bool, out: &mut String) {
    let mut sorted: Vec<(&InspectedModule, f64)> =
        adapter.modules.iter().filter_map(|m| Some((m, m.norm?))).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    let zeros = sorted.iter().filter(|(_, norm)| *norm == 0.0).count();
    if sorted.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\nnorm of the change to a weight, ||s B A||_F; {zeros} of {} are zero (untrained)",
        sorted.len()
    );
    let both_ends = sorted.len() > 2 * LISTED && !all;
    for (at, (module, norm)) in sorted.iter().enumerate() {
        if both_ends && at == LISTED {
            let _ = writeln!(out, "  …          {} more, `--modules` lists all", sorted.len() - 2 * LISTED);
        }
        if !both_ends || at < LISTED || at >= sorted.len() - LISTED {
            let norm =
                if *norm == 0.0 || *norm >= 1e-3 { format!("{norm:.4}") } else { format!("{norm:.3e}") };
            let _ = writeln!(out, "  {norm:<10} {}", module.path);
        }
    }
}

fn consumers(adapter: &Inspection, out: &mut String) {
    let _ = writeln!(out, "\nwhat would be lost where");
    for consumer in &adapter.consumers {
        let why = consumer.why.join("; ");
        let verdict = consumer.verdict.to_string();
        let text = if why.is_empty() { verdict } else { format!("{verdict}: {why}") };
        wrapped(&format!("  {:<13} ", consumer.name), &text, out);
    }
}

/// Words in lines of 100 columns, all but the first indented as far as the first begins.
fn wrapped(first: &str, text: &str, out: &mut String) {
    const COLUMNS: usize = 100;
    let indent = " ".repeat(first.len());
    let mut line = first.to_owned();
    for word in text.split(' ') {
        if line.chars().count() + word.chars().count() > COLUMNS && line.trim() != first.trim() {
            let _ = writeln!(out, "{}", line.trim_end());
            line.clone_from(&indent);
        }
        line.push_str(word);
        line.push(' ');
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn long_lines_are_broken_between_words() {
        let mut out = String::new();
        wrapped("  PEFT  ", &"word ".repeat(40), &mut out);
        assert!(out.lines().count() == 3 && out.lines().all(|line| line.len() <= 100), "{out}");
        assert!(out.lines().skip(1).all(|line| line.starts_with("        word")), "{out}");
        assert_eq!(out.matches("word").count(), 40);
    }
}
