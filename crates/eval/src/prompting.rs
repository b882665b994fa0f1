//! What stands before a question: a system prompt, and examples with their answers.

use serde_json::Value;
use taper_data::{Example, ExampleKeys, ExampleKind, overlap};
use taper_kernels::rng::{shuffle, stream_of};
use taper_text::Message;

/// What is put before each question.
#[derive(Debug, Clone, Default)]
pub struct Prompting<'a> {
    /// Answered examples, the same before each question.
    pub shots: Vec<&'a Example>,
    /// The JSON Schema of the answers, where metrics ask for one.
    pub schema: Option<&'a Value>,
}

/// `few_shot` of the examples, drawn by the seed, without those whose input is asked and without plain texts, which have no answer.
pub fn choose_shots<'a>(
    pool: &'a [Example],
    asked: &[Example],
    few_shot: usize,
    seed: u64,
) -> Vec<&'a Example> {
    if few_shot == 0 {
        return Vec::new();
    }
    let keys = |examples: &[Example]| examples.iter().map(ExampleKeys::of).collect::<Vec<_>>();
    let taken = overlap(&keys(asked), &keys(pool)).pairs;
    let mut is_free = vec![true; pool.len()];
    taken.iter().for_each(|(index, _)| is_free[*index] = false);
    let mut indices: Vec<usize> =
        (0..pool.len()).filter(|index| is_free[*index] && pool[*index].prompt().is_some()).collect();
    shuffle(seed, stream_of("eval.few_shot"), &mut indices);
    indices.truncate(few_shot);
    indices.into_iter().map(|index| &pool[index]).collect()
}

impl Prompting<'_> {
    /// An example with what stands before its question. Its own answer alone is then the one that is scored.
    pub(crate) fn apply(&self, example: &Example, system: Option<&str>) -> Example {
        let mut example = example.clone();
        match &mut example.kind {
            ExampleKind::Chat { messages, last_turn_only, .. } => {
                let mut own: Vec<Message> = std::mem::take(messages);
                let first = own.iter().take_while(|message| message.role == "system").count();
                let rest = own.split_off(first);
                let mut before = match system {
                    Some(text) => vec![Message::new("system", text)],
                    None => own,
                };
                before.extend(self.shots.iter().flat_map(|shot| turns(shot)));
                before.extend(rest);
                *messages = before;
                *last_turn_only |= !self.shots.is_empty();
            }
            ExampleKind::Completion { prompt, .. } => {
                let mut text = system.map(|system| format!("{system}\n\n")).unwrap_or_default();
                for shot in &self.shots {
                    if let ExampleKind::Completion { prompt, completion } = &shot.kind {
                        text.push_str(&format!("{prompt}{completion}\n\n"));
                    }
                }
                text.push_str(prompt);
                *prompt = text;
            }
            ExampleKind::Text(_) => {}
        }
        example
    }
}

/// A shown example as turns, without its system prompt.
fn turns(shot: &Example) -> Vec<Message> {
    match &shot.kind {
        ExampleKind::Chat { messages, .. } => {
            messages.iter().filter(|message| message.role != "system").cloned().collect()
        }
        ExampleKind::Completion { prompt, completion } => {
            vec![Message::new("user", prompt.as_str()), Message::new("assistant", completion.as_str())]
        }
        ExampleKind::Text(_) => Vec::new(),
    }
}

/// The example with another answer, which alone is scored.
pub(crate) fn with_answer(example: &Example, answer: &str) -> Example {
    let mut example = example.clone();
    match &mut example.kind {
        ExampleKind::Chat { messages, last_turn_only, .. } => {
            messages.pop();
            messages.push(Message::new("assistant", answer));
            *last_turn_only = true;
        }
        ExampleKind::Completion { completion, .. } => {
            // A completion follows its prompt with nothing between; its leading space belongs to how it is joined.
            let space = if completion.starts_with(' ') && !answer.starts_with(' ') { " " } else { "" };
            *completion = format!("{space}{answer}");
        }
        ExampleKind::Text(_) => {}
    }
    example
}

/// The question as turns, for an endpoint that renders them itself, and the tools offered.
pub(crate) fn as_messages(example: &Example) -> (Vec<Message>, Vec<Value>) {
    match &example.kind {
        ExampleKind::Chat { messages, tools, .. } => {
            (messages[..messages.len().saturating_sub(1)].to_vec(), tools.clone())
        }
        ExampleKind::Completion { prompt, .. } => (vec![Message::new("user", prompt.as_str())], Vec::new()),
        ExampleKind::Text(_) => (Vec::new(), Vec::new()),
    }
}
