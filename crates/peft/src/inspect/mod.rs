//! What an adapter is, from its files alone: method, sizes, norms, who wrote it, and what would be lost where.
//!
//! The norm of a delta is `||s B A||_F = s sqrt(sum((B^T B) * (A A^T)))` (elementwise product of two `[r, r]` Gram matrices), so that
//! the `[out, in]` matrix is never formed.

mod consumers;
mod measure;

use crate::foreign::{AdapterFile, Layout, NameChange, misfit};
use crate::sizes::Sizes;
use crate::{AdapterConfig, CONFIG_FILE, Error, Method, PREFIX, Result, foreign};
use candle_core::Tensor;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use taper_hub::safetensors::Header;

pub use consumers::{Consumer, Verdict};

/// One module of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectedModule {
    /// Its path, without PEFT's prefix.
    pub path: String,
    /// The number in its path, where it has one.
    pub layer: Option<usize>,
    /// Values of the adapter in it.
    pub parameters: usize,
    /// r, of a low-rank delta.
    pub rank: Option<usize>,
    /// `lora_alpha` after the patterns.
    pub alpha: Option<f64>,
    /// What the low-rank product is multiplied by.
    pub scale: Option<f64>,
    /// `||s B A||_F`; 0 is an adapter that does nothing.
    pub norm: Option<f64>,
}

impl InspectedModule {
    /// The last segment of the path: what `target_modules` would name.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// An adapter as its files show it.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// LoRA, rsLoRA, DoRA, IA3 …
    pub method: String,
    /// PEFT, mlx-lm or torchtune.
    pub layout: String,
    /// The tool that wrote it, as far as the files tell.
    pub writer: String,
    /// The version of PEFT that it notes.
    pub peft_version: Option<String>,
    /// The base that it names.
    pub base: Option<String>,
    /// The base's revision.
    pub revision: Option<String>,
    /// The file of the weights.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Types of the tensors, with how many there are of each.
    pub dtypes: BTreeMap<String, usize>,
    /// Values in all tensors.
    pub parameters: usize,
    /// Modules with an adapter, in the order of their layers.
    pub modules: Vec<InspectedModule>,
    /// Weights and biases that were trained in full (`modules_to_save`, `bias`), by their names in the model.
    pub whole: Vec<String>,
    /// Copies of the base's own tables, which PEFT saves beside adapted embeddings and heads.
    pub copies: Vec<String>,
    /// Embeddings of which rows of single tokens were trained.
    pub tokens: Vec<String>,
    /// What was unusual in the names of the tensors.
    pub notes: Vec<String>,
    /// Why this program cannot use it; empty when it can.
    pub refused: Vec<String>,
    /// What each consumer would do with it.
    pub consumers: Vec<Consumer>,
    #[serde(skip)]
    config: Map<String, Value>,
    #[serde(skip)]
    layout_kind: Layout,
    #[serde(skip)]
    changes: Vec<NameChange>,
}

/// Look into an adapter's folder. A method that cannot be loaded is described all the same.
///
/// # Errors
/// When the folder holds no adapter, or its files are broken.
pub fn inspect(folder: &Path) -> Result<Inspection> {
    let file = AdapterFile::read(folder)?;
    let config = read_config(folder)?;
    let refused = match AdapterConfig::read(folder) {
        Ok(_) => Vec::new(),
        Err(Error::Problems(problems)) => problems.iter().map(|p| p.message.clone()).collect(),
        Err(error) => vec![error.to_string()],
    };
    let bytes = fs_err::read(&file.path).map_err(|source| Error::Read { path: file.path.clone(), source })?;
    let header = Header::parse(&bytes).map_err(|source| Error::Header { path: file.path.clone(), source })?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for info in header.tensors.values() {
        *dtypes.entry(info.dtype.to_string()).or_default() += 1;
    }
    let text =
        |key: &str| config.get(key).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
    let Found { modules, whole, copies, tokens } = modules_of(&file, &sizes_config(&config))?;
    let mut inspection = Inspection {
        method: method(&config, file.tensors.keys()),
        layout: file.layout.to_string(),
        writer: writer(&config, file.layout),
        peft_version: text("peft_version"),
        base: text("base_model_name_or_path"),
        revision: text("revision"),
        file: file.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        bytes: bytes.len() as u64,
        dtypes,
        parameters: file.tensors.values().map(Tensor::elem_count).sum(),
        modules,
        whole,
        copies,
        tokens,
        notes: file.changes.iter().map(NameChange::to_string).collect(),
        refused,
        consumers: Vec::new(),
        config,
        layout_kind: file.layout,
        changes: file.changes,
    };
    inspection.consumers = consumers::consumers(&inspection);
    Ok(inspection)
}

impl Inspection {
    /// Modules whose delta is zero: they were never trained.
    pub fn dead(&self) -> impl Iterator<Item = &InspectedModule> {
        self.modules.iter().filter(|m| m.norm == Some(0.0))
    }
}

/// The configuration in PEFT's words, as JSON.
fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(CONFIG_FILE);
    let text = fs_err::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let text = foreign::peft_text(folder, text)?;
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(not_json(&path, "the configuration is not a JSON object".into())),
        Err(error) => Err(not_json(&path, format!("the configuration is not JSON: {error}"))),
    }
}

fn not_json(path: &Path, what: String) -> Error {
    Error::Misfit { path: path.to_owned(), key: None, what, remedy: "copy the adapter again".into() }
}

/// Ranks and scales alone, which are there whatever else the configuration asks for.
fn sizes_config(config: &Map<String, Value>) -> Option<AdapterConfig> {
    let kind = config.get("peft_type").and_then(Value::as_str)?.to_ascii_uppercase();
    let kind = if kind == "ADALORA" { "LORA".to_owned() } else { kind };
    let mut sizes = Map::from_iter([("peft_type".to_owned(), Value::from(kind))]);
    for key in ["r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora"] {
        if let Some(value) = config.get(key) {
            sizes.insert(key.to_owned(), value.clone());
        }
    }
    AdapterConfig::from_json(&Value::Object(sizes).to_string()).ok()
}

fn method<'a>(config: &Map<String, Value>, mut names: impl Iterator<Item = &'a String>) -> String {
    let is = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("unknown");
    if !kind.eq_ignore_ascii_case("LORA") {
        let known = [("VERA", "VeRA"), ("LOHA", "LoHa"), ("LOKR", "LoKr"), ("ADALORA", "AdaLoRA")];
        let written = known.iter().find(|(key, _)| kind.eq_ignore_ascii_case(key)).map(|(_, name)| *name);
        return written.map_or_else(|| kind.replace('_', " "), str::to_owned);
    }
    if let Some(other) = names.find_map(|name| misfit::method_of(name)) {
        return format!("LoRA by its configuration, {other} by its tensors");
    }
    match (is("use_dora"), is("use_rslora")) {
        (true, true) => "DoRA with rsLoRA's scale",
        (true, false) => "DoRA",
        (false, true) => "rsLoRA",
        (false, false) => "LoRA",
    }
    .to_owned()
}

fn writer(config: &Map<String, Value>, layout: Layout) -> String {
    let unsloth = config
        .get("auto_mapping")
        .and_then(|m| m.get("unsloth_fixed"))
        .is_some_and(|v| v.as_bool() == Some(true));
    match (layout, config.get("peft_version")) {
        (Layout::Mlx, _) => "mlx-lm".into(),
        (Layout::Torchtune, _) => "torchtune".into(),
        (Layout::Peft, Some(Value::String(version))) if unsloth => format!("Unsloth over PEFT {version}"),
        (Layout::Peft, Some(Value::String(version))) => format!("PEFT {version}"),
        (Layout::Peft, _) if unsloth => "Unsloth over PEFT".into(),
        // PEFT notes its version since 0.18; this program writes the key and leaves it empty.
        (Layout::Peft, Some(Value::Null)) => "taper, or another tool that notes no version".into(),
        (Layout::Peft, _) if config.contains_key("enable_lora") => "PEFT 0.2".into(),
        (Layout::Peft, _) => "PEFT before 0.18, or another tool in its format".into(),
    }
}

/// Modules with an adapter, and the names of all other tensors.
#[derive(Default)]
struct Found {
    modules: Vec<InspectedModule>,
    whole: Vec<String>,
    copies: Vec<String>,
    tokens: Vec<String>,
}

fn modules_of(file: &AdapterFile, config: &Option<AdapterConfig>) -> Result<Found> {
    let sizes = config.as_ref().map(Sizes::new).transpose()?;
    let method = config.as_ref().map(|config| &config.method);
    let mut by_path: BTreeMap<String, Vec<(&str, &Tensor)>> = BTreeMap::new();
    let mut found = Found::default();
    for (name, tensor) in &file.tensors {
        let Some(inside) = name.strip_prefix(PREFIX) else {
            // Outside of every module lie VeRA's shared factors and the embeddings of prompts.
            if let Some((path, parameter)) = split(name) {
                by_path.entry(path.to_owned()).or_default().push((parameter, tensor));
            }
            continue;
        };
        if inside.ends_with(".base_layer.weight") {
            found.copies.push(inside.to_owned());
        } else if let Some(path) = inside.strip_suffix(".token_adapter.trainable_tokens_delta") {
            found.tokens.push(path.to_owned());
        } else {
            match split(inside) {
                Some((path, parameter)) => {
                    by_path.entry(path.to_owned()).or_default().push((parameter, tensor));
                }
                None => found.whole.push(inside.to_owned()),
            }
        }
    }
    let mut modules = Vec::new();
    for (path, tensors) in by_path {
        let factor = |names: [&str; 2]| tensors.iter().find(|(n, _)| names.contains(n)).map(|(_, t)| *t);
        let pair =
            factor(["lora_A.weight", "lora_embedding_A"]).zip(factor(["lora_B.weight", "lora_embedding_B"]));
        let has_scale = pair.is_some() || matches!(method, Some(Method::Loha(_) | Method::Lokr(_)));
        let (alpha, scale) = match &sizes {
            Some(sizes) if has_scale => (Some(sizes.alpha_of(&path)?), Some(sizes.scale_of(&path)?)),
            _ => (None, None),
        };
        let rank = match (pair, &sizes, method) {
            (Some((a, _)), ..) => a.dims().first().copied(),
            (None, Some(sizes), Some(Method::Vera(_) | Method::Loha(_) | Method::Lokr(_))) => {
                Some(sizes.rank_of(&path)?)
            }
            _ => None,
        };
        let norm = match (pair, scale) {
            (Some((a, b)), Some(scale)) => measure::delta_norm(a, b)?.map(|norm| scale * norm),
            _ => None,
        };
        modules.push(InspectedModule {
            layer: path.split('.').find_map(|segment| segment.parse().ok()),
            parameters: tensors.iter().map(|(_, t)| t.elem_count()).sum(),
            rank,
            alpha,
            scale,
            norm,
            path,
        });
    }
    modules.sort_by(|a, b| (a.layer, &a.path).cmp(&(b.layer, &b.path)));
    Ok(Found { modules, ..found })
}

/// The module's path and the adapter's parameter of a name without its prefix.
fn split(name: &str) -> Option<(&str, &str)> {
    let parameter = foreign::parameter_of(name)?;
    let at = name.find(&format!(".{parameter}"))?;
    Some((&name[..at], &name[at + 1..]))
}
