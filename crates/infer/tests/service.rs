//! The service: what is mixed in a batch, kept between requests, broken off or bounded gives what each request gives alone.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use taper_hub::ModelFiles;
use taper_infer::{
    AdapterError, AdapterPoolOptions, Completion, Engine, EngineOptions, Error, Event, FinishReason,
    Finished, GenerationConfig, Grammar, GrammarCompiler, Request, ScaledAdapter, Scored, Service,
    ServiceOptions, ServiceRequest, StopCause, SubmitError, Ticket, WrittenToken, token_losses,
};
use taper_models::{CausalLm, LoadOptions, Quantize, load};
use taper_peft::LoadMode;
use taper_quant::{BlockFormat, GgmlType};
use taper_testkit::{TinySpec, golden, tiny_checkpoint};
use taper_text::{Tokenizer, TokenizerFiles};

const WAIT: Duration = Duration::from_secs(60);

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&TokenizerFiles::in_folder(&golden("chat/tokenizer_chatml"))).unwrap()
}

fn tiny(dtype: candle_core::DType) -> Box<dyn CausalLm> {
    let folder = tempfile::tempdir().unwrap();
    let spec = TinySpec { tie_word_embeddings: false, initializer_range: 0.3, dtype, ..TinySpec::default() };
    load(&tiny_checkpoint(folder.path(), &spec), LoadOptions::default()).unwrap()
}

fn golden_model(name: &str) -> Box<dyn CausalLm> {
    load(&ModelFiles::of_folder(&golden("models").join(name)).unwrap(), LoadOptions::default()).unwrap()
}

fn options() -> ServiceOptions {
    ServiceOptions {
        engine: EngineOptions { batch_size: 8, tokens_per_pass: 64 },
        max_waiting: 64,
        cache_bytes: 64 << 20,
        adapters: AdapterPoolOptions { max_bytes: 64 << 20, max_adapters: 64 },
    }
}

fn service(model: Box<dyn CausalLm>, options: ServiceOptions) -> Service {
    Service::start(model, Arc::new(tokenizer()), options, Box::new(|_| Ok(()))).unwrap()
}

fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|j| 10 + (37 * seed + 101 * j + 7 * j * j) % 230).collect()
}

/// What a request heard.
#[derive(Debug, Default)]
struct Heard {
    prompt: Vec<WrittenToken>,
    text: String,
    tokens: Vec<WrittenToken>,
    finished: Option<Finished>,
    failed: Option<Error>,
}

impl Heard {
    fn completion(&self) -> &Completion {
        &self.finished.as_ref().unwrap_or_else(|| panic!("{:?}", self.failed)).completion
    }
}

struct Pending {
    ticket: Ticket,
    events: mpsc::Receiver<Event>,
}

impl Pending {
    fn wait(self) -> Heard {
        let mut heard = Heard::default();
        loop {
            match self.events.recv_timeout(WAIT).expect("an end") {
                Event::Prompt(tokens) => heard.prompt = tokens,
                Event::Piece(piece) => {
                    heard.text.push_str(&piece.text);
                    heard.tokens.extend(piece.tokens);
                }
                Event::Finished(finished) => {
                    heard.finished = Some(finished);
                    break;
                }
                Event::Failed(error) => {
                    heard.failed = Some(error);
                    break;
                }
            }
        }
        drop(self.ticket);
        heard
    }
}

fn submit(service: &Service, request: ServiceRequest) -> Result<Pending, SubmitError> {
    let (sender, events) = mpsc::channel();
    let ticket = service.submit(request, move |event| drop(sender.send(event)))?;
    Ok(Pending { ticket, events })
}

fn ask(service: &Service, request: ServiceRequest) -> Heard {
    submit(service, request).unwrap().wait()
}

fn greedy(prompt_ids: Vec<u32>, tokens: usize) -> ServiceRequest {
    ServiceRequest::new(prompt_ids, GenerationConfig { ignore_eos: true, ..GenerationConfig::greedy(tokens) })
}

fn with(service: &Service, adapters: &[(&str, f64)], request: ServiceRequest) -> ServiceRequest {
    let scaled = |(name, scale): &(&str, f64)| ScaledAdapter {
        adapter: service.adapters().get(name).unwrap(),
        scale: *scale,
    };
    ServiceRequest { adapters: adapters.iter().map(scaled).collect(), ..request }
}

/// The text of an adapter that sits on the model in the ordinary way.
fn alone_on(mut model: Box<dyn CausalLm>, adapter: Option<&str>, request: &ServiceRequest) -> Completion {
    if let Some(adapter) = adapter {
        taper_peft::load(&golden("peft").join(adapter), model.as_mut(), LoadMode::Inference).unwrap();
    }
    let tokenizer = tokenizer();
    let engine = Engine::new(model.as_ref(), &tokenizer, EngineOptions::default());
    let requests = Request::numbered([request.prompt_ids.clone()]);
    engine.generate(&requests, &request.config).unwrap().remove(0)
}

fn alone(base: &str, adapter: Option<&str>, request: &ServiceRequest) -> Completion {
    alone_on(golden_model(base), adapter, request)
}

/// The golden adapters, which PEFT wrote, by their base.
fn adapters_of(base: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(golden("peft")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = fs_err::read_to_string(folder.join("golden.json")) else { continue };
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        if golden["base"] == format!("models/{base}") {
            names.push(folder.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

/// Every method of PEFT in one batch, three requests each, beside the base: the texts are those that each adapter gives alone.
#[test]
fn adapters_of_all_kinds_share_a_batch_and_each_text_is_that_of_its_adapter_alone() {
    let mut checked = 0;
    for base in ["llama_untied", "llama_tied", "llama_bias", "qwen3", "phi3", "gemma2"] {
        let service = service(
            golden_model(base),
            ServiceOptions { engine: EngineOptions { batch_size: 128, tokens_per_pass: 300 }, ..options() },
        );
        let names = adapters_of(base);
        for name in &names {
            service.adapters().add(name, &golden("peft").join(name), false).unwrap();
        }
        let mut pending = Vec::new();
        for turn in 0..3u32 {
            for (index, name) in std::iter::once(None).chain(names.iter().map(Some)).enumerate() {
                let request = greedy(prompt(turn + index as u32, 3 + 9 * turn), 10);
                let adapters: Vec<(&str, f64)> = name.iter().map(|name| (name.as_str(), 1.0)).collect();
                let request = with(&service, &adapters, request);
                pending.push((name.cloned(), request.clone(), submit(&service, request).unwrap()));
            }
        }
        for (name, request, pending) in pending {
            let expected = alone(base, name.as_deref(), &request);
            assert_eq!(pending.wait().completion(), &expected, "{name:?} on {base}");
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}

/// The base quantised while it is loaded, or a GGUF file, whose rows of query and key are in llama.cpp's order.
#[test]
fn adapters_share_a_batch_over_quantised_bases_too() {
    let quantised = |format: BlockFormat| -> Box<dyn Fn() -> Box<dyn CausalLm>> {
        Box::new(move || {
            let files = ModelFiles::of_folder(&golden("models/llama_untied")).unwrap();
            let quantize = Some(Quantize { format, embeddings: false });
            load(&files, LoadOptions { quantize, ..LoadOptions::default() }).unwrap()
        })
    };
    let gguf = |name: &'static str| -> Box<dyn Fn() -> Box<dyn CausalLm>> {
        Box::new(move || {
            let files = ModelFiles::of_gguf(&golden("gguf").join(name)).unwrap();
            load(&files, LoadOptions::default()).unwrap()
        })
    };
    let names = ["lora_all", "rslora", "lora_patterns", "lora_modules_to_save", "lora_embed", "dora", "vera"];
    for make in [
        quantised(BlockFormat::Nf4 { block_size: 64, double_quant: true }),
        quantised(BlockFormat::Int8),
        quantised(BlockFormat::Ggml(GgmlType::Q8_0)),
        gguf("llama_f32.gguf"),
        gguf("llama_q8_0.gguf"),
    ] {
        let service = service(make(), options());
        let mut pending = Vec::new();
        for (index, name) in (0..).zip(names) {
            service.adapters().add(name, &golden("peft").join(name), false).unwrap();
            let request = with(&service, &[(name, 1.0)], greedy(prompt(index, 7 + index), 10));
            pending.push((name, request.clone(), submit(&service, request).unwrap()));
        }
        for (name, request, pending) in pending {
            assert_eq!(pending.wait().completion(), &alone_on(make(), Some(name), &request), "{name}");
        }
    }
}

#[test]
fn the_adapters_differ_so_that_a_mix_up_would_be_seen() {
    let request = greedy(prompt(1, 12), 10);
    let base = alone("llama_untied", None, &request);
    let changed = adapters_of("llama_untied")
        .iter()
        .filter(|name| alone("llama_untied", Some(name), &request).token_ids != base.token_ids)
        .count();
    assert!(changed > 12, "{changed}");
}

/// A scale of 0 is the base, bit for bit in its probabilities, and two halves of an adapter are the whole.
#[test]
fn adapters_are_scaled_and_summed_where_they_are_low_rank_and_refused_where_not() {
    let service = service(golden_model("llama_untied"), options());
    let folder = golden("peft");
    for name in ["lora_all", "rslora", "dora", "lora_modules_to_save_norm"] {
        service.adapters().add(name, &folder.join(name), false).unwrap();
    }
    service.adapters().add("again", &folder.join("lora_all"), false).unwrap();
    let request = ServiceRequest { logprobs: Some(3), ..greedy(prompt(5, 20), 8) };
    let of = |adapters: &[(&str, f64)]| ask(&service, with(&service, adapters, request.clone())).tokens;
    assert_eq!(of(&[("lora_all", 0.0)]), of(&[]));
    let (whole, halves) = (of(&[("lora_all", 1.0)]), of(&[("lora_all", 0.5), ("again", 0.5)]));
    assert_ne!(whole, of(&[]));
    assert_ne!(of(&[("lora_all", 0.5)]), whole);
    for (a, b) in whole.iter().zip(&halves) {
        assert_eq!(a.id, b.id);
        assert!((a.logprob.unwrap() - b.logprob.unwrap()).abs() < 1e-4);
    }
    assert_ne!(of(&[("lora_all", 1.0), ("rslora", 1.0)]), whole);
    for (adapters, asked) in [
        (vec![("dora", 0.5)], "scaled"),
        (vec![("lora_all", 1.0), ("dora", 1.0)], "summed with others"),
        (vec![("lora_modules_to_save_norm", 2.0)], "scaled"),
    ] {
        let error = submit(&service, with(&service, &adapters, request.clone())).map(drop).unwrap_err();
        assert!(
            matches!(&error, SubmitError::Refused(Error::NotAdditive { asked: told, .. }) if *told == asked),
            "{error}"
        );
    }
}

#[test]
fn a_text_is_the_same_whatever_else_is_in_the_batch_and_whatever_is_cached() {
    for dtype in [candle_core::DType::F32, candle_core::DType::BF16] {
        let service = service(tiny(dtype), options());
        let sampled = |number: u32| {
            let config = GenerationConfig {
                temperature: 0.9,
                top_p: 0.9,
                seed: 11,
                presence_penalty: 0.5,
                ..GenerationConfig::greedy(14)
            };
            ServiceRequest {
                number: u64::from(number),
                logprobs: Some(1),
                ..ServiceRequest::new(prompt(number, 70 + number), config)
            }
        };
        let first: Vec<Heard> = (0..6).map(|number| ask(&service, sampled(number))).collect();
        assert!(first.iter().all(|heard| heard.finished.as_ref().unwrap().cached_tokens == 0));
        let together: Vec<Pending> =
            (0..6).map(|number| submit(&service, sampled(number)).unwrap()).collect();
        for (first, again) in first.iter().zip(together) {
            let again = again.wait();
            assert_eq!(first.completion(), again.completion());
            if dtype == candle_core::DType::BF16 {
                assert_eq!(first.tokens, again.tokens, "every probability, bit for bit");
            } else {
                // In f32 the products of many rows are another crate's, whose sums depend on how many there are.
                for (a, b) in first.tokens.iter().zip(&again.tokens) {
                    assert!((a.logprob.unwrap() - b.logprob.unwrap()).abs() < 1e-4);
                }
            }
            assert_eq!(again.finished.unwrap().cached_tokens, 64, "two whole pages");
        }
        let stats = service.stats();
        assert_eq!(stats.cached_prompt_tokens, 6 * 64);
        assert_eq!(stats.prompt_tokens, 2 * (0..6).map(|n| 70 + n).sum::<u64>());
    }
}

/// llama.cpp reused a prompt's cache across adapters: here the key holds what the adapter is.
#[test]
fn what_is_cached_belongs_to_an_adapter_a_scale_and_a_salt() {
    let service = service(golden_model("llama_untied"), options());
    for name in ["lora_all", "rslora"] {
        service.adapters().add(name, &golden("peft").join(name), false).unwrap();
    }
    let request = greedy(prompt(3, 80), 4);
    let cached = |adapters: &[(&str, f64)], salt: Option<&str>| {
        let request = ServiceRequest { cache_salt: salt.map(str::to_owned), ..request.clone() };
        ask(&service, with(&service, adapters, request)).finished.unwrap().cached_tokens
    };
    for (adapters, salt) in [
        (vec![], None),
        (vec![("lora_all", 1.0)], None),
        (vec![("lora_all", 0.5)], None),
        (vec![("rslora", 1.0)], None),
        (vec![("rslora", 1.0)], Some("a tenant")),
        (vec![], Some("")),
    ] {
        assert_eq!(cached(&adapters, salt), 0, "{adapters:?} {salt:?}");
        assert_eq!(cached(&adapters, salt), 64, "{adapters:?} {salt:?}");
    }
    // The same files under another name are the same adapter; other files under the old name are not.
    service.adapters().add("copy", &golden("peft/lora_all"), false).unwrap();
    assert_eq!(cached(&[("copy", 1.0)], None), 64);
    service.adapters().add("copy", &golden("peft/lora_default"), true).unwrap();
    assert_eq!(cached(&[("copy", 1.0)], None), 0);
}

#[test]
fn little_memory_for_keys_and_values_changes_no_text() {
    let requests: Vec<ServiceRequest> = (0..8).map(|i| greedy(prompt(i, 20 + 9 * i), 40)).collect();
    let roomy = service(tiny(candle_core::DType::F32), options());
    let expected: Vec<Heard> = requests.iter().map(|request| ask(&roomy, request.clone())).collect();
    // A page is 2 x 2 blocks x 32 tokens x 16 numbers: seven of them hold the longest request and little more.
    let tight = service(tiny(candle_core::DType::F32), ServiceOptions { cache_bytes: 7 * 8192, ..options() });
    assert_eq!(tight.longest_sequence(), 7 * 32);
    let pending: Vec<Pending> = requests.iter().map(|r| submit(&tight, r.clone()).unwrap()).collect();
    for (expected, pending) in expected.iter().zip(pending) {
        assert_eq!(pending.wait().completion(), expected.completion());
    }
    let stats = tight.stats();
    assert!(stats.preemptions > 0, "{stats:?}");
    assert!(stats.cache_used_bytes + stats.cache_kept_bytes <= 7 * 8192, "{stats:?}");
    // A text that nothing else stands in the way of ends where the memory does.
    let whole = ask(&tight, greedy(prompt(1, 100), 4000));
    assert_eq!((whole.tokens.len(), whole.completion().finish_reason), (124, FinishReason::Length));
    let error = submit(&tight, greedy(prompt(1, 224), 1)).map(drop).unwrap_err();
    assert!(
        matches!(error, SubmitError::Refused(Error::PromptTooLong { tokens: 224, limit: 224, .. })),
        "{error}"
    );
    let tiny = tiny(candle_core::DType::F32);
    let none = ServiceOptions { cache_bytes: 100, ..options() };
    let error =
        Service::start(tiny, Arc::new(tokenizer()), none, Box::new(|_| Ok(()))).map(drop).unwrap_err();
    assert!(matches!(error, Error::CacheTooSmall { given: 100, least: 8192 }), "{error}");
}

#[test]
fn adapters_leave_memory_when_others_need_it_and_come_back() {
    let model = golden_model("llama_untied");
    let folder = golden("peft");
    let roomy = service(golden_model("llama_untied"), options());
    let bytes = roomy.adapters().add("a", &folder.join("lora_all"), false).unwrap().bytes;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let bounds = AdapterPoolOptions { max_bytes: 2 * bytes + bytes / 2, max_adapters: 3 };
    let service = Service::start(
        model,
        Arc::new(tokenizer()),
        ServiceOptions { adapters: bounds, ..options() },
        Box::new(move |_: &Path| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }),
    )
    .unwrap();
    let pool = service.adapters();
    for name in ["a", "b", "c"] {
        pool.add(name, &folder.join("lora_all"), false).unwrap();
    }
    let resident = || -> Vec<String> {
        pool.list().into_iter().filter(|info| info.is_resident).map(|info| info.name).collect()
    };
    assert_eq!(resident(), ["b", "c"]);
    assert!(pool.resident_bytes() <= bounds.max_bytes);
    drop(pool.get("b").unwrap());
    let a = pool.get("a").unwrap();
    assert_eq!(resident(), ["a", "b"], "c was used longest ago");
    let b = pool.get("b").unwrap();
    assert!(matches!(pool.get("c"), Err(AdapterError::Full(name)) if name == "c"), "both are in use");
    drop((a, b));
    drop(pool.get("c").unwrap());
    let info = pool.info("c").unwrap();
    assert_eq!((info.loads, info.evictions, info.peft_type.as_str()), (2, 1, "LORA"));
    assert_eq!(asked.load(Ordering::SeqCst), 6, "each reading was asked about");
    assert!(matches!(pool.add("a", &folder.join("dora"), false), Err(AdapterError::Taken(_))));
    assert!(matches!(pool.add("d", &folder.join("dora"), false), Err(AdapterError::TooMany(3))));
    pool.remove("c").unwrap();
    assert!(matches!(pool.get("c"), Err(AdapterError::Unknown(_))));
    assert!(matches!(pool.remove("c"), Err(AdapterError::Unknown(_))));
}

#[test]
fn an_adapter_that_does_not_fit_or_has_changed_is_refused_by_name_and_without_a_path() {
    let copied = tempfile::tempdir().unwrap();
    let place = |from: &str| -> PathBuf {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs_err::copy(golden("peft").join(from).join(file), copied.path().join(file)).unwrap();
        }
        copied.path().to_owned()
    };
    let refusing = |_: &Path| Err("it was trained over another base".to_owned());
    let strict =
        Service::start(golden_model("llama_untied"), Arc::new(tokenizer()), options(), Box::new(refusing))
            .unwrap();
    let error = strict.adapters().add("x", &place("lora_all"), false).unwrap_err().to_string();
    assert_eq!(error, "the adapter `x` cannot be used: it was trained over another base");
    let bounds = AdapterPoolOptions { max_bytes: 120_000, max_adapters: 9 };
    let service = service(golden_model("llama_untied"), ServiceOptions { adapters: bounds, ..options() });
    for (from, expected) in [("lora_qwen3", "cannot be used"), ("missing", "cannot be used")] {
        let folder = if from == "missing" { copied.path().join("missing") } else { place(from) };
        let error = service.adapters().add("x", &folder, false).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("`x`"), "{error}");
        assert!(!error.contains(copied.path().to_str().unwrap()), "{error}");
    }
    service.adapters().add("x", &place("lora_all"), false).unwrap();
    service.adapters().add("y", &golden("peft/lora_default"), false).unwrap();
    let others = ["rslora", "lora_patterns", "lora_layers"];
    for name in others {
        service.adapters().add(name, &golden("peft").join(name), false).unwrap();
    }
    assert!(!service.adapters().info("x").unwrap().is_resident, "{:?}", service.adapters().list());
    place("lora_default");
    let error = service.adapters().get("x").unwrap_err().to_string();
    assert!(error.contains("have changed"), "{error}");
    place("lora_all");
    assert!(service.adapters().get("x").is_ok());
}

#[test]
fn a_dropped_ticket_frees_its_place_and_a_deadline_ends_a_request() {
    let one = EngineOptions { batch_size: 1, tokens_per_pass: 64 };
    let service =
        service(tiny(candle_core::DType::F32), ServiceOptions { engine: one, max_waiting: 1, ..options() });
    let endless = || greedy(prompt(1, 5), 2000);
    let first = submit(&service, endless()).unwrap();
    let waiting = submit(&service, greedy(prompt(2, 5), 3)).unwrap();
    let refused = submit(&service, endless()).map(drop).unwrap_err();
    assert!(matches!(refused, SubmitError::Busy { waiting: 1 }), "{refused}");
    while !matches!(first.events.recv_timeout(WAIT).unwrap(), Event::Piece(_)) {}
    drop(first);
    assert_eq!(waiting.wait().completion().token_ids.len(), 3);
    let late = ServiceRequest { deadline: Some(Instant::now() + Duration::from_millis(30)), ..endless() };
    let heard = ask(&service, late);
    assert!(matches!(heard.failed, Some(Error::DeadlineExceeded)), "{heard:?}");
    assert!(!heard.tokens.is_empty());
    let until = Instant::now() + WAIT;
    while service.stats().running + service.stats().waiting > 0 {
        assert!(Instant::now() < until, "{:?}", service.stats());
    }
}

#[test]
fn shutting_down_lets_requests_end_and_takes_no_more() {
    let service = service(tiny(candle_core::DType::F32), options());
    let pending = submit(&service, greedy(prompt(1, 5), 30)).unwrap();
    let ending = std::thread::spawn({
        let service = service.clone();
        move || service.shut_down(WAIT)
    });
    assert_eq!(pending.wait().completion().token_ids.len(), 30);
    assert!(ending.join().unwrap());
    assert!(matches!(submit(&service, greedy(prompt(1, 5), 3)).map(drop), Err(SubmitError::Draining)));

    let service = self::service(tiny(candle_core::DType::F32), options());
    let pending = submit(&service, greedy(prompt(1, 5), 4000)).unwrap();
    assert!(!service.shut_down(Duration::from_millis(20)));
    assert!(pending.wait().failed.is_some());
}

/// A caller that panics ends what shared its pass; the service goes on.
#[test]
fn a_panic_ends_the_pass_and_not_the_service() {
    let service = service(tiny(candle_core::DType::F32), options());
    let (sender, events) = mpsc::channel();
    let ticket = service
        .submit(greedy(prompt(1, 5), 5), move |event| {
            if matches!(event, Event::Piece(_)) {
                panic!("a fault");
            }
            drop(sender.send(format!("{event:?}")));
        })
        .unwrap();
    let told: Vec<String> = events.iter().collect();
    assert!(told.last().unwrap().contains("PassFailed"), "{told:?}");
    drop(ticket);
    assert_eq!(ask(&service, greedy(prompt(1, 5), 5)).completion().token_ids.len(), 5);
}

#[test]
fn probabilities_of_the_prompt_are_those_of_the_scorer() {
    let model = tiny(candle_core::DType::F32);
    let ids = prompt(4, 90);
    let mask = vec![true; ids.len()];
    let scored = Scored { input_ids: &ids, mask: &mask };
    let losses = token_losses(model.as_ref(), &[scored], 2048).unwrap().remove(0);
    let service = service(model, options());
    let request = ServiceRequest { prompt_logprobs: Some(2), logprobs: Some(2), ..greedy(ids.clone(), 1) };
    for _ in 0..2 {
        // The second time the pages are there, yet every row is wanted.
        let heard = ask(&service, request.clone());
        assert_eq!(heard.prompt.iter().map(|token| token.id).collect::<Vec<_>>(), ids);
        assert_eq!((heard.prompt[0].logprob, heard.prompt[0].top.len()), (None, 0));
        for (token, loss) in heard.prompt[1..].iter().zip(&losses) {
            assert!((token.logprob.unwrap() + loss).abs() < 1e-4);
            assert_eq!(token.top.len(), 2);
            assert!(token.top[0].1 >= token.top[1].1 && token.top[0].1 >= token.logprob.unwrap());
        }
        let written = &heard.tokens[0];
        assert_eq!(
            (written.id, written.logprob),
            written.top.first().map(|(id, p)| (*id, Some(*p))).unwrap()
        );
    }
}

#[test]
fn texts_by_a_grammar_are_of_its_form_beside_others_that_are_free() {
    let model = tiny(candle_core::DType::F32);
    let compiler = GrammarCompiler::new(&tokenizer(), model.config().vocab_size).unwrap();
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false, "required": ["kind", "n"],
        "properties": { "kind": { "enum": ["a", "bc"] }, "n": { "type": "integer", "minimum": 0, "maximum": 99 } },
    });
    let grammar = compiler.compile(&Grammar::JsonSchema(schema)).unwrap();
    let service = service(model, options());
    let free = greedy(prompt(9, 6), 30);
    let expected = ask(&service, free.clone());
    let config = |seed| GenerationConfig { temperature: 1.0, seed, ..GenerationConfig::greedy(200) };
    let pending: Vec<Pending> = (0..6)
        .map(|seed| {
            let mut request = ServiceRequest::new(prompt(9, 6), config(seed));
            request.grammar = Some(grammar.clone());
            submit(&service, request).unwrap()
        })
        .collect();
    assert_eq!(ask(&service, free).completion(), expected.completion());
    for pending in pending {
        let heard = pending.wait();
        let completion = heard.completion();
        assert_eq!(completion.finish_reason, FinishReason::Stop, "{completion:?}");
        let value: serde_json::Value = serde_json::from_str(&completion.text).unwrap();
        assert!(["a", "bc"].contains(&value["kind"].as_str().unwrap()), "{value}");
        assert!(value["n"].as_u64().unwrap() < 100, "{value}");
    }
}

#[test]
fn what_ended_a_text_is_told() {
    let service = service(tiny(candle_core::DType::F32), options());
    let whole = ask(&service, greedy(prompt(2, 8), 24));
    assert_eq!(whole.text, whole.completion().text);
    let some: String = whole.text.chars().skip(4).take(3).collect();
    let config = GenerationConfig { stop: vec!["never".into(), some.clone()], ..greedy(vec![], 24).config };
    let stopped = ask(&service, ServiceRequest::new(prompt(2, 8), config));
    assert_eq!(stopped.finished.unwrap().stop, Some(StopCause::Text(some)));
    let id = whole.tokens[3].id;
    let config = GenerationConfig { stop_token_ids: vec![id], ..GenerationConfig::greedy(24) };
    let mut request = ServiceRequest::new(prompt(2, 8), config);
    let stopped = ask(&service, request.clone());
    assert!(stopped.tokens.iter().all(|token| token.id != id));
    assert_eq!(stopped.finished.unwrap().stop, Some(StopCause::Token(id)));
    // Who asks for probabilities gets that of the stop token too: lm-evaluation-harness counts on it.
    request.logprobs = Some(1);
    let last = ask(&service, request).tokens.pop().unwrap();
    assert_eq!((last.id, last.logprob), (id, Some(last.top[0].1)));
}
