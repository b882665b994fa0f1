//! A model's configuration in GGUF's keys: the inverse of what `hub` reads.
//!
//! Source: the classes of llama.cpp's `conversion/` and its loaders in `src/models/`. What an architecture has in llama.cpp's code and in no
//! key is held against the configuration, so that no file computes something else than the model.

use super::error::GgufError;
use std::f64::consts::PI;
use taper_hub::gguf::{Architecture, Keys};
use taper_models::{EmbeddingScale, ModelConfig, ModelType, RopeConfig, RopeScaling};

/// A configuration in a file's words.
pub(super) struct Described {
    pub(super) keys: Keys,
    /// Tensors that describe the rotary embedding, a number for each pair.
    pub(super) factors: Vec<(&'static str, Vec<f32>)>,
    /// For people: what llama.cpp does otherwise.
    pub(super) notes: Vec<String>,
}

/// GGUF's name of an architecture.
pub(super) fn architecture(model_type: ModelType) -> Architecture {
    match model_type {
        ModelType::Llama | ModelType::Mistral => Architecture::Llama,
        ModelType::Qwen2 => Architecture::Qwen2,
        ModelType::Qwen3 => Architecture::Qwen3,
        ModelType::Qwen3Moe => Architecture::Qwen3Moe,
        ModelType::Gemma2 => Architecture::Gemma2,
        ModelType::Gemma3 => Architecture::Gemma3,
        ModelType::Phi3 => Architecture::Phi3,
        ModelType::Olmo2 => Architecture::Olmo2,
        ModelType::Granite => Architecture::Granite,
    }
}

/// The keys of an architecture and what goes with them; `own_head` is whether the file has a head that is not the embedding's table.
pub(super) fn describe(config: &ModelConfig, own_head: bool) -> Result<Described, GgufError> {
    let mut writer = Writer {
        config,
        architecture: architecture(config.model_type),
        out: Described { keys: Keys::new(), factors: Vec::new(), notes: Vec::new() },
    };
    writer.common();
    writer.rope()?;
    match config.model_type {
        ModelType::Llama | ModelType::Mistral => writer.llama(),
        ModelType::Qwen2 | ModelType::Qwen3 => writer.no_window()?,
        ModelType::Qwen3Moe => writer.experts()?,
        ModelType::Gemma2 => writer.gemma2(own_head)?,
        ModelType::Gemma3 => writer.gemma3()?,
        ModelType::Phi3 => writer.phi3(),
        ModelType::Olmo2 => writer.no_window()?,
        ModelType::Granite => writer.granite(),
    }
    Ok(writer.out)
}

struct Writer<'a> {
    config: &'a ModelConfig,
    architecture: Architecture,
    out: Described,
}

fn no_word(what: impl Into<String>) -> GgufError {
    GgufError::Model { what: what.into() }
}

impl Writer<'_> {
    /// A size; the loader takes 32 bits without a sign.
    fn size(&mut self, key: &str, value: usize) {
        // What a configuration may hold ends far below.
        self.out.keys.number(&self.architecture.key(key), u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn number(&mut self, key: &str, value: f64) {
        self.out.keys.number(&self.architecture.key(key), value as f32);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.out.keys.text(&self.architecture.key(key), value);
    }

    fn common(&mut self) {
        let c = self.config;
        for (key, value) in [
            ("vocab_size", c.vocab_size),
            ("context_length", c.max_position_embeddings),
            ("embedding_length", c.hidden_size),
            ("block_count", c.num_hidden_layers),
            ("feed_forward_length", c.intermediate_size),
            ("attention.head_count", c.num_attention_heads),
            ("attention.head_count_kv", c.num_key_value_heads),
            ("attention.key_length", c.head_dim),
            ("attention.value_length", c.head_dim),
            ("rope.dimension_count", c.rotary_dim),
        ] {
            self.size(key, value);
        }
        self.number("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
    }

    fn rope(&mut self) -> Result<(), GgufError> {
        let c = self.config;
        self.number("rope.freq_base", c.rope.theta);
        match &c.rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                self.text("rope.scaling.type", "linear");
                self.number("rope.scaling.factor", *factor);
            }
            RopeScaling::Yarn { .. } => self.yarn()?,
            RopeScaling::Llama3 { .. } => {
                self.fixed_factors("llama3", llama3_factors(&c.rope, c.rotary_dim))?;
            }
            RopeScaling::LongRope { .. } => self.long_rope()?,
            RopeScaling::Dynamic { .. } => {
                return Err(no_word("the rope type `dynamic`, which turns by the length of a text"));
            }
        }
        if let Some(local) = &c.local_rope {
            if local.scaling != RopeScaling::Default {
                return Err(no_word("a scaled rotary embedding in blocks with a window"));
            }
            self.number("rope.freq_base_swa", local.theta);
        }
        Ok(())
    }

    /// A factor for each pair, for texts of any length.
    fn fixed_factors(&mut self, name: &str, factors: Vec<f32>) -> Result<(), GgufError> {
        if !matches!(self.architecture, Architecture::Llama | Architecture::Granite) {
            return Err(no_word(format!(
                "the rope type `{name}` in a `{}` model",
                self.config.model_type.name()
            )));
        }
        self.out.factors.push(("rope_freqs.weight", factors));
        Ok(())
    }

    fn yarn(&mut self) -> Result<(), GgufError> {
        let RopeScaling::Yarn { factor, original, attention_factor, beta_fast, beta_slow, truncate } =
            self.config.rope.scaling
        else {
            return Ok(());
        };
        // llama.cpp's ramp ends at whole pairs.
        if !truncate {
            return Err(no_word("YaRN with `truncate` off"));
        }
        self.text("rope.scaling.type", "yarn");
        self.number("rope.scaling.factor", factor);
        self.size("rope.scaling.original_context_length", original);
        self.number("rope.scaling.yarn_beta_fast", beta_fast);
        self.number("rope.scaling.yarn_beta_slow", beta_slow);
        // The usual one is worked out from the factor, here and there.
        let usual = 0.1 * factor.ln() + 1.0;
        if (attention_factor - usual).abs() > 1e-6 {
            self.number("rope.scaling.yarn_attn_factor", attention_factor);
            self.out.notes.push(format!(
                "YaRN's attention factor is {attention_factor}, not the usual {usual:.4}; llama.cpp multiplies the usual one by it"
            ));
        }
        Ok(())
    }

    fn long_rope(&mut self) -> Result<(), GgufError> {
        let RopeScaling::LongRope { short_factor, long_factor, original, attention_factor } =
            &self.config.rope.scaling
        else {
            return Ok(());
        };
        let single = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect::<Vec<f32>>();
        // What a GGUF file's factors for texts of any length were read as.
        if self.architecture != Architecture::Phi3 && short_factor == long_factor && *attention_factor == 1.0
        {
            return self.fixed_factors("longrope", single(short_factor));
        }
        if !matches!(self.architecture, Architecture::Phi3 | Architecture::Llama) {
            return Err(no_word(format!(
                "the rope type `longrope` in a `{}` model",
                self.config.model_type.name()
            )));
        }
        self.text("rope.scaling.type", "longrope");
        self.size("rope.scaling.original_context_length", *original);
        self.number("rope.scaling.attn_factor", *attention_factor);
        self.out.factors.push(("rope_factors_long.weight", single(long_factor)));
        self.out.factors.push(("rope_factors_short.weight", single(short_factor)));
        self.out.notes.push(format!(
            "llama.cpp chooses the rotary factors by the size of its context, not by a text's length: give it a context of up to {original} \
             for the short ones"
        ));
        Ok(())
    }

    /// Mistral's window is in every block, or in none.
    fn llama(&mut self) {
        if let Some(window) = self.config.windows.first().copied().flatten() {
            self.size("attention.sliding_window", window);
            self.out.notes.push(format!(
                "llama.cpp does not keep to a window in `llama` models: texts of over {window} tokens get other logits there"
            ));
        }
    }

    fn no_window(&self) -> Result<(), GgufError> {
        if self.config.windows.iter().all(Option::is_none) {
            return Ok(());
        }
        Err(no_word(format!("`sliding_window` in a `{}` model", self.config.model_type.name())))
    }

    fn experts(&mut self) -> Result<(), GgufError> {
        self.no_window()?;
        let Some(experts) = &self.config.experts else { return Ok(()) };
        if !experts.norm_topk_prob {
            return Err(no_word("`norm_topk_prob` off: llama.cpp divides by the sum"));
        }
        if let Some(block) = experts.blocks.iter().position(|sparse| !sparse) {
            self.out
                .notes
                .push(format!("block {block} has no experts, and llama.cpp expects them in every block"));
        }
        self.size("expert_count", experts.num_experts);
        self.size("expert_used_count", experts.num_experts_per_tok);
        self.size("expert_feed_forward_length", experts.intermediate_size);
        Ok(())
    }

    /// llama.cpp knows the factor on the scores by the number of blocks: H / N in the 27B, D in all others.
    fn gemma_scale(&self, large: usize) -> Result<(), GgufError> {
        let c = self.config;
        let implied = if c.num_hidden_layers == large {
            c.hidden_size as f64 / c.num_attention_heads as f64
        } else {
            c.head_dim as f64
        };
        let given = c.attention_scale.powi(-2);
        if (given / implied - 1.0).abs() > 1e-6 {
            return Err(no_word(format!(
                "`query_pre_attn_scalar` = {given:.3}: llama.cpp takes {implied} for a Gemma of this size"
            )));
        }
        Ok(())
    }

    fn gemma2(&mut self, own_head: bool) -> Result<(), GgufError> {
        self.gemma_scale(46)?;
        if own_head {
            return Err(no_word(
                "a head of its own in a `gemma2` model, such as an adapter on `lm_head` leaves",
            ));
        }
        let (Some(attention), Some(logits)) = (self.config.attention_soft_cap, self.config.logits_soft_cap)
        else {
            return Err(no_word("a `gemma2` model without its two soft caps"));
        };
        let window = self.config.windows.first().copied().flatten();
        let alternates =
            self.config.windows.iter().enumerate().all(|(i, w)| *w == window.filter(|_| i % 2 == 0));
        let Some(window) = window.filter(|_| alternates) else {
            return Err(no_word(
                "`layer_types` of a `gemma2` model other than a window in every other block",
            ));
        };
        self.number("attn_logit_softcapping", attention);
        self.number("final_logit_softcapping", logits);
        self.size("attention.sliding_window", window);
        Ok(())
    }

    fn gemma3(&mut self) -> Result<(), GgufError> {
        self.gemma_scale(62)?;
        if self.config.attention_soft_cap.is_some() {
            return Err(no_word("`attn_logit_softcapping` in a `gemma3_text` model"));
        }
        if let Some(cap) = self.config.logits_soft_cap {
            self.number("final_logit_softcapping", cap);
        }
        // A size of 0 is no window.
        let window = self.config.windows.iter().flatten().next().copied();
        self.size("attention.sliding_window", window.unwrap_or(0));
        let slides: Vec<bool> = self.config.windows.iter().map(Option::is_some).collect();
        self.out.keys.numbers(&self.architecture.key("attention.sliding_window_pattern"), &slides);
        Ok(())
    }

    fn phi3(&mut self) {
        let window = self.config.windows.first().copied().flatten();
        self.size("attention.sliding_window", window.unwrap_or(0));
        if !matches!(self.config.rope.scaling, RopeScaling::LongRope { .. }) {
            self.size("rope.scaling.original_context_length", self.config.max_position_embeddings);
        }
        if let Some(window) = window {
            self.out.notes.push(format!(
                "llama.cpp does not keep to the window of `phi3` models: texts of over {window} tokens get other logits there"
            ));
        }
    }

    fn granite(&mut self) {
        let c = self.config;
        let embedding = if let EmbeddingScale::By(factor) = c.embedding_scale { factor } else { 1.0 };
        self.number("attention.scale", c.attention_scale);
        self.number("embedding_scale", embedding);
        self.number("residual_scale", c.residual_multiplier);
        self.number("logit_scale", c.logits_divisor);
    }
}

/// What Llama 3's frequencies are divided by: `1 / ((1 - k) / factor + k)`, k the share that is kept, for each pair.
fn llama3_factors(rope: &RopeConfig, rotary_dim: usize) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = rope.scaling else {
        return Vec::new();
    };
    (0..rotary_dim / 2)
        .map(|i| {
            let frequency = rope.theta.powf(-((2 * i) as f64) / rotary_dim as f64);
            let turns = original as f64 * frequency / (2.0 * PI);
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        })
        .collect()
}
