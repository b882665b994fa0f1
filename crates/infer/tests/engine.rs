//! Generation and scoring over real (tiny) models.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::ops::ControlFlow;
use taper_hub::ModelFiles;
use taper_infer::{
    Completion, Engine, EngineOptions, Error, FinishReason, GenerationConfig, Request, Scored, token_losses,
};
use taper_models::{CausalLm, LoadOptions, forward_logits, load};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32};
use taper_testkit::{TinySpec, golden, read_safetensors, tiny_checkpoint};
use taper_text::{Tokenizer, TokenizerFiles};

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&TokenizerFiles::in_folder(&golden("chat/tokenizer_chatml"))).unwrap()
}

/// Untied, with weights wide enough that greedy texts are not one token over and over.
fn tiny() -> Box<dyn CausalLm> {
    let folder = tempfile::tempdir().unwrap();
    let spec = TinySpec { tie_word_embeddings: false, initializer_range: 0.3, ..TinySpec::default() };
    load(&tiny_checkpoint(folder.path(), &spec), LoadOptions::default()).unwrap()
}

fn options(batch_size: usize, tokens_per_pass: usize) -> EngineOptions {
    EngineOptions { batch_size, tokens_per_pass }
}

/// Prompts of different lengths, ids from 10 to 299.
fn prompts(n: usize) -> Vec<Vec<u32>> {
    (0..n as u32)
        .map(|i| (0..3 + 4 * (i % 3) + i).map(|j| 10 + (37 * i + 101 * j + 7 * j * j) % 290).collect())
        .collect()
}

fn generate(
    model: &dyn CausalLm,
    requests: &[Request],
    config: &GenerationConfig,
    options: EngineOptions,
) -> Vec<Completion> {
    Engine::new(model, &tokenizer(), options).generate(requests, config).unwrap()
}

/// Greedy by running everything again for each token, nothing cached.
fn recomputed(model: &dyn CausalLm, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let layout = SequenceLayout::single(ids.len());
        let logits = forward_logits(model, &ids, &mut ForwardContext::new(&layout)).unwrap();
        let last = to_vec_f32(&logits.get(ids.len() - 1).unwrap()).unwrap();
        let best = (0..last.len()).fold(0, |best, i| if last[i] > last[best] { i } else { best });
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn greedy_tokens_equal_the_reference_for_every_golden_model() {
    let models = [
        "llama_untied",
        "llama_tied",
        "smollm",
        "smollm_bf16",
        "llama3_rope",
        "llama_yarn",
        "llama_dynamic",
        "llama_bias",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        // Grows beyond its original length on the way.
        "phi3_longrope",
        "qwen3_moe",
        "olmo2",
        "granite",
    ];
    for name in models {
        let folder = golden("models").join(name);
        let model = load(&ModelFiles::of_folder(&folder).unwrap(), LoadOptions::default()).unwrap();
        let file = read_safetensors(&folder.join("golden.safetensors"));
        let ids = |key: &str| -> Vec<u32> {
            file[key].to_vec1::<i64>().unwrap().into_iter().map(|id| u32::try_from(id).unwrap()).collect()
        };
        let (prompt, expected) = (ids("greedy_prompt"), ids("greedy_ids"));
        let new = expected.len() - prompt.len();
        assert!(new >= 10 && expected.starts_with(&prompt));
        let requests = Request::numbered([prompt.clone()]);
        for tokens_per_pass in [2048, 4] {
            let config = GenerationConfig::greedy(new);
            let got = &generate(model.as_ref(), &requests, &config, options(1, tokens_per_pass))[0];
            assert_eq!(got.token_ids, expected[prompt.len()..], "{name}, {tokens_per_pass} tokens a pass");
            assert_eq!((got.finish_reason, got.prompt_tokens), (FinishReason::Length, prompt.len()));
        }
    }
}

#[test]
fn batches_chunks_and_caches_change_nothing() {
    let model = tiny();
    let requests = Request::numbered(prompts(7));
    let config = GenerationConfig::greedy(12);
    let alone: Vec<Completion> = requests
        .iter()
        .map(|request| {
            generate(model.as_ref(), std::slice::from_ref(request), &config, options(1, 2048)).remove(0)
        })
        .collect();
    for (request, completion) in requests.iter().zip(&alone) {
        let written = completion.completion_tokens();
        let mut given = completion.token_ids.clone();
        given.extend(completion.stop_token);
        assert_eq!(given, recomputed(model.as_ref(), &request.prompt_ids, written));
    }
    let distinct: std::collections::BTreeSet<_> = alone.iter().map(|c| &c.token_ids).collect();
    assert!(distinct.len() > 3, "the texts differ, so that a mix-up would be seen");
    for (batch_size, tokens_per_pass) in [(7, 2048), (3, 2048), (7, 5), (2, 1), (64, 9)] {
        let together = generate(model.as_ref(), &requests, &config, options(batch_size, tokens_per_pass));
        assert_eq!(together, alone, "batch of {batch_size}, {tokens_per_pass} tokens a pass");
    }
}

/// Texts that stay below the length at which LongRoPE switches, that grow beyond it, and that begin beyond it.
#[test]
fn invariant_6_holds_where_texts_switch_to_other_frequencies() {
    let files = ModelFiles::of_folder(&golden("models/phi3_longrope")).unwrap();
    let model = load(&files, LoadOptions::default()).unwrap();
    let prompt = |n: u32| (0..n).map(|i| 10 + (i * i * 3 + 7 * n) % 230).collect::<Vec<u32>>();
    let requests = Request::numbered([4, 9, 16, 17, 30].map(prompt));
    let config = GenerationConfig::greedy(10);
    for options in [options(1, 2048), options(5, 2048), options(5, 7), options(2, 1)] {
        for (request, given) in requests.iter().zip(generate(model.as_ref(), &requests, &config, options)) {
            let mut ids = given.token_ids.clone();
            ids.extend(given.stop_token);
            let expected = recomputed(model.as_ref(), &request.prompt_ids, ids.len());
            assert_eq!(ids, expected, "a prompt of {}, {options:?}", request.prompt_ids.len());
        }
    }
}

#[test]
fn a_draw_depends_on_seed_and_request_and_not_on_its_neighbours() {
    let model = tiny();
    let config = GenerationConfig { temperature: 1.0, top_p: 0.95, seed: 9, ..GenerationConfig::greedy(10) };
    let requests = Request::numbered(prompts(5));
    let all = generate(model.as_ref(), &requests, &config, options(5, 2048));
    let backwards: Vec<Request> = requests.iter().rev().cloned().collect();
    let mut turned = generate(model.as_ref(), &backwards, &config, options(2, 7));
    turned.reverse();
    assert_eq!(all, turned);
    let third = generate(model.as_ref(), &requests[2..3], &config, options(1, 2048));
    assert_eq!(third[0], all[2]);
    let other_seed = GenerationConfig { seed: 10, ..config.clone() };
    assert_ne!(generate(model.as_ref(), &requests, &other_seed, options(5, 2048)), all);
    let renumbered = [Request { number: 77, ..requests[2].clone() }];
    assert_ne!(
        generate(model.as_ref(), &renumbered, &config, options(1, 2048))[0].token_ids,
        all[2].token_ids
    );
}

/// The pieces that a listener is told of the first prompt.
fn streamed(model: &dyn CausalLm, config: &GenerationConfig) -> (Vec<String>, Completion) {
    let tokenizer = tokenizer();
    let engine = Engine::new(model, &tokenizer, EngineOptions::default());
    let (mut pieces, mut ends) = (Vec::new(), 0);
    let completions = engine
        .generate_with(&Request::numbered(prompts(1)), config, &mut |delta| {
            assert_eq!(delta.request, 0);
            ends += usize::from(delta.finish_reason.is_some());
            if !delta.text.is_empty() {
                pieces.push(delta.text.to_owned());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(ends, 1);
    (pieces, completions.into_iter().next().unwrap())
}

#[test]
fn a_stop_string_over_two_tokens_ends_the_text_before_it() {
    let model = tiny();
    let (pieces, whole) = streamed(model.as_ref(), &GenerationConfig::greedy(24));
    assert_eq!(pieces.concat(), whole.text);
    assert_eq!(tokenizer().decode(&whole.token_ids, true).unwrap(), whole.text);
    let mut tried = 0;
    for pair in pieces.windows(2) {
        let (Some(end), Some(start)) = (pair[0].chars().last(), pair[1].chars().next()) else { continue };
        let stop = format!("{end}{start}");
        let expected = &whole.text[..whole.text.find(&stop).unwrap()];
        let config = GenerationConfig { stop: vec![stop], ..GenerationConfig::greedy(24) };
        let (pieces, stopped) = streamed(model.as_ref(), &config);
        assert_eq!((stopped.text.as_str(), stopped.finish_reason), (expected, FinishReason::Stop));
        assert_eq!(pieces.concat(), expected, "what is shown never goes beyond");
        assert!(whole.token_ids.starts_with(&stopped.token_ids));
        tried += 1;
    }
    assert!(tried >= 5, "{pieces:?}");
}

#[test]
fn a_stop_token_ends_the_text_and_is_not_in_it() {
    let model = tiny();
    let whole = streamed(model.as_ref(), &GenerationConfig::greedy(12)).1;
    let stop = whole.token_ids[5];
    let first = whole.token_ids.iter().position(|&id| id == stop).unwrap();
    let config = GenerationConfig { stop_token_ids: vec![stop], ..GenerationConfig::greedy(12) };
    let stopped = streamed(model.as_ref(), &config).1;
    assert_eq!(stopped.token_ids, whole.token_ids[..first]);
    assert_eq!((stopped.stop_token, stopped.finish_reason), (Some(stop), FinishReason::Stop));
    assert_eq!(stopped.completion_tokens(), first + 1);
}

#[test]
fn prompts_that_do_not_fit_are_refused_before_anything_is_computed() {
    let folder = golden("models/llama_untied");
    let model = load(&ModelFiles::of_folder(&folder).unwrap(), LoadOptions::default()).unwrap();
    let limit = model.config().max_position_embeddings;
    assert_eq!(limit, 128);
    let tokenizer = tokenizer();
    let engine = Engine::new(model.as_ref(), &tokenizer, EngineOptions::default());
    let run = |lengths: &[usize]| {
        let requests = Request::numbered(lengths.iter().map(|&n| vec![5; n]));
        engine.generate(&requests, &GenerationConfig::greedy(10))
    };
    let error = run(&[3, 128]).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt: 1, tokens: 128, limit: 128 }), "{error}");
    assert_eq!(
        error.to_string(),
        "prompt 1 has 128 tokens, the model's longest sequence is 128, answer included"
    );
    assert!(matches!(run(&[0]).unwrap_err(), Error::EmptyPrompt { prompt: 0 }));
    // Two places are left, so two tokens are written.
    let cut = run(&[126]).unwrap().remove(0);
    assert_eq!((cut.completion_tokens(), cut.finish_reason), (2, FinishReason::Length));
    let wrong = GenerationConfig { top_p: 0.0, ..GenerationConfig::default() };
    assert!(matches!(engine.generate(&[], &wrong), Err(Error::Config(_))));
}

#[test]
fn stop_tokens_are_written_over_or_put_off_where_that_is_asked_for() {
    let model = tiny();
    let prompts = Request::numbered(prompts(1));
    let texts =
        |config: &GenerationConfig| generate(model.as_ref(), &prompts, config, options(1, 64)).remove(0);
    let whole = texts(&GenerationConfig::greedy(12));
    let stop = whole.token_ids[4];
    let first = whole.token_ids.iter().position(|id| *id == stop).unwrap();
    let stopped = GenerationConfig { stop_token_ids: vec![stop], ..GenerationConfig::greedy(12) };
    assert_eq!(texts(&stopped).token_ids, whole.token_ids[..first]);

    let ignored = GenerationConfig { ignore_eos: true, ..stopped.clone() };
    assert_eq!(texts(&ignored).token_ids, whole.token_ids);

    let later = texts(&GenerationConfig { min_new_tokens: first + 1, ..stopped.clone() });
    assert_eq!(later.token_ids[..first], whole.token_ids[..first]);
    assert!(later.token_ids.len() > first && !later.token_ids.contains(&stop));
    // As many as there are anyhow change nothing.
    assert_eq!(
        texts(&GenerationConfig { min_new_tokens: first, ..stopped }).token_ids,
        whole.token_ids[..first]
    );
}

#[test]
fn a_listener_can_break_off_one_request_and_the_others_go_on() {
    let model = tiny();
    let tokenizer = tokenizer();
    let engine = Engine::new(model.as_ref(), &tokenizer, EngineOptions::default());
    let requests = Request::numbered(prompts(2));
    let config = GenerationConfig::greedy(16);
    let whole = engine.generate(&requests, &config).unwrap();
    let broken = engine
        .generate_with(&requests, &config, &mut |delta| {
            if delta.request == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(broken[0].finish_reason, FinishReason::Cancelled);
    assert!(broken[0].token_ids.len() < whole[0].token_ids.len());
    assert_eq!(broken[1], whole[1]);
}

#[test]
fn token_losses_are_those_of_the_full_forward_packed_or_not() {
    let model = tiny();
    let sequences = prompts(6);
    let masks: Vec<Vec<bool>> = sequences
        .iter()
        .enumerate()
        .map(|(i, ids)| (0..ids.len()).map(|j| (i + j) % 3 != 0).collect())
        .collect();
    let scored: Vec<Scored<'_>> =
        sequences.iter().zip(&masks).map(|(input_ids, mask)| Scored { input_ids, mask }).collect();
    let packed = token_losses(model.as_ref(), &scored, 2048).unwrap();
    for (tokens_per_pass, tolerance) in [(1, 1e-5), (20, 1e-5)] {
        let other = token_losses(model.as_ref(), &scored, tokens_per_pass).unwrap();
        for (a, b) in packed.iter().zip(&other) {
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance), "{a:?} {b:?}");
        }
    }
    for ((ids, mask), losses) in sequences.iter().zip(&masks).zip(&packed) {
        let layout = SequenceLayout::single(ids.len());
        let logits = forward_logits(model.as_ref(), ids, &mut ForwardContext::new(&layout)).unwrap();
        let mut expected = Vec::new();
        for at in (1..ids.len()).filter(|&at| mask[at]) {
            let row = to_vec_f32(&logits.get(at - 1).unwrap()).unwrap();
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            expected.push(sum.ln() - f64::from(row[ids[at] as usize]));
        }
        assert_eq!(losses.len(), expected.len());
        assert!(losses.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
    }
    let short = Scored { input_ids: &sequences[0], mask: &[true] };
    assert!(matches!(token_losses(model.as_ref(), &[short], 64), Err(Error::MaskLength { sequence: 0, .. })));
    let long = vec![5; 4000];
    let long = Scored { input_ids: &long, mask: &vec![true; 4000] };
    assert!(matches!(
        token_losses(model.as_ref(), &[long], 64),
        Err(Error::SequenceTooLong { tokens: 4000, .. })
    ));
}
