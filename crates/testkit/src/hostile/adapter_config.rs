//! `adapter_config.json` of PEFT.

use candle_core::DType;
use taper_models::{CausalLm, ModelConfig, init};
use taper_peft::{AdapterConfig, attach};

/// Two blocks and a head of their own; small, since it is made anew for every configuration that is accepted.
const MODEL: &str = r#"{"model_type": "qwen2", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}"#;

/// `bytes` as the text of an `adapter_config.json`, which is then put on a model of two blocks.
///
/// # Panics
/// When a promise is broken: a configuration that changes on being written and read again, or a scale that is no number.
pub fn adapter_config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(config) = AdapterConfig::from_json(text) else { return false };
    let written = config.to_json();
    let again = AdapterConfig::from_json(&written).expect("what is written can be read");
    assert_eq!(again.to_json(), written, "a configuration changes on its way through a file");
    let mut model = model();
    if let Ok(adapter) = attach(model.as_mut(), &config, "qwen2", 0) {
        assert!(!adapter.layers.is_empty());
        assert!(adapter.layers.iter().all(|layer| layer.rank > 0 && layer.scale.is_finite()));
        assert_eq!(adapter.parameters.len(), adapter.weights().iter().count());
        adapter.detach(model.as_mut()).expect("the base is restored");
    }
    true
}

pub(super) fn model() -> Box<dyn CausalLm> {
    let config = ModelConfig::parse(MODEL).expect("a sound configuration");
    init(&config, 0, Some(DType::F32)).expect("a model")
}
