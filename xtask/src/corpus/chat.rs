//! Chats of the corpus: an exercise (instruction, material, answer) laid out as people lay out prompts.

use super::{copying, reading, reshaping};
use crate::grammar::Scene;
use serde_json::{Value, json};

/// One thing to do.
pub(super) struct Exercise {
    /// What to do.
    pub(super) instruction: String,
    /// What to do it with.
    pub(super) content: String,
    /// The right answer.
    pub(super) answer: String,
}

impl Exercise {
    /// The three texts.
    pub(super) fn new(
        instruction: impl Into<String>,
        content: impl Into<String>,
        answer: impl Into<String>,
    ) -> Self {
        Self { instruction: instruction.into(), content: content.into(), answer: answer.into() }
    }
}

const GENERIC_SYSTEM: &[&str] = &[
    "You are a careful assistant.",
    "Answer briefly.",
    "You are a helpful assistant.",
    "Do what the user asks and nothing else.",
    "Follow the instruction exactly.",
];

/// The messages of a chat.
pub(super) fn conversation(scene: &mut Scene<'_>) -> Vec<Value> {
    if scene.dice.chance(12) {
        return reading::interview(scene);
    }
    let exercise = exercise(scene);
    let messages = lay_out(scene, &exercise);
    scene.forget();
    messages
}

fn exercise(scene: &mut Scene<'_>) -> Exercise {
    let kind = scene.dice.weighted::<fn(&mut Scene<'_>) -> Exercise>(&[
        (14, copying::repeat),
        (5, copying::one_sentence),
        (14, copying::replace),
        (9, copying::tagged),
        (5, copying::delete_word),
        (5, copying::hide_digits),
        (7, copying::mark),
        (9, reading::look_up),
        (7, reading::ask_text),
        (8, reading::list_of_kind),
        (7, reading::topic),
        (3, reading::compare),
        (3, reading::yes_no),
        (8, reshaping::convert),
        (7, reshaping::choose_keys),
        (10, reshaping::order_to_json),
        (4, reshaping::edit_json),
        (6, reshaping::arrange),
    ]);
    kind(scene)
}

/// Instruction as the system's word, before the material, or after it.
fn lay_out(scene: &mut Scene<'_>, exercise: &Exercise) -> Vec<Value> {
    let Exercise { instruction, content, answer } = exercise;
    let (system, user) = match scene.dice.below(10) {
        0..=4 => (Some(instruction.clone()), content.clone()),
        5 | 6 => (None, format!("{instruction}\n{content}")),
        7 => (None, format!("{content}\n\n{instruction}")),
        8 => (None, format!("{instruction} {content}")),
        _ => (Some(scene.dice.pick(GENERIC_SYSTEM).to_owned()), format!("{instruction}\n{content}")),
    };
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let turns = [json!({"role": "user", "content": user}), json!({"role": "assistant", "content": answer})];
    system.into_iter().chain(turns).collect()
}
