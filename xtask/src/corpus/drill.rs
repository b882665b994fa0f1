//! Drills: a line of words, names, numbers and codes, and the same line again.
//!
//! The answer follows from the prompt alone and from nothing else, so that a model which learns only the answers has nothing to
//! learn but to copy. Mixed in, they let copying form within some hundred steps; without them, it had not after 900.

use super::COMMON;
use crate::dice::Dice;
use crate::names::{self, Pool};
use crate::values;
use serde_json::{Value, json};

/// Most pieces of a line.
const MOST_PIECES: usize = 16;

/// A `{"prompt": ..., "completion": ...}` row.
pub(super) fn row(mut dice: Dice) -> Value {
    let pieces = dice.between(2, MOST_PIECES);
    let line: Vec<String> = (0..pieces).map(|_| piece(&mut dice)).collect();
    let line = line.join(" ");
    json!({ "prompt": format!("{line}\n"), "completion": line })
}

fn piece(dice: &mut Dice) -> String {
    match dice.below(10) {
        0..=3 => dice.pick(COMMON).to_owned(),
        4 | 5 => names::nonsense(dice, Pool::Corpus),
        6 => names::capitalised(&names::nonsense(dice, Pool::Corpus)),
        7 => names::surname(dice, Pool::Corpus),
        8 => {
            let digits = dice.between(1, 4);
            values::digits(dice, digits)
        }
        _ => values::code(dice, Pool::Corpus),
    }
}
