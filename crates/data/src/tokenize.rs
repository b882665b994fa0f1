//! What becomes of an example once it is tokens: kept, cut or left out, within `max_length`.

use crate::encode::{Encoded, EncodedFacts};
use crate::error::Result;
use crate::example::{Example, ExampleKind, RowPlace};
use crate::load::MOST_PROBLEMS;
use crate::section::{DataSection, OnError, Truncation};
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

/// What became of one example.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is within `max_length`.
    Kept(TokenizedExample, EncodedFacts),
    /// It has so many tokens, and is left out.
    Dropped(RowPlace, usize),
    /// Its end was cut off.
    Cut { example: TokenizedExample, facts: EncodedFacts, ate_answer: bool },
    /// It cannot be used.
    Faulty(Problem),
    /// A conversation, and the model has no chat template.
    NoTemplate(RowPlace),
}

/// What became of an example that was encoded.
pub(crate) fn outcome(example: &Example, encoded: Result<Encoded>, section: &DataSection) -> Outcome {
    let Encoded { input_ids, loss_mask, facts } = match encoded {
        Ok(encoded) => encoded,
        Err(error) => return Outcome::Faulty(error.to_problem()),
    };
    let tokenized = TokenizedExample { input_ids, loss_mask, source: example.place.clone() };
    if tokenized.target_tokens() == 0 {
        return Outcome::Faulty(nothing_to_learn(example));
    }
    fit(tokenized, facts, &example.kind, section)
}

/// The examples of one set that are left, and what happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Tokenized {
    pub(crate) examples: Vec<TokenizedExample>,
    /// For each of them what was seen while it was rendered, before any cutting.
    pub(crate) facts: Vec<EncodedFacts>,
    /// Examples left out because of `on_error = "skip"`.
    pub(crate) skipped: Problems,
    /// Faults that stop a run (with `on_error = "stop"`), and warnings.
    pub(crate) problems: Problems,
    /// Examples over `max_length` that `truncation = "drop"` left out.
    pub(crate) dropped: usize,
    /// Examples that `truncation = "right"` cut.
    pub(crate) truncated: usize,
    first_dropped: Option<(RowPlace, usize)>,
    first_eaten: Option<RowPlace>,
    eaten: usize,
    unnamed: usize,
}

impl Tokenized {
    /// Add what became of the next example; whether it is left.
    pub(crate) fn add(&mut self, outcome: Outcome, section: &DataSection) -> bool {
        match outcome {
            Outcome::Kept(example, facts) => return self.keep(example, facts),
            Outcome::Dropped(place, tokens) => {
                self.dropped += 1;
                self.first_dropped.get_or_insert((place, tokens));
            }
            Outcome::Cut { example, facts, ate_answer } => {
                self.truncated += 1;
                if ate_answer {
                    self.eaten += 1;
                    self.first_eaten.get_or_insert(example.source.clone());
                }
                return self.keep(example, facts);
            }
            Outcome::Faulty(problem) if section.on_error == OnError::Skip => self.skipped.push(problem),
            Outcome::Faulty(problem) if self.problems.len() < MOST_PROBLEMS => self.problems.push(problem),
            Outcome::Faulty(_) => self.unnamed += 1,
            // Told once for the whole set.
            Outcome::NoTemplate(_) => {}
        }
        false
    }

    /// Tell what was only counted.
    pub(crate) fn finish(&mut self, section: &DataSection) {
        if self.unnamed > 0 {
            let message = format!("{} more examples cannot be used", self.unnamed);
            self.problems.push(Problem::error("more-problems", message));
        }
        if let Some((place, tokens)) = self.first_dropped.take() {
            self.problems.push(dropped_warning(&place, tokens, self.dropped, section));
        }
        if let Some(place) = self.first_eaten.take() {
            self.problems.push(eaten_warning(&place, self.eaten, section));
        }
    }

    fn keep(&mut self, example: TokenizedExample, facts: EncodedFacts) -> bool {
        self.examples.push(example);
        self.facts.push(facts);
        true
    }
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
