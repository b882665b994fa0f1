//! Exercises in finding: a field of a record, a name in a text, a kind of thing, a topic.

use super::chat::Exercise;
use super::records::{Form, Record};
use crate::grammar::Scene;
use serde_json::{Value, json};

/// A question about one key of a record.
fn question(scene: &mut Scene<'_>, key: &str) -> String {
    match scene.dice.below(6) {
        0 => format!("What is the {key}?"),
        1 => format!("{key}?"),
        2 => format!("Tell me the {key}."),
        3 => format!("Which {key} is given?"),
        4 => format!("Look up {key}."),
        _ => format!("Please give only the {key}."),
    }
}

/// The value of a key.
pub(super) fn look_up(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(2, 5);
    let form = Form::draw(scene);
    let record = Record::draw(scene, n);
    let (key, value) = record.0[scene.dice.below(n)].clone();
    Exercise::new(question(scene, &key), record.write(form), value)
}

/// Several questions about one record, turn by turn.
pub(super) fn interview(scene: &mut Scene<'_>) -> Vec<Value> {
    let n = scene.dice.between(3, 5);
    let form = Form::draw(scene);
    let record = Record::draw(scene, n);
    let mut messages = vec![json!({"role": "system", "content": record.write(form)})];
    let mut order: Vec<usize> = (0..n).collect();
    scene.dice.shuffle(&mut order);
    for &place in order.iter().take(scene.dice.between(2, 3)) {
        let (key, value) = record.0[place].clone();
        messages.push(json!({"role": "user", "content": question(scene, &key)}));
        messages.push(json!({"role": "assistant", "content": value}));
    }
    messages
}

/// Texts with the questions that they answer: (text, [(question, kept name)]).
const TEXTS: &[(&str, &[(&str, &str)])] = &[
    (
        "{a=person} sold a(n) {t=item} to {b=person} for {m=amount} in {w=town}.",
        &[
            ("Who sold it?", "a"),
            ("Who bought it?", "b"),
            ("What was sold?", "t"),
            ("How much was paid?", "m"),
            ("Where?", "w"),
        ],
    ),
    (
        "In {w=town} a {j=job} named {a=person} keeps {n=few} {x=animal}(s) in the {r=room}.",
        &[
            ("Who keeps them?", "a"),
            ("How many are there?", "n"),
            ("Where in the house?", "r"),
            ("In which town?", "w"),
            ("What is the work of this person?", "j"),
        ],
    ),
    (
        "The {t=item} of {a=person} broke on {d=weekday}; {b=first} repaired it with {m=material} at {h=time}.",
        &[
            ("What broke?", "t"),
            ("On which day?", "d"),
            ("Who repaired it?", "b"),
            ("With what?", "m"),
            ("At what time?", "h"),
            ("Whose was it?", "a"),
        ],
    ),
    (
        "{o=org} sent parcel {c=code} from {v=town} to {w=town} on {d=date}.",
        &[
            ("Who sent it?", "o"),
            ("Which parcel?", "c"),
            ("From where?", "v"),
            ("To where?", "w"),
            ("When?", "d"),
        ],
    ),
    (
        "{a=first} takes {d=drug} {m=dose} against {c=complaint}, and {b=first} takes {e=drug} against {f=complaint}.",
        &[
            ("Who takes the first drug?", "a"),
            ("Who takes the second drug?", "b"),
            ("Which drug comes first?", "d"),
            ("Which drug comes second?", "e"),
            ("How much of the first?", "m"),
        ],
    ),
    (
        "Not {a=person} but {b=person} found the {t=item}; {a} only looked for {f=food}.",
        &[("Who found it?", "b"), ("What was found?", "t"), ("Who looked for food?", "a")],
    ),
    (
        "{m=made} {v=version} replaced {n=made} {w=version} on {d=date} because of the {f=feature}.",
        &[
            ("What is used now?", "m"),
            ("What was used before?", "n"),
            ("Which number does the new one have?", "v"),
            ("Which number did the old one have?", "w"),
            ("When was it replaced?", "d"),
            ("Why?", "f"),
        ],
    ),
];

/// A question about a text.
pub(super) fn ask_text(scene: &mut Scene<'_>) -> Exercise {
    let (text, questions) = TEXTS[scene.dice.below(TEXTS.len())];
    let text = scene.fill(text);
    let (question, kept) = questions[scene.dice.below(questions.len())];
    let answer = scene.fill(&format!("{{{kept}}}"));
    let extra = match scene.dice.below(3) {
        0 => String::new(),
        1 => format!(" {}", scene.fill("The {thing} stays in the {room}.")),
        _ => format!(" {}", scene.fill("{^food} and {food} were there too.")),
    };
    Exercise::new(question, format!("{text}{extra}"), answer)
}

/// All the people, towns or codes of a text.
pub(super) fn list_of_kind(scene: &mut Scene<'_>) -> Exercise {
    let (kind, plural) = [
        ("person", "people"),
        ("town", "towns"),
        ("code", "codes"),
        ("drug", "drugs"),
        ("item", "things"),
        ("amount", "prices"),
    ][scene.dice.below(6)];
    let frames = [
        "The {job} wrote down @.",
        "On {weekday} we heard about @.",
        "Then came @.",
        "In the {room} there was talk of @.",
        "{^food} for @.",
        "Nothing was said about @.",
        "The {animal} ran to @.",
        "At {time} they asked for @.",
    ];
    let mut found = Vec::new();
    let mut text = Vec::new();
    for _ in 0..scene.dice.between(1, 4) {
        let span = scene.fill(&format!("{{{kind}}}"));
        let frame = scene.dice.pick(&frames);
        text.push(scene.fill(frame).replace('@', &span));
        found.push(span);
    }
    let (instruction, between) = match scene.dice.below(4) {
        0 => (format!("List the {plural}."), ", "),
        1 => (format!("Which {plural} are named?"), ", "),
        2 => (format!("Write the {plural}, one in each line."), "\n"),
        _ => (format!("Collect all {plural} with a semicolon between them."), "; "),
    };
    Exercise::new(instruction, text.join(" "), found.join(between))
}

/// Rules of the grammar and what their sentences are about.
const TOPICS: &[(&str, &str)] = &[
    ("life", "home"),
    ("clinic", "health"),
    ("clause", "law"),
    ("event", "news"),
    ("m_money", "money"),
    ("m_entry", "keys"),
    ("m_damage", "damage"),
    ("m_copies", "copies"),
    ("m_pace", "time"),
    ("m_ideas", "ideas"),
    ("m_hurry", "danger"),
    ("m_calm", "rest"),
];

/// Which of the offered topics a sentence is about.
pub(super) fn topic(scene: &mut Scene<'_>) -> Exercise {
    let mut topics = TOPICS.to_vec();
    scene.dice.shuffle(&mut topics);
    topics.truncate(4);
    let (rule, name) = topics[scene.dice.below(topics.len())];
    let text = scene.expand(rule);
    let names: Vec<&str> = topics.iter().map(|(_, name)| *name).collect();
    let instruction = match scene.dice.below(3) {
        0 => format!("Topic: {}?", names.join(", ")),
        1 => format!("Is this about {}?", names.join(" or ")),
        _ => format!("Choose one word of: {}.", names.join(", ")),
    };
    Exercise::new(instruction, text, name)
}

/// The larger or smaller of two numbers, the earlier of two times.
pub(super) fn compare(scene: &mut Scene<'_>) -> Exercise {
    let (a, b) = (scene.dice.between(1, 9), scene.dice.between(1, 9));
    let (c, d) = (scene.dice.below(13), scene.dice.below(13));
    let (first, second) = (format!("{a}.{c:02}"), format!("{b}.{d:02}"));
    let larger = if (a, c) >= (b, d) { &first } else { &second };
    let smaller = if (a, c) >= (b, d) { &second } else { &first };
    let (instruction, answer) =
        if scene.dice.chance(60) { ("Which is larger?", larger) } else { ("Which is smaller?", smaller) };
    Exercise::new(instruction, format!("{first} or {second}"), answer.clone())
}

/// Whether a record says so.
pub(super) fn yes_no(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(2, 4);
    let form = Form::draw(scene);
    let record = Record::draw(scene, n);
    let at = scene.dice.below(n);
    let (key, value) = record.0[at].clone();
    let truth = scene.dice.chance(50);
    let claimed = if truth { value } else { record.0[(at + 1) % n].1.clone() };
    let answer = if truth { "yes" } else { "no" };
    Exercise::new(format!("Is the {key} {claimed}? Answer yes or no."), record.write(form), answer)
}
