//! Every way to adapt a model: outputs and gradients on a device against those on the CPU, and the files that are written.

use crate::support::{attach, device, distance, files, model, pass, same_pass, staged, stir};
use candle_core::{DType, Device};
use taper_models::{CausalLm, LoadOptions, forward_logits};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32};
use taper_peft::LoadMode;
use taper_train::PassOptions;

const EXACT: f32 = 1e-4;

const F32: LoadOptions = LoadOptions { dtype: Some(DType::F32), quantize: None };

fn logits(model: &dyn CausalLm) -> Vec<f32> {
    let layout = SequenceLayout::from_lengths(&[3, 12]);
    let ids: Vec<u32> = (0..15).map(|i| 10 + (i * i * 37 + 5 * i) % 230).collect();
    to_vec_f32(&forward_logits(model, &ids, &mut ForwardContext::new(&layout)).unwrap()).unwrap()
}

/// A base, a recipe's section, and whether everything has a kernel.
fn check(cases: &[(&str, &str, bool)]) {
    let Some(gpu) = device() else { return };
    for (base, section, has_kernels) in cases {
        let what = format!("{base} {section}");
        let run = |on: &Device| {
            let mut base = model(base, F32, on);
            let adapter = attach(base.as_mut(), section);
            assert!(adapter.parameters.iter().all(|p| p.var.device().same_device(on)), "{what}: elsewhere");
            let folder = tempfile::tempdir().unwrap();
            adapter.save(folder.path()).unwrap();
            let untouched = files(folder.path());
            stir(&adapter.parameters);
            let outputs = logits(base.as_ref());
            let pass = pass(base.as_ref(), &adapter.parameters, &PassOptions::default());
            adapter.merge_into(base.as_mut()).unwrap();
            let merged = logits(base.as_ref());
            (adapter.parameters, untouched, outputs, pass, merged)
        };
        let (wanted, before) = (run(&Device::Cpu), staged());
        let got = run(gpu);
        let through_host = staged() - before;
        assert!(got.1 == wanted.1, "{what}: other files");
        let off = distance(&got.2, &wanted.2);
        assert!(off <= EXACT, "{what}: logits are off by {off}");
        same_pass(&format!("{what} ({through_host} staged)"), &got.0, &got.3, &wanted.3, EXACT);
        let off = distance(&got.4, &wanted.2);
        assert!(off <= EXACT, "{what}: merged, logits are off by {off}");
        assert!(!has_kernels || through_host == 0, "{what}: {through_host} operations went through the host");
    }
}

#[test]
fn gpu_lora_in_its_variants() {
    check(&[
        ("llama_untied", r#"{"r": 4, "lora_dropout": 0.3}"#, true),
        ("llama_untied", r#"{"r": 4, "target_modules": ["k_proj", "v_proj"], "use_rslora": true}"#, true),
        ("llama_untied", r#"{"target_modules": ["lm_head", "q_proj"]}"#, true),
        ("llama_tied", r#"{"target_modules": ["lm_head", "q_proj"]}"#, true),
        ("llama_untied", r#"{"lora_bias": true, "lora_dropout": 0.3, "target_modules": ["lm_head"]}"#, false),
        ("llama_tied", r#"{"init_lora_weights": "gaussian", "target_modules": ["down_proj"]}"#, true),
        (
            "phi3",
            r#"{"r": 3, "rank_pattern": {"qkv_proj": 5}, "target_modules": ["qkv_proj", "gate_up_proj"]}"#,
            true,
        ),
    ]);
}

#[test]
fn gpu_lora_that_begins_with_parts_of_the_weight() {
    check(&[
        (
            "llama_untied",
            r#"{"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]}"#,
            true,
        ),
        (
            "llama_untied",
            r#"{"r": 4, "init_lora_weights": "pissa_niter_4", "target_modules": ["v_proj"]}"#,
            true,
        ),
        ("llama_untied", r#"{"r": 4, "init_lora_weights": "olora", "target_modules": ["q_proj"]}"#, true),
        (
            "llama_untied",
            r#"{"r": 4, "init_lora_weights": "loftq", "target_modules": ["q_proj", "up_proj"]}"#,
            true,
        ),
    ]);
}

#[test]
fn gpu_dora() {
    check(&[
        ("llama_untied", r#"{"use_dora": true, "lora_dropout": 0.3, "use_rslora": true}"#, false),
        ("llama_untied", r#"{"target_modules": ["lm_head", "q_proj"], "use_dora": true}"#, false),
        ("phi3", r#"{"use_dora": true}"#, false),
    ]);
}

#[test]
fn gpu_methods_beside_lora() {
    check(&[
        ("llama_untied", r#"{"peft_type": "vera", "r": 8, "lora_dropout": 0.3}"#, false),
        ("qwen2", r#"{"peft_type": "ia3"}"#, false),
        ("llama_untied", r#"{"peft_type": "loha", "r": 3}"#, false),
        ("llama_untied", r#"{"peft_type": "lokr", "r": 2, "decompose_both": true}"#, false),
        ("olmo2", r#"{"peft_type": "lokr", "r": 3}"#, false),
    ]);
}

#[test]
fn gpu_adapters_of_embeddings_and_tokens() {
    check(&[
        ("llama_tied", r#"{"target_modules": ["embed_tokens", "q_proj"]}"#, false),
        ("gemma2", r#"{"target_modules": ["embed_tokens", "q_proj"]}"#, false),
        ("llama_untied", r#"{"trainable_token_indices": [1, 7, 122]}"#, false),
        ("llama_tied", r#"{"trainable_token_indices": [1, 7, 122]}"#, false),
        ("llama_tied", r#"{"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}"#, true),
        ("llama_tied", r#"{"modules_to_save": ["embed_tokens"], "ensure_weight_tying": true}"#, true),
    ]);
}

#[test]
fn gpu_experts_with_adapters() {
    check(&[
        ("qwen3_moe", r#"{"r": 2, "target_modules": ["gate", "q_proj", "down_proj"]}"#, false),
        ("qwen3_moe", r#"{"r": 2, "target_modules": ["o_proj", "up_proj"], "use_dora": true}"#, false),
    ]);
}

/// The golden adapters, which PEFT wrote, over their bases.
#[test]
fn gpu_adapters_from_files() {
    let Some(gpu) = device() else { return };
    let mut seen = 0;
    for entry in fs_err::read_dir(taper_testkit::golden("peft")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(config) = taper_peft::AdapterConfig::read(&folder) else { continue };
        let base = config.base_model_name_or_path.unwrap_or_default();
        let base = base.rsplit('/').next().unwrap_or_default();
        if !taper_testkit::golden("models").join(base).join("model.safetensors").exists() {
            continue;
        }
        let run = |on: &Device| {
            let mut base = model(base, F32, on);
            taper_peft::load(&folder, base.as_mut(), LoadMode::Inference).map(|_| logits(base.as_ref()))
        };
        let Ok(wanted) = run(&Device::Cpu) else { continue };
        let off = distance(&run(gpu).unwrap(), &wanted);
        assert!(off <= EXACT, "{}: logits are off by {off}", folder.display());
        seen += 1;
    }
    assert!(seen >= 8, "{seen} adapters");
}
