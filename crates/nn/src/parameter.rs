//! What the optimiser moves.

use candle_core::Var;

/// What a parameter is, as far as the optimiser's groups care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterKind {
    /// The down-projection of an adapter, `[r, in]`.
    LoraA,
    /// The up-projection of an adapter, `[out, r]`.
    LoraB,
    /// A matrix of the model itself.
    Weight,
    /// The table of an embedding.
    Embedding,
    /// A bias vector.
    Bias,
    /// The gain of a norm.
    Norm,
}

/// A named variable, f32. Names are those of the file it is saved to.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The key in the saved file, for example `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// What it is.
    pub kind: ParameterKind,
    /// The values.
    pub var: Var,
}
