//! The trained model's answers, kept so that it can be dropped before the written one is loaded.
//!
//! The divergence of two distributions needs both whole, V numbers each, and 16 texts of 256 tokens over 150 000 words are 2.5 GB of them.
//! So logits are kept at some positions only, as many as [`REFERENCE_BYTES`] hold, evenly over all tokens: a sample, in f32, since
//! rounding what is kept would hide what is looked for. Losses take one number a token, so they are of every supervised token. Logits
//! are made some rows at a time ([`PASS_BYTES`]) and never stand there whole. At any time one model is in memory: the base, the
//! base with its adapter, then what was written.

use crate::error::doing;
use crate::proof::{Exactness, ExportProof, Gain};
use crate::{Error, Result};
use candle_core::Tensor;
use taper_models::{CausalLm, forward_hidden};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32, with_f32_activations};

/// Bytes of logits that are kept of the trained model: 441 positions of 152 000 words, 1365 of 49 000.
pub const REFERENCE_BYTES: usize = 256 << 20;

/// Bytes of logits that are made at a time.
const PASS_BYTES: usize = 32 << 20;

/// A text to prove an export on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofText {
    ids: Vec<u32>,
    supervised: Vec<bool>,
}

impl ProofText {
    /// At most `most` of the ids: those that end with the last supervised one, for there the adapter is to show itself.
    pub fn new(ids: &[u32], supervised: &[bool], most: usize) -> Self {
        let known = ids.len().min(supervised.len());
        let end = supervised[..known].iter().rposition(|&s| s).map_or(ids.len(), |last| last + 1);
        let start = end.saturating_sub(most);
        let supervised = (start..end).map(|at| supervised.get(at).copied().unwrap_or(false)).collect();
        Self { ids: ids[start..end].to_vec(), supervised }
    }
}

/// Every token counts, but for the first, which follows nothing.
impl From<Vec<u32>> for ProofText {
    fn from(ids: Vec<u32>) -> Self {
        let supervised = vec![true; ids.len()];
        Self { ids, supervised }
    }
}

/// The loss of each supervised token in nats, a list for each text.
#[derive(Debug, Clone, PartialEq)]
pub struct SupervisedLosses(Vec<Vec<f64>>);

impl SupervisedLosses {
    /// Those of a model: the base, before its adapter is put on.
    ///
    /// # Errors
    /// When the arithmetic fails.
    pub fn of(model: &dyn CausalLm, texts: &[ProofText]) -> Result<Self> {
        texts.iter().map(|text| pass(model, text, &[], &mut |_, _| Ok(()))).collect::<Result<_>>().map(Self)
    }
}

/// The logits of the trained model at some positions, and its losses.
#[derive(Debug, Clone)]
pub struct ReferenceLogits {
    texts: Vec<Sampled>,
    losses: SupervisedLosses,
    base: Option<SupervisedLosses>,
}

/// A text, the positions of it that are compared, and the logits `[n, V]` there.
#[derive(Debug, Clone)]
struct Sampled {
    text: ProofText,
    rows: Vec<usize>,
    logits: Vec<f32>,
}

impl ReferenceLogits {
    /// Run the trained model, base with adapter, over the texts.
    ///
    /// # Errors
    /// When there is no token, or the arithmetic fails.
    pub fn of(model: &dyn CausalLm, texts: impl IntoIterator<Item = impl Into<ProofText>>) -> Result<Self> {
        Self::within(model, texts, REFERENCE_BYTES)
    }

    fn within(
        model: &dyn CausalLm,
        texts: impl IntoIterator<Item = impl Into<ProofText>>,
        bytes: usize,
    ) -> Result<Self> {
        let texts: Vec<ProofText> = texts.into_iter().map(Into::into).filter(|t| !t.ids.is_empty()).collect();
        let total: usize = texts.iter().map(|text| text.ids.len()).sum();
        if total == 0 {
            return Err(Error::NothingToProve);
        }
        let most = (bytes / (4 * model.config().vocab_size.max(1))).max(1);
        let mut first = 0;
        let mut sampled = Vec::with_capacity(texts.len());
        let mut losses = Vec::with_capacity(texts.len());
        for text in texts {
            let rows = (0..text.ids.len()).filter(|row| is_sampled(first + row, total, most)).collect();
            first += text.ids.len();
            let mut kept = Sampled { text, rows, logits: Vec::new() };
            let logits = &mut kept.logits;
            losses.push(pass(model, &kept.text, &kept.rows, &mut |_, row| {
                logits.extend_from_slice(row);
                Ok(())
            })?);
            sampled.push(kept);
        }
        Ok(Self { texts: sampled, losses: SupervisedLosses(losses), base: None })
    }

    /// The same with the losses of the base on the same texts, against which a gain is measured.
    #[must_use]
    pub fn against(self, base: SupervisedLosses) -> Self {
        Self { base: Some(base), ..self }
    }

    /// Hold the model that was read back against these logits; a `DType` stands for what it was rounded to.
    ///
    /// # Errors
    /// When it has another vocabulary, or the arithmetic fails. A difference is no error here: see [`ExportProof::into_result`].
    pub fn compare(&self, written: &dyn CausalLm, exactness: impl Into<Exactness>) -> Result<ExportProof> {
        let mut proof = ExportProof::default();
        let (mut kl_sum, mut agreed) = (0.0, 0usize);
        let losses = self.each_row(written, &mut |p, q| {
            proof.positions += 1;
            kl_sum += kl_divergence(p, q);
            agreed += usize::from(argmax(p) == argmax(q));
            proof.max_abs_diff = worse(proof.max_abs_diff, p, q);
        })?;
        proof.mean_kl = kl_sum / proof.positions as f64;
        proof.top1_agreement = agreed as f64 / proof.positions as f64;
        let base = self.base.as_ref().map(|base| base.0.as_slice());
        proof.gain = Gain::of(base, &self.losses.0, &losses);
        proof.kl_limit = exactness.into().kl_limit(&proof.gain);
        Ok(proof)
    }

    /// Show the logits that are kept beside those of `other` at the same positions; gives the losses of `other`.
    ///
    /// # Errors
    /// When it has another vocabulary, or the arithmetic fails.
    pub(crate) fn each_row(
        &self,
        other: &dyn CausalLm,
        show: &mut dyn FnMut(&[f32], &[f32]),
    ) -> Result<Vec<Vec<f64>>> {
        let mut losses = Vec::with_capacity(self.texts.len());
        for sampled in &self.texts {
            let v = sampled.logits.len() / sampled.rows.len().max(1);
            losses.push(pass(other, &sampled.text, &sampled.rows, &mut |index, q| {
                if q.len() != v {
                    let message = format!("{} logits where the trained model has {v}", q.len());
                    return Err(doing("compare logits")(candle_core::Error::Msg(message)));
                }
                show(&sampled.logits[index * v..(index + 1) * v], q);
                Ok(())
            })?);
        }
        Ok(losses)
    }
}

/// Whether token `index` of `total` is one of the `most` that are compared, evenly spread.
fn is_sampled(index: usize, total: usize, most: usize) -> bool {
    total <= most || (index + 1) * most / total > index * most / total
}

/// The larger of `so_far` and the differences of two rows. A NaN must not hide behind `max`.
fn worse(so_far: f64, p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).fold(so_far, |worst, (a, b)| {
        let difference = f64::from((a - b).abs());
        if worst.is_nan() || difference.is_nan() { f64::NAN } else { worst.max(difference) }
    })
}

/// Run a text through a model; shows the logits of each of `rows` with their place among them, and gives the losses of the supervised
/// tokens.
fn pass(
    model: &dyn CausalLm,
    text: &ProofText,
    rows: &[usize],
    show: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
) -> Result<Vec<f64>> {
    // The row before a token tells its probability.
    let scored = |row: usize| text.supervised.get(row + 1).copied().unwrap_or(false);
    let mut wanted: Vec<usize> =
        (0..text.ids.len()).filter(|&row| scored(row)).chain(rows.to_vec()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let layout = SequenceLayout::single(text.ids.len());
    let mut ctx = ForwardContext::new(&layout);
    // In f32 whatever the model computes in: rounding would hide what the proof is to find.
    let hidden = with_f32_activations(|| forward_hidden(model, &text.ids, &mut ctx));
    let hidden = hidden.map_err(doing("run the model for the proof"))?.detach();
    let at_a_time = (PASS_BYTES / (4 * model.config().vocab_size.max(1))).max(1);
    let mut losses = Vec::new();
    for some in wanted.chunks(at_a_time) {
        let logits = logits_of(model, &hidden, some, &ctx)?;
        let v = logits.len() / some.len();
        for (&row, logits) in some.iter().zip(logits.chunks_exact(v.max(1))) {
            if scored(row) {
                losses.push(loss(logits, text.ids[row + 1])?);
            }
            if let Ok(index) = rows.binary_search(&row) {
                show(index, logits)?;
            }
        }
    }
    Ok(losses)
}

/// `[n, V]` of some rows of `[T, H]`.
fn logits_of(
    model: &dyn CausalLm,
    hidden: &Tensor,
    rows: &[usize],
    ctx: &ForwardContext<'_>,
) -> Result<Vec<f32>> {
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let run = || -> candle_core::Result<Vec<f32>> {
        let x = hidden.index_select(&Tensor::new(rows.as_slice(), hidden.device())?, 0)?;
        to_vec_f32(&with_f32_activations(|| model.lm_head(&x, ctx))?.detach().contiguous()?)
    };
    run().map_err(doing("compute logits for the proof"))
}

fn loss(logits: &[f32], target: u32) -> Result<f64> {
    let Some(&logit) = logits.get(target as usize) else {
        let message = format!("token {target} is not among {} words", logits.len());
        return Err(doing("compute losses for the proof")(candle_core::Error::Msg(message)));
    };
    Ok(log_sum_exp(logits) - f64::from(logit))
}

/// `sum p ln(p / q)` of the softmaxes of two rows of logits, in f64.
pub(crate) fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (f64::from(a) - log_p, f64::from(b) - log_q);
            a.exp() * (a - b)
        })
        .sum()
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    top + row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln()
}

pub(crate) fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_hub::ModelFiles;
    use taper_models::LoadOptions;
    use taper_testkit::golden;

    #[test]
    fn the_divergence_is_that_of_the_formula() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
        let p = [3f32.ln(), 0.0];
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kl_divergence(&p, &[7.0, 7.0]) - expected).abs() < 1e-7);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        assert!(kl_divergence(&[f32::NAN, 0.0], &p).is_nan());
        assert!((loss(&p, 1).unwrap() - 4f64.ln()).abs() < 1e-7 && loss(&p, 2).is_err());
        assert!(worse(1.0, &[f32::NAN], &[0.0]).is_nan() && worse(f64::NAN, &[0.0], &[0.0]).is_nan());
    }

    #[test]
    fn a_window_ends_with_the_last_supervised_token() {
        let ids: Vec<u32> = (0..10).collect();
        let supervised = [false, false, false, true, true, true, true, false, false, false];
        let text = ProofText::new(&ids, &supervised, 3);
        assert_eq!((text.ids, text.supervised), (vec![4, 5, 6], vec![true; 3]));
        let whole = ProofText::new(&ids, &supervised, 100);
        assert_eq!((whole.ids.len(), whole.supervised[2]), (7, false));
        assert_eq!(ProofText::new(&ids, &[false; 10], 4).ids, [6, 7, 8, 9]);
        assert!(ProofText::new(&[], &[], 4).ids.is_empty());
    }

    #[test]
    fn a_sample_has_as_many_positions_as_asked_evenly() {
        for (total, most) in [(10, 3), (100, 7), (5, 5), (3, 100), (1000, 999)] {
            let taken: Vec<usize> = (0..total).filter(|&i| is_sampled(i, total, most)).collect();
            assert_eq!(taken.len(), most.min(total));
            let gaps: Vec<usize> = taken.windows(2).map(|w| w[1] - w[0]).collect();
            let (least, most) = (gaps.iter().min(), gaps.iter().max());
            assert!(most.zip(least).is_none_or(|(most, least)| most - least <= 1), "{gaps:?}");
        }
    }

    /// The budget bounds what is kept, and the losses are of all supervised tokens whatever it is.
    #[test]
    fn a_small_budget_compares_fewer_positions_and_the_same_tokens() {
        let files = ModelFiles::of_folder(&golden("models/llama_tied")).unwrap();
        let model = taper_models::load(&files, LoadOptions::default()).unwrap();
        let texts = || [vec![1u32, 5, 9, 2, 7, 3, 11], vec![4, 8, 6]];
        let v = model.config().vocab_size;
        let all = ReferenceLogits::of(model.as_ref(), texts()).unwrap();
        let some = ReferenceLogits::within(model.as_ref(), texts(), 4 * 4 * v).unwrap();
        let (all, some) = (&all.compare(model.as_ref(), Exactness::Quantized).unwrap(), &some);
        let held: usize = some.texts.iter().map(|s| s.logits.len()).sum();
        assert_eq!(held, 4 * v);
        let some = some.compare(model.as_ref(), Exactness::Quantized).unwrap();
        assert_eq!((all.positions, some.positions), (10, 4));
        assert_eq!((all.gain.tokens, some.gain.tokens), (8, 8));
        assert_eq!(all.gain, some.gain);
        assert!(all.gain.loss_trained > 1.0 && all.mean_kl == 0.0, "{all}");
    }
}
