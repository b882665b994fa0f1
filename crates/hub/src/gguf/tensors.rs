//! The tensors of a GGUF file under the names that a checkpoint on the Hub has, and what has to be undone.
//!
//! Source of the names: `MODEL_TENSORS` and `tensor_mapping.py` of llama.cpp's `gguf-py`, against transformers' model classes.

use super::{Architecture, GgufError, Header, TensorInfo, shown};

/// A tensor of the Hub's checkpoint, and where the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubTensor {
    /// The Hub's name, for example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The file's name, for example `blk.0.attn_q.weight`.
    pub source: String,
    /// Slice `0` of `1` along the first dimension: one expert of many that lie in one tensor.
    pub part: Option<(usize, usize)>,
    /// What the converter did to it.
    pub undo: Undo,
}

/// What a converter did to a tensor, and has to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// Nothing.
    Nothing,
    /// Rows of queries or keys (or the numbers of their bias) were put in pairs: row `r` of the Hub is row [`unpermuted_row`] of the file.
    RotaryRows {
        /// Heads of the tensor.
        heads: usize,
    },
    /// 1 was added to every number.
    AddedOne,
}

/// The row of the file that has row `hub_row` of the Hub's queries or keys.
///
/// The converter takes a head's rows `[2, D/2]` to `[D/2, 2]`, so that the two halves that a rotary embedding turns together become
/// neighbours.
pub fn unpermuted_row(heads: usize, head_dim: usize, hub_row: usize) -> usize {
    debug_assert!(hub_row < heads * head_dim, "row {hub_row} of {heads} heads of {head_dim}");
    let half = head_dim / 2;
    let (head, within) = (hub_row / head_dim, hub_row % head_dim);
    head * head_dim + 2 * (within % half) + within / half
}

/// Every weight of the Hub's checkpoint that the file holds, sorted by the file's names. What only describes the rotary embedding
/// (`rope_freqs`, `rope_factors_*`) is no weight: it goes into the configuration.
///
/// # Errors
/// When the file holds no whole model of a known architecture, or a tensor that the architecture does not have or of another shape than
/// the metadata asks for.
pub fn hub_tensors(header: &Header) -> Result<Vec<HubTensor>, GgufError> {
    let architecture = Architecture::of(header)?;
    let blocks = architecture.blocks(&header.metadata)?;
    let mut found = Vec::with_capacity(header.tensors.len());
    for (source, info) in &header.tensors {
        if is_rotary(source) {
            continue;
        }
        let unknown =
            || GgufError::UnknownTensor { tensor: shown(source), architecture: architecture.name() };
        let name = hub_name(architecture, source, blocks).ok_or_else(unknown)?;
        let undo = undo(architecture, header, source, info)?;
        match name.split_once(EXPERT) {
            None => {
                check_dimensions(source, info, 1..=2, "one or two dimensions")?;
                found.push(HubTensor { name, source: source.clone(), part: None, undo });
            }
            Some((before, after)) => {
                let experts = architecture.required_size(&header.metadata, "expert_count")?;
                check_dimensions(source, info, 3..=3, "three dimensions")?;
                if info.shape.first() != Some(&experts) {
                    return Err(wrong_shape(source, info, format!("{experts} experts first")));
                }
                found.extend((0..experts).map(|expert| HubTensor {
                    name: format!("{before}{expert}{after}"),
                    source: source.clone(),
                    part: Some((expert, experts)),
                    undo,
                }));
            }
        }
    }
    Ok(found)
}

/// Where the number of an expert goes in a name.
const EXPERT: &str = "{expert}";

/// Tensors that describe the rotary embedding.
fn is_rotary(source: &str) -> bool {
    matches!(source, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight")
}

/// The Hub's name, with [`EXPERT`] in it for one that holds many.
fn hub_name(architecture: Architecture, source: &str, blocks: usize) -> Option<String> {
    let whole = match source {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(name.to_owned());
    }
    let (number, rest) = source.strip_prefix("blk.")?.split_once('.')?;
    let block: usize = number.parse().ok()?;
    // `blk.00` and `blk.+0` are not names that a converter writes, and would be second names of a tensor.
    if block >= blocks || block.to_string() != number {
        return None;
    }
    let (module, kind) = rest.rsplit_once('.')?;
    let (place, may_have_bias) = module_name(architecture, module)?;
    match kind {
        "weight" => {}
        "bias" if may_have_bias => {}
        _ => return None,
    }
    Some(format!("model.layers.{block}.{place}.{kind}"))
}

/// A module's place in a block, and whether it may have a bias.
fn module_name(architecture: Architecture, module: &str) -> Option<(&'static str, bool)> {
    use Architecture::{Gemma2, Gemma3, Granite, Llama, Olmo2, Phi3, Qwen3, Qwen3Moe};
    let four_norms = matches!(architecture, Gemma2 | Gemma3);
    let head_norms = matches!(architecture, Qwen3 | Qwen3Moe | Gemma3 | Olmo2);
    // Beyond those of q, k and v, llama.cpp makes no biases but these architectures'.
    let biased = matches!(architecture, Llama | Granite);
    let found = match module {
        // OLMo 2 norms what comes out of attention and MLP, and nothing that goes in.
        "attn_norm" if architecture != Olmo2 => ("input_layernorm", false),
        "ffn_norm" if four_norms => ("pre_feedforward_layernorm", false),
        "ffn_norm" if architecture != Olmo2 => ("post_attention_layernorm", false),
        "post_attention_norm" if four_norms || architecture == Olmo2 => ("post_attention_layernorm", false),
        "post_ffw_norm" if four_norms || architecture == Olmo2 => ("post_feedforward_layernorm", false),
        "attn_q_norm" if head_norms => ("self_attn.q_norm", false),
        "attn_k_norm" if head_norms => ("self_attn.k_norm", false),
        "attn_output" => ("self_attn.o_proj", biased),
        "attn_qkv" if architecture == Phi3 => ("self_attn.qkv_proj", false),
        "ffn_up" if architecture == Phi3 => ("mlp.gate_up_proj", false),
        "ffn_down" if architecture == Phi3 => ("mlp.down_proj", false),
        _ if architecture == Phi3 => return None,
        "attn_q" => ("self_attn.q_proj", true),
        "attn_k" => ("self_attn.k_proj", true),
        "attn_v" => ("self_attn.v_proj", true),
        "ffn_gate_inp" if architecture == Qwen3Moe => ("mlp.gate", false),
        "ffn_gate_exps" if architecture == Qwen3Moe => ("mlp.experts.{expert}.gate_proj", false),
        "ffn_up_exps" if architecture == Qwen3Moe => ("mlp.experts.{expert}.up_proj", false),
        "ffn_down_exps" if architecture == Qwen3Moe => ("mlp.experts.{expert}.down_proj", false),
        "ffn_gate" => ("mlp.gate_proj", biased),
        "ffn_up" => ("mlp.up_proj", biased),
        "ffn_down" => ("mlp.down_proj", biased),
        _ => return None,
    };
    Some(found)
}

/// The names that modules have in files of any architecture.
const MODULES: [&str; 18] = [
    "attn_norm",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
    "attn_q_norm",
    "attn_k_norm",
    "attn_output",
    "attn_qkv",
    "attn_q",
    "attn_k",
    "attn_v",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// Where a file has a tensor of the Hub's checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredName {
    /// The file's name.
    pub name: String,
    /// Which slice along the first dimension it is, of a tensor that holds all experts of a block.
    pub expert: Option<usize>,
}

/// The place in a file of the Hub's tensor `hub` (`model.layers.0.self_attn.q_proj.weight`): the inverse of [`hub_tensors`]. `None` for one
/// that files of the architecture do not have.
pub fn stored_name(architecture: Architecture, hub: &str) -> Option<StoredName> {
    let whole = match hub {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(StoredName { name: name.to_owned(), expert: None });
    }
    let (block, rest) = hub.strip_prefix("model.layers.")?.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (place, kind) = rest.rsplit_once('.')?;
    let (place, expert) = match place.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        Some((expert, part)) => (format!("mlp.experts.{EXPERT}.{part}"), Some(expert.parse().ok()?)),
        None => (place.to_owned(), None),
    };
    let module = MODULES.into_iter().find(|module| match module_name(architecture, module) {
        Some((known, may_have_bias)) => {
            known == place && (kind == "weight" || kind == "bias" && may_have_bias)
        }
        None => false,
    })?;
    Some(StoredName { name: format!("blk.{block}.{module}.{kind}"), expert })
}

fn undo(
    architecture: Architecture,
    header: &Header,
    source: &str,
    info: &TensorInfo,
) -> Result<Undo, GgufError> {
    let ends = |modules: &[&str]| {
        modules
            .iter()
            .any(|m| source.ends_with(&format!(".{m}.weight")) || source.ends_with(&format!(".{m}.bias")))
    };
    let heads = if !architecture.pairs_rotary_rows() {
        None
    } else if ends(&["attn_q"]) {
        Some("attention.head_count")
    } else if ends(&["attn_k"]) {
        Some("attention.head_count_kv")
    } else {
        None
    };
    if let Some(key) = heads {
        // Files from before grouped queries have the one number alone.
        let key =
            if architecture.size(&header.metadata, key)?.is_some() { key } else { "attention.head_count" };
        let heads = architecture.required_size(&header.metadata, key)?;
        let rows = info.shape.first().copied().unwrap_or(1);
        if !rows.is_multiple_of(2 * heads) {
            return Err(wrong_shape(source, info, format!("rows for {heads} heads of an even size")));
        }
        return Ok(Undo::RotaryRows { heads });
    }
    if architecture.adds_one_to_norms() && source.ends_with("norm.weight") {
        return Ok(Undo::AddedOne);
    }
    Ok(Undo::Nothing)
}

fn check_dimensions(
    source: &str,
    info: &TensorInfo,
    wanted: std::ops::RangeInclusive<usize>,
    expected: &str,
) -> Result<(), GgufError> {
    if wanted.contains(&info.shape.len()) { Ok(()) } else { Err(wrong_shape(source, info, expected.into())) }
}

fn wrong_shape(source: &str, info: &TensorInfo, expected: String) -> GgufError {
    GgufError::TensorShape { tensor: shown(source), shape: info.shape.clone(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_testkit::{GgufFile, golden};

    fn file(architecture: &str) -> GgufFile {
        GgufFile::new()
            .text("general.architecture", architecture)
            .u32(&format!("{architecture}.block_count"), 2)
            .u32(&format!("{architecture}.attention.head_count"), 4)
            .u32(&format!("{architecture}.attention.head_count_kv"), 2)
    }

    fn of(file: &GgufFile) -> Result<Vec<HubTensor>, GgufError> {
        hub_tensors(&Header::parse(&file.bytes()).unwrap())
    }

    fn one(file: &GgufFile) -> (String, Undo) {
        let found = of(file).unwrap();
        assert_eq!(found.len(), 1);
        (found[0].name.clone(), found[0].undo)
    }

    #[test]
    fn rows_of_a_head_are_taken_out_of_their_pairs() {
        // Two heads of 6: what `reshape(2, 2, 3).swapaxes(1, 2)` makes of 0..12, turned round.
        let stored = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11];
        for hub_row in 0..12 {
            assert_eq!(stored[unpermuted_row(2, 6, hub_row)], hub_row);
        }
    }

    #[test]
    fn the_golden_file_has_the_tensors_of_the_checkpoint_it_was_made_from() {
        let bytes = fs_err::read(golden("gguf/llama_f32.gguf")).unwrap();
        let checkpoint = fs_err::read(golden("models/llama_untied/model.safetensors")).unwrap();
        let checkpoint = crate::safetensors::Header::parse(&checkpoint).unwrap();
        let header = Header::parse(&bytes).unwrap();
        let tensors = hub_tensors(&header).unwrap();
        let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, checkpoint.tensors.keys().collect::<Vec<_>>());
        for tensor in &tensors {
            assert_eq!(header.tensors[&tensor.source].shape, checkpoint.tensors[&tensor.name].shape);
            let rotary = match tensor.name.rsplit('.').nth(1) {
                Some("q_proj") => Undo::RotaryRows { heads: 4 },
                Some("k_proj") => Undo::RotaryRows { heads: 2 },
                _ => Undo::Nothing,
            };
            assert_eq!((tensor.undo, tensor.part), (rotary, None), "{}", tensor.name);
        }
    }

    /// The numbers of the golden file are those of the checkpoint, in the order that `unpermuted_row` says.
    #[test]
    fn the_golden_files_rows_are_where_they_are_said_to_be() {
        let (bytes, checkpoint) = (
            fs_err::read(golden("gguf/llama_f32.gguf")).unwrap(),
            fs_err::read(golden("models/llama_untied/model.safetensors")).unwrap(),
        );
        let (ours, theirs) =
            (Header::parse(&bytes).unwrap(), crate::safetensors::Header::parse(&checkpoint).unwrap());
        let mut moved = 0;
        for tensor in hub_tensors(&ours).unwrap() {
            let (info, wanted) = (&ours.tensors[&tensor.source], &theirs.tensors[&tensor.name]);
            let row_bytes = info.range.len() / info.shape[0];
            for row in 0..info.shape[0] {
                let from = match tensor.undo {
                    Undo::RotaryRows { heads } => unpermuted_row(heads, info.shape[0] / heads, row),
                    _ => row,
                };
                moved += usize::from(from != row);
                let stored = &bytes[info.range.start + from * row_bytes..][..row_bytes];
                assert!(
                    stored == &checkpoint[wanted.range.start + row * row_bytes..][..row_bytes],
                    "{}",
                    tensor.name
                );
            }
        }
        assert!(moved > 0);
    }

    #[test]
    fn a_name_of_the_hub_leads_to_the_place_that_it_is_read_from() {
        let mut found = 0;
        for architecture in Architecture::ALL {
            for module in MODULES {
                for kind in ["weight", "bias"] {
                    let source = format!("blk.11.{module}.{kind}");
                    let Some(hub) = hub_name(architecture, &source, 12) else { continue };
                    let expert = hub.contains(EXPERT).then_some(7);
                    let hub = hub.replace(EXPERT, "7");
                    assert_eq!(
                        stored_name(architecture, &hub),
                        Some(StoredName { name: source, expert }),
                        "{hub}"
                    );
                    found += 1;
                }
            }
        }
        assert!(found > 100, "{found}");
        for hub in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] {
            let stored = stored_name(Architecture::Llama, hub).unwrap();
            assert_eq!(hub_name(Architecture::Llama, &stored.name, 1).as_deref(), Some(hub));
        }
        for hub in
            ["model.layers.0.self_attn.q_norm.weight", "model.layers.x.mlp.up_proj.weight", "lm_head.bias"]
        {
            assert_eq!(stored_name(Architecture::Llama, hub), None, "{hub}");
        }
        let bias = "model.layers.0.self_attn.o_proj.bias";
        assert!(stored_name(Architecture::Llama, bias).is_some());
        for architecture in [Architecture::Qwen2, Architecture::Qwen3, Architecture::Gemma3] {
            assert_eq!(stored_name(architecture, bias), None, "llama.cpp has no place for it");
        }
    }

    #[test]
    fn norms_have_the_places_of_their_architecture() {
        let norm = |architecture: &str, name: &str| one(&file(architecture).zeros(name, &[8]));
        let name = |architecture, name| norm(architecture, name).0;
        assert_eq!(name("llama", "blk.1.ffn_norm.weight"), "model.layers.1.post_attention_layernorm.weight");
        assert_eq!(
            name("gemma2", "blk.1.ffn_norm.weight"),
            "model.layers.1.pre_feedforward_layernorm.weight"
        );
        for architecture in ["gemma3", "olmo2"] {
            assert_eq!(
                name(architecture, "blk.0.post_attention_norm.weight"),
                "model.layers.0.post_attention_layernorm.weight"
            );
            assert_eq!(
                name(architecture, "blk.0.post_ffw_norm.weight"),
                "model.layers.0.post_feedforward_layernorm.weight"
            );
            assert_eq!(
                name(architecture, "blk.0.attn_q_norm.weight"),
                "model.layers.0.self_attn.q_norm.weight"
            );
        }
        assert_eq!(norm("gemma3", "blk.0.attn_k_norm.weight").1, Undo::AddedOne);
        assert_eq!(norm("gemma2", "output_norm.weight").1, Undo::AddedOne);
        assert_eq!(norm("olmo2", "blk.0.attn_k_norm.weight").1, Undo::Nothing);
    }

    #[test]
    fn queries_and_keys_are_in_pairs_where_the_converter_pairs_them() {
        let rows = |architecture: &str, name: &str| one(&file(architecture).zeros(name, &[16, 8])).1;
        assert_eq!(rows("llama", "blk.0.attn_q.weight"), Undo::RotaryRows { heads: 4 });
        assert_eq!(rows("granite", "blk.0.attn_k.weight"), Undo::RotaryRows { heads: 2 });
        assert_eq!(rows("llama", "blk.0.attn_v.weight"), Undo::Nothing);
        for architecture in ["qwen2", "qwen3", "olmo2", "gemma3"] {
            assert_eq!(rows(architecture, "blk.0.attn_q.weight"), Undo::Nothing, "{architecture}");
        }
        let bias = one(&file("llama").zeros("blk.0.attn_q.bias", &[16]));
        let name = "model.layers.0.self_attn.q_proj.bias".to_owned();
        assert_eq!(bias, (name, Undo::RotaryRows { heads: 4 }));
        let odd = of(&file("llama").zeros("blk.0.attn_q.weight", &[12, 8])).unwrap_err();
        assert!(odd.to_string().contains("wanted rows for 4 heads of an even size"), "{odd}");
    }

    #[test]
    fn experts_are_slices_of_one_tensor() {
        let moe = file("qwen3moe").u32("qwen3moe.expert_count", 3);
        let found = of(&moe.clone().zeros("blk.1.ffn_down_exps.weight", &[3, 8, 4])).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[2].name, "model.layers.1.mlp.experts.2.down_proj.weight");
        assert_eq!((found[2].part, found[2].source.as_str()), (Some((2, 3)), "blk.1.ffn_down_exps.weight"));
        let few = of(&moe.clone().zeros("blk.1.ffn_down_exps.weight", &[2, 8, 4])).unwrap_err();
        assert!(few.to_string().contains("has the shape [2, 8, 4], wanted 3 experts first"), "{few}");
        assert_eq!(one(&moe.zeros("blk.0.ffn_gate_inp.weight", &[3, 8])).0, "model.layers.0.mlp.gate.weight");
        assert_eq!(
            of(&file("llama").u32("llama.expert_count", 8)).unwrap_err().to_string(),
            "it holds a model of the architecture `llama with experts`, supported are `llama`, `qwen2`, `qwen3`, `qwen3moe`, \
             `gemma2`, `gemma3`, `phi3`, `olmo2`, `granite`"
        );
    }

    #[test]
    fn phi3_keeps_its_fused_matrices() {
        let name = |name: &str| one(&file("phi3").zeros(name, &[8, 8])).0;
        assert_eq!(name("blk.0.attn_qkv.weight"), "model.layers.0.self_attn.qkv_proj.weight");
        assert_eq!(name("blk.0.ffn_up.weight"), "model.layers.0.mlp.gate_up_proj.weight");
        let apart = of(&file("phi3").zeros("blk.0.attn_q.weight", &[8, 8])).unwrap_err();
        assert_eq!(
            apart.to_string(),
            "tensor `blk.0.attn_q.weight` is not known in a model of the architecture `phi3`"
        );
    }

    #[test]
    fn what_is_not_known_is_refused_and_what_turns_is_passed_over() {
        for name in
            ["blk.2.attn_q.weight", "blk.00.attn_q.weight", "blk.0.attn_norm.bias", "extra", "blk.0.attn_q"]
        {
            assert!(
                matches!(of(&file("llama").zeros(name, &[16, 8])), Err(GgufError::UnknownTensor { .. })),
                "{name}"
            );
        }
        assert!(of(&file("llama").zeros("rope_freqs.weight", &[8])).unwrap().is_empty());
        let adapter = file("llama").text("general.type", "adapter");
        assert_eq!(of(&adapter).unwrap_err().to_string(), "it holds an adapter, not a whole model");
        assert!(of(&file("mamba")).unwrap_err().to_string().contains("the architecture `mamba`"));
        assert!(of(&GgufFile::new()).unwrap_err().to_string().contains("`general.architecture` is missing"));
    }
}
