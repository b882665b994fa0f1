//! Rows that say the same: within a file, and between files that must not share any.

use crate::example::{Example, ExampleKind, RowPlace};
use crate::sketch::Sketches;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use taper_diagnostics::Problem;

/// Pairs that a message names.
const PAIRS_NAMED: usize = 3;

/// A 128-bit hash of a text; two texts with the same one are taken for the same.
type Key = u128;

/// A text, to the byte and but for case and white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keys {
    exact: Key,
    normalised: Key,
}

/// An example by what is compared of it, without its words: a set of any size is compared at some 160 bytes a row and four bytes a
/// word, at most 512, of its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleKeys {
    /// The row.
    pub place: RowPlace,
    input: Keys,
    answer: Keys,
    /// The inputs of the answers before the last one.
    earlier: Box<[Keys]>,
    sketches: Sketches,
}

/// Rows of which the keys are known.
pub(crate) trait Keyed {
    fn keys(&self) -> &ExampleKeys;
}

impl Keyed for ExampleKeys {
    fn keys(&self) -> &ExampleKeys {
        self
    }
}

impl ExampleKeys {
    /// The keys of an example.
    pub fn of(example: &Example) -> Self {
        let kind = kind(example);
        Self {
            place: example.place.clone(),
            input: Keys::of(kind, &example.input_key()),
            answer: Keys::of(kind, &example.answer_key()),
            earlier: example.earlier_input_keys().iter().map(|text| Keys::of(kind, text)).collect(),
            sketches: Sketches::of(example),
        }
    }

    /// The wording of the inputs.
    pub(crate) fn sketches(&self) -> &Sketches {
        &self.sketches
    }

    /// The inputs of all answers, the last one's at the end.
    fn all_inputs(&self) -> impl Iterator<Item = &Keys> {
        self.earlier.iter().chain(self.last_input())
    }

    fn last_input(&self) -> impl Iterator<Item = &Keys> {
        std::iter::once(&self.input)
    }
}

impl Keys {
    fn of(kind: &str, text: &str) -> Self {
        Self { exact: hash(kind, text), normalised: hash(kind, &normalise(text)) }
    }
}

/// Inputs that occur in two sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlap {
    /// For each held-out example whose input occurs in the other set: its index and the index of the first one there.
    pub pairs: Vec<(usize, usize)>,
    /// How many of them are equal to the byte; the others only after lower-casing and joining white space.
    pub exact: usize,
}

/// Which examples of `held_out` have an input that occurs in `train`, as the input of any answer there: in a
/// conversation each turn of the assistant is one.
pub fn overlap(train: &[ExampleKeys], held_out: &[ExampleKeys]) -> Overlap {
    let found = duplicates_of(train, held_out);
    let exact = found.iter().filter(|(.., is_exact)| *is_exact).count();
    Overlap { pairs: found.into_iter().map(|(index, twin, _)| (index, twin)).collect(), exact }
}

/// The pairs of [`overlap`], each with whether it is equal to the byte.
pub(crate) fn duplicates_of(train: &[ExampleKeys], held_out: &[ExampleKeys]) -> Vec<(usize, usize, bool)> {
    matching((train, ExampleKeys::all_inputs), (held_out, ExampleKeys::last_input))
}

/// Indices of the examples of `train` of which an input occurs in `held_out`, each with the index of the first one there.
pub(crate) fn leaking<K: Keyed>(train: &[K], held_out: &[K]) -> Vec<(usize, usize)> {
    let found = matching((held_out, ExampleKeys::last_input), (train, ExampleKeys::all_inputs));
    found.into_iter().map(|(index, twin, _)| (index, twin)).collect()
}

/// Which examples of `asked` have an input among those of `known`, with the first one there that has it and whether it has it to the
/// byte; each set comes with what counts as an input there.
fn matching<'a, K: Keyed, A, B>(
    (known, known_inputs): (&'a [K], impl Fn(&'a ExampleKeys) -> A),
    (asked, asked_inputs): (&'a [K], impl Fn(&'a ExampleKeys) -> B),
) -> Vec<(usize, usize, bool)>
where
    A: Iterator<Item = &'a Keys>,
    B: Iterator<Item = &'a Keys>,
{
    let mut exact: HashMap<Key, usize> = HashMap::with_capacity(known.len());
    let mut normalised: HashMap<Key, usize> = HashMap::with_capacity(known.len());
    for (index, example) in known.iter().map(Keyed::keys).enumerate() {
        for input in known_inputs(example) {
            exact.entry(input.exact).or_insert(index);
            normalised.entry(input.normalised).or_insert(index);
        }
    }
    let mut found = Vec::new();
    for (index, example) in asked.iter().map(Keyed::keys).enumerate() {
        let twin = asked_inputs(example).find_map(|input| exact.get(&input.exact));
        let is_exact = twin.is_some();
        let twin = twin.or_else(|| asked_inputs(example).find_map(|input| normalised.get(&input.normalised)));
        found.extend(twin.map(|&twin| (index, twin, is_exact)));
    }
    found
}

impl Overlap {
    /// The overlap as a problem, or `None` when there is none. Severity and remedy are the caller's.
    pub fn problem(&self, of: (&str, &[ExampleKeys]), with: (&str, &[ExampleKeys])) -> Option<Problem> {
        let ((name, held_out), (other, train)) = (of, with);
        let (first, _) = self.pairs.first()?;
        let pair = |&(index, twin): &(usize, usize)| {
            format!("{} = {}", short(&held_out[index].place), short(&train[twin].place))
        };
        let named: Vec<String> = self.pairs.iter().take(PAIRS_NAMED).map(pair).collect();
        let message = format!(
            "{} of {} inputs of `{name}` occur in `{other}` ({} to the byte, {} but for case and white space): {}",
            self.pairs.len(),
            held_out.len(),
            self.exact,
            self.pairs.len() - self.exact,
            named.join(", ")
        );
        Some(Problem::error("split-overlap", message).at(held_out[*first].place.location()))
    }
}

/// Duplicates within one set, as warnings: rows that are the same, and rows whose input is the same but not the answer.
pub(crate) fn duplicates(name: &str, examples: &[ExampleKeys]) -> Vec<Problem> {
    let mut first_with: HashMap<Key, usize> = HashMap::with_capacity(examples.len());
    let (mut same, mut contrary) = (Vec::new(), Vec::new());
    for (index, keys) in examples.iter().enumerate() {
        let first = *first_with.entry(keys.input.normalised).or_insert(index);
        let other = &examples[first];
        if first == index {
            continue;
        }
        if other.input.exact == keys.input.exact && other.answer.exact == keys.answer.exact {
            same.push((index, first));
        } else if other.answer.normalised != keys.answer.normalised {
            contrary.push((index, first));
        }
    }
    let warn = |code, pairs: &[(usize, usize)], what: &str, hint: &str| {
        let (index, _) = pairs.first()?;
        let pair = |&(index, first): &(usize, usize)| {
            format!("{} = {}", short(&examples[index].place), short(&examples[first].place))
        };
        let named: Vec<String> = pairs.iter().take(PAIRS_NAMED).map(pair).collect();
        let message = format!("{} rows of `{name}` {what}: {}", pairs.len(), named.join(", "));
        Some(Problem::warning(code, message).at(examples[*index].place.location()).hint(hint))
    };
    let same = warn(
        "duplicate-rows",
        &same,
        "repeat an earlier row",
        "a repeated row counts as often as it stands there; take the copies out unless that is meant",
    );
    let contrary = warn(
        "contradictory-rows",
        &contrary,
        "have the input of an earlier row and another answer",
        "the model can only learn to answer both ways; keep one, or put what tells them apart into the input",
    );
    same.into_iter().chain(contrary).collect()
}

/// A number for each example, equal for examples of which one's input is an input in the other (case and white space
/// aside): what a split must not tear apart. Numbers count from 0 by first appearance.
pub(crate) fn groups<K: Keyed>(examples: &[K]) -> Vec<usize> {
    // Each example points to an earlier one of its group, or to itself.
    let mut parents: Vec<usize> = (0..examples.len()).collect();
    let mut first_with: HashMap<Key, usize> = HashMap::with_capacity(examples.len());
    for (index, example) in examples.iter().map(Keyed::keys).enumerate() {
        for input in example.last_input() {
            let first = *first_with.entry(input.normalised).or_insert(index);
            join(&mut parents, first, index);
        }
    }
    for (index, example) in examples.iter().map(Keyed::keys).enumerate() {
        for input in example.all_inputs() {
            if let Some(&asking) = first_with.get(&input.normalised) {
                join(&mut parents, asking, index);
            }
        }
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    (0..examples.len())
        .map(|index| {
            let next = numbers.len();
            *numbers.entry(root(&mut parents, index)).or_insert(next)
        })
        .collect()
}

fn join(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (root(parents, a), root(parents, b));
    parents[a.max(b)] = a.min(b);
}

fn root(parents: &mut [usize], mut index: usize) -> usize {
    while parents[index] != index {
        parents[index] = parents[parents[index]];
        index = parents[index];
    }
    index
}

/// Rows of plain text have no answer: the text is all there is.
fn kind(example: &Example) -> &'static str {
    match example.kind {
        ExampleKind::Text(_) => "text",
        _ => "pair",
    }
}

/// Lower case, with every run of white space as one blank.
fn normalise(text: &str) -> String {
    let mut normalised = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !normalised.is_empty() {
            normalised.push(' ');
        }
        if word.is_ascii() {
            let start = normalised.len();
            normalised.push_str(word);
            normalised[start..].make_ascii_lowercase();
        } else {
            normalised.extend(word.chars().flat_map(char::to_lowercase));
        }
    }
    normalised
}

fn hash(kind: &str, text: &str) -> Key {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, kind, text).hash(&mut hasher);
        hasher.finish()
    };
    u128::from(half(0)) << 64 | u128::from(half(1))
}

pub(crate) fn short(place: &RowPlace) -> String {
    let name = place.file.file_name().unwrap_or(place.file.as_os_str()).to_string_lossy();
    match place.element {
        Some(element) => format!("{name}:{} `[{element}]`", place.line),
        None => format!("{name}:{}", place.line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn examples(file: &str, pairs: &[(&str, &str)]) -> Vec<ExampleKeys> {
        let example = |(at, (prompt, completion)): (usize, &(&str, &str))| {
            let place = RowPlace { file: Path::new(file).into(), line: at + 1, element: None };
            let (prompt, completion) = ((*prompt).into(), (*completion).into());
            Example::new(place, ExampleKind::Completion { prompt, completion })
        };
        pairs.iter().enumerate().map(example).map(|example| ExampleKeys::of(&example)).collect()
    }

    #[test]
    fn an_input_in_both_sets_is_found_to_the_byte_and_but_for_case_and_white_space() {
        let train = examples("data/train.jsonl", &[("a b", "1"), ("c", "1"), ("d", "1")]);
        let test = examples("data/test.jsonl", &[("x", "1"), (" A\n B", "2"), ("d", "3")]);
        let found = overlap(&train, &test);
        assert_eq!(found, Overlap { pairs: vec![(1, 0), (2, 2)], exact: 1 });
        let problem = found.problem(("test", &test), ("train", &train)).unwrap();
        assert_eq!(
            problem.message,
            "2 of 3 inputs of `test` occur in `train` (1 to the byte, 1 but for case and white space): test.jsonl:2 = train.jsonl:1, test.jsonl:3 = train.jsonl:3"
        );
        assert_eq!(overlap(&train, &test[..1]).problem(("test", &test), ("train", &train)), None);
        assert_eq!(leaking(&train, &test), [(0, 1), (2, 2)]);
    }

    fn conversation(line: usize, texts: &[&str]) -> ExampleKeys {
        let roles = ["user", "assistant"].into_iter().cycle();
        let messages = roles.zip(texts).map(|(role, text)| taper_text::Message::new(role, *text)).collect();
        let place = RowPlace { file: Path::new("c.jsonl").into(), line, element: None };
        let kind = ExampleKind::Chat { messages, tools: Vec::new(), last_turn_only: false };
        ExampleKeys::of(&Example::new(place, kind))
    }

    #[test]
    fn a_question_from_the_middle_of_a_trained_conversation_is_a_leak() {
        let train =
            [conversation(1, &["other", "x"]), conversation(2, &["q1", "a1", "q2", "a2", "q3", "a3"])];
        let test = [
            conversation(1, &["q1", "a1"]),
            conversation(2, &["Q1", "a1", "q2", "?"]),
            conversation(3, &["q2", "a2"]),
        ];
        assert_eq!(overlap(&train, &test), Overlap { pairs: vec![(0, 1), (1, 1)], exact: 1 });
        assert_eq!(leaking(&train, &test), [(1, 0)]);
        // The other way round nothing was trained on that is asked: the long conversation's own question is new.
        assert_eq!(overlap(&test[..1], &train[1..]), Overlap::default());
    }

    #[test]
    fn a_split_keeps_a_conversation_and_its_beginnings_together() {
        let rows = [
            conversation(1, &["q1", "a1", "q2", "a2"]),
            conversation(2, &["r1", "a1"]),
            conversation(3, &["q1", "a1"]),
            conversation(4, &["q1", "a1", "q9", "a9"]),
            conversation(5, &["R1", "a2"]),
        ];
        assert_eq!(groups(&rows), [0, 1, 0, 0, 1]);
        // Without the short row nothing ties the two long ones: neither asks what the other one was taught.
        assert_eq!(groups(&[rows[0].clone(), rows[3].clone()]), [0, 1]);
    }

    #[test]
    fn repeated_rows_and_contradictory_rows_are_told_apart() {
        let train = examples("t.jsonl", &[("a", "1"), ("a", "1"), ("a", "2"), ("b", "x"), ("B", "X")]);
        let problems = duplicates("train", &train);
        let found: Vec<(&str, bool)> =
            problems.iter().map(|p| (p.code, p.message.starts_with("1 rows"))).collect();
        assert_eq!(found, [("duplicate-rows", true), ("contradictory-rows", true)]);
        assert!(problems[1].message.ends_with("t.jsonl:3 = t.jsonl:1"), "{}", problems[1].message);
        assert!(duplicates("train", &train[3..]).is_empty());
    }
}
