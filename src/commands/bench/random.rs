//! A published shape with random weights, and random tokens for it.

use crate::cli::BenchModelArgs;
use crate::device;
use crate::fault::{OrFault, user_error};
use crate::workspace::model_section;
use serde_json::json;
use std::path::Path;
use taper_data::{RowPlace, TokenizedExample};
use taper_kernels::rng::CounterRng;
use taper_models::{CausalLm, LoadOptions, ModelConfig, ModelType};

/// Shapes as their owners publish them: architecture; hidden, layers, query heads, key/value heads, MLP width, vocabulary; whether the head is
/// tied.
const SHAPES: [(&str, ModelType, [usize; 6], bool); 6] = [
    ("15M", ModelType::Llama, [288, 6, 6, 6, 768, 4096], true),
    ("smollm2-135m", ModelType::Llama, [576, 30, 9, 3, 1536, 49152], true),
    ("qwen2.5-0.5b", ModelType::Qwen2, [896, 24, 14, 2, 4864, 151_936], true),
    ("llama3.2-1b", ModelType::Llama, [2048, 16, 32, 8, 8192, 128_256], true),
    ("llama3.1-8b", ModelType::Llama, [4096, 32, 32, 8, 14336, 128_256], false),
    ("llama3.1-70b", ModelType::Llama, [8192, 80, 64, 8, 28672, 128_256], false),
];

/// A shape with random weights, held as the flags say.
pub(super) fn random_model(args: &BenchModelArgs) -> anyhow::Result<(Box<dyn CausalLm>, LoadOptions)> {
    let named = SHAPES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(&args.shape));
    let Some((_, model_type, [hidden, layers, heads, kv_heads, mlp, vocabulary], tied)) = named else {
        return Err(user_error(
            format!("no shape is named `{}`", args.shape),
            "there are 15M, smollm2-135m, qwen2.5-0.5b, llama3.2-1b, llama3.1-8b and llama3.1-70b",
        ));
    };
    let config = json!({
        "model_type": model_type.name(), "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied,
    });
    let config = ModelConfig::parse(&config.to_string())?;
    let section = model_section(&args.quantize, &args.shape, &args.dtype)?;
    let options = LoadOptions::from(&section);
    let mut model = taper_models::init_to_measure(&config, options).or_fault()?;
    device::place(model.as_mut(), &device::open_choice(args.device)?, None)?;
    Ok((model, options))
}

pub(super) fn random_example(tokens: usize, vocabulary: u64, number: u64) -> TokenizedExample {
    let rng = CounterRng::new(2, number);
    let input_ids = (0..tokens as u64).map(|i| rng.below(i, vocabulary) as u32).collect();
    let source = RowPlace { file: Path::new("random").into(), line: 1, element: None };
    TokenizedExample { input_ids, loss_mask: vec![true; tokens], source }
}
