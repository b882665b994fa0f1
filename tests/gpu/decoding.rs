//! Generation on a device: caches and routes against whole passes on the CPU.

use crate::support::{attach, device, distance, model, staged, stir, tiny};
use candle_core::{DType, Device, Tensor};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use taper_infer::{
    AdapterPoolOptions, Completion, Engine, EngineOptions, Event, GenerationConfig, Request, ScaledAdapter,
    Service, ServiceOptions, ServiceRequest,
};
use taper_models::{CausalLm, LoadOptions, Quantize, forward_logits};
use taper_nn::{
    AdaptedModules, ForwardContext, KvCache, Route, RoutePart, Routes, SequenceLayout, number_modules,
    to_vec_f32,
};
use taper_peft::LoadMode;
use taper_quant::BlockFormat;
use taper_testkit::TinySpec;
use taper_text::{Tokenizer, TokenizerFiles};

const F32: LoadOptions = LoadOptions { dtype: Some(DType::F32), quantize: None };
const BF16: LoadOptions = LoadOptions { dtype: Some(DType::BF16), quantize: None };

fn tolerance(options: LoadOptions) -> f32 {
    if options.dtype == Some(DType::BF16) { 3e-2 } else { 1e-4 }
}

/// A text of ids below 230.
fn text(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|j| 10 + (37 * seed + 101 * j + 7 * j * j) % 220).collect()
}

/// A sequence of a test: what is in its cache, and the cache.
#[derive(Clone)]
struct Sequence {
    ids: Vec<u32>,
    cache: KvCache,
}

/// Rows of the logits of one pass over new tokens of some sequences, `[V]` each.
fn extend(model: &dyn CausalLm, sequences: &mut [(&mut Sequence, &[u32])]) -> Vec<Vec<f32>> {
    let sizes: Vec<(usize, usize)> =
        sequences.iter().map(|(sequence, new)| (new.len(), sequence.ids.len())).collect();
    let layout = SequenceLayout::continued(&sizes);
    let ids: Vec<u32> = sequences.iter().flat_map(|(_, new)| new.iter().copied()).collect();
    let caches = sequences
        .iter_mut()
        .map(|(sequence, new)| {
            sequence.ids.extend_from_slice(new);
            &mut sequence.cache
        })
        .collect();
    rows(&forward_logits(model, &ids, &mut ForwardContext::cached(&layout, caches)).unwrap())
}

fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    let width = logits.dims()[1];
    to_vec_f32(logits).unwrap().chunks(width).map(<[f32]>::to_vec).collect()
}

/// The logits of the last `count` tokens of a text that goes through the model whole.
fn whole(model: &dyn CausalLm, ids: &[u32], count: usize) -> Vec<Vec<f32>> {
    let layout = SequenceLayout::single(ids.len());
    rows(&forward_logits(model, ids, &mut ForwardContext::new(&layout)).unwrap()).split_off(ids.len() - count)
}

#[track_caller]
fn near(got: &[Vec<f32>], wanted: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let off = distance(&got.concat(), &wanted.concat());
    assert!(off <= tolerance, "{what}: logits are off by {off}, allowed are {tolerance}");
}

fn check_caches(what: &str, load: impl Fn(&Device) -> Box<dyn CausalLm>, tolerance: f32) {
    let Some(gpu) = device() else { return };
    let (cpu, gpu) = (load(&Device::Cpu), load(gpu));
    let (cpu, gpu) = (cpu.as_ref(), gpu.as_ref());
    let before = staged();
    let empty = || Sequence { ids: Vec::new(), cache: KvCache::new(gpu.num_blocks()) };
    let expect = |parts: &mut [(&mut Sequence, &[u32])], step: &str| {
        let got = extend(gpu, parts);
        let wanted = parts.iter().flat_map(|(sequence, new)| whole(cpu, &sequence.ids, new.len()));
        near(&got, &wanted.collect::<Vec<_>>(), tolerance, &format!("{what}, {step}"));
    };
    let (mut long, mut short) = (empty(), empty());
    let (first, second) = (text(1, 60), text(2, 60));
    expect(&mut [(&mut long, &first[..33]), (&mut short, &second[..5])], "prompts");
    expect(&mut [(&mut long, &first[33..36]), (&mut short, &second[5..6])], "pieces of different length");
    for at in 36..38 {
        expect(&mut [(&mut long, &first[at..=at]), (&mut short, &second[at..=at])], "a token each");
    }
    let mut branch = long.clone();
    expect(&mut [(&mut long, &[7]), (&mut branch, &[9])], "a page shared by two sequences");
    expect(&mut [(&mut branch, &[3, 4]), (&mut short, &second[..30])], "a second page");
    expect(&mut [(&mut long, &[5])], "the first of them again");
    long.cache.truncate(20);
    long.ids.truncate(20);
    expect(&mut [(&mut long, &second[..3])], "a truncated cache");
    expect(&mut [(&mut branch, &[5, 8, 9])], "who shares pages with it");
    drop(branch);
    expect(&mut [(&mut long, &[11])], "alone again");
    assert_eq!(staged(), before, "{what} went through the host");
}

#[test]
fn gpu_caches_of_f32_models() {
    for name in ["llama_untied", "gemma2", "gemma3", "phi3", "qwen3"] {
        check_caches(name, |on| model(name, F32, on), tolerance(F32));
    }
}

/// Heads of 64, for the tensor cores where a piece is long.
fn wide() -> TinySpec {
    TinySpec {
        hidden_size: 128,
        intermediate_size: 96,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        ..TinySpec::default()
    }
}

#[test]
fn gpu_caches_of_bf16_and_quantised_models() {
    check_caches("llama_untied in bf16", |on| model("llama_untied", BF16, on), tolerance(BF16));
    check_caches("heads of 64 in bf16", |on| tiny(&wide(), BF16, on), tolerance(BF16));
    let format = BlockFormat::Nf4 { block_size: 64, double_quant: true };
    let options = LoadOptions { quantize: Some(Quantize { format, embeddings: true }), ..F32 };
    check_caches("heads of 64 over NF4", |on| tiny(&wide(), options, on), tolerance(options));
}

/// Two adapters and the base on the rows of one pass.
fn routed(on: &Device, options: LoadOptions, sections: [&str; 2]) -> Vec<Vec<f32>> {
    let mut base = model("llama_untied", options, on);
    number_modules(base.as_mut()).unwrap();
    let parts = sections.map(|section| {
        let mut copy = base.clone_boxed();
        let adapter = attach(copy.as_mut(), section);
        stir(&adapter.parameters);
        let modules = AdaptedModules::of(base.clone_boxed().as_mut(), copy.as_mut(), base.activation_dtype());
        vec![RoutePart { modules: Arc::new(modules.unwrap()), scale: 0.8 }]
    });
    let layout = SequenceLayout::from_lengths(&[5, 9, 1, 3]);
    let route = |rows, parts| Route { rows, parts };
    let routes = Routes::new(vec![route(0..5, &parts[0]), route(5..14, &parts[1]), route(15..18, &parts[0])]);
    let mut ctx = ForwardContext::new(&layout).routed(Some(&routes));
    rows(&forward_logits(base.as_ref(), &text(3, 18), &mut ctx).unwrap())
}

const LORA: [&str; 2] = [
    r#"{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}"#,
    r#"{"r": 3, "lora_bias": true, "target_modules": ["q_proj", "o_proj", "gate_proj", "lm_head"]}"#,
];

#[test]
fn gpu_rows_go_through_adapters_of_their_own() {
    let Some(gpu) = device() else { return };
    for options in [F32, BF16] {
        let wanted = routed(&Device::Cpu, options, LORA);
        let before = staged();
        near(&routed(gpu, options, LORA), &wanted, tolerance(options), &format!("{options:?}"));
        assert_eq!(staged(), before, "routes went through the host");
    }
    // Layers that compute their rows themselves.
    let whole = [LORA[0], r#"{"r": 3, "use_dora": true, "target_modules": ["q_proj", "up_proj"]}"#];
    let wanted = routed(&Device::Cpu, F32, whole);
    near(&routed(gpu, F32, whole), &wanted, tolerance(F32), "a layer of its own");
}

#[test]
fn gpu_greedy_texts_are_those_of_the_cpu() {
    let Some(gpu) = device() else { return };
    let tokenizer = tokenizer();
    let spec = TinySpec { tie_word_embeddings: false, initializer_range: 0.3, ..TinySpec::default() };
    let requests = Request::numbered((0..5).map(|i| text(i, 3 + 9 * i)));
    let generate = |on: &Device, batch_size, tokens_per_pass| {
        let model = tiny(&spec, F32, on);
        let options = EngineOptions { batch_size, tokens_per_pass };
        let engine = Engine::new(model.as_ref(), &tokenizer, options);
        engine.generate(&requests, &GenerationConfig::greedy(8)).unwrap()
    };
    let wanted = generate(&Device::Cpu, 5, 2048);
    for (batch_size, tokens_per_pass) in [(5, 2048), (3, 7), (1, 2048)] {
        let before = staged();
        let got = generate(gpu, batch_size, tokens_per_pass);
        assert_eq!(got, wanted, "batches of {batch_size}, {tokens_per_pass} tokens a pass");
        assert_eq!(staged(), before, "something went through the host");
    }
}

fn tokenizer() -> Tokenizer {
    let folder = taper_testkit::golden("chat/tokenizer_chatml");
    Tokenizer::load(&TokenizerFiles::in_folder(&folder)).unwrap()
}

/// The text of an adapter that sits on a model of the CPU in the ordinary way.
fn alone(adapter: &str, request: &ServiceRequest) -> Completion {
    let mut base = model("llama_untied", F32, &Device::Cpu);
    let folder = taper_testkit::golden("peft").join(adapter);
    taper_peft::load(&folder, base.as_mut(), LoadMode::Inference).unwrap();
    let tokenizer = tokenizer();
    let engine = Engine::new(base.as_ref(), &tokenizer, EngineOptions::default());
    engine.generate(&Request::numbered([request.prompt_ids.clone()]), &request.config).unwrap().remove(0)
}

/// Low-rank ones, layers of their own, another embedding, norms: each request in a batch with the others.
#[test]
fn gpu_a_service_mixes_adapters_of_all_kinds() {
    let Some(gpu) = device() else { return };
    let options = ServiceOptions {
        engine: EngineOptions { batch_size: 8, tokens_per_pass: 64 },
        max_waiting: 64,
        cache_bytes: 16 << 20,
        adapters: AdapterPoolOptions { max_bytes: 64 << 20, max_adapters: 64 },
    };
    let base = model("llama_untied", F32, gpu);
    let service = Service::start(base, Arc::new(tokenizer()), options, Box::new(|_| Ok(()))).unwrap();
    let names = [
        "lora_all",
        "rslora",
        "dora",
        "vera",
        "ia3",
        "lora_embed",
        "lora_token_indices",
        "lora_modules_to_save",
        "lora_modules_to_save_norm",
    ];
    let mut pending = Vec::new();
    for (index, name) in (0..).zip(names) {
        service.adapters().add(name, &taper_testkit::golden("peft").join(name), false).unwrap();
        let config = GenerationConfig { ignore_eos: true, ..GenerationConfig::greedy(6) };
        let adapter = service.adapters().get(name).unwrap();
        let adapters = vec![ScaledAdapter { adapter, scale: 1.0 }];
        let request = ServiceRequest { adapters, ..ServiceRequest::new(text(index, 7 + index), config) };
        let (sender, events) = mpsc::channel();
        let ticket = service.submit(request.clone(), move |event| drop(sender.send(event))).unwrap();
        pending.push((name, request, ticket, events));
    }
    for (name, request, ticket, events) in pending {
        let given = loop {
            match events.recv_timeout(Duration::from_secs(120)).expect("an end") {
                Event::Finished(finished) => break finished.completion,
                Event::Failed(error) => panic!("{name}: {error}"),
                Event::Prompt(_) | Event::Piece(_) => {}
            }
        };
        drop(ticket);
        assert_eq!(given, alone(name, &request), "{name}");
    }
}
