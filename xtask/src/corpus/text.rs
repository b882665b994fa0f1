//! Plain documents of the corpus.

use super::records::{Form, Record};
use crate::grammar::Scene;

/// A plain document.
pub(super) fn document(scene: &mut Scene<'_>) -> String {
    let kind = scene.dice.weighted::<fn(&mut Scene<'_>) -> String>(&[
        (24, prose),
        (20, topical),
        (10, story),
        (8, letter),
        (8, log),
        (8, record_list),
        (8, table),
        (6, definitions),
        (8, said_twice),
        (6, sequence),
    ]);
    kind(scene)
}

fn prose(scene: &mut Scene<'_>) -> String {
    let n = scene.dice.between(2, 5);
    sentences(scene, "sentence", n)
}

/// Sentences of one field under a title.
fn topical(scene: &mut Scene<'_>) -> String {
    let rule = scene.dice.pick(&[
        "life", "clinic", "helpdesk", "clause", "event", "fact", "m_money", "m_entry", "m_damage",
        "m_copies", "m_pace", "m_ideas", "m_hurry", "m_calm", "m_ward", "m_visit",
    ]);
    let n = scene.dice.between(2, 5);
    let body = sentences(scene, rule, n);
    if scene.dice.chance(40) { format!("{}\n{body}", scene.expand("title")) } else { body }
}

fn story(scene: &mut Scene<'_>) -> String {
    scene.expand("story")
}

fn letter(scene: &mut Scene<'_>) -> String {
    scene.expand("mail")
}

fn log(scene: &mut Scene<'_>) -> String {
    let n = scene.dice.between(3, 6);
    let day = scene.fill("{date}");
    scene.fill("{n=nonsense}");
    let lines = (0..n).map(|_| match scene.dice.below(3) {
        0 => scene.fill(&format!("{day} {{time}} {{level}} {{log_event}}")),
        1 => scene.fill("[{level}] {n}: {log_event}"),
        _ => scene.fill("{time} {n} {log_event}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn record_list(scene: &mut Scene<'_>) -> String {
    let n = scene.dice.between(2, 5);
    let forms = [Form::draw(scene), Form::draw(scene)];
    let record = Record::draw(scene, n);
    if scene.dice.chance(50) {
        // The same facts twice, in two forms.
        forms.map(|form| record.write(form)).join("\n\n")
    } else {
        let second = Record::draw(scene, n);
        [record, second].map(|record| record.write(forms[0])).join("\n\n")
    }
}

fn table(scene: &mut Scene<'_>) -> String {
    let (columns, rows) = (scene.dice.between(2, 4), scene.dice.between(2, 4));
    let kinds = ["item", "first", "town", "code", "date", "amount", "small", "colour", "org", "nonsense"];
    let mut picked: Vec<&str> = kinds.to_vec();
    scene.dice.shuffle(&mut picked);
    let picked = &picked[..columns];
    let separator = scene.dice.pick(&[" | ", ",", "; ", "\t"]);
    let mut lines = vec![picked.join(separator)];
    for _ in 0..rows {
        let cells: Vec<String> = picked.iter().map(|kind| scene.fill(&format!("{{{kind}}}"))).collect();
        lines.push(cells.join(separator));
    }
    lines.join("\n")
}

fn definitions(scene: &mut Scene<'_>) -> String {
    (0..scene.dice.between(1, 3)).map(|_| scene.expand("definition")).collect::<Vec<_>>().join("\n")
}

/// A text and its copy: the plainest lesson in looking back.
fn said_twice(scene: &mut Scene<'_>) -> String {
    let text = match scene.dice.below(5) {
        0 => scene.expand("sentence"),
        1 | 2 => random_words(scene, 6, 16),
        3 => (0..scene.dice.between(2, 6)).map(|_| scene.fill("{code}")).collect::<Vec<_>>().join(" "),
        _ => (0..scene.dice.between(2, 5)).map(|_| scene.fill("{person}")).collect::<Vec<_>>().join(", "),
    };
    let (first, second) = match scene.dice.below(4) {
        0 => ("Original: ", "\nCopy: "),
        1 => ("", "\n"),
        2 => ("He said: ", "\nShe wrote: "),
        _ => ("1. ", "\n2. "),
    };
    format!("{first}{text}{second}{text}")
}

/// Things in order: numbers up and down, an alphabet of items, a list.
fn sequence(scene: &mut Scene<'_>) -> String {
    match scene.dice.below(3) {
        0 => {
            let (from, step) = (scene.dice.between(1, 80), scene.dice.between(1, 3));
            (0..8).map(|i| (from + i * step).to_string()).collect::<Vec<_>>().join(", ")
        }
        1 => {
            let n = scene.dice.between(3, 6);
            (1..=n).map(|i| format!("{i}. {}", scene.fill("{^item}"))).collect::<Vec<_>>().join("\n")
        }
        _ => {
            let n = scene.dice.between(3, 6);
            (0..n).map(|_| format!("- {}", scene.fill("{person}, {town}"))).collect::<Vec<_>>().join("\n")
        }
    }
}

/// `n` sentences of a rule.
pub(super) fn sentences(scene: &mut Scene<'_>, rule: &str, n: usize) -> String {
    let mut parts = Vec::with_capacity(n);
    for _ in 0..n {
        parts.push(scene.expand(rule));
        scene.forget();
    }
    parts.join(" ")
}

/// Between `low` and `high` words, sensible and senseless.
pub(super) fn random_words(scene: &mut Scene<'_>, low: usize, high: usize) -> String {
    let n = scene.dice.between(low, high);
    let words = (0..n).map(|_| {
        let kind = scene.dice.pick(&[
            "{nonsense}",
            "{common}",
            "{common}",
            "{common}",
            "{common}",
            "{common}",
            "{common}",
            "{surname}",
            "{num}",
            "{^common}",
            "{label_word}",
        ]);
        scene.fill(kind)
    });
    words.collect::<Vec<_>>().join(" ")
}
