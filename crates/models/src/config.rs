//! `config.json` as transformers 4 and 5 write it.

use crate::fields::Fields;
use crate::rotary::{RopeConfig, RopeContext};
use crate::switches::{EmbeddingScale, ExpertsConfig, NormPlacement, QkNorm};
use crate::{
    ConfigError, Error, Result, gemma2, gemma3, granite, llama, mistral, olmo2, phi3, qwen2, qwen3,
    qwen3_moe, rotary,
};
use candle_core::DType;
use serde_json::{Map, Value};
use std::path::Path;
use taper_nn::ops::Gate;

/// An architecture, by its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// Llama 2 and 3, SmolLM, TinyLlama, and all that call themselves `llama`.
    Llama,
    /// Mistral 7B and its kin: a sliding window in every block, or in none.
    Mistral,
    /// Qwen 1.5, 2 and 2.5: queries, keys and values have biases.
    Qwen2,
    /// Qwen 3 without experts: queries and keys are normed per head.
    Qwen3,
    /// Gemma 2: soft caps, a window in every other block, norms before and behind attention and MLP.
    Gemma2,
    /// The text models of Gemma 3: two rotary embeddings, and windows in most blocks.
    Gemma3,
    /// Phi 3, 3.5 and 4-mini: q, k and v are one layer, gate and up another.
    Phi3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// OLMo 2: norms behind attention and MLP instead of before them.
    Olmo2,
    /// Granite 3 without experts: factors on embeddings, scores, residuals and logits.
    Granite,
}

impl ModelType {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Qwen3Moe,
        Self::Olmo2,
        Self::Granite,
    ];

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Olmo2 => "olmo2",
            Self::Granite => "granite",
        }
    }
}

/// Shapes and switches of a decoder.
///
/// What only matters to Python (`use_cache`, `attention_dropout`, the names of classes) is not read.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub model_type: ModelType,
    /// V.
    pub vocab_size: usize,
    /// H.
    pub hidden_size: usize,
    /// I.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// N.
    pub num_attention_heads: usize,
    /// K, which divides N.
    pub num_key_value_heads: usize,
    /// D; not always H / N.
    pub head_dim: usize,
    /// The longest text the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Added to the gains of norms as they are stored: 1 where files hold the gain less 1.
    pub norm_offset: f32,
    /// Where the norms of a block stand.
    pub norm_placement: NormPlacement,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// That of blocks with a window, where it is another.
    pub local_rope: Option<RopeConfig>,
    /// How many of a head's elements are rotated, from the first on.
    pub rotary_dim: usize,
    /// Whether the head is the embedding's table.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// How queries and keys are normed.
    pub qk_norm: QkNorm,
    /// Whether q, k and v are one layer (`qkv_proj`), and gate and up another (`gate_up_proj`).
    pub fused_projections: bool,
    /// What gates the MLP.
    pub activation: Gate,
    /// What embeddings are multiplied by.
    pub embedding_scale: EmbeddingScale,
    /// Factor on the scores of attention.
    pub attention_scale: f64,
    /// With a cap c, scores become c tanh(score / c).
    pub attention_soft_cap: Option<f64>,
    /// Factor on what attention and MLP add to a token.
    pub residual_multiplier: f64,
    /// What logits are divided by.
    pub logits_divisor: f64,
    /// With a cap c, logits become c tanh(logit / c).
    pub logits_soft_cap: Option<f64>,
    /// The experts that stand in place of some MLPs.
    pub experts: Option<ExpertsConfig>,
    /// For each block, how many tokens one sees, itself included; `None` for all before it.
    pub windows: Vec<Option<usize>>,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// The type that the weights were saved in, where it says so.
    pub dtype: Option<DType>,
}

impl ModelConfig {
    /// Read a file.
    ///
    /// # Errors
    /// When it cannot be read, and as [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        Self::parse(&text).map_err(|source| Error::Config { path: path.into(), source })
    }

    /// Read the text of a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, names an architecture that is not here, runs code of its own, is quantised, or holds values that are missing or
    /// out of range; all faulty values are named at once.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| ConfigError::Json(e.to_string()))?;
        let model_type = model_type(&object)?;
        refuse_unreadable(&object)?;
        let mut fields = Fields::new(&object);
        let config = match model_type {
            ModelType::Llama => llama::config(&mut fields),
            ModelType::Mistral => mistral::config(&mut fields),
            ModelType::Qwen2 => qwen2::config(&mut fields),
            ModelType::Qwen3 => qwen3::config(&mut fields),
            ModelType::Gemma2 => gemma2::config(&mut fields),
            ModelType::Gemma3 => gemma3::config(&mut fields),
            ModelType::Phi3 => phi3::config(&mut fields),
            ModelType::Qwen3Moe => qwen3_moe::config(&mut fields),
            ModelType::Olmo2 => olmo2::config(&mut fields),
            ModelType::Granite => granite::config(&mut fields),
        };
        config.check(&mut fields);
        match fields.faults {
            faults if faults.is_empty() => Ok(config),
            faults => Err(ConfigError::Values { faults }),
        }
    }

    /// Number of weights, the table of a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let [v, h, i, l] =
            [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers]
                .map(|n| n as u64);
        let [q, kv] =
            [self.num_attention_heads, self.num_key_value_heads].map(|n| (n * self.head_dim) as u64);
        let attention = h * q * 2
            + h * kv * 2
            + if self.qkv_bias { q + 2 * kv } else { 0 }
            + if self.o_bias { h } else { 0 }
            + match self.qk_norm {
                QkNorm::None => 0,
                QkNorm::Head => 2 * self.head_dim as u64,
                QkNorm::Layer => q + kv,
            };
        let norms = match self.norm_placement {
            NormPlacement::Before | NormPlacement::Behind => 2 * h,
            NormPlacement::Both => 4 * h,
        };
        let mlp = 3 * h * i + if self.mlp_bias { 2 * i + h } else { 0 };
        let tables = if self.tie_word_embeddings { v * h } else { 2 * v * h };
        let mlps = match &self.experts {
            None => l * mlp,
            Some(experts) => {
                let sparse = experts.blocks.iter().filter(|sparse| **sparse).count() as u64;
                let [e, i] = [experts.num_experts, experts.intermediate_size].map(|n| n as u64);
                (l - sparse) * mlp + sparse * e * (h + 3 * h * i)
            }
        };
        tables + l * (attention + norms) + mlps + h
    }

    /// What the single values cannot tell.
    fn check(&self, fields: &mut Fields<'_>) {
        let (n, k) = (self.num_attention_heads, self.num_key_value_heads);
        if !n.is_multiple_of(k) {
            fields.fault(format!(
                "`num_attention_heads` is {n}, which `num_key_value_heads`, {k}, does not divide"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            fields
                .fault(format!("`head_dim` is {}, and a rotary embedding needs an even one", self.head_dim));
        } else if !self.rotary_dim.is_multiple_of(2) || self.rotary_dim == 0 {
            fields.fault(format!(
                "`partial_rotary_factor` rotates {} of {} elements of a head, and a rotary embedding needs an even number",
                self.rotary_dim, self.head_dim
            ));
        }
    }
}

/// What architectures differ in where all read the same keys.
pub(crate) struct Defaults {
    pub(crate) max_position_embeddings: usize,
    /// `None` for as many as there are query heads, which `null` says in any case.
    pub(crate) num_key_value_heads: Option<usize>,
    /// `None` for H / N.
    pub(crate) head_dim: Option<usize>,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
    /// The key of the activation, its value and the names that it may have.
    pub(crate) activation: (&'static str, Gate, &'static [&'static str]),
    /// Whether the rotary embedding is read here; if not, the architecture does it itself.
    pub(crate) reads_rope: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            max_position_embeddings: 2048,
            num_key_value_heads: None,
            head_dim: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            activation: ("hidden_act", Gate::Silu, &["silu", "swish"]),
            reads_rope: true,
        }
    }
}

/// What all architectures read alike, with every switch off. Faults are noted in `fields`.
pub(crate) fn common(fields: &mut Fields<'_>, model_type: ModelType, defaults: &Defaults) -> ModelConfig {
    let hidden_size = fields.size("hidden_size", None, 1..=1 << 17);
    let num_attention_heads = fields.size("num_attention_heads", None, 1..=1 << 12);
    let even_split = hidden_size / num_attention_heads;
    let head_dim =
        defaults.head_dim.or_else(|| hidden_size.is_multiple_of(num_attention_heads).then_some(even_split));
    let head_dim = fields.size("head_dim", head_dim, 1..=1 << 12);
    let kv_heads = defaults.num_key_value_heads.filter(|_| !fields.is_null("num_key_value_heads"));
    let max_position_embeddings =
        fields.size("max_position_embeddings", Some(defaults.max_position_embeddings), 1..=1 << 28);
    let num_hidden_layers = fields.size("num_hidden_layers", None, 1..=1 << 12);
    let (key, activation, names) = defaults.activation;
    if let Some(other) = fields.text(key).filter(|act| !names.contains(act)) {
        fields.fault(format!("`{key}` is `{}`, supported is `{}`", other.escape_debug(), names[0]));
    }
    let rope = match defaults.reads_rope {
        true => rotary::config(fields, &RopeContext::new(max_position_embeddings, head_dim)),
        false => RopeConfig { theta: 10_000.0, scaling: rotary::RopeScaling::Default },
    };
    ModelConfig {
        model_type,
        vocab_size: fields.size("vocab_size", None, 1..=1 << 24),
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None, 1..=1 << 20),
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size(
            "num_key_value_heads",
            Some(kv_heads.unwrap_or(num_attention_heads)),
            1..=1 << 12,
        ),
        head_dim,
        max_position_embeddings,
        rms_norm_eps: fields.number("rms_norm_eps", 0.0..=1.0).unwrap_or(defaults.rms_norm_eps),
        norm_offset: 0.0,
        norm_placement: NormPlacement::Before,
        rope,
        local_rope: None,
        rotary_dim: head_dim,
        tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tie_word_embeddings),
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::None,
        fused_projections: false,
        activation,
        embedding_scale: EmbeddingScale::One,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_soft_cap: None,
        residual_multiplier: 1.0,
        logits_divisor: 1.0,
        logits_soft_cap: None,
        experts: None,
        windows: vec![None; num_hidden_layers],
        initializer_range: fields.number("initializer_range", 0.0..=10.0).unwrap_or(0.02),
        dtype: dtype(fields),
    }
}

/// The architecture, by name.
///
/// An `auto_map` beside a known name changes nothing: it points at Python code that came with the checkpoint before transformers had the
/// architecture (Phi 3), and transformers itself takes its own code over it unless told `trust_remote_code`. A checkpoint whose code did
/// something else would have other tensors, which are refused by name when its weights are loaded.
fn model_type(object: &Map<String, Value>) -> Result<ModelType, ConfigError> {
    match object.get("model_type") {
        None | Some(Value::Null) => Err(ConfigError::NoModelType),
        Some(value) => {
            let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let found = ModelType::ALL.into_iter().find(|t| t.name() == given);
            let given = given.chars().take(64).collect();
            found.ok_or_else(|| match object.get("auto_map") {
                Some(Value::Object(code)) if !code.is_empty() => ConfigError::CustomCode { given },
                _ => ConfigError::ModelType { given },
            })
        }
    }
}

fn refuse_unreadable(object: &Map<String, Value>) -> Result<(), ConfigError> {
    let set =
        |key: &str| object.get(key).filter(|value| !value.is_null() && **value != Value::Object(Map::new()));
    if let Some(quantisation) = set("quantization_config") {
        let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unknown method");
        return Err(ConfigError::Quantised { method: method.chars().take(32).collect() });
    }
    if set("quantization").is_some() {
        return Err(ConfigError::Quantised { method: "mlx".into() });
    }
    Ok(())
}

/// `dtype` of transformers 5, `torch_dtype` of 4. A type that weights are not held in says nothing here: the file's own counts.
fn dtype(fields: &mut Fields<'_>) -> Option<DType> {
    let name = fields.text("dtype").or_else(|| fields.text("torch_dtype"))?;
    match name {
        "float32" => Some(DType::F32),
        "bfloat16" => Some(DType::BF16),
        "float16" => Some(DType::F16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RopeScaling;
    use proptest::prelude::*;
    use serde_json::json;
    use taper_diagnostics::Diagnose;

    fn minimal() -> Value {
        json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4})
    }

    fn with(changes: &Value) -> Result<ModelConfig, ConfigError> {
        let mut config = minimal();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::parse(&config.to_string())
    }

    fn refused(changes: &Value) -> String {
        with(changes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_absent_has_transformers_defaults() {
        let config =
            with(&json!({"num_key_value_heads": null, "head_dim": null, "rope_scaling": null})).unwrap();
        assert_eq!(
            (config.num_key_value_heads, config.head_dim, config.max_position_embeddings),
            (4, 4, 2048)
        );
        assert_eq!((config.rms_norm_eps, config.initializer_range, config.dtype), (1e-6, 0.02, None));
        assert_eq!(config.rope, RopeConfig { theta: 10000.0, scaling: RopeScaling::Default });
        assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias && !config.mlp_bias);
    }

    #[test]
    fn what_is_absent_differs_between_architectures() {
        let sizes = |model_type: &str| {
            let c = with(&json!({"model_type": model_type, "num_attention_heads": 32, "hidden_size": 64}))
                .unwrap();
            (c.num_key_value_heads, c.head_dim, c.max_position_embeddings)
        };
        assert_eq!(sizes("llama"), (32, 2, 2048));
        assert_eq!(sizes("mistral"), (8, 2, 131_072));
        assert_eq!(sizes("qwen2"), (32, 2, 32_768));
        assert_eq!(sizes("qwen3"), (32, 128, 32_768));
        let null = with(&json!({"model_type": "mistral", "num_key_value_heads": null})).unwrap();
        assert_eq!(null.num_key_value_heads, 4);
        assert!(refused(&json!({"model_type": "qwen2"})).contains("`num_attention_heads` is 4"));
    }

    #[test]
    fn biases_and_head_norms_are_the_architectures() {
        let switches = |config: Value| {
            let c = with(&config).unwrap();
            (c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm == QkNorm::Head)
        };
        let all = |model_type: &str, bias: bool| {
            switches(
                json!({"model_type": model_type, "num_key_value_heads": 4, "attention_bias": bias, "mlp_bias": bias}),
            )
        };
        assert_eq!(all("llama", true), (true, true, true, false));
        assert_eq!(all("llama", false), (false, false, false, false));
        assert_eq!((all("mistral", true), all("mistral", false)), (all("llama", false), all("llama", false)));
        assert_eq!(
            (all("qwen2", true), all("qwen2", false)),
            ((true, false, false, false), (true, false, false, false))
        );
        assert_eq!(
            (all("qwen3", true), all("qwen3", false)),
            ((true, true, false, true), (false, false, false, true))
        );
    }

    #[test]
    fn both_layouts_of_rope_and_dtype_are_read() {
        let four = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}, "torch_dtype": "bfloat16"});
        let five = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, "dtype": "bfloat16"});
        let (four, five) = (with(&four).unwrap(), with(&five).unwrap());
        assert_eq!(four, five);
        assert_eq!(four.rope, RopeConfig { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } });
        assert_eq!(four.dtype, Some(DType::BF16));
    }

    #[test]
    fn all_faulty_values_are_named_at_once() {
        let text = refused(&json!({
            "vocab_size": 0, "hidden_size": -4, "num_hidden_layers": 1e9, "rms_norm_eps": "small", "head_dim": 3,
            "num_key_value_heads": 3, "hidden_act": "gelu", "tie_word_embeddings": "yes", "pretraining_tp": 2
        }));
        for key in [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "rms_norm_eps",
            "head_dim",
            "num_key_value_heads",
            "hidden_act",
            "tie_word_embeddings",
            "pretraining_tp",
        ] {
            assert!(text.contains(&format!("`{key}`")), "{key}: {text}");
        }
        assert!(
            ModelConfig::parse(r#"{"model_type":"llama"}"#)
                .unwrap_err()
                .to_string()
                .contains("`vocab_size` is missing")
        );
        assert!(refused(&json!({"num_attention_heads": 5})).contains("`head_dim` is missing"));
    }

    #[test]
    fn rope_faults_are_named() {
        let rope = |value: Value| refused(&json!({"rope_scaling": value}));
        assert!(rope(json!({"rope_type": "su", "factor": 2})).contains("rope type `su` is not supported"));
        assert!(rope(json!({"factor": 2})).contains("`rope_scaling.rope_type` is missing"));
        assert!(rope(json!({"rope_type": "linear"})).contains("`rope_scaling.factor` is missing"));
        assert!(rope(json!({"rope_type": "linear", "factor": 0})).contains("`rope_scaling.factor` is 0"));
        assert!(
            rope(json!({"rope_type": "linear", "factor": 2, "secret": 1}))
                .contains("`rope_scaling.secret` is not supported")
        );
        assert!(rope(json!([1])).contains("wanted an object"));
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 64});
        assert!(rope(llama3).contains("`low_freq_factor` must be below `high_freq_factor`"));
        assert!(refused(&json!({"rope_theta": 0})).contains("`rope_theta`"));
        assert!(
            refused(&json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}))
                .contains("partial_rotary_factor")
        );
    }

    #[test]
    fn other_architectures_are_refused_with_the_list_of_those_that_are_here() {
        let error = with(&json!({"model_type": "mamba"})).unwrap_err();
        assert_eq!(error.to_string(), "model_type `mamba` is not supported");
        let hint = error.hint().unwrap();
        assert!(ModelType::ALL.iter().all(|t| hint.contains(&format!("`{}`", t.name()))), "{hint}");
        assert!(matches!(ModelConfig::parse("{}"), Err(ConfigError::NoModelType)));
        assert!(matches!(ModelConfig::parse("[1]"), Err(ConfigError::Json(_))));
        let code = json!({"AutoModelForCausalLM": "modeling_x.XForCausalLM"});
        let error = with(&json!({"model_type": "x", "auto_map": code})).unwrap_err();
        assert!(matches!(&error, ConfigError::CustomCode { given } if given == "x"), "{error}");
        assert!(error.hint().unwrap().contains("`llama`"));
        assert!(with(&json!({"auto_map": code})).is_ok());
        assert!(refused(&json!({"quantization_config": {"quant_method": "gptq"}})).contains("(gptq)"));
        assert!(refused(&json!({"quantization": {"group_size": 64, "bits": 4}})).contains("(mlx)"));
    }

    proptest! {
        #[test]
        fn any_number_in_any_key_is_read_or_refused_without_a_panic(
            key in prop::sample::select(vec!["vocab_size", "hidden_size", "head_dim", "num_key_value_heads", "num_attention_heads",
                "rms_norm_eps", "rope_theta", "max_position_embeddings", "sliding_window", "max_window_layers", "layer_types",
                "partial_rotary_factor", "original_max_position_embeddings", "query_pre_attn_scalar", "final_logit_softcapping"]),
            model_type in prop::sample::select(ModelType::ALL.to_vec()),
            value in prop_oneof![any::<i64>().prop_map(|x| json!(x)), any::<f64>().prop_map(|x| json!(x)), any::<u64>().prop_map(|x| json!(x))],
        ) {
            if let Ok(config) = with(&json!({ "model_type": model_type.name(), "use_sliding_window": true, key: value })) {
                prop_assert!(config.parameters() > 0);
            }
        }
    }
}
