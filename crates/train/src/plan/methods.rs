//! What adapters other than a pair of factors keep: `nn`'s operations as `peft` puts them together.

use super::graph::{Graph, made, reads_all, reads_nothing};
use super::heap::Cause;
use super::tape::{Gives, Id, Made, Op, Tape};
use taper_nn::ParameterKind;
use taper_peft::TrainedParameter;

/// What an adapter has beside or instead of A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Extra {
    #[default]
    None,
    /// DoRA's.
    Magnitudes,
    /// (IA)³'s, of the inputs or of the outputs.
    Factors { of_inputs: bool },
    /// VeRA's two, over projections of this rank.
    Vectors { rank: u64 },
    /// LoHa's or LoKr's: elements of the factors, and operations that make a matrix of the layer's size and keep what they read.
    Delta { factors: u64, products: u64 },
    /// A and B of an embedding.
    Embedding { rank: u64, parameters: u64 },
    /// Rows of tokens.
    Tokens { parameters: u64 },
}

impl Extra {
    pub(super) fn of(parameters: &[TrainedParameter]) -> Self {
        let of = |kind| parameters.iter().filter(move |p| p.kind == kind);
        let count = |p: &TrainedParameter| p.shape.iter().map(|n| *n as u64).product::<u64>();
        let vectors: Vec<&TrainedParameter> = of(ParameterKind::Vector).collect();
        let factors: Vec<&TrainedParameter> = of(ParameterKind::Factor).collect();
        if let Some(a) = of(ParameterKind::LoraEmbeddingA).next() {
            return Self::Embedding {
                rank: a.shape[0] as u64,
                parameters: parameters.iter().map(count).sum(),
            };
        }
        if let Some(rows) = of(ParameterKind::Embedding).find(|p| p.name.ends_with("trainable_tokens_delta"))
        {
            return Self::Tokens { parameters: count(rows) };
        }
        match (vectors.as_slice(), factors.as_slice()) {
            ([one], []) if one.shape.len() == 2 => Self::Factors { of_inputs: one.shape[0] == 1 },
            ([_], []) => Self::Magnitudes,
            ([_, d], []) => Self::Vectors { rank: d.shape[0] as u64 },
            (_, []) => Self::None,
            (_, many) => {
                let is_hadamard = many[0].name.contains("hada");
                Self::Delta {
                    factors: many.iter().map(|p| count(p)).sum(),
                    // Two products and their product, or Kronecker's.
                    products: if is_hadamard { 3 } else { 1 },
                }
            }
        }
    }

    /// Whether the layer is adapted without A and B.
    pub(super) fn is_a_method_of_its_own(self) -> bool {
        matches!(self, Self::Factors { .. } | Self::Vectors { .. } | Self::Delta { .. })
    }
}

impl Graph<'_> {
    /// `nn::ops::scale_columns` of y, which is let go.
    pub(super) fn column_scaled(
        &self,
        tape: &mut Tape<'_>,
        y: Id,
        elements: u64,
        columns: u64,
        width: u64,
        cause: Cause,
    ) -> Id {
        let factors = if self.trained.is_training { tape.parameter(columns) } else { tape.constant(columns) };
        let scaled = tape.apply(reads_all(&[Gives::Write; 2]), &made(&[y, factors], elements, width, cause));
        [factors, y].into_iter().for_each(|id| tape.release(id));
        scaled
    }

    /// A layer under (IA)³, VeRA, LoHa or LoKr; `base` and `frozen` are the product of its weight.
    pub(super) fn otherwise_adapted(
        &self,
        tape: &mut Tape<'_>,
        base: &Made<'_>,
        rows: u64,
        (n_in, n_out): (u64, u64),
        extra: Extra,
        frozen: Op,
    ) -> Id {
        let (x, width, cause) = (base.args[0], base.width, base.cause);
        match extra {
            Extra::Factors { of_inputs: true } => {
                let kept = tape.share(x);
                let scaled = self.column_scaled(tape, kept, rows * n_in, n_in, tape.width(x), cause);
                let y = tape.apply(frozen, &Made { args: &[scaled], ..*base });
                tape.release(scaled);
                y
            }
            Extra::Factors { of_inputs: false } => {
                let y = tape.apply(frozen, base);
                self.column_scaled(tape, y, base.elements, n_out, width, cause)
            }
            Extra::Vectors { rank } => {
                let given = reads_nothing(&[Gives::Add]);
                let low = tape.apply(given, &made(&[x], rows * rank, tape.width(x), cause));
                let low = self.column_scaled(tape, low, rows * rank, rank, tape.width(low), cause);
                let delta =
                    tape.apply(reads_nothing(&[Gives::Add]), &made(&[low], base.elements, width, cause));
                tape.release(low);
                let delta = self.column_scaled(tape, delta, base.elements, n_out, width, cause);
                self.summed(tape, base, delta, frozen)
            }
            Extra::Delta { factors, products } => {
                let mut weight = tape.parameter(factors);
                // The last step scales, and keeps nothing.
                for step in 0..=products {
                    let op = if step < products {
                        reads_all(&[Gives::Write])
                    } else {
                        reads_nothing(&[Gives::Write])
                    };
                    let next = tape.apply(op, &made(&[weight], n_in * n_out, 4, cause));
                    tape.release(weight);
                    weight = next;
                }
                let delta = tape
                    .apply(reads_all(&[Gives::Add; 2]), &Made { args: &[x, weight], scratch: 0, ..*base });
                tape.release(weight);
                self.summed(tape, base, delta, frozen)
            }
            _ => tape.apply(frozen, base),
        }
    }

    /// The base's output and a delta, which is let go.
    fn summed(&self, tape: &mut Tape<'_>, base: &Made<'_>, delta: Id, frozen: Op) -> Id {
        let y = tape.apply(frozen, base);
        let args = [y, delta];
        let sum = made(&args, base.elements, base.width, base.cause);
        let sum = tape.apply(reads_nothing(&[Gives::Pass; 2]), &sum);
        [y, delta].into_iter().for_each(|id| tape.release(id));
        sum
    }

    /// Logits of a head that takes some tokens' from rows of their own.
    pub(super) fn with_token_logits(
        &self,
        tape: &mut Tape<'_>,
        logits: Id,
        elements: u64,
        parameters: u64,
    ) -> Id {
        let cause = Cause::Logits;
        let own =
            if self.trained.is_training { tape.parameter(parameters) } else { tape.constant(parameters) };
        let sum =
            tape.apply(reads_nothing(&[Gives::Write, Gives::Add]), &made(&[logits, own], elements, 4, cause));
        [own, logits].into_iter().for_each(|id| tape.release(id));
        sum
    }

    /// An embedding with A and B, or with rows of tokens.
    pub(super) fn adapted_embedding(&self, tape: &mut Tape<'_>, extra: Extra, elements: u64) -> Id {
        let cause = Cause::Activations;
        let rows = tape.plain(elements, cause);
        match extra {
            Extra::Embedding { rank, parameters } => {
                let factors = tape.parameter(parameters);
                let low =
                    tape.apply(reads_nothing(&[Gives::Add]), &made(&[factors], self.tokens * rank, 4, cause));
                let delta =
                    tape.apply(reads_all(&[Gives::Add; 2]), &made(&[low, factors], elements, 4, cause));
                let scaled = tape.apply(reads_nothing(&[Gives::Write]), &made(&[delta], elements, 4, cause));
                let sum =
                    tape.apply(reads_nothing(&[Gives::Pass; 2]), &made(&[rows, scaled], elements, 4, cause));
                [factors, low, delta, scaled, rows].into_iter().for_each(|id| tape.release(id));
                sum
            }
            Extra::Tokens { parameters } => {
                let own = tape.parameter(parameters);
                let sum = tape.apply(
                    reads_nothing(&[Gives::Write, Gives::Add]),
                    &made(&[rows, own], elements, 4, cause),
                );
                [own, rows].into_iter().for_each(|id| tape.release(id));
                sum
            }
            _ => rows,
        }
    }
}
