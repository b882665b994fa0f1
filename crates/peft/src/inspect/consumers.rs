//! What each consumer would do with an adapter.
//!
//! | consumer | read in its source |
//! | --- | --- |
//! | PEFT 0.21 | keys that it does not find are left as they are, with a warning; which names it takes was tried |
//! | transformers 5.23 | `integrations/peft.py`; tried on adapters of PEFT: DoRA's magnitudes do not arrive, VeRA and prompts are refused |
//! | vLLM | `lora/peft_helper.py`: r and lora_alpha of the whole file, rsLoRA honoured; DoRA and `modules_to_save` refused |
//! | llama.cpp | `convert_lora_to_gguf.py`, `llama-adapter.cpp`: one alpha a file, divided by each tensor's rank |
//! | Ollama | `convert_adapter.go`: as llama.cpp, for llama and gemma2 alone, alpha a whole number |
//! | mlx-lm | `tuner/utils.py`: its own layout, one scale and one rank a file |

use super::Inspection;
use crate::foreign::{Layout, NameChange};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use taper_diagnostics::list_names;

/// How much of an adapter arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All of it.
    Reads,
    /// It is taken, and is another adapter than was trained.
    Loses,
    /// It is not taken.
    Refuses,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reads => "reads it",
            Self::Loses => "loses",
            Self::Refuses => "refuses",
        })
    }
}

/// What one consumer would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consumer {
    /// Who.
    pub name: &'static str,
    /// How much arrives.
    pub verdict: Verdict,
    /// What is lost or refused, or what to mind.
    pub why: Vec<String>,
}

/// Findings on the way to a verdict.
struct Case {
    name: &'static str,
    losses: Vec<String>,
    refusals: Vec<String>,
    remarks: Vec<String>,
}

impl Case {
    fn new(name: &'static str) -> Self {
        Self { name, losses: Vec::new(), refusals: Vec::new(), remarks: Vec::new() }
    }

    /// What prevents an adapter from being taken says all.
    fn close(self) -> Consumer {
        let (verdict, why) = match (self.refusals.is_empty(), self.losses.is_empty()) {
            (false, _) => (Verdict::Refuses, self.refusals),
            (true, false) => (Verdict::Loses, [self.losses, self.remarks].concat()),
            (true, true) => (Verdict::Reads, self.remarks),
        };
        Consumer { name: self.name, verdict, why }
    }
}

/// The table.
pub(super) fn consumers(adapter: &Inspection) -> Vec<Consumer> {
    vec![
        peft(adapter),
        transformers(adapter),
        vllm(adapter),
        llama_cpp(adapter),
        ollama(adapter),
        mlx(adapter),
        taper(adapter),
    ]
}

fn peft(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("PEFT");
    layout(adapter, &mut case);
    names(adapter, &mut case, |change| matches!(change, NameChange::AdapterName(_)));
    case.close()
}

fn transformers(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("transformers");
    layout(adapter, &mut case);
    names(adapter, &mut case, |change| matches!(change, NameChange::Unprefixed | NameChange::Doubled));
    let kind = adapter.config.get("peft_type").and_then(Value::as_str).unwrap_or("");
    if ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "VERA"].contains(&kind) {
        case.refusals.push(format!("{} cannot be injected into a model", adapter.method));
    }
    if is(adapter, "use_dora") {
        case.losses.push("DoRA's magnitudes do not arrive: load it through PEFT's `PeftModel`".into());
    }
    case.close()
}

/// Whoever reads PEFT's files reads only those.
fn layout(adapter: &Inspection, case: &mut Case) {
    if adapter.layout_kind != Layout::Peft {
        case.refusals.push(format!("the file is in {}'s layout; export it as `peft`", adapter.layout));
    }
}

/// Names that a consumer does not look for: it finds nothing, and the adapter does nothing.
fn names(adapter: &Inspection, case: &mut Case, takes: impl Fn(&NameChange) -> bool) {
    if adapter.changes.iter().any(|change| !takes(change)) {
        case.losses.push(
            "the tensors are not named as it looks for them, so that the adapter does nothing; save it again here".into(),
        );
    }
}

/// Tools that take PEFT's names alone.
fn peft_layout(adapter: &Inspection, case: &mut Case) {
    layout(adapter, case);
    if !adapter.changes.is_empty() {
        case.refusals.push("its tensors are not named as PEFT names them; save it again here".into());
    }
}

fn vllm(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("vLLM");
    peft_layout(adapter, &mut case);
    lora_only(adapter, &mut case);
    whole(adapter, &mut case);
    let (alpha, r) = (number(adapter, "lora_alpha", 8.0), number(adapter, "r", 8.0));
    let used = alpha / if is(adapter, "use_rslora") { r.sqrt() } else { r };
    misscaled(adapter, &mut case, |_| used);
    biases(adapter, &mut case);
    if let Some(rank) = adapter.modules.iter().filter_map(|m| m.rank).max().filter(|rank| *rank > 16) {
        case.remarks.push(format!("needs `--max-lora-rank {rank}` or more; its default is 16"));
    }
    case.close()
}

fn llama_cpp(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("llama.cpp");
    gguf(adapter, &mut case);
    case.close()
}

/// A GGUF adapter, as llama.cpp's converter makes it and as its loader reads it.
fn gguf(adapter: &Inspection, case: &mut Case) {
    peft_layout(adapter, case);
    lora_only(adapter, case);
    whole(adapter, case);
    let alpha = number(adapter, "lora_alpha", 8.0);
    misscaled(adapter, case, |rank| alpha / rank);
    biases(adapter, case);
    if adapter.modules.iter().any(|m| m.name() == "lm_head") {
        case.remarks
            .push("an adapter on `lm_head` fails to load over a base that ties it to the embedding".into());
    }
}

fn ollama(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("Ollama");
    gguf(adapter, &mut case);
    if adapter.config.get("lora_alpha").is_some_and(|alpha| !alpha.is_u64()) {
        case.refusals.push("`lora_alpha` must be written as a whole number".into());
    }
    if adapter.modules.iter().any(|m| ["q_proj", "k_proj"].contains(&m.name())) {
        case.losses.push(
            "its converter permutes A of query and key where B would be right (by reading its source): give it a GGUF adapter or a merged model".into(),
        );
    }
    case.remarks.push("it converts adapters over llama and gemma2 bases only".into());
    case.close()
}

fn mlx(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("MLX");
    if adapter.layout_kind != Layout::Mlx {
        case.refusals.push("it reads its own layout only: export it as `mlx`".into());
        let sayable = is_lora(adapter) || adapter.method.starts_with("DoRA");
        let more = !adapter.whole.is_empty() || !adapter.tokens.is_empty() || is(adapter, "lora_bias");
        if !sayable || more {
            case.refusals = vec![
                "its own layout, which alone it reads, cannot say this adapter: export a merged model".into(),
            ];
        }
    }
    case.close()
}

fn taper(adapter: &Inspection) -> Consumer {
    let mut case = Case::new("taper");
    case.refusals.extend(adapter.refused.iter().cloned());
    if adapter.layout_kind == Layout::Torchtune {
        case.remarks
            .push("over Llama, Mistral, Gemma 2 and Qwen 2 bases, whose order of rows is known".into());
    }
    case.close()
}

fn is(adapter: &Inspection, key: &str) -> bool {
    adapter.config.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn number(adapter: &Inspection, key: &str, default: f64) -> f64 {
    adapter.config.get(key).and_then(Value::as_f64).unwrap_or(default)
}

fn is_lora(adapter: &Inspection) -> bool {
    ["LoRA", "rsLoRA"].contains(&adapter.method.as_str())
}

fn lora_only(adapter: &Inspection, case: &mut Case) {
    if !is_lora(adapter) {
        case.refusals.push(format!("{} is not supported", adapter.method));
    }
}

fn whole(adapter: &Inspection, case: &mut Case) {
    let modules: Vec<&String> = adapter.whole.iter().filter(|name| !name.ends_with(".bias")).collect();
    if !modules.is_empty() {
        case.refusals.push(format!("modules were trained in full: {}", list_names(modules, 3)));
    }
    if !adapter.tokens.is_empty() {
        case.refusals.push(format!("rows of single tokens were trained: {}", list_names(&adapter.tokens, 3)));
    }
}

fn biases(adapter: &Inspection, case: &mut Case) {
    let count = adapter.whole.iter().filter(|name| name.ends_with(".bias")).count();
    if count > 0 || is(adapter, "lora_bias") {
        case.losses.push("the trained biases".into());
    }
}

/// Modules that a consumer would scale otherwise than they were trained; `used` is its scale for a rank.
fn misscaled(adapter: &Inspection, case: &mut Case, used: impl Fn(f64) -> f64) {
    let mut factors: Vec<f64> = Vec::new();
    for module in &adapter.modules {
        let (Some(rank), Some(scale)) = (module.rank, module.scale) else { continue };
        let factor = used(rank as f64) / scale;
        if (factor - 1.0).abs() > 1e-6 {
            factors.push(factor);
        }
    }
    let Some(least) = factors.iter().copied().min_by(f64::total_cmp) else { return };
    let most = factors.iter().copied().fold(least, f64::max);
    let times = if most - least < 1e-9 { format!("{least:.3}") } else { format!("{least:.3} to {most:.3}") };
    let cause = if is(adapter, "use_rslora") && factors.len() == adapter.modules.len() {
        "rsLoRA's scale is not read"
    } else {
        "`rank_pattern` and `alpha_pattern` are not read"
    };
    case.losses.push(format!(
        "{} of {} modules would be scaled by {times} times what was trained: {cause}",
        factors.len(),
        adapter.modules.len()
    ));
}
