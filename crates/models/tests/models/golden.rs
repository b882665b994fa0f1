//! Logits, hidden states, loss and greedy tokens of the fixtures made by transformers (tests/golden/README.md says how).
//!
//! Each padded batch of a fixture is run as one packed batch of its real tokens.

use crate::support::{Batch, changed_config, fixture, greedy_cached, greedy_plain, ids, logits, rows};
use candle_core::Tensor;
use serde_json::{Value, json};
use taper_models::{CausalLm, ModelConfig, RotaryEmbedding};
use taper_nn::{ForwardContext, SequenceLayout, ops, with_f32_activations};
use taper_testkit::{
    assert_close, golden, largest_difference, read_json, read_safetensors, root_mean_square_difference,
};

/// README: natural errors of f32 are up to 2.3e-5.
const LOGITS: f64 = 1e-4;
const LOSS: f64 = 1e-5;

const MODELS: [&str; 19] = [
    "llama_untied",
    "llama_tied",
    "smollm",
    "smollm_bf16",
    "llama3_rope",
    "llama_yarn",
    "llama_dynamic",
    "llama_bias",
    "mistral",
    "qwen2",
    "qwen2_sliding",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_longrope",
    "qwen3_moe",
    "olmo2",
    "granite",
];

/// All that `numbers` holds, for the model of `weights` with the configuration file `config`. The references are computed in f32 over the stored
/// weights, in bf16 or not.
fn check(weights: &str, config: &str, numbers: &str) {
    with_f32_activations(|| check_in_f32(weights, config, numbers));
}

fn check_in_f32(weights: &str, config: &str, numbers: &str) {
    let model = fixture(weights, config);
    let model = model.as_ref();
    let tensors = read_safetensors(&golden(&format!("models/{numbers}/golden.safetensors")));
    let expected = read_json(&golden(&format!("models/{numbers}/golden.json")));
    let batch = Batch::of(&tensors, "input_ids", "attention_mask");

    let hidden = check_hidden(model, &batch, |i| tensors[&format!("hidden.{i}")].clone());
    let logits = model.lm_head(&hidden, &ForwardContext::new(&batch.layout)).unwrap();
    let error =
        assert_close(&format!("{weights} logits"), &logits, &batch.rows_of(&tensors["logits"]), LOGITS);

    let (at, targets) = batch.targets(&tensors["labels"]);
    assert_eq!(targets.len() as u64, expected["label_tokens"].as_u64().unwrap());
    let chosen = logits.index_select(&Tensor::new(at, logits.device()).unwrap(), 0).unwrap();
    let loss = ops::cross_entropy(&chosen, &targets).unwrap().sum().unwrap() / targets.len() as f64;
    let loss_error = (loss - expected["loss"].as_f64().unwrap()).abs();
    assert!(loss_error <= LOSS, "{weights} loss: {loss}, off by {loss_error:e}");
    eprintln!("{weights:13} {config:14} logits {error:.1e}  loss {loss_error:.1e}");

    let (prompt, text) = (ids(&tensors["greedy_prompt"]), ids(&tensors["greedy_ids"]));
    let new_tokens = text.len() - prompt.len();
    assert_eq!(greedy_plain(model, &prompt, new_tokens), text, "{weights} greedy, computed again each time");
    assert_eq!(greedy_cached(model, &[prompt], new_tokens), [text], "{weights} greedy, cached");
}

/// The states behind each block; gives the last, normed.
fn check_hidden(model: &dyn CausalLm, batch: &Batch, expected: impl Fn(usize) -> Tensor) -> Tensor {
    let mut ctx = ForwardContext::new(&batch.layout);
    let mut x = model.embed(&batch.ids).unwrap();
    for index in 0..model.num_blocks() {
        assert_close(&format!("hidden state {index}"), &x, &batch.rows_of(&expected(index)), LOGITS);
        x = model.block(index, &x, &mut ctx).unwrap();
    }
    let x = model.final_norm(&x).unwrap();
    assert_close("the last hidden state", &x, &batch.rows_of(&expected(model.num_blocks())), LOGITS);
    x
}

#[test]
fn every_fixture_gives_the_references_logits_loss_and_greedy_text() {
    for name in MODELS {
        check(name, "config.json", name);
    }
}

#[test]
fn configurations_of_transformers_4_give_the_same() {
    for name in MODELS {
        check(name, "config.v4.json", name);
    }
}

#[test]
fn a_sharded_checkpoint_gives_what_the_single_file_gives() {
    check("llama_sharded", "config.json", "llama_untied");
}

#[test]
fn bf16_weights_stay_near_the_references_run_in_bf16_throughout() {
    let model = fixture("smollm_bf16", "config.json");
    let batch = {
        let tensors = read_safetensors(&golden("models/smollm_bf16/golden.safetensors"));
        Batch::of(&tensors, "input_ids", "attention_mask")
    };
    let throughout = read_safetensors(&golden("models/smollm_bf16/golden_bf16.safetensors"));
    let logits = logits(model.as_ref(), &batch.ids, &batch.layout);
    let error = root_mean_square_difference(&logits, &batch.rows_of(&throughout["logits"]));
    assert!(error < 0.1, "rms {error}");
    // Ours is f32 arithmetic, so equality would mean that the fixture is not what it says.
    assert!(error > 1e-3, "rms {error}");
}

#[test]
fn left_padding_and_packing_are_the_same_rows_without_padding() {
    let model = fixture("llama_untied", "config.json");
    let model = model.as_ref();
    let tensors = read_safetensors(&golden("models/llama_untied/golden_layouts.safetensors"));
    let batch = Batch::of(&tensors, "left_input_ids", "left_attention_mask");
    let real_positions: Vec<i64> = {
        let flat = rows(&tensors["left_position_ids"]).concat();
        batch.places.iter().map(|&place| flat[place as usize]).collect()
    };
    assert!(batch.layout.position_ids().iter().map(|&p| i64::from(p)).eq(real_positions));
    let given = logits(model, &batch.ids, &batch.layout);
    assert_close("left-padded", &given, &batch.rows_of(&tensors["left_logits"]), LOGITS);

    let prompts: Vec<Vec<u32>> =
        batch.layout.segments().iter().map(|s| batch.ids[s.clone()].to_vec()).collect();
    let generated = greedy_cached(model, &prompts, 8);
    for (row, (text, prompt)) in rows(&tensors["left_generate"]).iter().zip(generated.iter().zip(&prompts)) {
        let padding = row.len() - 8 - prompt.len();
        assert!(row[padding..].iter().map(|&id| id as u32).eq(text.iter().copied()), "{row:?} {text:?}");
    }

    let packed = ids(&tensors["packed_input_ids"]);
    let starts: Vec<usize> = ids(&tensors["packed_position_ids"])
        .iter()
        .enumerate()
        .filter(|(_, p)| **p == 0)
        .map(|(i, _)| i)
        .collect();
    let lengths: Vec<usize> =
        starts.iter().zip(starts[1..].iter().chain([&packed.len()])).map(|(from, to)| to - from).collect();
    let given = logits(model, &packed, &SequenceLayout::from_lengths(&lengths));
    assert_close("packed", &given, &tensors["packed_logits"].squeeze(0).unwrap(), LOGITS);
}

#[test]
fn llama3_frequencies_are_the_references() {
    let config = ModelConfig::read(&golden("models/llama3_rope/config.json").into()).unwrap();
    let expected = read_safetensors(&golden("models/llama3_rope/inv_freq.safetensors"))["inv_freq"]
        .to_vec1::<f32>()
        .unwrap();
    let given = RotaryEmbedding::new(config.rope, config.head_dim).inv_freq(24);
    assert_eq!(given.len(), expected.len());
    for (given, expected) in given.iter().zip(&expected) {
        // The reference computes in f32.
        assert!((given / expected - 1.0).abs() < 1e-6, "{given} {expected}");
    }
}

/// The rest of the fixture is each text by itself as well: in transformers, a batch with a text beyond the original length takes the long
/// factors for all its texts.
#[test]
fn a_text_within_the_original_length_takes_the_short_factors() {
    let model = fixture("phi3_longrope", "config.json");
    let tensors = read_safetensors(&golden("models/phi3_longrope/golden.safetensors"));
    let short = ids(&tensors["short_input_ids"]);
    let expected = tensors["short_logits"].squeeze(0).unwrap();
    let alone = logits(model.as_ref(), &short, &SequenceLayout::single(short.len()));
    assert_close("alone", &alone, &expected, LOGITS);
    let long: Vec<u32> = ids(&tensors["input_ids"])[..24].to_vec();
    let layout = SequenceLayout::from_lengths(&[short.len(), 24]);
    let together = logits(model.as_ref(), &[short, long].concat(), &layout);
    assert_close("beside a long one", &together.narrow(0, 0, 12).unwrap(), &expected, LOGITS);
}

/// How far a fixture's logits are from those of its weights under a changed configuration.
fn moved_by(name: &str, changes: &Value) -> f64 {
    let here = tempfile::tempdir().unwrap();
    let files = changed_config(name, here.path(), |config| {
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
    });
    let model = taper_models::load(&files, taper_models::LoadOptions::default()).unwrap();
    let tensors = read_safetensors(&golden(&format!("models/{name}/golden.safetensors")));
    let batch = Batch::of(&tensors, "input_ids", "attention_mask");
    let logits = logits(model.as_ref(), &batch.ids, &batch.layout);
    largest_difference(&logits, &batch.rows_of(&tensors["logits"]))
}

/// With one setting of a fixture's configuration changed, our logits move as far as the reference's: the setting is read, it matters, and
/// its neighbours (a window of one more, windows everywhere or nowhere) are something else.
#[test]
fn changed_settings_move_the_logits_as_far_as_the_references() {
    let one = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    let plain = |theta: f64| json!({"rope_parameters": one(theta)});
    let full = json!({"layer_types": ["full_attention", "full_attention", "full_attention"]});
    let sliding = json!({"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]});
    let cases = [
        ("llama3_rope", "no_rope_scaling", plain(500_000.0)),
        ("llama_bias", "no_rope_scaling", plain(10_000.0)),
        ("llama_yarn", "no_rope_scaling", plain(10_000.0)),
        ("llama_dynamic", "no_rope_scaling", plain(10_000.0)),
        ("smollm", "theta_10000", plain(10_000.0)),
        ("qwen2", "theta_10000", plain(10_000.0)),
        ("qwen2_sliding", "no_window", full.clone()),
        ("qwen2_sliding", "window_everywhere", sliding),
        ("qwen2_sliding", "window_9", json!({"sliding_window": 9})),
        ("mistral", "no_window", json!({"sliding_window": null})),
        ("mistral", "window_9", json!({"sliding_window": 9})),
        ("gemma2", "no_attn_softcap", json!({"attn_logit_softcapping": null})),
        ("gemma2", "no_final_softcap", json!({"final_logit_softcapping": null})),
        ("gemma2", "scalar_is_head_dim", json!({"query_pre_attn_scalar": 24})),
        ("gemma2", "no_window", full.clone()),
        (
            "gemma2",
            "window_swapped",
            json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ),
        ("gemma3", "no_window", json!({"sliding_window": 64})),
        (
            "gemma3",
            "one_theta",
            json!({"rope_parameters": {"full_attention": one(1e4), "sliding_attention": one(1e4)}}),
        ),
        (
            "gemma3",
            "no_linear_scaling",
            json!({"rope_parameters": {"full_attention": one(1e6), "sliding_attention": one(1e4)}}),
        ),
        ("gemma3", "scalar_is_head_dim", json!({"query_pre_attn_scalar": 24})),
        ("phi3", "no_window", json!({"sliding_window": null})),
        ("qwen3_moe", "weights_not_normed", json!({"norm_topk_prob": false})),
        ("qwen3_moe", "one_expert", json!({"num_experts_per_tok": 1})),
        ("olmo2", "theta_10000", plain(10_000.0)),
        ("granite", "no_embedding_multiplier", json!({"embedding_multiplier": 1.0})),
        ("granite", "plain_attention_scale", json!({"attention_multiplier": 0.25})),
        ("granite", "no_residual_multiplier", json!({"residual_multiplier": 1.0})),
        ("granite", "no_logits_scaling", json!({"logits_scaling": 1.0})),
        (
            "phi3_longrope",
            "no_scaling",
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}),
        ),
    ];
    for (name, what, changes) in cases {
        let expected = read_json(&golden(&format!("models/{name}/golden.json")));
        let expected = expected["logits_would_move_by"][what].as_f64().unwrap();
        let moved = moved_by(name, &changes);
        eprintln!("{name:13} {what:17} moves by {moved:.5}, the reference by {expected:.5}");
        assert!(
            expected > 0.1 && (moved - expected).abs() < 2.0 * LOGITS,
            "{name} {what}: {moved} {expected}"
        );
    }
}

/// Older configurations have no `layer_types`: `max_window_layers` alone then says which blocks slide.
#[test]
fn max_window_layers_alone_makes_blocks_slide() {
    let without_list =
        |first: usize| moved_by("qwen2_sliding", &json!({"layer_types": null, "max_window_layers": first}));
    assert!(without_list(1) < LOGITS);
    let expected = read_json(&golden("models/qwen2_sliding/golden.json"))["logits_would_move_by"].clone();
    for (first, what) in [(0, "window_everywhere"), (3, "no_window")] {
        assert!((without_list(first) - expected[what].as_f64().unwrap()).abs() < 2.0 * LOGITS, "{first}");
    }
    assert!(moved_by("qwen2_sliding", &json!({"layer_types": null, "use_sliding_window": false})) > 1.0);
}
