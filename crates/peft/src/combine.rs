//! Several LoRA adapters made into one: what PEFT's `add_weighted_adapter` computes, on the files' tensors.
//!
//! The combined adapter has a scale of 1, since those of its parts are worked into the factors. `cat` alone is exact, the weighted sum of the deltas; `svd` is
//! its best approximation of a rank; the others work on A and B apart, whose product then has mixed terms too (Mangrulkar & Paul, PEFT 0.9; TIES: Yadav et al. 2023; DARE: Yu et al.
//! 2024).

use crate::checks::MAX_RANK;
use crate::error::doing;
use crate::linear_algebra::{Matrix, truncated_svd};
use crate::sizes::Sizes;
use crate::targets::TargetModules;
use crate::{AdapterConfig, AdapterWeights, Error, Method, PREFIX, Result};
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use taper_kernels::rng::{CounterRng, mix, stream_of};
use taper_nn::to_vec_f32;

/// How adapters are combined, by PEFT's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CombinationType {
    /// Weighted sums of the As and of the Bs, of one rank.
    Linear,
    /// The factors side by side: exactly the weighted sum of the deltas, in the sum of the ranks.
    #[default]
    Cat,
    /// The weighted sum of the deltas, cut to a rank.
    Svd,
    /// Trimmed, with a vote on the sign of each number, and averaged over those that agree.
    Ties,
    /// The same of the deltas, cut to a rank.
    TiesSvd,
    /// Numbers dropped at random, the others enlarged, and summed.
    DareLinear,
    /// The same with a vote on signs.
    DareTies,
    /// [`Self::DareLinear`] of the deltas, cut to a rank.
    DareLinearSvd,
    /// [`Self::DareTies`] of the deltas, cut to a rank.
    DareTiesSvd,
    /// Trimmed to the largest numbers, and summed.
    MagnitudePrune,
    /// The same of the deltas, cut to a rank.
    MagnitudePruneSvd,
}

impl CombinationType {
    fn is_of_deltas(self) -> bool {
        matches!(
            self,
            Self::Svd | Self::TiesSvd | Self::DareLinearSvd | Self::DareTiesSvd | Self::MagnitudePruneSvd
        )
    }

    fn prunes(self) -> bool {
        !matches!(self, Self::Linear | Self::Cat | Self::Svd)
    }

    fn prunes_at_random(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies | Self::DareLinearSvd | Self::DareTiesSvd)
    }

    fn votes(self) -> bool {
        matches!(self, Self::Ties | Self::TiesSvd | Self::DareTies | Self::DareTiesSvd)
    }
}

/// What counts in the vote on a sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sum of the numbers.
    #[default]
    Total,
    /// How many have it.
    Frequency,
}

/// A way to combine, with its settings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Combination {
    /// The way.
    pub combination_type: CombinationType,
    /// Share of the numbers that pruning leaves (0 to 1).
    pub density: Option<f64>,
    /// What counts in the vote.
    pub majority_sign_method: MajoritySign,
    /// The rank of what is cut; without it, the largest of the parts'.
    pub svd_rank: Option<usize>,
    /// Of what is dropped at random.
    pub seed: u64,
}

/// An adapter, and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct WeightedAdapter<'a> {
    /// Its configuration.
    pub config: &'a AdapterConfig,
    /// Its tensors.
    pub weights: &'a AdapterWeights,
    /// Its weight, which may be below zero.
    pub weight: f64,
}

/// One adapter of several.
///
/// # Errors
/// When one is more than A and B (DoRA, biases, trained modules), ranks differ where they must not, a setting is missing or without effect, or the shapes differ.
pub fn combine(
    adapters: &[WeightedAdapter<'_>],
    how: &Combination,
) -> Result<(AdapterConfig, AdapterWeights)> {
    let Some(first) = adapters.first() else {
        return Err(unfit("adapters", "there is nothing to combine", "name two adapters"));
    };
    adapters.iter().try_for_each(|adapter| plain(adapter.config))?;
    check(how)?;
    let mut layers: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for adapter in adapters {
        for (path, part) in parts(adapter)? {
            layers.entry(path).or_default().push(part);
        }
    }
    let rank = new_rank(&layers, how)?;
    if rank > MAX_RANK {
        let what = format!("the combined rank would be {rank}, and {MAX_RANK} is the largest");
        return Err(unfit("combination_type", what, "choose \"svd\" with an `svd_rank`"));
    }
    let mut tensors = tables(adapters)?;
    for (path, parts) in &layers {
        let (a, b) = combined(path, parts, how, rank)?;
        let [name_a, name_b] = names(path, parts[0].is_embedding);
        tensors.insert(name_a, tensor(a)?);
        tensors.insert(name_b, tensor(b)?);
    }
    let config = AdapterConfig {
        r: rank,
        lora_alpha: rank as f64,
        use_rslora: false,
        rank_pattern: Vec::new(),
        alpha_pattern: Vec::new(),
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: Vec::new(),
        target_modules: Some(TargetModules::List(layers.into_keys().collect())),
        ..first.config.clone()
    };
    Ok((config, AdapterWeights { tensors }))
}

/// A layer of one adapter.
struct Part {
    a: Matrix,
    b: Matrix,
    /// Its scale times the adapter's weight.
    factor: f64,
    is_embedding: bool,
}

fn unfit(key: &'static str, what: impl Into<String>, remedy: &'static str) -> Error {
    Error::Conflict { key, what: what.into(), remedy }
}

fn plain(config: &AdapterConfig) -> Result<()> {
    let more = [
        ("peft_type", config.method != Method::Lora),
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("bias", config.bias != crate::Bias::None),
        ("modules_to_save", !config.modules_to_save.is_empty()),
        ("trainable_token_indices", config.trainable_token_indices.is_some()),
    ];
    match more.into_iter().find(|(_, has)| *has) {
        Some((key, _)) => Err(unfit(
            key,
            "an adapter has more than A and B, which only merging into the base can combine",
            "merge one into the base, and use the other on that",
        )),
        None => Ok(()),
    }
}

fn check(how: &Combination) -> Result<()> {
    let kind = how.combination_type;
    match how.density {
        None if kind.prunes() => Err(unfit(
            "density",
            "this way of combining prunes, and no `density` is given",
            "0.2 to 0.7 are usual",
        )),
        Some(_) if !kind.prunes() => Err(unfit(
            "density",
            "this way of combining prunes nothing, so `density` has no effect",
            "leave it out",
        )),
        Some(density) if !(density > 0.0 && density <= 1.0) => {
            Err(unfit("density", format!("`density` is {density}"), "above 0, and at most 1"))
        }
        _ if how.svd_rank == Some(0) || (how.svd_rank.is_some() && !kind.is_of_deltas()) => {
            Err(unfit("svd_rank", "only what is cut to a rank has an `svd_rank`, from 1 on", "leave it out"))
        }
        _ => Ok(()),
    }
}

/// The most numbers of a delta that is formed: no layer in use is that large.
const MAX_DELTA: usize = 1 << 31;

fn names(path: &str, is_embedding: bool) -> [String; 2] {
    let suffixes = if is_embedding {
        ["lora_embedding_A", "lora_embedding_B"]
    } else {
        ["lora_A.weight", "lora_B.weight"]
    };
    suffixes.map(|suffix| format!("{PREFIX}{path}.{suffix}"))
}

/// The layers of an adapter by their paths. Every tensor belongs to one, or is the table that PEFT saves beside an adapted one.
fn parts(adapter: &WeightedAdapter<'_>) -> Result<BTreeMap<String, Part>> {
    let mut parts = BTreeMap::new();
    let sizes = Sizes::new(adapter.config)?;
    let broken = |what: String| unfit("adapters", what, "copy the adapter again");
    let mut used = 0;
    for (full_name, a) in adapter.weights.iter() {
        let Some(name) = full_name.strip_prefix(PREFIX) else {
            return Err(broken(format!("`{full_name}` belongs to no layer")));
        };
        used += usize::from(name.ends_with(TABLE));
        let (path, is_embedding) =
            match (name.strip_suffix(".lora_A.weight"), name.strip_suffix(".lora_embedding_A")) {
                (Some(path), _) => (path, false),
                (_, Some(path)) => (path, true),
                _ => continue,
            };
        let [_, name_b] = names(path, is_embedding);
        let Some(b) = adapter.weights.get(&name_b) else {
            return Err(broken(format!("`{name_b}` is missing")));
        };
        let factor = adapter.weight * sizes.scale_of(path)?;
        let part = Part { a: matrix(a)?, b: matrix(b)?, factor, is_embedding };
        // A wrong rank is a wrong scale.
        let rank = sizes.rank_of(path)?;
        if (part.a.rows, part.b.columns) != (rank, rank) {
            return Err(broken(format!(
                "the factors of `{path}` have rank {} and {}, and the configuration says {rank}",
                part.a.rows, part.b.columns
            )));
        }
        if part.a.columns == 0 || part.b.rows == 0 {
            return Err(broken(format!("the factors of `{path}` are empty")));
        }
        used += 2;
        parts.insert(path.to_owned(), part);
    }
    if parts.is_empty() || used != adapter.weights.iter().count() {
        let names = || adapter.weights.iter().map(|(name, _)| name);
        let is_part = |name: &str| PARTS.iter().any(|part| name.ends_with(part)) || name.ends_with(TABLE);
        let other = names().find(|name| !is_part(name)).or_else(|| names().next()).unwrap_or("no tensor");
        return Err(broken(format!("there is more or less in it than pairs of A and B: `{other}`")));
    }
    Ok(parts)
}

/// What layers consist of in a file.
const PARTS: [&str; 4] = [".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"];

/// The base's own table, as PEFT saves it beside an adapted embedding or head.
const TABLE: &str = ".base_layer.weight";

/// The tables of all adapters: those of one base, so of one layer they are the same.
fn tables(adapters: &[WeightedAdapter<'_>]) -> Result<BTreeMap<String, Tensor>> {
    let mut tables: BTreeMap<String, Tensor> = BTreeMap::new();
    let all = adapters.iter().flat_map(|a| a.weights.iter());
    for (name, table) in all.filter(|(name, _)| name.ends_with(TABLE)) {
        let same = match tables.get(name) {
            Some(known) if known.dims() == table.dims() => {
                let (known, table) = (to_vec_f32(known), to_vec_f32(table));
                known
                    .and_then(|known| Ok(known == table?))
                    .map_err(doing("compare the tables of two adapters"))?
            }
            Some(_) => false,
            None => true,
        };
        if !same {
            let what = format!("the adapters have other tables in `{name}`");
            return Err(unfit("adapters", what, "combine adapters of one base"));
        }
        tables.entry(name.to_owned()).or_insert_with(|| table.clone());
    }
    Ok(tables)
}

fn new_rank(layers: &BTreeMap<String, Vec<Part>>, how: &Combination) -> Result<usize> {
    let ranks = |parts: &[Part]| parts.iter().map(|p| p.a.rows).collect::<Vec<_>>();
    let all: BTreeSet<usize> = layers.values().flat_map(|parts| ranks(parts)).collect();
    let largest = all.last().copied().unwrap_or(1);
    match how.combination_type {
        CombinationType::Cat => {
            Ok(layers.values().map(|parts| ranks(parts).iter().sum()).max().unwrap_or(largest))
        }
        kind if kind.is_of_deltas() => Ok(how.svd_rank.unwrap_or(largest)),
        _ if all.len() > 1 => Err(unfit(
            "combination_type",
            format!(
                "the adapters' ranks differ ({all:?}), and factors can only be summed where they are one"
            ),
            "choose \"cat\" or \"svd\"",
        )),
        _ => Ok(largest),
    }
}

fn combined(path: &str, parts: &[Part], how: &Combination, rank: usize) -> Result<(Matrix, Matrix)> {
    let ((n_in, n_out), kind) = ((parts[0].a.columns, parts[0].b.rows), how.combination_type);
    if parts.iter().any(|p| (p.a.columns, p.b.rows) != (n_in, n_out)) {
        return Err(unfit(
            "adapters",
            format!("the adapters have other widths at `{path}`"),
            "combine adapters of one base",
        ));
    }
    let seed = mix(how.seed, stream_of(path));
    Ok(match kind {
        CombinationType::Cat => side_by_side(parts, rank),
        _ if kind.is_of_deltas() => {
            if n_in.checked_mul(n_out).is_none_or(|size| size > MAX_DELTA) {
                let what = format!("the delta of `{path}` would have {n_out} x {n_in} numbers");
                return Err(unfit("combination_type", what, "choose \"cat\", which forms no deltas"));
            }
            let deltas: Vec<Matrix> = parts.iter().map(|p| p.b.times(&p.a)).collect();
            let weights: Vec<f64> = parts.iter().map(|p| p.factor).collect();
            cut(&of_tasks(deltas, &weights, how, seed), rank, seed)
        }
        _ => {
            // Both sides get the root of the weight, one of them its sign.
            let roots: Vec<f64> = parts.iter().map(|p| p.factor.abs().sqrt()).collect();
            let signed: Vec<f64> =
                parts.iter().zip(&roots).map(|(p, r)| if p.factor < 0.0 { -r } else { *r }).collect();
            let all = |of: fn(&Part) -> &Matrix| parts.iter().map(|p| of(p).clone()).collect();
            (
                of_tasks(all(|p| &p.a), &signed, how, mix(seed, 0)),
                of_tasks(all(|p| &p.b), &roots, how, mix(seed, 1)),
            )
        }
    })
}

/// `[f1 A1; f2 A2; ...]` and `[B1, B2, ...]`, filled up with zeros.
fn side_by_side(parts: &[Part], rank: usize) -> (Matrix, Matrix) {
    let (n_in, n_out) = (parts[0].a.columns, parts[0].b.rows);
    let mut a = Matrix { rows: rank, columns: n_in, values: vec![0.0; rank * n_in] };
    let mut b = Matrix { rows: n_out, columns: rank, values: vec![0.0; n_out * rank] };
    let mut at = 0;
    for part in parts {
        let r = part.a.rows;
        for (to, from) in a.values[at * n_in..].iter_mut().zip(&part.a.values) {
            *to = from * part.factor as f32;
        }
        for (to, from) in b.values.chunks_exact_mut(rank).zip(part.b.values.chunks_exact(r)) {
            to[at..at + r].copy_from_slice(from);
        }
        at += r;
    }
    (a, b)
}

/// A and B of the best of a rank, filled up with zeros.
fn cut(delta: &Matrix, rank: usize, seed: u64) -> (Matrix, Matrix) {
    let found = rank.min(delta.rows).min(delta.columns);
    let (u, sigma, v) = truncated_svd(delta, found, None, &CounterRng::new(seed, 2));
    let mut a = v;
    a.values.resize(rank * a.columns, 0.0);
    a.rows = rank;
    let mut b = Matrix { rows: u.rows, columns: rank, values: vec![0.0; u.rows * rank] };
    for (to, from) in b.values.chunks_exact_mut(rank).zip(u.values.chunks_exact(found)) {
        for ((to, from), sigma) in to.iter_mut().zip(from).zip(&sigma) {
            *to = from * *sigma as f32;
        }
    }
    (a, b)
}

/// The weighted sum, of what pruning leaves, over those that agree on a sign where there is a vote.
fn of_tasks(mut tasks: Vec<Matrix>, weights: &[f64], how: &Combination, seed: u64) -> Matrix {
    let kind = how.combination_type;
    if let Some(density) = how.density.filter(|density| *density < 1.0) {
        for (index, task) in tasks.iter_mut().enumerate() {
            if kind.prunes_at_random() {
                drop_at_random(task, density, &CounterRng::new(seed, index as u64));
            } else {
                keep_the_largest(task, density);
            }
        }
    }
    let first = &tasks[0];
    let mut sum = Matrix { values: vec![0.0; first.values.len()], ..*first };
    for (i, value) in sum.values.iter_mut().enumerate() {
        let numbers = tasks.iter().map(|task| task.values[i]);
        let weighted = |x: f32, w: f64| x * w as f32;
        if !kind.votes() {
            *value = numbers.zip(weights).map(|(x, w)| weighted(x, *w)).sum();
            continue;
        }
        let vote: f32 = match how.majority_sign_method {
            MajoritySign::Total => numbers.clone().sum(),
            MajoritySign::Frequency => numbers.clone().map(sign).sum(),
        };
        let majority = if vote >= 0.0 { 1.0 } else { -1.0 };
        let (mut total, mut count) = (0.0f32, 0.0f32);
        for (x, w) in numbers.zip(weights).filter(|(x, _)| sign(*x) == majority) {
            total += weighted(x, *w);
            count += 1.0;
        }
        *value = total / count.max(1.0);
    }
    sum
}

fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Zeroes all but the share `density` of the numbers, the largest.
fn keep_the_largest(task: &mut Matrix, density: f64) {
    let keep = (density * task.values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..task.values.len()).collect();
    order.sort_by(|a, b| task.values[*b].abs().total_cmp(&task.values[*a].abs()));
    order[keep..].iter().for_each(|i| task.values[*i] = 0.0);
}

/// Keeps each number with the probability `density`, divided by it.
fn drop_at_random(task: &mut Matrix, density: f64, rng: &CounterRng) {
    let mut draws = vec![0f32; task.values.len()];
    rng.fill_uniform(0, 0.0, 1.0, &mut draws);
    for (value, draw) in task.values.iter_mut().zip(draws) {
        *value = if f64::from(draw) < density { *value / density as f32 } else { 0.0 };
    }
}

fn matrix(tensor: &Tensor) -> Result<Matrix> {
    let read = || Ok((tensor.dims2()?, to_vec_f32(tensor)?));
    let ((rows, columns), values) = read().map_err(crate::error::doing("read the adapter's values"))?;
    Ok(Matrix { rows, columns, values })
}

fn tensor(matrix: Matrix) -> Result<Tensor> {
    Tensor::from_vec(matrix.values, (matrix.rows, matrix.columns), &Device::Cpu)
        .map_err(crate::error::doing("make the combined adapter"))
}
