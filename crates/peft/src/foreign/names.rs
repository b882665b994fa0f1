//! Names of PEFT's tensors as they come out of wrapped models, raw state dictionaries and old versions.
//!
//! PEFT writes `base_model.model.PATH.lora_A.weight`. A state dictionary that was saved by hand, or through `torch.compile`, DDP,
//! FSDP or activation checkpointing, has the wrapper's name in the path, the adapter's name behind the parameter, the prefix twice
//! or not at all. None of this changes what the tensor is, so the names are brought into PEFT's form; each change is told.

use crate::{Error, PREFIX, Result};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use taper_diagnostics::list_names;

/// Segments that wrappers put into paths, and who they are.
const WRAPPERS: [(&str, &str); 3] = [
    ("_orig_mod", "torch.compile"),
    ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("_fsdp_wrapped_module", "FSDP"),
];

/// What was unusual in the names of an adapter's tensors and was taken out of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameChange {
    /// Segments of a wrapper, named here, in the paths.
    Wrapper(&'static str),
    /// `module.` in front.
    DataParallel,
    /// The prefix more than once.
    Doubled,
    /// No prefix.
    Unprefixed,
    /// The adapter's name behind its parameters.
    AdapterName(String),
    /// Modules that were trained in full, beside the base's own copies, as they lie in memory.
    InMemory {
        /// Copies that were left out.
        copies: usize,
    },
}

impl fmt::Display for NameChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrapper(who) => write!(f, "names had segments of {who} in them"),
            Self::DataParallel => {
                f.write_str("names began with `module.`, as DistributedDataParallel leaves them")
            }
            Self::Doubled => write!(f, "names began with `{PREFIX}` twice"),
            Self::Unprefixed => write!(f, "names had no prefix `{PREFIX}`"),
            Self::AdapterName(name) => write!(f, "names held that of the adapter, `{name}`"),
            Self::InMemory { copies } => write!(
                f,
                "modules trained in full were named as in memory; {copies} copies of the base's own tensors were left out"
            ),
        }
    }
}

/// What comes behind the parameter of an adapter, without the adapter's name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// `.weight` or `.bias`.
    Leaf,
    /// Nothing: the parameter is no module.
    Bare,
    /// `.weight` in memory, nothing on disk.
    Magnitude,
    /// The path in a module that was trained in full.
    Module,
}

/// Every parameter that PEFT's methods save.
const PARAMETERS: [(&str, Tail); 24] = [
    ("lora_A", Tail::Leaf),
    ("lora_B", Tail::Leaf),
    ("lora_embedding_A", Tail::Bare),
    ("lora_embedding_B", Tail::Bare),
    ("lora_magnitude_vector", Tail::Magnitude),
    ("lora_E", Tail::Bare),
    ("ranknum", Tail::Bare),
    ("modules_to_save", Tail::Module),
    ("trainable_tokens_delta", Tail::Bare),
    ("vera_lambda_b", Tail::Bare),
    ("vera_lambda_d", Tail::Bare),
    ("ia3_l", Tail::Bare),
    ("hada_w1_a", Tail::Bare),
    ("hada_w1_b", Tail::Bare),
    ("hada_w2_a", Tail::Bare),
    ("hada_w2_b", Tail::Bare),
    ("hada_t1", Tail::Bare),
    ("hada_t2", Tail::Bare),
    ("lokr_w1", Tail::Bare),
    ("lokr_w1_a", Tail::Bare),
    ("lokr_w1_b", Tail::Bare),
    ("lokr_w2", Tail::Bare),
    ("lokr_w2_a", Tail::Bare),
    ("lokr_w2_b", Tail::Bare),
];

/// The parameter of an adapter that a name holds.
pub(crate) fn parameter_of(name: &str) -> Option<&'static str> {
    name.split('.').find_map(|segment| PARAMETERS.iter().find(|(p, _)| *p == segment)).map(|(p, _)| *p)
}

/// Tensors under PEFT's names, and what was changed.
///
/// # Errors
/// When there are several adapters in the file, or two names become one.
pub(super) fn to_peft(
    path: &Path,
    found: BTreeMap<String, Tensor>,
) -> Result<(BTreeMap<String, Tensor>, Vec<NameChange>)> {
    let mut changes = Changes::default();
    let mut renamed: Vec<(String, String, Tensor)> = Vec::with_capacity(found.len());
    for (name, tensor) in found {
        if let Some(new) = changes.rename(&name) {
            renamed.push((name, new, tensor));
        }
    }
    // A prefix is missing from all names or from none.
    changes.unprefixed =
        !renamed.is_empty() && renamed.iter().all(|(_, new, _)| !new.starts_with("base_model."));
    let mut tensors = BTreeMap::new();
    let mut origins: BTreeMap<String, String> = BTreeMap::new();
    for (name, new, tensor) in renamed {
        let bare = new == "prompt_embeddings";
        let renamed = if changes.unprefixed && !bare { format!("{PREFIX}{new}") } else { new };
        if let Some(other) = origins.insert(renamed.clone(), name.clone()) {
            return Err(Error::Misfit {
                path: path.to_owned(),
                key: Some(name.clone()),
                what: format!("`{other}` and `{name}` are two names of one tensor, `{renamed}`"),
                remedy: "save the adapter again with PEFT's `save_pretrained`".into(),
            });
        }
        tensors.insert(renamed, tensor);
    }
    if changes.adapters.len() > 1 {
        let names: Vec<&String> = changes.adapters.iter().collect();
        return Err(Error::Misfit {
            path: path.to_owned(),
            key: None,
            what: format!("the file holds several adapters: {}", list_names(names, 8)),
            remedy: "save each in a folder of its own with PEFT's `save_pretrained`".into(),
        });
    }
    if tensors.is_empty() {
        return Err(Error::Misfit {
            path: path.to_owned(),
            key: None,
            what: "the file holds copies of the base's tensors (`original_module`) and none of an adapter"
                .into(),
            remedy: "save the adapter again with PEFT's `save_pretrained`".into(),
        });
    }
    Ok((tensors, changes.list()))
}

/// What was found in names and taken out of them.
#[derive(Default)]
struct Changes {
    unprefixed: bool,
    wrappers: BTreeSet<&'static str>,
    data_parallel: bool,
    doubled: bool,
    adapters: BTreeSet<String>,
    in_memory: bool,
    originals: usize,
}

impl Changes {
    /// PEFT's name; `None` for the base's own copy beside a module that was trained in full.
    fn rename(&mut self, name: &str) -> Option<String> {
        let mut segments: Vec<&str> = name.split('.').collect();
        segments.retain(|segment| match WRAPPERS.iter().find(|(wrapper, _)| wrapper == segment) {
            Some((_, who)) => {
                self.wrappers.insert(who);
                false
            }
            None => true,
        });
        self.front(&mut segments);
        let at = segments.iter().position(|s| PARAMETERS.iter().any(|(p, _)| p == s));
        if let Some(at) = at {
            self.behind_parameter(&mut segments, at);
        } else if segments.contains(&"original_module") {
            self.originals += 1;
            return None;
        }
        Some(segments.join("."))
    }

    /// DDP's `module.` and a prefix that is there more than once.
    fn front(&mut self, segments: &mut Vec<&str>) {
        while segments.len() > 1 && segments[0] == "module" {
            self.data_parallel = true;
            segments.remove(0);
        }
        while let ["base_model", "model", "base_model", "model", ..] = segments.as_slice() {
            self.doubled = true;
            segments.drain(..2);
        }
    }

    /// The adapter's name behind the parameter at `at`, as it is in memory and not on disk.
    fn behind_parameter(&mut self, segments: &mut Vec<&str>, at: usize) {
        let tail = PARAMETERS.iter().find(|(p, _)| *p == segments[at]).map(|(_, tail)| *tail);
        let rest = segments.len() - at - 1;
        let leaf = |s: &str| s == "weight" || s == "bias";
        let last_is_leaf = segments.last().is_some_and(|s| leaf(s));
        let named = match tail {
            Some(Tail::Leaf) => (rest == 2 && last_is_leaf) || (rest == 1 && !last_is_leaf),
            Some(Tail::Bare) => rest == 1 && !last_is_leaf,
            Some(Tail::Magnitude) => rest == 2 && last_is_leaf || rest == 1 && !last_is_leaf,
            Some(Tail::Module) => rest >= 2,
            None => false,
        };
        if named {
            self.adapters.insert(segments.remove(at + 1).to_owned());
        }
        match tail {
            // In memory the vector is a module with a weight.
            Some(Tail::Magnitude) if segments.len() == at + 2 && segments[at + 1] == "weight" => {
                segments.pop();
            }
            Some(Tail::Module) => {
                self.in_memory = true;
                segments.remove(at);
            }
            _ => {}
        }
    }

    fn list(self) -> Vec<NameChange> {
        let mut list: Vec<NameChange> = self.wrappers.iter().map(|who| NameChange::Wrapper(who)).collect();
        list.extend(self.data_parallel.then_some(NameChange::DataParallel));
        list.extend(self.doubled.then_some(NameChange::Doubled));
        list.extend(self.unprefixed.then_some(NameChange::Unprefixed));
        list.extend(self.adapters.into_iter().map(NameChange::AdapterName));
        let in_memory = self.in_memory || self.originals > 0;
        list.extend(in_memory.then_some(NameChange::InMemory { copies: self.originals }));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

    fn renamed(names: &[&str]) -> Result<(Vec<String>, Vec<NameChange>)> {
        let zero = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let found = names.iter().map(|name| ((*name).to_owned(), zero.clone())).collect();
        let (tensors, notes) = to_peft(Path::new("x.safetensors"), found)?;
        Ok((tensors.into_keys().collect(), notes))
    }

    #[test]
    fn every_way_to_write_a_name_becomes_pefts() {
        let path = "model.layers.0.self_attn.q_proj.lora_A";
        let ways = [
            A.to_owned(),
            format!("base_model.model.{path}.default.weight"),
            format!("base_model.model.{path}.my adapter.weight"),
            format!("base_model.model.base_model.model.{path}.weight"),
            format!("base_model.model.base_model.model.base_model.model.{path}.weight"),
            format!("{path}.weight"),
            format!("{path}.default.weight"),
            format!("module.base_model.model.{path}.weight"),
            format!("module.{path}.weight"),
            format!("_orig_mod.base_model.model.{path}.weight"),
            format!("base_model.model._orig_mod.{path}.weight"),
            format!("module._orig_mod.base_model.model.{path}.default.weight"),
            "base_model.model._fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.q_proj.lora_A.default.weight".into(),
        ];
        for way in &ways {
            let (names, notes) = renamed(&[way]).unwrap();
            assert_eq!(names, [A], "{way}");
            assert_eq!(notes.is_empty(), way == A, "{way}: {notes:?}");
        }
    }

    #[test]
    fn parameters_of_every_method_lose_the_adapters_name_and_nothing_else() {
        for (given, expected) in [
            ("base_model.model.e.lora_embedding_A.default", "base_model.model.e.lora_embedding_A"),
            (
                "base_model.model.q.lora_magnitude_vector.default.weight",
                "base_model.model.q.lora_magnitude_vector",
            ),
            ("base_model.model.q.lora_magnitude_vector.weight", "base_model.model.q.lora_magnitude_vector"),
            ("base_model.model.q.lora_magnitude_vector.default", "base_model.model.q.lora_magnitude_vector"),
            ("base_model.model.q.lora_B.default.bias", "base_model.model.q.lora_B.bias"),
            ("base_model.model.q.lora_A", "base_model.model.q.lora_A"),
            ("base_model.model.q.lora_E.default", "base_model.model.q.lora_E"),
            ("base_model.model.q.vera_lambda_b.default", "base_model.model.q.vera_lambda_b"),
            ("base_model.model.q.ia3_l.default", "base_model.model.q.ia3_l"),
            ("base_model.model.lm_head.modules_to_save.default.weight", "base_model.model.lm_head.weight"),
            ("base_model.vera_A", "base_model.vera_A"),
            ("prompt_embeddings", "prompt_embeddings"),
            ("lm_head.modules_to_save.default.weight", "base_model.model.lm_head.weight"),
            (
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default",
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            ),
        ] {
            assert_eq!(renamed(&[given]).unwrap().0, [expected]);
        }
    }

    #[test]
    fn the_bases_own_copy_is_left_out_and_told() {
        let head = "base_model.model.lm_head";
        let (names, notes) = renamed(&[
            &format!("{head}.modules_to_save.default.weight"),
            &format!("{head}.original_module.weight"),
        ])
        .unwrap();
        assert_eq!(names, [format!("{head}.weight")]);
        assert!(notes.contains(&NameChange::InMemory { copies: 1 }), "{notes:?}");
    }

    #[test]
    fn two_adapters_and_two_names_of_one_tensor_are_refused() {
        let stem = A.strip_suffix(".weight").unwrap();
        let error =
            renamed(&[&format!("{stem}.one.weight"), &format!("{}.two.weight", stem.replace('0', "1"))]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("several adapters: `one`, `two`"), "{text}");
        let error = renamed(&[A, &format!("_orig_mod.{A}")]);
        assert!(error.unwrap_err().to_string().contains("two names of one tensor"));
    }

    proptest! {
        #[test]
        fn renaming_never_panics_and_a_second_time_changes_nothing(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "base_model", "model", "module", "_orig_mod", "lora_A", "lora_B", "weight", "bias", "default",
                    "modules_to_save", "original_module", "lora_magnitude_vector", "q_proj", "0", "", "ia3_l",
                ]), 1..9),
        ) {
            let name = parts.join(".");
            if let Ok((names, _)) = renamed(&[&name]) {
                prop_assert!(names.len() <= 1);
                // What has PEFT's form keeps it, if no module has the name of a factor.
                let is_pefts = |n: &String| n.starts_with(PREFIX) && n.ends_with("lora_A.weight") && n.matches("lora_").count() == 1;
                if names.first().is_some_and(|n| is_pefts(n) && !n.contains("module")) {
                    prop_assert_eq!(&renamed(&[&names[0]]).unwrap().0, &names);
                }
            }
        }
    }
}
