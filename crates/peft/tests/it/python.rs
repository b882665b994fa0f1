//! Files for `tests/peft_roundtrip.py`, which holds them to Python PEFT.

use crate::support::{batch, disturb, golden, model};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use taper_nn::{ForwardContext, SequenceLayout};
use taper_peft::{AdapterSection, attach};

const CASES: [(&str, &str, &str); 25] = [
    ("all_linear", "models/llama_untied", r#"{"r": 4, "lora_alpha": 16}"#),
    ("tied", "models/llama_tied", r#"{"r": 4, "lora_alpha": 16}"#),
    ("list", "models/llama_untied", r#"{"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1}"#),
    ("rslora", "models/llama_untied", r#"{"use_rslora": true, "lora_alpha": 16}"#),
    (
        "patterns",
        "models/llama_untied",
        r#"{"rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 3}, "alpha_pattern": {"k_proj": 32, "up_proj": 2.5}}"#,
    ),
    (
        "regex",
        "models/llama_untied",
        r#"{"target_modules": ".*\\.(q_proj|v_proj|down_proj)", "exclude_modules": ["layers.0.self_attn.q_proj"]}"#,
    ),
    ("layers", "models/llama_untied", r#"{"layers_to_transform": [1]}"#),
    (
        "saved",
        "models/llama_untied",
        r#"{"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}"#,
    ),
    ("bias", "models/llama_bias", r#"{"target_modules": ["q_proj", "v_proj"], "bias": "all"}"#),
    ("dora", "models/llama_untied", r#"{"use_dora": true, "lora_alpha": 16}"#),
    ("dora_rslora", "models/qwen2", r#"{"use_dora": true, "use_rslora": true}"#),
    ("lora_bias", "models/llama_bias", r#"{"lora_bias": true, "target_modules": ["q_proj", "down_proj"]}"#),
    ("embedding", "models/llama_untied", r#"{"target_modules": ["embed_tokens", "lm_head", "q_proj"]}"#),
    ("tokens", "models/llama_untied", r#"{"trainable_token_indices": [3, 7, 200]}"#),
    ("tied_tokens", "models/llama_tied", r#"{"trainable_token_indices": [3, 7, 200]}"#),
    ("tied_embedding", "models/llama_tied", r#"{"target_modules": ["embed_tokens", "q_proj"]}"#),
    (
        "tied_saved",
        "models/llama_tied",
        r#"{"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}"#,
    ),
    (
        "tied_as_one",
        "models/llama_tied",
        r#"{"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": true}"#,
    ),
    ("vera", "models/llama_untied", r#"{"peft_type": "vera", "r": 16}"#),
    ("ia3", "models/qwen2", r#"{"peft_type": "ia3"}"#),
    ("loha", "models/llama_untied", r#"{"peft_type": "loha", "rank_pattern": {"q_proj": 2}}"#),
    ("lokr", "models/llama_untied", r#"{"peft_type": "lokr", "r": 4, "decompose_both": true}"#),
    ("lokr_factor", "models/llama_untied", r#"{"peft_type": "lokr", "r": 64, "decompose_factor": 8}"#),
    (
        "pissa",
        "models/llama_untied",
        r#"{"r": 4, "init_lora_weights": "pissa", "alpha_pattern": {"q_proj": 2}}"#,
    ),
    ("olora", "models/llama_untied", r#"{"r": 4, "init_lora_weights": "olora", "use_rslora": true}"#),
];

#[test]
#[ignore = "writes to $TAPER_PEFT_OUT for tests/peft_roundtrip.py"]
fn write_adapters_for_python() {
    let out = PathBuf::from(std::env::var_os("TAPER_PEFT_OUT").expect("set TAPER_PEFT_OUT to a folder"));
    let ids = batch().ids[..24].to_vec();
    let layout = SequenceLayout::single(ids.len());
    for (name, base, json) in CASES {
        let mut model = model(base);
        let section: AdapterSection = serde_json::from_str(json).unwrap();
        let adapter = attach(&mut *model, &section.to_config(base), "llama", 7).unwrap();
        disturb(&adapter);
        let folder = out.join(name);
        adapter.save(&folder).unwrap();
        let logits = taper_models::forward_logits(&*model, &ids, &mut ForwardContext::new(&layout)).unwrap();
        let input_ids = Tensor::from_iter(ids.iter().map(|&id| i64::from(id)), &Device::Cpu).unwrap();
        let expected = HashMap::from([("input_ids", input_ids), ("logits", logits.detach())]);
        candle_core::safetensors::save(&expected, folder.join("expected.safetensors")).unwrap();
        let base = fs_err::canonicalize(golden(base)).unwrap();
        fs_err::write(folder.join("base.txt"), base.to_str().unwrap()).unwrap();
    }
    println!("wrote {} adapters to {}", CASES.len(), out.display());
}
