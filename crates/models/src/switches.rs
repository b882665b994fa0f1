//! What architectures differ in, as values.

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention (`input_layernorm`) and before the MLP (`post_attention_layernorm`).
    Before,
    /// Behind attention (`post_attention_layernorm`) and behind the MLP (`post_feedforward_layernorm`).
    Behind,
    /// Before and behind both: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`, `post_feedforward_layernorm`.
    Both,
}

/// The names of the norms before and behind a part of a block.
pub(crate) type NormNames = (Option<&'static str>, Option<&'static str>);

impl NormPlacement {
    /// The norms around attention and around the MLP.
    pub(crate) fn names(self) -> [NormNames; 2] {
        match self {
            Self::Before => [(Some("input_layernorm"), None), (Some("post_attention_layernorm"), None)],
            Self::Behind => {
                [(None, Some("post_attention_layernorm")), (None, Some("post_feedforward_layernorm"))]
            }
            Self::Both => [
                (Some("input_layernorm"), Some("post_attention_layernorm")),
                (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")),
            ],
        }
    }
}

/// How queries and keys are normed (`q_norm`, `k_norm`) before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Each head by itself, gains `[D]`.
    Head,
    /// All heads together, gains `[N D]` and `[K D]`.
    Layer,
}

/// What embeddings are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EmbeddingScale {
    /// Nothing.
    One,
    /// A factor.
    By(f64),
    /// sqrt(H), rounded to the type of the table, as these models were trained.
    SqrtHidden,
}

/// The experts that stand in place of the MLP in some blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// E.
    pub num_experts: usize,
    /// How many of them see a token.
    pub num_experts_per_tok: usize,
    /// I of each.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// For each block whether it has experts.
    pub blocks: Vec<bool>,
}
