//! Exercises in copying: all of a text, a part of it, or all of it but for what the instruction names.

use super::chat::Exercise;
use super::records::{Form, Record};
use super::text::{random_words, sentences};
use crate::grammar::Scene;

/// What stands in for a word, other than the labels of the tasks.
const STAND_INS: &[&str] = &[
    "[A]", "[B]", "[X]", "[item]", "[...]", "[gone]", "[THING]", "[WORD]", "[1]", "[2]", "***", "___", "<x>",
    "(cut)",
];

/// Material of any sort, short.
fn material(scene: &mut Scene<'_>) -> String {
    match scene.dice.below(11) {
        0..=2 => sentences(scene, "sentence", 1),
        3..=5 => sentences(scene, "sentence", 2),
        6 | 7 => random_words(scene, 4, 16),
        8 => {
            let n = scene.dice.between(2, 4);
            let form = Form::draw(scene);
            Record::draw(scene, n).write(form)
        }
        9 => (0..scene.dice.between(1, 5)).map(|_| scene.fill("{code}")).collect::<Vec<_>>().join(", "),
        _ => scene.fill("{person}, {town}, {phone}, {date}"),
    }
}

/// Say it again.
pub(super) fn repeat(scene: &mut Scene<'_>) -> Exercise {
    let text = material(scene);
    let (instruction, quote) = match scene.dice.below(8) {
        0 => ("Repeat the text.", ""),
        1 => ("Write this again, word for word:", ""),
        2 => ("Copy the message exactly.", ""),
        3 => ("Echo:", ""),
        4 => ("Write what stands between the quotes.", "\""),
        5 => ("Say the same thing, without any change.", ""),
        6 => ("Copy.", ""),
        _ => ("Return the input as it is.", ""),
    };
    Exercise::new(instruction, format!("{quote}{text}{quote}"), text)
}

/// One sentence of several.
pub(super) fn one_sentence(scene: &mut Scene<'_>) -> Exercise {
    let parts: Vec<String> = (0..scene.dice.between(2, 3)).map(|_| sentences(scene, "sentence", 1)).collect();
    let at = scene.dice.below(parts.len());
    let place = if at + 1 == parts.len() && scene.dice.chance(40) {
        "last"
    } else {
        ["first", "second", "third"][at]
    };
    let instruction = match scene.dice.below(3) {
        0 => format!("Copy the {place} sentence."),
        1 => format!("Which is the {place} sentence? Write it again."),
        _ => format!("Give me only the {place} sentence of the text."),
    };
    Exercise::new(instruction, parts.join(" "), parts[at].clone())
}

/// A sentence around one or two spans that the instruction will name: the text with the spans, and the spans.
fn with_spans(scene: &mut Scene<'_>) -> (String, Vec<String>) {
    let kinds =
        ["person", "item", "town", "code", "date", "nonsense", "org", "food", "surname", "phone", "first"];
    let spans: Vec<String> = (0..scene.dice.between(1, 3))
        .map(|_| {
            let kind = scene.dice.pick(&kinds);
            scene.fill(&format!("{{{kind}}}"))
        })
        .collect();
    let mut text = String::new();
    for span in &spans {
        let frame = scene.dice.pick(&[
            "We spoke about @ in the {room}.",
            "The list says @ and {food}.",
            "It was @ that {first} wanted, not {item}.",
            "{^job} {surname} wrote @ on the {thing}.",
            "Without @ there is no {feature}.",
            "Look for @ near the {item}.",
            "On {weekday} they found @ again.",
            "@ is what {person} asked for.",
            "In {town} everyone knows @.",
            "First @, then the {item}.",
            "{complaint}, {drug} and @ were written on the {thing}.",
        ]);
        let filled = scene.fill(frame).replace('@', span);
        text = if text.is_empty() { filled } else { format!("{text} {filled}") };
    }
    (text, spans)
}

/// Put one thing for another.
pub(super) fn replace(scene: &mut Scene<'_>) -> Exercise {
    let (text, spans) = with_spans(scene);
    let n = scene.dice.between(1, spans.len().min(2));
    let mut answer = text.clone();
    let mut wishes = Vec::new();
    for span in spans.iter().take(n) {
        let other = if scene.dice.chance(65) {
            scene.dice.pick(STAND_INS).to_owned()
        } else {
            scene.fill(scene_kind(span))
        };
        answer = answer.replace(span.as_str(), &other);
        wishes.push((span.clone(), other));
    }
    let form = scene.dice.below(3);
    let wishes = wishes.iter().map(|(old, new)| match form {
        0 => format!("{new} for {old}"),
        1 => format!("{old} -> {new}"),
        _ => format!("{new} instead of {old}"),
    });
    let wishes = wishes.collect::<Vec<_>>().join(", ");
    let lead = scene.dice.pick(&["Replace:", "Change the words:", "Write", "Swap in"]);
    Exercise::new(format!("{lead} {wishes}."), text, answer)
}

/// A slot for something that may stand in for the span.
fn scene_kind(span: &str) -> &'static str {
    if span.contains(|c: char| c.is_ascii_digit()) {
        "{code}"
    } else if span.starts_with(char::is_uppercase) {
        "{person}"
    } else {
        "{item}"
    }
}

/// Spans that stand between marks: keep the words and lose the marks, or lose the words.
pub(super) fn tagged(scene: &mut Scene<'_>) -> Exercise {
    let (text, spans) = with_spans(scene);
    let (open, close) = match scene.dice.below(5) {
        0 => ("<b>", "</b>"),
        1 => ("**", "**"),
        2 => ("<<", ">>"),
        3 => ("[[", "]]"),
        _ => ("<i>", "</i>"),
    };
    let mut marked = text.clone();
    let stand_in = scene.dice.pick(STAND_INS);
    let mut hidden = text.clone();
    for span in &spans {
        // A span inside an earlier one would be marked twice: then the marks would not balance.
        if marked.matches(span.as_str()).count() == 1 && hidden.contains(span.as_str()) {
            marked = marked.replace(span.as_str(), &format!("{open}{span}{close}"));
            hidden = hidden.replace(span.as_str(), stand_in);
        }
    }
    if scene.dice.chance(35) {
        let instruction = scene.dice.pick(&[
            "Remove the marks.",
            "Write the text without the tags.",
            "Take the tags away and keep the words.",
        ]);
        Exercise::new(instruction, marked, text)
    } else {
        let instruction = match scene.dice.below(3) {
            0 => format!("Write {stand_in} for everything between {open} and {close}."),
            1 => format!("Each marked span becomes {stand_in}."),
            _ => format!("Hide the tagged words with {stand_in}"),
        };
        Exercise::new(instruction, marked, hidden)
    }
}

/// The text without one of its words.
pub(super) fn delete_word(scene: &mut Scene<'_>) -> Exercise {
    let text = random_words(scene, 5, 14);
    let words: Vec<&str> = text.split(' ').collect();
    let gone = words[scene.dice.below(words.len())];
    let answer = words.iter().filter(|word| **word != gone).copied().collect::<Vec<_>>().join(" ");
    let instruction = scene.dice.pick(&["Leave out the word", "Delete", "Write it without"]);
    Exercise::new(format!("{instruction} {gone}."), text.clone(), answer)
}

/// Every digit, or every whole number, becomes a sign.
pub(super) fn hide_digits(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(1, 2);
    let text = sentences(scene, "sentence", n);
    if scene.dice.chance(50) {
        let answer = text.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect::<String>();
        Exercise::new("Write # for each digit.", text, answer)
    } else {
        Exercise::new("Write # for each number and copy the rest.", text.clone(), numbers_hidden(&text))
    }
}

fn numbers_hidden(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        let digit = c.is_ascii_digit();
        if !digit {
            out.push(c);
        } else if !inside {
            out.push('#');
        }
        inside = digit;
    }
    out
}

/// Put marks around people or around words that mean nothing: to see what is a name.
pub(super) fn mark(scene: &mut Scene<'_>) -> Exercise {
    let (kind, instruction) = match scene.dice.below(4) {
        0 => ("person", "Put stars around the people."),
        1 => ("nonsense", "Put stars around the word that means nothing."),
        2 => ("code", "Put stars around the codes."),
        _ => ("town", "Put stars around the towns."),
    };
    let frames = [
        "The {item} of @ is in the {room}.",
        "@ was written on the {thing} on {weekday}.",
        "Ask the {job} about @.",
        "We need {few} {food} and @.",
        "There is no {item} for @, but {food} will do.",
        "At {time} the {job} read @ aloud.",
        "A(n) {item} was sent for @.",
    ];
    let (mut plain, mut marked) = (Vec::new(), Vec::new());
    for _ in 0..scene.dice.between(1, 3) {
        let span = scene.fill(&format!("{{{kind}}}"));
        let frame = scene.dice.pick(&frames);
        let frame = scene.fill(frame);
        plain.push(frame.replace('@', &span));
        marked.push(frame.replace('@', &format!("*{span}*")));
    }
    Exercise::new(instruction, plain.join(" "), marked.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_hidden_as_wholes() {
        assert_eq!(numbers_hidden("code KT-209, 4.5 mg"), "code KT-#, #.# mg");
    }
}
