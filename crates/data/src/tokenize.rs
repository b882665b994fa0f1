//! Examples to tokens, in parallel and in order, within `max_length`.

use crate::encode::{Encode, Encoded, EncodedFacts};
use crate::example::{Example, ExampleKind, RowPlace};
use crate::load::MOST_PROBLEMS;
use crate::section::{DataSection, OnError, Truncation};
use rayon::prelude::*;
use taper_diagnostics::{Problem, Problems};

/// An example as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Which of them are learned. The first one never is: nothing predicts it.
    pub loss_mask: Vec<bool>,
    /// The row it came from.
    pub source: RowPlace,
}

impl TokenizedExample {
    /// Tokens that are learned.
    pub fn target_tokens(&self) -> usize {
        self.loss_mask.iter().skip(1).filter(|&&learned| learned).count()
    }
}

/// Tokenised examples and what happened on the way.
#[derive(Debug, Clone, Default)]
pub struct Tokenized {
    /// The examples that are left, in their order.
    pub examples: Vec<TokenizedExample>,
    /// For each of them its index in the input.
    pub origins: Vec<usize>,
    /// For each of them what was seen while it was rendered, before any cutting.
    pub facts: Vec<EncodedFacts>,
    /// Examples left out because of `on_error = "skip"`.
    pub skipped: Problems,
    /// Faults that stop a run (with `on_error = "stop"`), and warnings.
    pub problems: Problems,
    /// Examples over `max_length` that `truncation = "drop"` left out.
    pub dropped: usize,
    /// Examples that `truncation = "right"` cut.
    pub truncated: usize,
}

/// What became of one example.
enum Outcome {
    Kept(TokenizedExample, EncodedFacts),
    Dropped(RowPlace, usize),
    Cut { example: TokenizedExample, facts: EncodedFacts, ate_answer: bool },
    Faulty(Problem),
}

/// Tokenise all examples. The result does not depend on the number of threads.
pub fn tokenize(examples: &[Example], encoder: &dyn Encode, section: &DataSection) -> Tokenized {
    let outcomes: Vec<Outcome> =
        examples.par_iter().map(|example| outcome(example, encoder, section)).collect();
    let mut result = Tokenized::default();
    let mut first_dropped = None;
    let mut first_eaten = None;
    let mut eaten = 0;
    let mut unnamed = 0;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Outcome::Kept(example, facts) => result.keep(example, facts, index),
            Outcome::Dropped(place, tokens) => {
                result.dropped += 1;
                first_dropped.get_or_insert((place, tokens));
            }
            Outcome::Cut { example, facts, ate_answer } => {
                result.truncated += 1;
                if ate_answer {
                    eaten += 1;
                    first_eaten.get_or_insert(example.source.clone());
                }
                result.keep(example, facts, index);
            }
            Outcome::Faulty(problem) if section.on_error == OnError::Skip => result.skipped.push(problem),
            Outcome::Faulty(problem) if result.problems.len() < MOST_PROBLEMS => {
                result.problems.push(problem);
            }
            Outcome::Faulty(_) => unnamed += 1,
        }
    }
    if unnamed > 0 {
        let message = format!("{unnamed} more examples cannot be used");
        result.problems.push(Problem::error("more-problems", message));
    }
    if let Some((place, tokens)) = first_dropped {
        result.problems.push(dropped_warning(&place, tokens, result.dropped, section));
    }
    if let Some(place) = first_eaten {
        result.problems.push(eaten_warning(&place, eaten, section));
    }
    result
}

impl Tokenized {
    fn keep(&mut self, example: TokenizedExample, facts: EncodedFacts, index: usize) {
        self.examples.push(example);
        self.facts.push(facts);
        self.origins.push(index);
    }
}

fn outcome(example: &Example, encoder: &dyn Encode, section: &DataSection) -> Outcome {
    let Encoded { input_ids, loss_mask, facts } = match encoder.encode(example) {
        Ok(encoded) => encoded,
        Err(error) => return Outcome::Faulty(error.to_problem()),
    };
    let tokenized = TokenizedExample { input_ids, loss_mask, source: example.place.clone() };
    if tokenized.target_tokens() == 0 {
        return Outcome::Faulty(nothing_to_learn(example));
    }
    fit(tokenized, facts, &example.kind, section)
}

fn nothing_to_learn(example: &Example) -> Problem {
    let message = "no token of the example is learned";
    let hint = match example.kind {
        ExampleKind::Text(_) => "the text is a single token; take the row out",
        _ => "`taper explain` shows which tokens are learned",
    };
    Problem::error("no-supervised-token", message).at(example.place.location()).hint(hint)
}

fn fit(
    mut example: TokenizedExample,
    facts: EncodedFacts,
    kind: &ExampleKind,
    section: &DataSection,
) -> Outcome {
    let tokens = example.input_ids.len();
    let most = section.max_length;
    if tokens <= most {
        return Outcome::Kept(example, facts);
    }
    match section.truncation {
        Truncation::Error => {
            let message = format!("the example has {tokens} tokens, `max_length` is {most}");
            let hint = "raise `data.max_length`, shorten the row, or choose `truncation = \"drop\"`";
            let at = example.source.location();
            Outcome::Faulty(Problem::error("too-long", message).at(at).hint(hint))
        }
        Truncation::Drop => Outcome::Dropped(example.source, tokens),
        Truncation::Right => {
            let before = example.target_tokens();
            example.input_ids.truncate(most);
            example.loss_mask.truncate(most);
            let is_text = matches!(kind, ExampleKind::Text(_));
            match example.target_tokens() {
                0 => Outcome::Faulty(answer_gone(&example.source, tokens, most)),
                left => Outcome::Cut { ate_answer: left < before && !is_text, facts, example },
            }
        }
    }
}

fn answer_gone(place: &RowPlace, tokens: usize, most: usize) -> Problem {
    let message = format!("cutting {tokens} tokens to `max_length` {most} leaves nothing of the answer");
    let hint = "raise `data.max_length`, shorten the prompt, or choose `truncation = \"drop\"`";
    Problem::error("truncation-eats-answer", message).at(place.location()).hint(hint)
}

fn dropped_warning(place: &RowPlace, tokens: usize, dropped: usize, section: &DataSection) -> Problem {
    let most = section.max_length;
    let message =
        format!("{dropped} examples over `max_length` {most} are left out; the first has {tokens} tokens");
    Problem::warning("dropped-too-long", message).at(place.location())
}

fn eaten_warning(place: &RowPlace, eaten: usize, section: &DataSection) -> Problem {
    let most = section.max_length;
    let message = format!(
        "in {eaten} examples cutting at `max_length` {most} takes the end of the answer and its stop token"
    );
    let hint =
        "the model learns from these to break off; prefer `truncation = \"drop\"` or a larger `max_length`";
    Problem::warning("truncation-cuts-answer", message).at(place.location()).hint(hint)
}
