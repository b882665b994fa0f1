//! llama.cpp itself computes what we compute, from our files.
//!
//! Run by `tests/llama_cpp/run.sh`, which builds a probe against a build of llama.cpp and names it in `TAPER_LLAMA_PROBE`, and its
//! `llama-quantize` in `TAPER_LLAMA_QUANTIZE`. The models are the golden fixtures, whose weights and norms are random, with the beginning of a trained
//! tokenizer.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]
#![expect(clippy::print_stderr, reason = "the tables are what a run is for")]

#[path = "gguf/support.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod support;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{adapter_folder, changed, fixture, loaded, logits, with_tokenizer, write};
use taper_export::{GgufAdapterOptions, GgufType, ReferenceLogits, write_gguf_adapter};
use taper_hub::ModelFiles;
use taper_hub::gguf::read_header;
use taper_models::{CausalLm, ModelConfig, init};
use taper_nn::to_vec_f32;
use taper_peft::{AdapterConfig, InitLoraWeights, LoadMode, TargetModules};
use taper_testkit::{TinySpec, golden, largest_difference, read_json, real_data, tiny_checkpoint};
use taper_text::{Tokenizer, TokenizerFiles};

const TEXTS: [&str; 6] = [
    "The cat sat on the mat. It's 42!",
    "  two spaces\n\tand a tab,\r\n\n12345 and don't",
    "na\u{ef}ve Stra\u{df}e \u{4f60}\u{597d} \u{1f980}",
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
    "def f(a):\n        return a[b] != 'c'\n\n\n",
    "ends in a space ",
];

fn tool(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("run tests/llama_cpp/run.sh, which sets {variable}"))
}

/// What llama.cpp says.
struct Probe {
    lines: Vec<Vec<String>>,
}

impl Probe {
    fn run(model: &Path, adapter: Option<&Path>, asked: &[String]) -> Self {
        let mut command = Command::new(tool("TAPER_LLAMA_PROBE"));
        command.arg(model).args(adapter).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all((asked.join("\n") + "\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "llama.cpp refused {}", model.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| line.split(' ').skip(1).map(str::to_owned).collect()).collect();
        Self { lines }
    }

    fn ids(&self, line: usize) -> Vec<u32> {
        self.lines[line].iter().map(|id| id.parse().unwrap()).collect()
    }

    fn logits(&self, line: usize, positions: usize) -> Tensor {
        let values: Vec<f32> = self.lines[line].iter().map(|x| x.parse().unwrap()).collect();
        let width = values.len() / positions;
        Tensor::from_vec(values, (positions, width), &Device::Cpu).unwrap()
    }
}

fn listed(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn greedy(model: &dyn CausalLm, ids: &[u32], steps: usize) -> Vec<u32> {
    let mut ids = ids.to_vec();
    for _ in 0..steps {
        let all = logits(model, &ids);
        let row = to_vec_f32(&all.get(ids.len() - 1).unwrap()).unwrap();
        let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        ids.push(best as u32);
    }
    ids.split_off(ids.len() - steps)
}

/// `KL(ours || theirs)`, the mean over positions.
fn divergence(ours: &Tensor, theirs: &Tensor) -> f64 {
    let width = ours.dims()[1];
    let (p, q) = (to_vec_f32(ours).unwrap(), to_vec_f32(theirs).unwrap());
    let softmax_log = |row: &[f32]| {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        row.iter().map(|x| f64::from(x - top) - sum.ln()).collect::<Vec<f64>>()
    };
    let rows = p.chunks_exact(width).zip(q.chunks_exact(width));
    let each = rows.map(|(p, q)| {
        let (p, q) = (softmax_log(p), softmax_log(q));
        p.iter().zip(&q).map(|(a, b)| a.exp() * (a - b)).sum::<f64>()
    });
    each.sum::<f64>() / (p.len() / width) as f64
}

/// The beginning of the trained ChatML tokenizer: as many tokens as the fixture has rows.
fn put_tokenizer(folder: &Path, rows: u64) {
    let from = golden("chat/tokenizer_chatml");
    let mut json = read_json(&from.join("tokenizer.json"));
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let kept: serde_json::Map<String, Value> = vocab
        .iter()
        .filter(|(_, id)| id.as_u64().unwrap() < rows)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let merges: Vec<Value> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|merge| {
            kept.contains_key(&format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()))
        })
        .cloned()
        .collect();
    json["model"]["vocab"] = kept.into();
    json["model"]["merges"] = merges.into();
    fs_err::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    for name in ["tokenizer_config.json", "chat_template.jinja"] {
        fs_err::copy(from.join(name), folder.join(name)).unwrap();
    }
}

fn with_words(name: &str, folder: &Path) -> ModelFiles {
    let sharded = fixture(name).weights.len() > 1;
    assert!(!sharded, "{name}");
    changed(name, folder, |config| {
        if name.starts_with("gemma") {
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }
    });
    put_tokenizer(folder, 256);
    ModelFiles::of_folder(folder).unwrap()
}

/// Compare and tell; gives the largest difference and the divergence.
fn compare(what: &str, model: &dyn CausalLm, probe: &Probe, ids: &[u32], steps: usize) -> (f64, f64) {
    let theirs = probe.logits(0, ids.len());
    let ours = logits(model, ids);
    let (off, kl) = (largest_difference(&ours, &theirs), divergence(&ours, &theirs));
    let same = if steps > 0 { greedy(model, ids, steps) == probe.ids(1) } else { true };
    eprintln!(
        "{what:34} logits off by {off:.1e}, KL {kl:.1e}, greedy text {}",
        if same { "the same" } else { "OTHER" }
    );
    (off, kl)
}

/// How far logits may be apart in f32. llama.cpp looks Gemma's gate up in a table of half precision.
fn limit(name: &str) -> f64 {
    if name.starts_with("gemma") { 2e-2 } else { 2e-4 }
}

fn asked(ids: &[u32], steps: usize) -> Vec<String> {
    vec![format!("ids {}", listed(ids)), format!("greedy {steps} {}", listed(ids))]
}

#[test]
#[ignore = "needs llama.cpp: run tests/llama_cpp/run.sh"]
fn merged_files_have_the_logits_and_the_greedy_text_in_llama_cpp() {
    for (name, length, steps) in [
        ("llama_untied", 24, 16),
        ("llama_tied", 24, 16),
        ("llama_bias", 24, 16),
        ("llama3_rope", 24, 16),
        ("llama_yarn", 24, 16),
        ("smollm", 24, 16),
        // Within the window, which llama.cpp does not keep to.
        ("mistral", 8, 0),
        ("qwen2", 24, 16),
        ("qwen3", 24, 16),
        ("gemma2", 24, 16),
        ("gemma3", 24, 16),
        ("phi3", 9, 0),
        // Longer than the length where the factors switch: llama.cpp has the long ones for its whole context.
        ("phi3_longrope", 24, 16),
        ("olmo2", 24, 16),
        ("granite", 24, 16),
    ] {
        let here = tempfile::tempdir().unwrap();
        let files = with_words(name, here.path());
        let mut model = loaded(&files);
        let ids: Vec<u32> = (0..length).map(|i| 3 + i * 37 % 251).collect();
        for gguf_type in [GgufType::F32, GgufType::Q8_0] {
            let path = here.path().join("m.gguf");
            write(model.as_mut(), &files, &path, gguf_type);
            let of_file = support::read_back(&path);
            let steps = if gguf_type == GgufType::F32 { steps } else { 0 };
            let probe = Probe::run(&path, None, &asked(&ids, steps));
            let (off, kl) = compare(&format!("{name} {gguf_type}"), of_file.as_ref(), &probe, &ids, steps);
            match gguf_type {
                GgufType::F32 => assert!(off <= limit(name), "{name}: {off}"),
                // llama.cpp rounds activations to 8 bits where weights are in blocks.
                _ => assert!(kl <= 1e-2, "{name} {gguf_type}: {kl}"),
            }
            if steps > 0 {
                assert_eq!(greedy(model.as_ref(), &ids, steps), probe.ids(1), "{name}");
            }
        }
    }
}

#[test]
#[ignore = "needs llama.cpp: run tests/llama_cpp/run.sh"]
fn experts_in_every_block_are_read_by_llama_cpp() {
    let here = tempfile::tempdir().unwrap();
    let mut config = read_json(&golden("models/qwen3_moe/config.json"));
    config["mlp_only_layers"] = json!([]);
    config["initializer_range"] = json!(0.1);
    fs_err::write(here.path().join("config.json"), config.to_string()).unwrap();
    put_tokenizer(here.path(), 256);
    let mut model = init(&ModelConfig::parse(&config.to_string()).unwrap(), 4, None).unwrap();
    let files = ModelFiles::of_folder(here.path()).unwrap();
    let path = here.path().join("m.gguf");
    write(model.as_mut(), &files, &path, GgufType::F32);
    let ids: Vec<u32> = (0..24).map(|i| 3 + i * 37 % 251).collect();
    let probe = Probe::run(&path, None, &asked(&ids, 16));
    let (off, _) = compare("qwen3_moe f32", model.as_ref(), &probe, &ids, 16);
    assert!(off <= 2e-4, "{off}");
}

#[test]
#[ignore = "needs llama.cpp: run tests/llama_cpp/run.sh"]
fn adapters_on_a_base_in_llama_cpp_are_the_adapted_model() {
    for (name, base) in [
        ("lora_all", "llama_untied"),
        ("lora_patterns", "llama_untied"),
        ("rslora", "llama_untied"),
        ("lora_embed", "llama_untied"),
        ("lora_qwen3", "qwen3"),
        ("lora_gemma2", "gemma2"),
        ("lora_phi3", "phi3"),
        ("", "qwen2"),
        ("", "gemma3"),
        ("", "granite"),
    ] {
        let here = tempfile::tempdir().unwrap();
        let files = with_words(base, here.path());
        let mut model = loaded(&files);
        let at = |name: &str| here.path().join(name);
        write(model.as_mut(), &files, &at("base.gguf"), GgufType::F32);
        let plain = loaded(&files);
        let adapter = if name.is_empty() {
            let config = AdapterConfig {
                r: 4,
                lora_alpha: 8.0,
                target_modules: Some(TargetModules::AllLinear),
                init_lora_weights: InitLoraWeights::Random,
                use_rslora: true,
                ..AdapterConfig::default()
            };
            taper_peft::attach(model.as_mut(), &config, base, 7).unwrap()
        } else {
            taper_peft::load(&adapter_folder(name), model.as_mut(), LoadMode::Inference).unwrap()
        };
        let options = GgufAdapterOptions::default();
        write_gguf_adapter(model.as_mut(), &adapter, &files, &at("adapter.gguf"), &options).unwrap();
        write(model.as_mut(), &files, &at("merged.gguf"), GgufType::F32);
        let length = if base == "phi3" { 9 } else { 24 };
        let ids: Vec<u32> = (0..length).map(|i| 3 + i * 37 % 251).collect();
        let what = if name.is_empty() { format!("rslora on {base}") } else { format!("{name} on {base}") };
        let steps = if base == "phi3" { 0 } else { 16 };
        let changed = largest_difference(&logits(model.as_ref(), &ids), &logits(plain.as_ref(), &ids));
        assert!(changed > 0.05, "{what} changes nothing: {changed}");
        for (file, adapter) in [("base.gguf", Some(at("adapter.gguf"))), ("merged.gguf", None)] {
            let probe = Probe::run(&at(file), adapter.as_deref(), &asked(&ids, steps));
            let (off, _) = compare(&format!("{what}, {file}"), model.as_ref(), &probe, &ids, steps);
            assert!(off <= limit(base), "{what}, {file}: {off} of {changed}");
            if steps > 0 {
                assert_eq!(greedy(model.as_ref(), &ids, steps), probe.ids(1), "{what}, {file}");
            }
        }
    }
}

/// Names of tokenizers whose files give other ids in llama.cpp are known, and why.
#[test]
#[ignore = "needs llama.cpp: run tests/llama_cpp/run.sh"]
fn texts_have_the_ids_of_the_tokenizer_in_llama_cpp() {
    let mut folders = vec![golden("chat/tokenizer_chatml"), golden("chat/tokenizer_spm")];
    if let Some(real) = real_data() {
        for name in [
            "qwen2.5-0.5b-instruct",
            "smollm2-360m-instruct",
            "tinyllama-1.1b-chat",
            "mistral-7b-v0.3",
            "phi-3-mini",
        ] {
            folders.push(real.join("tokenizers").join(name));
        }
    }
    for folder in folders {
        let here = tempfile::tempdir().unwrap();
        let original = Tokenizer::load(&TokenizerFiles::in_folder(&folder)).unwrap();
        let largest = original.added_tokens().map(|(id, _)| id).max().unwrap_or(0) as usize;
        let rows = original.vocab_size().max(largest + 1) + 3;
        let (mut model, files) = with_tokenizer(&folder, rows, 32, &here.path().join("base"));
        let path = here.path().join("m.gguf");
        write(model.as_mut(), &files, &path, GgufType::F16);
        let escaped = |text: &str| {
            text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
        };
        let asked: Vec<String> = TEXTS.iter().map(|text| format!("text {}", escaped(text))).collect();
        let probe = Probe::run(&path, None, &asked);
        let mut same = 0;
        for (line, text) in TEXTS.iter().enumerate() {
            let ours = original.encode(text, true).unwrap();
            if ours == probe.ids(line) {
                same += 1;
            } else {
                eprintln!("  {text:?}: {ours:?}, llama.cpp {:?}", probe.ids(line));
            }
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        eprintln!("{name:30} {same} of {} texts have the same ids", TEXTS.len());
        assert!(same + 2 >= TEXTS.len(), "{name}");
    }
}

/// Each tensor has the type that `llama-quantize` gives it, and its Q8_0 and Q4_0 the same bytes.
#[test]
#[ignore = "needs llama.cpp: run tests/llama_cpp/run.sh"]
fn tensors_have_the_types_that_llama_quantize_gives_them() {
    let here = tempfile::tempdir().unwrap();
    let wide = TinySpec {
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 11,
        tie_word_embeddings: false,
        ..TinySpec::default()
    };
    let mut cases = vec![("wide", tiny_checkpoint(&here.path().join("wide"), &wide))];
    for name in ["llama_tied", "phi3", "qwen2", "gemma2"] {
        let folder = here.path().join(name);
        fs_err::create_dir_all(&folder).unwrap();
        cases.push((name, with_words(name, &folder)));
    }
    for (name, files) in cases {
        let mut model = loaded(&files);
        let plain = here.path().join("f32.gguf");
        write(model.as_mut(), &files, &plain, GgufType::F32);
        let reference = ReferenceLogits::of(
            model.as_ref(),
            vec![(0..24).map(|i| 3 + i * 37 % 251).collect::<Vec<u32>>()],
        )
        .unwrap();
        for gguf_type in [GgufType::Q8_0, GgufType::Q4_0, GgufType::Q4KM, GgufType::Q5KM, GgufType::Q6K] {
            let (ours, theirs) = (here.path().join("ours.gguf"), here.path().join("theirs.gguf"));
            write(model.as_mut(), &files, &ours, gguf_type);
            let mut command = Command::new(tool("TAPER_LLAMA_QUANTIZE"));
            let output =
                command.arg(&plain).arg(&theirs).arg(gguf_type.name().to_uppercase()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let (a, b) = (read_header(&ours).unwrap(), read_header(&theirs).unwrap());
            let (mine, other) = (fs_err::read(&ours).unwrap(), fs_err::read(&theirs).unwrap());
            let mut equal = 0;
            for (tensor, info) in &a.tensors {
                let same = &b.tensors[tensor];
                assert_eq!(info.ggml_type, same.ggml_type, "{name} {gguf_type} {tensor}");
                equal += usize::from(mine[info.range.clone()] == other[same.range.clone()]);
            }
            assert_eq!(a.tensors.len(), b.tensors.len());
            assert_eq!(a.metadata.size("general.file_type"), b.metadata.size("general.file_type"));
            let loss = |path: &Path| {
                reference.compare(support::read_back(path).as_ref(), candle_core::DType::F32).unwrap().mean_kl
            };
            eprintln!(
                "{name:12} {gguf_type:7} types the same, {equal} of {} tensors the same bytes, KL {:.2e} (llama-quantize {:.2e})",
                a.tensors.len(),
                loss(&ours),
                loss(&theirs)
            );
        }
    }
}

/// Tensors and metadata are those of llama.cpp's own converter, for the architectures that it converts with a byte-level tokenizer.
#[test]
#[ignore = "needs llama.cpp's converter: run tests/llama_cpp/run.sh with PYTHON set"]
fn files_are_those_of_the_converter() {
    let Some(convert) = std::env::var_os("TAPER_LLAMA_CONVERT") else {
        eprintln!("SKIPPED the converter: set PYTHON to one that has torch and transformers");
        return;
    };
    let Some(real) = real_data() else {
        eprintln!("SKIPPED the converter: no tokenizer that it knows");
        return;
    };
    let python = std::env::var_os("PYTHON").unwrap();
    for name in ["llama3_rope", "llama_bias", "llama_yarn", "qwen2", "qwen3", "gemma3", "olmo2", "granite"] {
        let here = tempfile::tempdir().unwrap();
        let folder = here.path().join("base");
        fs_err::create_dir_all(&folder).unwrap();
        let tokenizer = real.join("tokenizers/qwen2.5-0.5b-instruct");
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            if tokenizer.join(file).is_file() {
                fs_err::copy(tokenizer.join(file), folder.join(file)).unwrap();
            }
        }
        let mut config = read_json(&golden("models").join(name).join("config.json"));
        config["vocab_size"] = json!(151_936);
        for id in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            config.as_object_mut().unwrap().remove(id);
        }
        if name.starts_with("gemma") {
            // The converter cuts the rows that have no token.
            config["vocab_size"] = json!(151_665);
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }
        fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
        let mut model = init(&ModelConfig::parse(&config.to_string()).unwrap(), 4, None).unwrap();
        let tensors: std::collections::HashMap<String, Tensor> =
            taper_models::state_tensors(model.as_mut()).unwrap().into_iter().collect();
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        let files = ModelFiles::of_folder(&folder).unwrap();
        let (ours, theirs) = (here.path().join("ours.gguf"), here.path().join("theirs.gguf"));
        write(loaded(&files).as_mut(), &files, &ours, GgufType::F32);
        let mut command = Command::new(&python);
        command.arg(&convert).arg(&folder).arg("--outfile").arg(&theirs).args(["--outtype", "f32"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let (a, b) = (read_header(&ours).unwrap(), read_header(&theirs).unwrap());
        let (mine, other) = (fs_err::read(&ours).unwrap(), fs_err::read(&theirs).unwrap());
        assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, info) in &a.tensors {
            let same = &b.tensors[tensor];
            assert_eq!((&info.shape, info.ggml_type), (&same.shape, same.ggml_type), "{name} {tensor}");
            // The converter computes Llama 3's factors in f32.
            let equal = mine[info.range.clone()] == other[same.range.clone()];
            assert!(equal || tensor == "rope_freqs.weight", "{name} {tensor}");
        }
        let (mut same, mut missing, mut differ) = (0, Vec::new(), Vec::new());
        for (key, value) in b.metadata.iter() {
            match a.metadata.get(key) {
                Some(ours) if ours == value => same += 1,
                Some(ours) => differ
                    .push(format!("{key}: {ours:?}, not {value:?}").chars().take(90).collect::<String>()),
                None => missing.push(key),
            }
        }
        let more: Vec<&str> =
            a.metadata.iter().map(|(key, _)| key).filter(|key| b.metadata.get(key).is_none()).collect();
        eprintln!(
            "{name}: {} tensors and {same} keys the same; only theirs: {missing:?}; only ours: {more:?}; other values: {differ:?}",
            a.tensors.len()
        );
        // Without meaning for a byte-level tokenizer.
        let important =
            |key: &&str| !key.starts_with("general.") && *key != "tokenizer.ggml.add_space_prefix";
        assert!(!missing.iter().any(important), "{name}: {missing:?}");
        // The converter makes control tokens of those that look like it (`<|fim_prefix|>`), whatever the tokenizer says of them.
        let known = ["general.", "tokenizer.ggml.token_type"];
        assert!(
            differ.iter().all(|line| known.iter().any(|key| line.starts_with(key))),
            "{name}: {differ:?}"
        );
    }
}
