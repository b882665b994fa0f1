//! Invariant 6 (packed = separate, batch = single, cached = full), and gradients through a whole model.

use crate::support::{cached_logits, fixture, logits};
use candle_core::{DType, Tensor, Var};
use taper_models::{CausalLm, ModelConfig, forward_hidden, forward_logits, init, state_tensors};
use taper_nn::tape::record;
use taper_nn::{ForwardContext, KvCache, ModuleMut, SequenceLayout, VisitModules, with_f32_activations};
use taper_testkit::{GradientCheck, assert_close, gradient_check, largest_difference};

/// One of them is longer than the fixtures' windows of 8.
const LENGTHS: [usize; 4] = [5, 1, 21, 3];

fn some_ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 37 + 11) % 256).collect()
}

/// Packing changes nothing of a sequence. Not for dynamic rotary scaling, which looks at the longest by design.
#[test]
fn a_packed_sequence_equals_itself_alone() {
    for name in [
        "llama_untied",
        "llama_bias",
        "llama_yarn",
        "smollm_bf16",
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
    ] {
        let model = fixture(name, "config.json");
        let ids = some_ids(LENGTHS.iter().sum());
        let layout = SequenceLayout::from_lengths(&LENGTHS);
        let packed = logits(model.as_ref(), &ids, &layout);
        for segment in layout.segments() {
            let alone = logits(model.as_ref(), &ids[segment.clone()], &SequenceLayout::single(segment.len()));
            let among = packed.narrow(0, segment.start, segment.len()).unwrap();
            assert_close(name, &among, &alone, 2e-5);
        }
    }
}

#[test]
fn no_token_sees_another_segment_or_the_future() {
    let model = fixture("llama_untied", "config.json");
    let layout = SequenceLayout::from_lengths(&[6, 6]);
    let before = some_ids(12);
    let mut after = before.clone();
    after[4] = 200;
    let (a, b) = (logits(model.as_ref(), &before, &layout), logits(model.as_ref(), &after, &layout));
    let row = |t: &Tensor, i: usize| t.narrow(0, i, 1).unwrap();
    for i in [0, 1, 2, 3, 6, 7, 8, 9, 10, 11] {
        assert_eq!(largest_difference(&row(&a, i), &row(&b, i)), 0.0, "token {i}");
    }
    for i in [4, 5] {
        assert!(largest_difference(&row(&a, i), &row(&b, i)) > 0.01, "token {i}");
    }
}

/// A window of 8 over two blocks: a token reaches 14 back and no further.
#[test]
fn no_token_sees_what_lies_before_its_windows() {
    let model = fixture("mistral", "config.json");
    let before = some_ids(20);
    let mut after = before.clone();
    after[2] = 200;
    let layout = SequenceLayout::single(20);
    let (a, b) = (logits(model.as_ref(), &before, &layout), logits(model.as_ref(), &after, &layout));
    let moved = |i: usize| largest_difference(&a.narrow(0, i, 1).unwrap(), &b.narrow(0, i, 1).unwrap());
    assert!((2..=16).all(|i| moved(i) > 1e-4), "{:?}", (0..20).map(moved).collect::<Vec<_>>());
    assert!([0, 1, 17, 18, 19].into_iter().all(|i| moved(i) == 0.0));
}

/// In pieces of any size, with several sequences of different lengths together.
#[test]
fn cached_decoding_equals_the_full_forward() {
    for name in [
        "llama_untied",
        "llama_bias",
        "llama3_rope",
        "smollm_bf16",
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
    ] {
        with_f32_activations(|| check_cached(name, 2e-5));
        // What rounds to bf16 in one order rounds otherwise in another.
        if name == "smollm_bf16" {
            check_cached(name, 0.2);
        }
    }
}

/// Two sequences read in pieces of their own, with a cache each, against the whole at once.
fn check_cached(name: &str, tolerance: f64) {
    let model = fixture(name, "config.json");
    let ids: [Vec<u32>; 2] = [some_ids(12), some_ids(20)[8..].to_vec()];
    let full: Vec<Tensor> =
        ids.iter().map(|ids| logits(model.as_ref(), ids, &SequenceLayout::single(12))).collect();
    let mut caches = vec![KvCache::new(model.num_blocks()); 2];
    let mut pasts = [0, 0];
    for pieces in [[7, 1], [1, 8], [3, 1], [1, 2]] {
        let layout = SequenceLayout::continued(&[(pieces[0], pasts[0]), (pieces[1], pasts[1])]);
        let input: Vec<u32> = (0..2).flat_map(|s| ids[s][pasts[s]..pasts[s] + pieces[s]].to_vec()).collect();
        let given = cached_logits(model.as_ref(), &input, &layout, &mut caches);
        for s in 0..2 {
            let given = given.narrow(0, layout.segments()[s].start, pieces[s]).unwrap();
            assert_close(name, &given, &full[s].narrow(0, pasts[s], pieces[s]).unwrap(), tolerance);
            pasts[s] += pieces[s];
        }
    }
    assert_eq!(pasts, [12, 12]);
}

#[test]
fn ids_must_fit_the_layout_and_the_vocabulary() {
    let model = fixture("llama_tied", "config.json");
    let layout = SequenceLayout::single(2);
    let forward = |ids: &[u32]| {
        forward_logits(model.as_ref(), ids, &mut ForwardContext::new(&layout)).unwrap_err().to_string()
    };
    assert!(forward(&[1, 2, 3]).contains("3 ids for a layout of 2 tokens"));
    assert!(forward(&[1, 256]).contains("256"));
}

fn tiny(changes: &str) -> Box<dyn CausalLm> {
    let config = format!(
        r#"{{"vocab_size":13,"hidden_size":8,"intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,
            "num_key_value_heads":1,"initializer_range":0.4,{changes}}}"#
    );
    init(&ModelConfig::parse(&config).unwrap(), 3, None).unwrap()
}

fn tiny_llama(tied: bool) -> Box<dyn CausalLm> {
    tiny(&format!(
        r#""model_type":"llama","tie_word_embeddings":{tied},"attention_bias":true,"mlp_bias":true"#
    ))
}

/// Makes all weights variables, as full training does; a tied head is trained through the table.
fn train_all(model: &mut dyn VisitModules) -> Vec<(String, Var)> {
    let mut vars = Vec::new();
    model
        .visit_modules(&mut |module| {
            let made = match module {
                ModuleMut::Linear(linear) if linear.is_tied() => Vec::new(),
                ModuleMut::Linear(linear) => linear.make_trainable()?,
                ModuleMut::Embedding(embedding) => vec![embedding.make_trainable()?],
                ModuleMut::RmsNorm(norm) => vec![norm.make_trainable()?],
            };
            vars.extend(made.into_iter().map(|p| (p.name, p.var)));
            Ok(())
        })
        .unwrap();
    vars
}

#[test]
fn every_weight_of_a_model_has_the_gradient_that_finite_differences_find() {
    let sliding = r#""use_sliding_window":true,"sliding_window":2,"max_window_layers":1"#;
    check_gradients(tiny_llama(false).as_mut(), 35);
    check_gradients(tiny_llama(true).as_mut(), 34);
    check_gradients(tiny(&format!(r#""model_type":"qwen2",{sliding}"#)).as_mut(), 27);
    check_gradients(tiny(&format!(r#""model_type":"qwen3","head_dim":6,{sliding}"#)).as_mut(), 25);
    check_gradients(tiny(r#""model_type":"mistral","sliding_window":2"#).as_mut(), 21);
    let gemma = r#""head_dim":4,"query_pre_attn_scalar":3,"sliding_window":2"#;
    let caps = r#""attn_logit_softcapping":2.0,"final_logit_softcapping":3.0"#;
    check_gradients(tiny(&format!(r#""model_type":"gemma2",{gemma},{caps}"#)).as_mut(), 24);
    check_gradients(
        tiny(&format!(r#""model_type":"gemma3_text","sliding_window_pattern":2,{gemma}"#)).as_mut(),
        28,
    );
    check_gradients(
        tiny(r#""model_type":"phi3","sliding_window":2,"partial_rotary_factor":0.5"#).as_mut(),
        15,
    );
    let experts =
        r#""num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":6,"mlp_only_layers":[1]"#;
    for normed in [true, false] {
        let model = format!(r#""model_type":"qwen3_moe","norm_topk_prob":{normed},{experts}"#);
        check_gradients(tiny(&model).as_mut(), 35);
    }
    check_gradients(tiny(r#""model_type":"olmo2""#).as_mut(), 25);
    let factors =
        r#""embedding_multiplier":3,"attention_multiplier":0.3,"residual_multiplier":0.7,"logits_scaling":2"#;
    check_gradients(tiny(&format!(r#""model_type":"granite",{factors}"#)).as_mut(), 21);
}

fn check_gradients(model: &mut dyn CausalLm, count: usize) {
    let (names, vars): (Vec<_>, Vec<_>) = train_all(model).into_iter().unzip();
    assert_eq!(names.len(), count, "{names:?}");
    assert_eq!(names.iter().any(|name| name == "lm_head.weight"), !model.config().tie_word_embeddings);
    let layout = SequenceLayout::from_lengths(&[4, 2]);
    let pick = (0..6 * 13).map(|i| (i as f32 * 0.7).sin()).collect();
    let pick = Tensor::from_vec(pick, (6, 13), &candle_core::Device::Cpu).unwrap();
    let logits = || forward_logits(model, &[1, 7, 12, 7, 0, 3], &mut ForwardContext::new(&layout));
    // A wide step is bent and a narrow one rounded; a wrong gradient is wrong at all of them.
    let at_steps = [2e-2, 5e-3, 1.5e-3]
        .map(|step| gradient_check(&vars, GradientCheck { step, entries: 24 }, &pick, logits).unwrap());
    for (at, name) in names.iter().enumerate() {
        let error = at_steps.iter().map(|errors| errors[at]).fold(f64::INFINITY, f64::min);
        assert!(error < 5e-3, "{} {name}: {error:.1e}", model.config().model_type.name());
    }
}

/// Training the table of a tied model moves its head with it, also when the values are set in place.
#[test]
fn a_tied_head_follows_its_embedding() {
    let mut model = tiny_llama(true);
    let vars = train_all(model.as_mut());
    let (_, table) = vars.iter().find(|(name, _)| name == "model.embed_tokens.weight").unwrap();
    let layout = SequenceLayout::single(1);
    let head =
        |model: &dyn CausalLm, hidden: &Tensor| model.lm_head(hidden, &ForwardContext::new(&layout)).unwrap();
    let hidden = forward_hidden(model.as_ref(), &[5], &mut ForwardContext::new(&layout)).unwrap();
    let before = head(model.as_ref(), &hidden);
    table.set(&(table.as_detached_tensor() * 2.0).unwrap()).unwrap();
    assert_close("twice the table", &head(model.as_ref(), &hidden), &(before * 2.0).unwrap(), 1e-5);
    let names: Vec<String> =
        state_tensors(model.as_mut()).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(!names.iter().any(|name| name.starts_with("lm_head")));
}

#[test]
fn frozen_weights_have_no_gradient_and_are_not_recorded() {
    let model = tiny_llama(false);
    let layout = SequenceLayout::single(3);
    let forward = || forward_logits(model.as_ref(), &[1, 2, 3], &mut ForwardContext::new(&layout));
    let (logits, tape) = record(&[], forward).unwrap();
    assert!(!tape.tracks(&logits) && tape.kept_bytes() == 0);
}

#[test]
fn random_weights_depend_on_seed_and_name_alone() {
    let config = |layers: usize| {
        let text = format!(
            r#"{{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":{layers},"num_attention_heads":4,
                "dtype":"bfloat16"}}"#
        );
        ModelConfig::parse(&text).unwrap()
    };
    let state = |layers, seed| state_tensors(init(&config(layers), seed, None).unwrap().as_mut()).unwrap();
    let (one, two, other) = (state(1, 7), state(2, 7), state(1, 8));
    let find =
        |state: &[(String, Tensor)], name: &str| state.iter().find(|(n, _)| n == name).unwrap().1.clone();
    for (name, tensor) in &one {
        assert_eq!(largest_difference(tensor, &find(&two, name)), 0.0, "{name}");
    }
    let q = "model.layers.0.self_attn.q_proj.weight";
    assert!(largest_difference(&find(&one, q), &find(&other, q)) > 0.01);
    assert_eq!(find(&one, q).dtype(), DType::BF16);
    let zero = find(&one, q).zeros_like().unwrap();
    let std = taper_testkit::root_mean_square_difference(&find(&one, q), &zero);
    assert!((std - 0.02).abs() < 0.002, "{std}");
}

#[test]
fn the_number_of_parameters_is_that_of_the_weights() {
    for name in [
        "llama_untied",
        "llama_tied",
        "llama_bias",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "phi3_longrope",
        "qwen3_moe",
        "olmo2",
        "granite",
    ] {
        let mut model = fixture(name, "config.json");
        let state = state_tensors(model.as_mut()).unwrap();
        let total: usize = state.iter().map(|(_, t)| t.elem_count()).sum();
        assert_eq!(total as u64, model.config().parameters(), "{name}");
    }
}
