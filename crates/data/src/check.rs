//! What makes a run worthless, found before its first step.
//!
//! | code | severity | meaning |
//! | --- | --- | --- |
//! | `no-supervised-token` | error | an example teaches nothing |
//! | `stop-token-not-supervised` | error, warning | no answer (some answers) ends with a learned stop token: the model would not learn to end |
//! | `no-stop-token` | warning | the tokenizer names no stop token |
//! | `double-bos` | error | examples begin with two beginning-of-sequence tokens |
//! | `template-not-prefix-preserving` | warning | training sees another text before an answer than generation will |
//! | `token-straddles-prompt` | warning | an answer's first token begins in the prompt: generation cannot produce it |
//! | `special-token-in-content` | warning | the words of a message hold a special token |
//! | `needs-chat-template` | error | conversations, and a model without a chat template |
//! | `cannot-render` | error | the template refuses an example |
//! | `too-long` | error | an example is over `max_length` |
//! | `truncation-eats-answer` | error | cutting leaves nothing to learn |
//! | `truncation-cuts-answer` | warning | cutting takes the end of an answer |
//! | `dropped-too-long` | warning | examples over `max_length` were left out |
//! | `split-overlap` | error, warning | inputs of `test` or `valid` occur in `train` (of `test` in `valid`) |
//! | `duplicate-rows`, `contradictory-rows` | warning | the same input again, with the same or another answer |
//! | `empty-validation`, `no-examples` | error | a set that was asked for has no example |
//!
//! The faults of single rows are those of [`crate::RowFault`].

use crate::encode::{Encode, EncodedFacts};
use crate::overlap::{duplicates, overlap};
use crate::prepare::{PreparedData, Split};
use crate::section::OverlapChoice;
use crate::tokenize::TokenizedExample;
use taper_diagnostics::{Location, Problem, Problems, Severity};

/// The checks that look at whole sets. Those of single rows are made by [`crate::prepare`] on the way.
pub fn check_dataset(data: &PreparedData, encoder: &dyn Encode, overlap: OverlapChoice) -> Problems {
    let mut problems = Problems::new();
    let train = &data.train;
    let found = data.splits().flat_map(|split| [double_bos(split, encoder), stop_token(split, encoder)]);
    let found = found.chain([unstable(train), straddling(train), specials(train)]).flatten();
    found
        .chain(duplicates(train.name, &train.keys))
        .chain(overlaps(data, overlap))
        .for_each(|p| problems.push(p));
    for split in [&data.train, &data.valid, &data.test] {
        if split.tokenized.is_empty() && (split.dropped > 0 || !split.report.skipped.is_empty()) {
            problems.push(emptied(split));
        }
    }
    problems
}

fn double_bos(split: &Split, encoder: &dyn Encode) -> Option<Problem> {
    let bos = encoder.bos_id()?;
    let has_two = |example: &&TokenizedExample| example.input_ids.starts_with(&[bos, bos]);
    let count = split.tokenized.iter().filter(has_two).count();
    let first = split.tokenized.iter().find(has_two)?;
    let token = encoder.token(bos);
    let message =
        format!("{count} of {} examples of `{}` begin with two `{token}`", split.tokenized.len(), split.name);
    let hint = "the chat template or the text writes it and the tokenizer adds another; take it out of the template or the data";
    Some(Problem::error("double-bos", message).at(first.source.location()).hint(hint))
}

fn stop_token(split: &Split, encoder: &dyn Encode) -> Option<Problem> {
    let answers: usize = split.facts.iter().map(|facts| facts.answers).sum();
    let without: usize = split.facts.iter().map(|facts| facts.answers_without_stop).sum();
    let first = first_with(split, |facts| facts.answers_without_stop)?;
    let stops = encoder.stop_ids();
    if stops.is_empty() {
        let message = "the tokenizer names no stop token, so none can be learned";
        let hint =
            "set `eos_token` in tokenizer_config.json; without it the model does not learn to end its answer";
        return Some(Problem::warning("no-stop-token", message).hint(hint));
    }
    let names: Vec<String> = stops.iter().map(|&id| format!("`{}`", encoder.token(id))).collect();
    let (severity, share) = match without == answers {
        true => (Severity::Error, "no answer".to_owned()),
        false => (Severity::Warning, format!("not every answer ({without} of {answers} do not)")),
    };
    let message =
        format!("{share} of `{}` ends with a stop token that is learned ({})", split.name, names.join(", "));
    let hint = "the model would not learn to end its answer; the chat template must write the stop token after each \
                assistant turn, as generation expects it";
    let problem = Problem { severity, ..Problem::error("stop-token-not-supervised", message) };
    Some(problem.at(first).hint(hint))
}

fn unstable(train: &Split) -> Option<Problem> {
    let first = first_with(train, |facts| facts.unstable_prompts)?;
    let message = format!(
        "the chat template is not prefix-preserving: before {} of {} answers training sees another text than generation will",
        train.facts.iter().map(|facts| facts.unstable_prompts).sum::<usize>(),
        train.facts.iter().map(|facts| facts.answers).sum::<usize>()
    );
    let hint = "the template shows earlier turns differently once a conversation goes on; \
                `supervise = \"last_assistant\"` learns each answer as it will be generated";
    Some(Problem::warning("template-not-prefix-preserving", message).at(first).hint(hint))
}

fn straddling(train: &Split) -> Option<Problem> {
    let first = first_with(train, |facts| facts.straddling_answers)?;
    let count: usize = train.facts.iter().map(|facts| facts.straddling_answers).sum();
    let message =
        format!("{count} answers begin in the middle of a token that also holds the end of the prompt");
    let hint =
        "generation starts at a token's border and cannot produce it; check the blanks around the answer";
    Some(Problem::warning("token-straddles-prompt", message).at(first).hint(hint))
}

fn specials(train: &Split) -> Option<Problem> {
    let first = first_with(train, |facts| facts.specials_in_content)?;
    let count = train.facts.iter().filter(|facts| facts.specials_in_content > 0).count();
    let message = format!("in {count} examples a message's own words hold a special token");
    let hint = "the model cannot tell it from the template's; take it out unless that is meant";
    Some(Problem::warning("special-token-in-content", message).at(first).hint(hint))
}

/// The place of the first example of which something is seen at least once.
fn first_with(split: &Split, count: impl Fn(&EncodedFacts) -> usize) -> Option<Location> {
    let at = split.facts.iter().position(|facts| count(facts) > 0)?;
    Some(split.tokenized[at].source.location())
}

fn overlaps(data: &PreparedData, choice: OverlapChoice) -> Vec<Problem> {
    let of_test = match choice {
        OverlapChoice::Error => Severity::Error,
        OverlapChoice::Report => Severity::Warning,
    };
    let between = |held_out: &Split, other: &Split, severity: Severity, hint: &str| {
        let found = overlap(&other.keys, &held_out.keys);
        let problem = found.problem((held_out.name, &held_out.keys), (other.name, &other.keys))?;
        Some(Problem { severity, ..problem }.hint(hint))
    };
    let take_out = "an evaluation on rows that were trained on proves nothing; take them out of one file, or set \
                    `data.on_error = \"skip\"` to leave them out of `train`";
    let chosen = "the checkpoint that is chosen by these rows is measured on them; take them out of one file";
    let found = [
        between(&data.valid, &data.train, Severity::Error, take_out),
        between(&data.test, &data.train, of_test, take_out),
        between(&data.test, &data.valid, Severity::Warning, chosen),
    ];
    found.into_iter().flatten().collect()
}

fn emptied(split: &Split) -> Problem {
    let code = if split.name == "valid" { "empty-validation" } else { "no-examples" };
    let (dropped, skipped) = (split.dropped, split.report.skipped.len());
    let message =
        format!("no example of `{}` is left: {dropped} are too long, {skipped} were skipped", split.name);
    Problem::error(code, message).hint("see the problems of its rows")
}
