//! Rotary position embeddings and the ways to stretch them.
//!
//! Pair i of a head turns by `position * f_i`; without scaling `f_i = theta^(-2 i / D)`, i = 0 .. D / 2 (Su et al. 2021). The scalings are those
//! of transformers' `modeling_rope_utils.py`, under the same names.

use crate::fields::Fields;
use candle_core::{Device, Tensor};
use std::f64::consts::PI;
use taper_nn::{Result, RotaryTables, SequenceLayout};

/// A rotary embedding as `config.json` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for texts longer than those trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// `f_i / factor`: positions are interpolated (Chen et al. 2023).
    Linear {
        /// How many times longer.
        factor: f64,
    },
    /// `theta` grows with the text once it is longer than `original`: theta (factor L / original - (factor - 1))^(D / (D - 2)) ("dynamic NTK").
    /// L is the longest text of the batch, so here alone a text's company can change its logits, as in transformers.
    Dynamic {
        /// How many times longer.
        factor: f64,
        /// `max_position_embeddings`.
        original: usize,
    },
    /// Slow pairs are interpolated, fast ones are not, with a ramp between, and all of it is scaled (Peng et al. 2023, "YaRN").
    Yarn {
        /// How many times longer.
        factor: f64,
        /// Tokens that the model was trained on first.
        original: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Turns over `original` above which a pair is left alone.
        beta_fast: f64,
        /// Turns over `original` below which a pair is interpolated in full.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole pairs.
        truncate: bool,
    },
    /// `f_i` divided by a factor of its own, `short_factor[i]` in texts of up to `original` tokens and `long_factor[i]` in longer ones, and
    /// all of it is scaled (Ding et al. 2024, "LongRoPE").
    ///
    /// Each text chooses by its own length. Transformers chooses by the longest text of the batch, so that there a short text in a batch
    /// with a long one has other logits than alone.
    LongRope {
        /// The divisors of texts of up to `original` tokens.
        short_factor: Vec<f64>,
        /// The divisors of longer texts.
        long_factor: Vec<f64>,
        /// Tokens that the model was trained on first.
        original: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// As YaRN with a ramp over wavelengths and no scaling of the whole (Dubey et al. 2024).
    Llama3 {
        /// How many times longer.
        factor: f64,
        /// Wavelengths over `original / low_freq_factor` are interpolated in full.
        low_freq_factor: f64,
        /// Wavelengths under `original / high_freq_factor` are left alone.
        high_freq_factor: f64,
        /// Tokens that the model was trained on first.
        original: usize,
    },
}

impl RopeConfig {
    /// The length in tokens beyond which **all** positions of a text turn by other frequencies: keys that were cached before a text grew
    /// beyond it are of no use after.
    pub fn switch_length(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }
}

/// A rotary embedding of the leading D elements of each head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    config: RopeConfig,
    head_dim: usize,
}

impl RotaryEmbedding {
    /// For heads of which `rotary_dim` elements turn, an even number.
    pub fn new(config: RopeConfig, rotary_dim: usize) -> Self {
        Self { config, head_dim: rotary_dim }
    }

    /// `f_i`, D / 2 of them, for a text of `longest` tokens ([`RopeScaling::Dynamic`]: for a batch whose longest text has so many).
    pub fn inv_freq(&self, longest: usize) -> Vec<f32> {
        let plain = |theta: f64| frequencies(theta, self.head_dim);
        let theta = self.config.theta;
        let stretched = match self.config.scaling {
            RopeScaling::Default => plain(theta),
            RopeScaling::Linear { factor } => plain(theta).into_iter().map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor, original } => {
                plain(grown(theta, factor, original, longest, self.head_dim))
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let ramp = yarn_ramp(theta, self.head_dim, original, [beta_fast, beta_slow], truncate);
                let blend = |(i, f): (usize, f64)| f / factor * ramp(i) + f * (1.0 - ramp(i));
                plain(theta).into_iter().enumerate().map(blend).collect()
            }
            RopeScaling::LongRope { ref short_factor, ref long_factor, original, .. } => {
                let divisors = if longest > original { long_factor } else { short_factor };
                plain(theta).into_iter().zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let turns = |f: f64| original as f64 * f / (2.0 * PI);
                let kept = |f: f64| (turns(f) - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let blend = |f: f64| {
                    let kept = kept(f).clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                plain(theta).into_iter().map(blend).collect()
            }
        };
        stretched.into_iter().map(|f: f64| f as f32).collect()
    }

    /// The factor on cosines and sines; it stands in both q and k, so scores are scaled by its square.
    pub fn attention_factor(&self) -> f64 {
        match self.config.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// The tables of a batch, `[T, D / 2]` each.
    ///
    /// # Errors
    /// What candle says.
    pub fn tables(&self, layout: &SequenceLayout) -> Result<RotaryTables> {
        let shared = self.inv_freq(layout.longest());
        let by_text = matches!(self.config.scaling, RopeScaling::LongRope { .. });
        let factor = self.attention_factor();
        let size = layout.tokens() * shared.len();
        let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for (segment, &length) in layout.segments().iter().zip(layout.text_lengths()) {
            let own = by_text.then(|| self.inv_freq(length));
            for &position in &layout.position_ids()[segment.clone()] {
                for &f in own.as_ref().unwrap_or(&shared) {
                    // The angle is rounded to f32 as the models were trained.
                    let (s, c) = f64::from(position as f32 * f).sin_cos();
                    cos.push((c * factor) as f32);
                    sin.push((s * factor) as f32);
                }
            }
        }
        let shape = (layout.tokens(), shared.len());
        Ok(RotaryTables {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }
}

/// `theta^(-2 i / D)`.
fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect()
}

/// The base of dynamic NTK; a head of one pair has a frequency of 1 whatever the base.
fn grown(theta: f64, factor: f64, original: usize, longest: usize, head_dim: usize) -> f64 {
    if head_dim <= 2 {
        return theta;
    }
    let times = longest.max(original) as f64 / original as f64;
    theta * (factor * times - (factor - 1.0)).powf(head_dim as f64 / (head_dim - 2) as f64)
}

/// How far pair i is interpolated, 0 to 1: a straight ramp between the pairs that make `betas` turns over `original` tokens.
fn yarn_ramp(
    theta: f64,
    head_dim: usize,
    original: usize,
    betas: [f64; 2],
    truncate: bool,
) -> impl Fn(usize) -> f64 {
    let d = head_dim as f64;
    let pair_of = |turns: f64| d * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let [fast, slow] = betas.map(pair_of);
    let (low, high) = if truncate { (fast.floor(), slow.ceil()) } else { (fast, slow) };
    let (low, high) = (low.max(0.0), high.min(d - 1.0));
    // The reference avoids a division by zero like this.
    let high = if low == high { high + 0.001 } else { high };
    move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
}

/// What the values of a rotary embedding are read against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeContext {
    /// The longest text the model was made for.
    pub(crate) max_position_embeddings: usize,
    /// Elements of a head that turn.
    pub(crate) rotary_dim: usize,
    /// The base where none is named.
    pub(crate) theta: f64,
    /// Keys of the object that the architecture reads itself.
    pub(crate) read_elsewhere: &'static [&'static str],
    /// Older names of `longrope`.
    pub(crate) longrope_aliases: &'static [&'static str],
}

impl RopeContext {
    pub(crate) fn new(max_position_embeddings: usize, rotary_dim: usize) -> Self {
        let (read_elsewhere, longrope_aliases): (&[&str], &[&str]) = (&[], &[]);
        Self { max_position_embeddings, rotary_dim, theta: 10_000.0, read_elsewhere, longrope_aliases }
    }
}

/// Bases of frequencies that are read.
pub(crate) const THETA: std::ops::RangeInclusive<f64> = 1.000_001..=1e15;

/// Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4). Faults are noted in `fields`.
pub(crate) fn config(fields: &mut Fields<'_>, context: &RopeContext) -> RopeConfig {
    let theta = fields.number("rope_theta", THETA).unwrap_or(context.theta);
    let context = RopeContext { theta, ..*context };
    let inner = fields
        .object("rope_parameters", "rope_parameters.")
        .or_else(|| fields.object("rope_scaling", "rope_scaling."));
    let Some(inner) = inner else {
        return RopeConfig { theta, scaling: RopeScaling::Default };
    };
    // Phi's configurations have it outside, and it counts before one inside.
    let original = fields
        .get("original_max_position_embeddings")
        .map(|_| fields.size("original_max_position_embeddings", None, 1..=1 << 28));
    parameters(fields, inner, original, &context)
}

/// Read the object of one rotary embedding, with the `original_max_position_embeddings` that stands outside it. Faults are noted in
/// `fields`.
pub(crate) fn parameters(
    fields: &mut Fields<'_>,
    mut inner: Fields<'_>,
    original: Option<usize>,
    context: &RopeContext,
) -> RopeConfig {
    let theta = inner.number("rope_theta", THETA).unwrap_or(context.theta);
    let scaling = scaling(&mut inner, original, context);
    fields.faults.append(&mut inner.faults);
    RopeConfig { theta, scaling }
}

/// All keys that any type reads.
const KNOWN: [&str; 16] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    // A remark of YaRN's own checkpoints; it changes nothing.
    "finetuned",
];

const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;

fn scaling(fields: &mut Fields<'_>, outer_original: Option<usize>, context: &RopeContext) -> RopeScaling {
    let max_position_embeddings = context.max_position_embeddings;
    let name = fields.text("rope_type").or_else(|| fields.text("type"));
    let scaling = match name {
        None => {
            fields.fault("`rope_scaling.rope_type` is missing".into());
            RopeScaling::Default
        }
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: fields.required("factor", FACTOR) },
        Some("dynamic") => {
            let factor = fields.required("factor", FACTOR);
            RopeScaling::Dynamic { factor, original: max_position_embeddings }
        }
        Some(name) if name == "longrope" || context.longrope_aliases.contains(&name) => {
            longrope(fields, outer_original, context)
        }
        Some("yarn") => yarn(fields, max_position_embeddings),
        Some("llama3") => llama3(fields, max_position_embeddings),
        Some(other) => {
            let other: String = other.chars().take(32).collect();
            fields.fault(format!(
                "rope type `{}` is not supported; known are `default`, `linear`, `dynamic`, `yarn`, `longrope` and `llama3`",
                other.escape_debug()
            ));
            return RopeScaling::Default;
        }
    };
    fields.refuse_unknown(&[&KNOWN[..], context.read_elsewhere].concat());
    scaling
}

fn original(fields: &mut Fields<'_>, max_position_embeddings: usize) -> usize {
    fields.size("original_max_position_embeddings", Some(max_position_embeddings), 1..=1 << 28)
}

fn llama3(fields: &mut Fields<'_>, max_position_embeddings: usize) -> RopeScaling {
    let (low, high) =
        (fields.required("low_freq_factor", 1e-6..=1e6), fields.required("high_freq_factor", 1e-6..=1e6));
    if low >= high && fields.faults.is_empty() {
        fields.fault("`low_freq_factor` must be below `high_freq_factor`".into());
    }
    let factor = fields.required("factor", FACTOR);
    let original = original(fields, max_position_embeddings);
    RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original }
}

/// The scaling of the whole is sqrt(1 + ln s / ln original) for texts s times as long, where none is named.
fn longrope(fields: &mut Fields<'_>, outer_original: Option<usize>, context: &RopeContext) -> RopeScaling {
    let inner_original = original(fields, context.max_position_embeddings);
    let original = outer_original.unwrap_or(inner_original);
    let times = fields
        .number("factor", 1e-6..=1e6)
        .unwrap_or(context.max_position_embeddings as f64 / original as f64);
    // A model first trained on a single token has no logarithm to divide by.
    let scaled = times > 1.0 && original > 1;
    let by_length = if scaled { (1.0 + times.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    RopeScaling::LongRope {
        short_factor: fields.numbers("short_factor", context.rotary_dim / 2, 1e-6..=1e6),
        long_factor: fields.numbers("long_factor", context.rotary_dim / 2, 1e-6..=1e6),
        original,
        attention_factor: fields.number("attention_factor", 1e-6..=1e3).unwrap_or(by_length),
    }
}

fn yarn(fields: &mut Fields<'_>, max_position_embeddings: usize) -> RopeScaling {
    let original = original(fields, max_position_embeddings);
    let factor = match fields.number("factor", FACTOR) {
        Some(factor) => factor,
        None => (max_position_embeddings as f64 / original as f64).max(1.0),
    };
    let mscale = |factor: f64, m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let (m, m_all) = (fields.number("mscale", 0.0..=1e3), fields.number("mscale_all_dim", 0.0..=1e3));
    let by_factor = match (m.filter(|m| *m > 0.0), m_all.filter(|m| *m > 0.0)) {
        (Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    };
    RopeScaling::Yarn {
        factor,
        original,
        attention_factor: fields.number("attention_factor", 1e-6..=1e3).unwrap_or(by_factor),
        beta_fast: fields.number("beta_fast", 1e-6..=1e6).unwrap_or(32.0),
        beta_slow: fields.number("beta_slow", 1e-6..=1e6).unwrap_or(1.0),
        truncate: fields.flag("truncate", true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inv_freq(scaling: RopeScaling, longest: usize) -> Vec<f32> {
        RotaryEmbedding::new(RopeConfig { theta: 10_000.0, scaling }, 8).inv_freq(longest)
    }

    #[test]
    fn frequencies_fall_geometrically_and_linear_scaling_divides_them() {
        assert_eq!(inv_freq(RopeScaling::Default, 1), [1.0, 0.1, 0.01, 0.001]);
        assert_eq!(inv_freq(RopeScaling::Linear { factor: 4.0 }, 1), [0.25, 0.025, 0.0025, 0.000_25]);
    }

    #[test]
    fn dynamic_scaling_starts_behind_the_trained_length() {
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original: 16 };
        assert_eq!(inv_freq(dynamic.clone(), 16), inv_freq(RopeScaling::Default, 1));
        let longer = inv_freq(dynamic, 32);
        assert_eq!(longer[0], 1.0);
        // The base becomes 10000 * 3^(8/6); the last frequency is its power -6/8.
        assert!((f64::from(longer[3]) - 0.001 / 3.0).abs() < 1e-9, "{longer:?}");
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_divides_slow_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 64 };
        let freq = inv_freq(scaling, 1);
        // 64 tokens are 10.2 turns of the first pair, 1.02 of the second, 0.1 of the third.
        assert_eq!((freq[0], freq[2], freq[3]), (1.0, 0.01 / 8.0, 0.001 / 8.0));
        assert!(freq[1] > 0.1 / 8.0 && freq[1] < 0.02, "{freq:?}");
    }

    #[test]
    fn longrope_takes_each_texts_own_length_for_its_divisors() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0, 2.0],
            long_factor: vec![4.0, 8.0],
            original: 3,
            attention_factor: 1.0,
        };
        let config = RopeConfig { theta: 100.0, scaling };
        assert_eq!(config.switch_length(), Some(3));
        let rotary = RotaryEmbedding::new(config, 4);
        assert_eq!((rotary.inv_freq(3), rotary.inv_freq(4)), (vec![1.0, 0.05], vec![0.25, 0.0125]));
        let sines = |layout: SequenceLayout| rotary.tables(&layout).unwrap().sin.to_vec2::<f32>().unwrap();
        let sine = |angle: f64| angle.sin() as f32;
        let both = sines(SequenceLayout::from_lengths(&[2, 4]));
        assert_eq!(both[1], [sine(1.0), sine(f64::from(0.05f32))]);
        assert_eq!(both[3], [sine(0.25), sine(f64::from(0.0125f32))]);
        // The first piece of a text that is known to be long.
        assert_eq!(sines(SequenceLayout::single(2).of_texts(vec![4]))[1], both[3]);
    }

    #[test]
    fn yarn_scales_by_the_logarithm_of_its_factor() {
        let rotary = |attention_factor| {
            let scaling = RopeScaling::Yarn {
                factor: 4.0,
                original: 32,
                attention_factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
            };
            RotaryEmbedding::new(RopeConfig { theta: 10_000.0, scaling }, 8)
        };
        let tables = rotary(1.5).tables(&SequenceLayout::single(1)).unwrap();
        assert_eq!(tables.cos.to_vec2::<f32>().unwrap(), [[1.5; 4]]);
        assert_eq!(tables.sin.to_vec2::<f32>().unwrap(), [[0.0; 4]]);
        let freq = rotary(1.0).inv_freq(1);
        assert_eq!((freq[0], freq[3]), (1.0, 0.001 / 4.0));
    }
}
