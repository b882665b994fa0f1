//! An adapter that does not fit its configuration or the model: what the difference tells.

use super::names::parameter_of;
use crate::modules::TrainedParameter;
use crate::{AdapterWeights, CONFIG_FILE, Error, PREFIX};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use taper_diagnostics::list_names;

/// Parts of names that only one method of PEFT has.
const METHODS: [(&str, &str); 14] = [
    (".lora_E", "AdaLoRA"),
    (".vera_", "VeRA"),
    ("base_model.vera_", "VeRA"),
    (".ia3_l", "IA3"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".hra_", "HRA"),
    (".fourierft_", "FourierFT"),
    (".randlora_", "RandLoRA"),
    (".bone_", "Bone"),
    (".ln_tuning_layers", "LN tuning"),
    ("prompt_embeddings", "prompt tuning or prefix tuning"),
];

/// The method of PEFT that a tensor's name belongs to, when it is not plain LoRA.
pub(crate) fn method_of(name: &str) -> Option<&'static str> {
    METHODS.iter().find(|(part, _)| name.contains(part)).map(|(_, method)| *method)
}

/// Tensors of a method that is not the configuration's.
pub(crate) fn other_method(path: &Path, unexpected: &[String], peft_type: &str) -> Option<Error> {
    let (name, method) = unexpected
        .iter()
        .filter_map(|name| Some((name, method_of(name)?)))
        .find(|(_, method)| !method.eq_ignore_ascii_case(peft_type))?;
    Some(Error::Misfit {
        path: path.to_owned(),
        key: Some(name.clone()),
        what: format!(
            "{} of the adapter's tensors, such as `{name}`, belong to another method than {CONFIG_FILE} says: {method}",
            unexpected.len()
        ),
        remedy: "the two files belong to different adapters, or the configuration was changed by hand: take both from one folder".into(),
    })
}

/// Ranks that the configuration does not explain, with the `rank_pattern` that would.
///
/// The tensors' own rank decides what they are, but their scale is `alpha / r`: a wrong `r` is a wrong scale, so it is not guessed.
pub(crate) fn unexplained_ranks(
    path: &Path,
    slots: &BTreeMap<&str, &TrainedParameter>,
    weights: &AdapterWeights,
    r: usize,
) -> Option<Error> {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut odd: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut first = None;
    for (name, tensor) in weights.iter() {
        let Some(module) = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".lora_A.weight")) else {
            continue;
        };
        let (Some(slot), &[rank, width]) = (slots.get(name), tensor.dims()) else { continue };
        ranks.insert(module, rank);
        if let &[expected, expected_width] = slot.shape.as_slice()
            && rank != expected
            && width == expected_width
        {
            odd.entry(rank).or_default().push(module);
            first.get_or_insert(name);
        }
    }
    let first = first?;
    let count: usize = odd.values().map(Vec::len).sum();
    let listed: Vec<String> = odd
        .iter()
        .map(|(rank, modules)| {
            format!("its rank is {rank} in {} ({})", modules.len(), list_names(modules, 3))
        })
        .collect();
    let mut distinct = ranks.values().copied().collect::<BTreeSet<_>>().into_iter();
    let remedy = match (distinct.next(), distinct.next()) {
        (Some(rank), None) => format!(
            "`\"r\": {rank}` without `rank_pattern` would explain them, if `lora_alpha` is this adapter's too; else take both files from one folder"
        ),
        _ => format!(
            "`\"rank_pattern\": {}` would explain them; the scale is lora_alpha / rank",
            pattern(&ranks, r)
        ),
    };
    Some(Error::Misfit {
        path: path.to_owned(),
        key: Some(first.to_owned()),
        what: format!(
            "{count} of {} adapted modules have another rank than `r` with `rank_pattern` in {CONFIG_FILE} gives them: {}",
            ranks.len(),
            listed.join("; ")
        ),
        remedy,
    })
}

/// The whole `rank_pattern` as JSON: last segments where all modules of that name have one rank, else whole paths.
fn pattern(ranks: &BTreeMap<&str, usize>, r: usize) -> String {
    const MOST: usize = 64;
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let mut by_name: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (path, rank) in ranks {
        by_name.entry(last(path)).or_default().insert(*rank);
    }
    let mut entries: Vec<String> = Vec::new();
    for (path, rank) in ranks.iter().filter(|(_, rank)| **rank != r) {
        let name = last(path);
        let one_rank = by_name.get(&name).is_some_and(|ranks| ranks.len() == 1);
        let entry = entry(if one_rank { &name } else { path }, *rank);
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let more = if entries.len() > MOST { ", …" } else { "" };
    format!("{{{}{more}}}", entries.iter().take(MOST).cloned().collect::<Vec<_>>().join(", "))
}

fn entry(name: &str, rank: usize) -> String {
    format!("{}: {rank}", serde_json::Value::from(name))
}

/// Widths that are not the model's: which differ, and which base the configuration names.
pub(crate) fn other_widths(
    path: &Path,
    slots: &BTreeMap<&str, &TrainedParameter>,
    weights: &AdapterWeights,
    base: Option<&str>,
) -> Option<Error> {
    let mut differ: BTreeMap<String, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    let (mut first, mut count) = (None, 0usize);
    for (name, tensor) in weights.iter() {
        let Some(slot) = slots.get(name).filter(|slot| slot.shape != tensor.dims()) else { continue };
        count += 1;
        first.get_or_insert(name);
        let short: Vec<&str> = name.rsplit('.').filter(|s| *s != "weight").take(2).collect();
        let short = short.into_iter().rev().collect::<Vec<_>>().join(".");
        differ.entry(short).or_insert_with(|| (tensor.dims().to_vec(), slot.shape.clone()));
    }
    let first = first?;
    let transposed = differ.values().all(|(given, expected)| given.iter().rev().eq(expected));
    let listed: Vec<String> = differ
        .iter()
        .take(4)
        .map(|(name, (given, expected))| format!("`{name}` has the shape {given:?}, expected {expected:?}"))
        .collect();
    let named = base.map_or(String::new(), |base| format!("; it names the base `{base}`"));
    Some(Error::Misfit {
        path: path.to_owned(),
        key: Some(first.to_owned()),
        what: format!(
            "{count} of the adapter's tensors have other widths than the model{named}: {}",
            listed.join("; ")
        ),
        remedy: if transposed {
            "each is transposed, as adapters of mlx are, under PEFT's names: write it again with the tool it came from".into()
        } else {
            "the adapter belongs to another base: its widths differ".into()
        },
    })
}

/// Tensors for which the model has no module: a base with fewer layers, or none of those names.
pub(crate) fn no_module(
    path: &Path,
    unexpected: &[String],
    paths: &BTreeSet<&str>,
    base: Option<&str>,
) -> Option<Error> {
    let module = |name: &str| -> Option<String> {
        let inside = name.strip_prefix(PREFIX)?;
        let parameter = parameter_of(inside).and_then(|parameter| inside.find(&format!(".{parameter}")));
        let end = parameter.unwrap_or(inside.len());
        Some(inside[..end].to_owned())
    };
    let missing: BTreeSet<String> =
        unexpected.iter().filter_map(|name| module(name)).filter(|m| !paths.contains(m.as_str())).collect();
    if missing.is_empty() || missing.len() < unexpected.len() / 3 {
        return None;
    }
    let named = base.map_or(String::new(), |base| format!("; it names the base `{base}`"));
    Some(Error::Misfit {
        path: path.to_owned(),
        key: unexpected.first().cloned(),
        what: format!(
            "{} of the adapter's tensors belong to {} modules that the model does not have: {}{named}",
            unexpected.len(),
            missing.len(),
            list_names(&missing, 3)
        ),
        remedy:
            "the base is not the one that the adapter was trained on: it has fewer layers, or other names"
                .into(),
    })
}
