//! The text of a `config.json` in transformers' keys, from a GGUF file's metadata and tensors.
//!
//! Source of the metadata's keys: `constants.py` of llama.cpp's `gguf-py`; of what the converter writes and leaves out: the classes of
//! llama.cpp's `conversion/`; of the Hub's keys: transformers' configuration classes. What the converter leaves out and llama.cpp has in
//! its code alone is said where it is.

use super::metadata::required;
use super::{Architecture, Array, GgufError, Header, RotaryFactors, Value as Found};
use serde_json::{Map, Value, json};
use taper_quant::GgmlType;

/// The rotary embedding's base where the file has none, as in llama.cpp's loader.
const DEFAULT_THETA: f64 = 10_000.0;

/// The text of `config.json`.
pub(super) fn text(header: &Header, rotary: &RotaryFactors) -> Result<String, GgufError> {
    let model = Model::read(header)?;
    let mut config = model.common()?;
    match model.architecture {
        Architecture::Llama => model.llama(&mut config)?,
        Architecture::Qwen2 => {
            config.insert("use_sliding_window".into(), false.into());
        }
        Architecture::Qwen3 => model.qwen3(&mut config),
        Architecture::Qwen3Moe => model.qwen3_moe(&mut config)?,
        Architecture::Gemma2 => model.gemma2(&mut config)?,
        Architecture::Gemma3 => model.gemma3(&mut config)?,
        Architecture::Phi3 => model.phi3(&mut config)?,
        Architecture::Olmo2 => model.olmo2(&mut config)?,
        Architecture::Granite => model.granite(&mut config)?,
    }
    model.rope(rotary, &mut config)?;
    Ok(format!("{:#}\n", Value::Object(config)))
}

type Config = Map<String, Value>;

/// What several keys are made from.
struct Model<'a> {
    header: &'a Header,
    architecture: Architecture,
    hidden_size: usize,
    blocks: usize,
    heads: usize,
    head_dim: usize,
    context: usize,
}

impl<'a> Model<'a> {
    fn read(header: &'a Header) -> Result<Self, GgufError> {
        let architecture = Architecture::of(header)?;
        let metadata = &header.metadata;
        let size = |key: &str| architecture.required_size(metadata, key);
        let (hidden_size, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let given = |key: &str| architecture.size(metadata, key);
        let head_dim = match given("attention.key_length")? {
            Some(_) => size("attention.key_length")?,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let key = architecture.key("attention.key_length");
                return Err(GgufError::Missing { key, expected: "the size of a head" });
            }
        };
        if given("attention.value_length")?.is_some_and(|n| n != head_dim as u64) {
            return Err(GgufError::Value {
                key: architecture.key("attention.value_length"),
                expected: format!("{head_dim}, the size of a key's head"),
                given: given("attention.value_length")?.unwrap_or_default().to_string(),
            });
        }
        let (blocks, context) = (architecture.blocks(&header.metadata)?, size("context_length")?);
        Ok(Self { header, architecture, hidden_size, blocks, heads, head_dim, context })
    }

    fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.architecture.size(&self.header.metadata, key)
    }

    fn required_size(&self, key: &str) -> Result<usize, GgufError> {
        self.architecture.required_size(&self.header.metadata, key)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.architecture.number(&self.header.metadata, key)
    }

    fn required_number(&self, key: &str) -> Result<f64, GgufError> {
        required(self.number(key)?, &self.architecture.key(key), "a number")
    }

    fn has(&self, tensor: &str) -> bool {
        self.header.tensors.contains_key(tensor)
    }

    /// What all architectures have.
    fn common(&self) -> Result<Config, GgufError> {
        use Architecture::{Gemma2, Gemma3, Qwen3, Qwen3Moe};
        let (model_type, class) = self.hub_names()?;
        let kv_heads = match self.size("attention.head_count_kv")? {
            Some(_) => self.required_size("attention.head_count_kv")?,
            None => self.heads,
        };
        let mut config = object(json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": self.vocab_size()?,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.required_size("feed_forward_length")?,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.required_number("attention.layer_norm_rms_epsilon")?,
            // A head of its own is the only sign: the converter leaves a tied one out.
            "tie_word_embeddings": !self.has("output.weight"),
            "torch_dtype": self.dtype(),
        }));
        let own_default = matches!(self.architecture, Gemma2 | Gemma3 | Qwen3 | Qwen3Moe);
        if own_default || self.head_dim * self.heads != self.hidden_size {
            config.insert("head_dim".into(), self.head_dim.into());
        }
        if !matches!(self.architecture, Gemma2 | Gemma3) {
            config.insert("hidden_act".into(), "silu".into());
        }
        for (name, key) in [
            ("bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("eos_token_id", "tokenizer.ggml.eos_token_id"),
            ("pad_token_id", "tokenizer.ggml.padding_token_id"),
        ] {
            if let Some(id) = self.header.metadata.size(key)? {
                config.insert(name.into(), id.into());
            }
        }
        Ok(config)
    }

    /// `model_type` and the class in `architectures`.
    fn hub_names(&self) -> Result<(&'static str, &'static str), GgufError> {
        Ok(match self.architecture {
            Architecture::Llama if self.window()?.is_some() => ("mistral", "MistralForCausalLM"),
            Architecture::Llama => ("llama", "LlamaForCausalLM"),
            Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Architecture::Qwen3Moe => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            Architecture::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
            Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Architecture::Phi3 => ("phi3", "Phi3ForCausalLM"),
            Architecture::Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Architecture::Granite => ("granite", "GraniteForCausalLM"),
        })
    }

    /// The rows of the embedding, or the tokens of a file without tensors.
    fn vocab_size(&self) -> Result<usize, GgufError> {
        if let Some(info) = self.header.tensors.get("token_embd.weight") {
            return Ok(info.shape.first().copied().unwrap_or_default());
        }
        let key = "tokenizer.ggml.tokens";
        Ok(required(self.header.metadata.texts(key)?, key, "the tokens")?.len())
    }

    /// The type that most bytes of the matrices are in; bf16 for quantised ones, which nearly all models were trained in.
    fn dtype(&self) -> &'static str {
        let mut sums = [("float32", 0), ("float16", 0), ("bfloat16", 0)];
        for info in self.header.tensors.values().filter(|info| info.shape.len() > 1) {
            let place = match info.ggml_type {
                GgmlType::F32 => 0,
                GgmlType::F16 => 1,
                _ => 2,
            };
            sums[place].1 += info.range.len();
        }
        sums.iter().max_by_key(|(_, bytes)| *bytes).map_or("bfloat16", |(name, _)| name)
    }

    /// How many tokens a token of a block with a window sees; a window of 0 is none.
    fn window(&self) -> Result<Option<u64>, GgufError> {
        Ok(self.size("attention.sliding_window")?.filter(|window| *window > 0))
    }

    /// Whether the first block's layer has a bias.
    fn has_bias(&self, module: &str) -> bool {
        self.has(&format!("blk.0.{module}.bias"))
    }

    /// Llama, and Mistral, which the converter gives the same name. A window is what tells Mistral 7B v0.1 apart, and most files of it
    /// have lost theirs.
    fn llama(&self, config: &mut Config) -> Result<(), GgufError> {
        if let Some(window) = self.window()? {
            config.insert("sliding_window".into(), window.into());
        } else {
            config.insert("attention_bias".into(), self.has_bias("attn_q").into());
            config.insert("mlp_bias".into(), self.has_bias("ffn_gate").into());
        }
        Ok(())
    }

    fn qwen3(&self, config: &mut Config) {
        config.insert("attention_bias".into(), self.has_bias("attn_q").into());
        config.insert("use_sliding_window".into(), false.into());
    }

    fn qwen3_moe(&self, config: &mut Config) -> Result<(), GgufError> {
        self.qwen3(config);
        // Files from before the key have the size in the tensors alone.
        let expert_size = match self.header.tensors.get("blk.0.ffn_gate_exps.weight") {
            Some(info) if self.size("expert_feed_forward_length")?.is_none() && info.shape.len() == 3 => {
                info.shape[1]
            }
            _ => self.required_size("expert_feed_forward_length")?,
        };
        config.extend(object(json!({
            "num_experts": self.required_size("expert_count")?,
            "num_experts_per_tok": self.required_size("expert_used_count")?,
            "moe_intermediate_size": expert_size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            // llama.cpp divides by the sum for this architecture without a key that says so.
            "norm_topk_prob": true,
        })));
        Ok(())
    }

    /// What the Gemmas have alike. The score's scale is in no key: llama.cpp takes H / N for the model with `large` blocks, the 27B, and
    /// D for all others.
    fn gemma(&self, config: &mut Config, large: usize) {
        let scalar = if self.blocks == large { self.hidden_size / self.heads } else { self.head_dim };
        config.extend(object(json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": self.has_bias("attn_q"),
            "query_pre_attn_scalar": scalar,
        })));
    }

    fn gemma2(&self, config: &mut Config) -> Result<(), GgufError> {
        self.gemma(config, 46);
        config.extend(object(json!({
            "attn_logit_softcapping": self.number("attn_logit_softcapping")?,
            "final_logit_softcapping": self.number("final_logit_softcapping")?,
            "sliding_window": self.required_size("attention.sliding_window")?,
        })));
        Ok(())
    }

    fn gemma3(&self, config: &mut Config) -> Result<(), GgufError> {
        self.gemma(config, 62);
        let window = self.window()?;
        // Without a window every block sees all; with one, five of six have it unless the file says otherwise.
        let pattern = self.sliding_blocks()?;
        let slides = |block: usize| match &pattern {
            _ if window.is_none() => false,
            Some(listed) => listed.get(block).copied().unwrap_or_default(),
            None => !(block + 1).is_multiple_of(6),
        };
        let types: Vec<&str> = (0..self.blocks)
            .map(|block| if slides(block) { "sliding_attention" } else { "full_attention" })
            .collect();
        config.extend(object(json!({
            "final_logit_softcapping": self.number("final_logit_softcapping")?.filter(|cap| *cap > 0.0),
            "sliding_window": window.unwrap_or(4096),
            "layer_types": types,
            "rope_local_base_freq": self.number("rope.freq_base_swa")?.unwrap_or(DEFAULT_THETA),
        })));
        Ok(())
    }

    /// Which blocks have a window, where the file says so: for each, or every one but each n-th.
    fn sliding_blocks(&self) -> Result<Option<Vec<bool>>, GgufError> {
        let key = self.architecture.key("attention.sliding_window_pattern");
        let wrong = |given: String| GgufError::Value {
            key: key.clone(),
            expected: "a truth value for each block, or how many blocks there are to one without a window"
                .into(),
            given,
        };
        match self.header.metadata.get(&key) {
            None => Ok(None),
            Some(Found::Array(Array::Numbers(numbers))) => {
                let on = |value: Found| match value {
                    Found::Bool(on) => Some(on),
                    Found::Unsigned(n) => Some(n != 0),
                    Found::Signed(n) => Some(n != 0),
                    _ => None,
                };
                let blocks: Option<Vec<bool>> = numbers.iter().map(on).collect();
                blocks
                    .filter(|blocks| blocks.len() == self.blocks)
                    .map(Some)
                    .ok_or_else(|| wrong(format!("an array of {}", numbers.len())))
            }
            Some(_) => match self.size("attention.sliding_window_pattern")? {
                Some(0) | None => Err(wrong("0".into())),
                Some(n) => Ok(Some((1..=self.blocks as u64).map(|block| !block.is_multiple_of(n)).collect())),
            },
        }
    }

    fn phi3(&self, config: &mut Config) -> Result<(), GgufError> {
        let window = match self.size("attention.sliding_window")? {
            // Files from before the key: llama.cpp gives Phi 3 mini and medium with 4k tokens their window, and no window to the others.
            None if self.context == 4096 && matches!(self.blocks, 32 | 40) => Some(2047),
            _ => self.window()?,
        };
        config.insert("sliding_window".into(), window.into());
        let original = self.size("rope.scaling.original_context_length")?.unwrap_or(self.context as u64);
        config.insert("original_max_position_embeddings".into(), original.into());
        let turned = self.rotary_dim()?;
        if turned != self.head_dim {
            config.insert("partial_rotary_factor".into(), (turned as f64 / self.head_dim as f64).into());
        }
        Ok(())
    }

    fn olmo2(&self, config: &mut Config) -> Result<(), GgufError> {
        if self.window()?.is_some() {
            return Err(GgufError::Architecture {
                given: "olmo2 with a sliding window".into(),
                known: Architecture::ALL.iter().map(|known| known.name().to_owned()).collect(),
            });
        }
        config.insert("attention_bias".into(), self.has_bias("attn_q").into());
        Ok(())
    }

    fn granite(&self, config: &mut Config) -> Result<(), GgufError> {
        config.extend(object(json!({
            "attention_bias": self.has_bias("attn_q"),
            "mlp_bias": self.has_bias("ffn_gate"),
            "attention_multiplier": self.required_number("attention.scale")?,
            "embedding_multiplier": self.number("embedding_scale")?.unwrap_or(1.0),
            "residual_multiplier": self.number("residual_scale")?.unwrap_or(1.0),
            "logits_scaling": self.number("logit_scale")?.unwrap_or(1.0),
        })));
        Ok(())
    }

    /// How many numbers of a head are turned.
    fn rotary_dim(&self) -> Result<usize, GgufError> {
        match self.size("rope.dimension_count")? {
            None => Ok(self.head_dim),
            Some(n) if n as usize == self.head_dim => Ok(self.head_dim),
            Some(n) if self.architecture == Architecture::Phi3 && (1..self.head_dim as u64).contains(&n) => {
                Ok(n as usize)
            }
            Some(n) => Err(GgufError::Value {
                key: self.architecture.key("rope.dimension_count"),
                expected: format!("{}, the size of a head", self.head_dim),
                given: n.to_string(),
            }),
        }
    }

    /// The rotary embedding, in the layout of transformers 4, which 5 reads too.
    fn rope(&self, rotary: &RotaryFactors, config: &mut Config) -> Result<(), GgufError> {
        let pairs = self.rotary_dim()? / 2;
        // Gemma 2's converter writes no base, and Gemma 3's always does.
        let theta = self.number("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
        config.insert("rope_theta".into(), theta.into());
        for (tensor, factors) in [
            ("rope_freqs.weight", &rotary.freqs),
            ("rope_factors_short.weight", &rotary.short),
            ("rope_factors_long.weight", &rotary.long),
        ] {
            if let Some(factors) = factors.as_ref().filter(|factors| factors.len() != pairs) {
                return Err(GgufError::TensorShape {
                    tensor: tensor.into(),
                    shape: vec![factors.len()],
                    expected: format!("{pairs} numbers, one for each pair of a head"),
                });
            }
        }
        let scaling = match (&rotary.freqs, &rotary.short, &rotary.long) {
            (None, Some(short), Some(long)) => self.long_rope(short, long)?,
            (None, None, None) => self.scaling()?,
            (Some(freqs), None, None) => self.fixed_factors(freqs)?,
            _ => return Err(self.contradiction()),
        };
        config.insert("rope_scaling".into(), scaling);
        Ok(())
    }

    /// LongRoPE, as Phi 3 has it: other factors for long texts.
    fn long_rope(&self, short: &[f64], long: &[f64]) -> Result<Value, GgufError> {
        let mut scaling = object(json!({ "type": "longrope", "short_factor": short, "long_factor": long }));
        if let Some(factor) = self.number("rope.scaling.attn_factor")? {
            scaling.insert("attention_factor".into(), factor.into());
        }
        if self.architecture != Architecture::Phi3 {
            let key = "rope.scaling.original_context_length";
            let original = self.required_size(key)?;
            scaling.insert("original_max_position_embeddings".into(), original.into());
        }
        Ok(Value::Object(scaling))
    }

    /// Llama 3's scaling, which the converter has worked out: a factor for each frequency, for texts of any length. In the Hub's words that
    /// is LongRoPE with the same factors for all texts, whose frequencies are `1 / (factor theta^(2i/D))`.
    fn fixed_factors(&self, factors: &[f64]) -> Result<Value, GgufError> {
        if !matches!(self.scaling()?, Value::Null) {
            return Err(self.contradiction());
        }
        if factors.iter().all(|factor| *factor == 1.0) {
            return Ok(Value::Null);
        }
        Ok(json!({
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": self.context,
            "short_factor": factors,
            "long_factor": factors,
        }))
    }

    fn contradiction(&self) -> GgufError {
        GgufError::Value {
            key: self.architecture.key("rope.scaling.type"),
            expected: "a scaling that goes with the file's tensors of rotary factors".into(),
            given: "another".into(),
        }
    }

    /// What the metadata says of scaling, without tensors.
    fn scaling(&self) -> Result<Value, GgufError> {
        let key = self.architecture.key("rope.scaling.type");
        match self.header.metadata.text(&key)? {
            None => match self.number("rope.scale_linear")?.filter(|factor| *factor != 0.0 && *factor != 1.0)
            {
                Some(factor) => Ok(json!({ "rope_type": "linear", "factor": factor })),
                None => Ok(Value::Null),
            },
            Some("none") => Ok(Value::Null),
            Some("linear") => {
                Ok(json!({ "rope_type": "linear", "factor": self.required_number("rope.scaling.factor")? }))
            }
            Some("yarn") => self.yarn(),
            Some(given) => Err(GgufError::Value {
                key,
                expected: "`none`, `linear`, `yarn`, or `longrope` with tensors of factors".into(),
                given: format!("`{}`", super::shown(given)),
            }),
        }
    }

    fn yarn(&self) -> Result<Value, GgufError> {
        let mut scaling = object(json!({
            "rope_type": "yarn",
            "factor": self.required_number("rope.scaling.factor")?,
            "original_max_position_embeddings": self.required_size("rope.scaling.original_context_length")?,
        }));
        // Transformers has no such switch; llama.cpp takes -1 and 1 for yes.
        if let Some(given) = self.number("rope.scaling.yarn_ext_factor")?.filter(|x| x.abs() != 1.0) {
            return Err(GgufError::Value {
                key: self.architecture.key("rope.scaling.yarn_ext_factor"),
                expected: "1".into(),
                given: given.to_string(),
            });
        }
        for (name, key) in [
            ("attention_factor", "rope.scaling.yarn_attn_factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(number) = self.number(key)? {
                scaling.insert(name.into(), number.into());
            }
        }
        Ok(Value::Object(scaling))
    }
}

fn object(value: Value) -> Config {
    match value {
        Value::Object(object) => object,
        _ => Config::new(),
    }
}

#[cfg(test)]
mod tests;
