//! Which blocks attend over a sliding window.
//!
//! Transformers 5, and 4 in its last versions, write a list `layer_types`; before, each architecture had a rule of its own. A window w
//! lets a token see itself and the w - 1 before it.

use crate::fields::Fields;
use serde_json::Value;

/// One window for every block, or none. Faults are noted in `fields`.
///
/// Transformers does not read `layer_types` here; a list that says something else is refused rather than ignored.
pub(crate) fn uniform(fields: &mut Fields<'_>, blocks: usize, window: Option<usize>) -> Vec<Option<usize>> {
    let listed = layer_types(fields, blocks).unwrap_or_default();
    if listed.contains(&window.is_none()) {
        fields.fault(match window {
            Some(w) => format!("`layer_types` holds `full_attention`, and `sliding_window`, {w}, is for all blocks of this model_type"),
            None => "`layer_types` holds `sliding_attention`, and this model_type has no window but a `sliding_window` for all blocks".into(),
        });
    }
    vec![window; blocks]
}

/// With `use_sliding_window`, the blocks that `layer_types` names or, without such a list, those from `max_window_layers` on. Faults are
/// noted in `fields`.
pub(crate) fn by_block(fields: &mut Fields<'_>, blocks: usize) -> Vec<Option<usize>> {
    let (mut window, mut first) = (None, 0);
    if fields.flag("use_sliding_window", false) {
        window = sliding_window(fields);
        first = fields.size("max_window_layers", Some(28), 0..=1 << 20);
    }
    let listed = layer_types(fields, blocks);
    if window.is_none() && listed.as_ref().is_some_and(|slides| slides.contains(&true)) {
        fields.fault("`layer_types` holds `sliding_attention`, and `use_sliding_window` and `sliding_window` give no window".into());
    }
    let slides = listed.unwrap_or_else(|| (0..blocks).map(|index| index >= first).collect());
    slides.into_iter().map(|slides| window.filter(|_| slides)).collect()
}

/// A window for the blocks that `layer_types` names or, without such a list, for those that `slides` picks by their number. Faults are
/// noted in `fields`.
pub(crate) fn alternating(
    fields: &mut Fields<'_>,
    blocks: usize,
    slides: impl Fn(usize) -> bool,
) -> Vec<Option<usize>> {
    let window = sliding_window(fields);
    let slides = layer_types(fields, blocks).unwrap_or_else(|| (0..blocks).map(slides).collect());
    slides.into_iter().map(|slides| window.filter(|_| slides)).collect()
}

/// `sliding_window`: one that is not named is 4096 tokens, `null` is none.
pub(crate) fn sliding_window(fields: &mut Fields<'_>) -> Option<usize> {
    if fields.is_null("sliding_window") {
        return None;
    }
    Some(fields.size("sliding_window", Some(4096), 1..=1 << 28))
}

/// Whether each block slides, by `layer_types`.
fn layer_types(fields: &mut Fields<'_>, blocks: usize) -> Option<Vec<bool>> {
    let list = fields.list("layer_types")?;
    // Where the number itself is faulty, comparing with it would mislead.
    if list.len() != blocks && fields.faults.is_empty() {
        fields.fault(format!("`layer_types` has {} entries, `num_hidden_layers` is {blocks}", list.len()));
    }
    let mut slides = |entry: &Value| match entry.as_str() {
        Some("full_attention") => false,
        Some("sliding_attention") => true,
        _ => {
            let shown: String = entry.to_string().chars().take(40).collect();
            fields.fault(format!(
                "`layer_types` holds {shown}, known are `full_attention` and `sliding_attention`"
            ));
            false
        }
    };
    Some(list.iter().map(&mut slides).collect())
}

#[cfg(test)]
mod tests {
    use crate::{ConfigError, ModelConfig};
    use serde_json::{Value, json};

    fn parsed(model_type: &str, changes: &Value) -> Result<Vec<Option<usize>>, ConfigError> {
        let mut config = json!({"model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4});
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::parse(&config.to_string()).map(|config| config.windows)
    }

    fn windows(model_type: &str, changes: &Value) -> Vec<Option<usize>> {
        parsed(model_type, changes).unwrap()
    }

    #[test]
    fn the_qwens_slide_from_max_window_layers_on_and_only_when_told_to() {
        for model_type in ["qwen2", "qwen3"] {
            let of = |changes: Value| windows(model_type, &changes);
            assert_eq!(of(json!({"sliding_window": 8, "max_window_layers": 1})), [None; 3]);
            assert_eq!(
                of(json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1})),
                [None, Some(8), Some(8)]
            );
            assert_eq!(
                of(json!({"use_sliding_window": true, "max_window_layers": 2})),
                [None, None, Some(4096)]
            );
            assert_eq!(of(json!({"use_sliding_window": true, "sliding_window": 8})), [None; 3]);
            assert_eq!(
                of(json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0})),
                [None; 3]
            );
            // A window that is not used may be anything.
            assert_eq!(of(json!({"use_sliding_window": false, "sliding_window": 0})), [None; 3]);
        }
    }

    #[test]
    fn layer_types_say_more_than_max_window_layers() {
        let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        let config = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2, "layer_types": types});
        assert_eq!(windows("qwen2", &config), [Some(8), None, Some(8)]);
        assert_eq!(windows("qwen3", &config), [Some(8), None, Some(8)]);
    }

    #[test]
    fn all_blocks_of_a_mistral_slide_unless_the_window_is_null() {
        assert_eq!(windows("mistral", &json!({"sliding_window": 8})), [Some(8); 3]);
        assert_eq!(windows("mistral", &json!({})), [Some(4096); 3]);
        assert_eq!(windows("mistral", &json!({"sliding_window": null})), [None; 3]);
    }

    #[test]
    fn faults_of_windows_are_named() {
        let refused =
            |model_type: &str, changes: Value| parsed(model_type, &changes).unwrap_err().to_string();
        let types = |entries: Value| refused("qwen2", json!({"layer_types": entries}));
        assert!(
            types(json!(["full_attention"]))
                .contains("`layer_types` has 1 entries, `num_hidden_layers` is 3")
        );
        assert!(
            types(json!(["full_attention", "chunked_attention", 3]))
                .contains("\"chunked_attention\", known are")
        );
        assert!(types(json!("full_attention")).contains("wanted a list"));
        let sliding = json!(["full_attention", "full_attention", "sliding_attention"]);
        assert!(types(sliding.clone()).contains("`sliding_window` give no window"));
        assert!(refused("mistral", json!({"sliding_window": 0})).contains("`sliding_window` is 0"));
        assert!(
            refused("mistral", json!({"sliding_window": 8, "layer_types": sliding}))
                .contains("`layer_types`")
        );
        assert!(refused("llama", json!({"layer_types": sliding})).contains("`layer_types`"));
    }
}
