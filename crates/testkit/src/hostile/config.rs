//! `config.json` of a model.

use taper_models::{ModelConfig, RotaryEmbedding};

/// `bytes` as the text of a `config.json`.
///
/// # Panics
/// When a promise is broken: an accepted configuration whose sizes do not fit each other, or whose rotary frequencies
/// are not numbers from 0 to 1.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(config) = ModelConfig::parse(text) else { return false };
    sound_config(&config);
    true
}

pub(super) fn sound_config(config: &ModelConfig) {
    assert!(config.parameters() > 0);
    assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
    assert!(config.head_dim.is_multiple_of(2) && config.head_dim > 0);
    assert_eq!(config.windows.len(), config.num_hidden_layers);
    let rotary = RotaryEmbedding::new(config.rope.clone(), config.head_dim);
    assert!(rotary.attention_factor().is_finite());
    for longest in [1, 4096] {
        let frequencies = rotary.inv_freq(longest);
        assert_eq!(frequencies.len(), config.head_dim / 2);
        let sound = |f: &f32| f.is_finite() && (0.0..=1.0).contains(f);
        assert!(frequencies.iter().all(sound), "{:?} gives {frequencies:?}", config.rope);
    }
}
