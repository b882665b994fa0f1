//! What the optimiser moves.

use candle_core::Var;

/// What a parameter is, as far as the optimiser's groups care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterKind {
    /// The down-projection of an adapter, `[r, in]`.
    LoraA,
    /// The up-projection of an adapter, `[out, r]`.
    LoraB,
    /// A bias beside the up-projection.
    LoraBias,
    /// The `[r, V]` of an embedding's adapter.
    LoraEmbeddingA,
    /// The `[H, r]` of an embedding's adapter.
    LoraEmbeddingB,
    /// One of the factors that make the delta of LoHa or LoKr.
    Factor,
    /// Factors of rows or columns: DoRA's magnitudes, VeRA's and (IA)³'s vectors.
    Vector,
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
