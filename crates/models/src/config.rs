//! `config.json` as transformers 4 and 5 write it.

use crate::fields::Fields;
use crate::rotary::RopeConfig;
use crate::{ConfigError, Error, Result, llama};
use candle_core::DType;
use serde_json::{Map, Value};
use std::path::Path;

/// An architecture, by its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// Llama 2 and 3, SmolLM, TinyLlama, and all that call themselves `llama`.
    Llama,
}

impl ModelType {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Llama];

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
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
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Whether the head is the embedding's table.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
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
        let attention = h * q * 2 + h * kv * 2 + if self.attention_bias { q + 2 * kv + h } else { 0 };
        let mlp = 3 * h * i + if self.mlp_bias { 2 * i + h } else { 0 };
        let tables = if self.tie_word_embeddings { v * h } else { 2 * v * h };
        tables + l * (attention + mlp + 2 * h) + h
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
        }
    }
}

fn model_type(object: &Map<String, Value>) -> Result<ModelType, ConfigError> {
    match object.get("model_type") {
        None | Some(Value::Null) => Err(ConfigError::NoModelType),
        Some(value) => {
            let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let found = ModelType::ALL.into_iter().find(|t| t.name() == given);
            found.ok_or_else(|| ConfigError::ModelType { given: given.chars().take(64).collect() })
        }
    }
}

fn refuse_unreadable(object: &Map<String, Value>) -> Result<(), ConfigError> {
    let set =
        |key: &str| object.get(key).filter(|value| !value.is_null() && **value != Value::Object(Map::new()));
    if set("auto_map").is_some() {
        return Err(ConfigError::CustomCode);
    }
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
pub(crate) fn dtype(fields: &mut Fields<'_>) -> Option<DType> {
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
        assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
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
        assert_eq!(error.hint().unwrap(), "supported are `llama`");
        assert!(matches!(ModelConfig::parse("{}"), Err(ConfigError::NoModelType)));
        assert!(matches!(ModelConfig::parse("[1]"), Err(ConfigError::Json(_))));
        assert!(matches!(with(&json!({"auto_map": {"AutoModel": "x.Y"}})), Err(ConfigError::CustomCode)));
        assert!(refused(&json!({"quantization_config": {"quant_method": "gptq"}})).contains("(gptq)"));
        assert!(refused(&json!({"quantization": {"group_size": 64, "bits": 4}})).contains("(mlx)"));
    }

    proptest! {
        #[test]
        fn any_number_in_any_key_is_read_or_refused_without_a_panic(
            key in prop::sample::select(vec!["vocab_size", "hidden_size", "head_dim", "num_key_value_heads", "num_attention_heads",
                "rms_norm_eps", "rope_theta", "max_position_embeddings"]),
            value in prop_oneof![any::<i64>().prop_map(|x| json!(x)), any::<f64>().prop_map(|x| json!(x)), any::<u64>().prop_map(|x| json!(x))],
        ) {
            if let Ok(config) = with(&json!({ key: value })) {
                prop_assert!(config.parameters() > 0);
            }
        }
    }
}
