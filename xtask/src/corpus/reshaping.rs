//! Exercises in form: from one writing of a record to another, from a sentence to JSON, from disorder to order.

use super::chat::Exercise;
use super::records::{Form, Record};
use crate::grammar::Scene;
use crate::names::capitalised;
use serde_json::{Map, Value};

/// The same record in another form.
pub(super) fn convert(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(2, 5);
    let (from, to) = (Form::draw(scene), Form::draw(scene));
    let record = Record::draw(scene, n);
    let lead = scene.dice.pick(&["Write this as", "Convert to", "Turn it into", "Give it as"]);
    Exercise::new(format!("{lead} {}.", to.name()), record.write(from), record.write(to))
}

/// Some keys of a record, in the order asked for.
pub(super) fn choose_keys(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(3, 5);
    let record = Record::draw(scene, n);
    let mut places: Vec<usize> = (0..n).collect();
    scene.dice.shuffle(&mut places);
    places.truncate(scene.dice.between(1, n - 1));
    let chosen = record.only(&places);
    let keys = chosen.0.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ");
    let from = Form::draw(scene);
    let to = if scene.dice.chance(60) { Form::Json } else { Form::draw(scene) };
    let instruction = match scene.dice.below(3) {
        0 => format!("Keep {keys}. Use {}.", to.name()),
        1 => format!("Only {keys}, as {}.", to.name()),
        _ => format!("Keys: {keys}. Form: {}.", to.name()),
    };
    Exercise::new(instruction, record.write(from), chosen.write(to))
}

/// Sentences and the keys of what they say.
const ORDERS: &[(&str, &[(&str, &str)])] = &[
    (
        "{a=person} wants {n=small} {t=item}(s) in {c=colour}, sent to {w=town}.",
        &[("buyer", "a"), ("count", "n"), ("item", "t"), ("colour", "c"), ("town", "w")],
    ),
    (
        "Please put {t=item} number {c=code} on shelf {n=small}; it belongs to {a=person}.",
        &[("item", "t"), ("code", "c"), ("shelf", "n"), ("owner", "a")],
    ),
    (
        "{a=person} and {b=person} meet on {d=weekday} at {h=time} in the {r=room}.",
        &[("host", "a"), ("guest", "b"), ("day", "d"), ("time", "h"), ("room", "r")],
    ),
    (
        "The {x=animal} called {n=nonsense} is {s=small} years old and eats {f=food}.",
        &[("animal", "x"), ("nickname", "n"), ("years", "s"), ("food", "f")],
    ),
    (
        "{o=org} of {w=town} makes {t=item}(s) of {m=material} and charges {p=amount}.",
        &[("maker", "o"), ("town", "w"), ("item", "t"), ("material", "m"), ("price", "p")],
    ),
    (
        "For {c=complaint} give {d=drug} {m=dose} {o=often}.",
        &[("reason", "c"), ("drug", "d"), ("dose", "m"), ("rhythm", "o")],
    ),
    (
        "The {j=job} {a=surname} reads {t=title} on {d=weekday} {p=part_of_day}.",
        &[("job", "j"), ("reader", "a"), ("title", "t"), ("day", "d"), ("part", "p")],
    ),
    (
        "Device {c=code}, a(n) {d=device} in the {r=room}, has the label {n=nonsense}.",
        &[("code", "c"), ("device", "d"), ("room", "r"), ("label", "n")],
    ),
];

/// A sentence as JSON, sometimes with a key that the sentence says nothing about.
pub(super) fn order_to_json(scene: &mut Scene<'_>) -> Exercise {
    let (text, keys) = ORDERS[scene.dice.below(ORDERS.len())];
    let text = scene.fill(text);
    let mut places: Vec<usize> = (0..keys.len()).collect();
    scene.dice.shuffle(&mut places);
    places.truncate(scene.dice.between(2, keys.len()));
    let mut object = Map::new();
    for &place in &places {
        let (key, kept) = keys[place];
        object.insert(key.to_owned(), Value::String(scene.fill(&format!("{{{kept}}}"))));
    }
    if scene.dice.chance(25) {
        object.insert(scene.dice.pick(&["remark", "weight", "floor", "reply"]).to_owned(), Value::Null);
    }
    let names = object.keys().cloned().collect::<Vec<_>>().join(", ");
    let instruction = match scene.dice.below(4) {
        0 => format!("JSON with {names}."),
        1 => format!("Fill in: {names}. Answer in JSON."),
        2 => format!("As one line of JSON: {names}"),
        _ => format!("Write JSON. Keys: {names}. Use null if nothing is said."),
    };
    Exercise::new(instruction, text, Value::Object(object).to_string())
}

/// JSON with a key set, added or removed.
pub(super) fn edit_json(scene: &mut Scene<'_>) -> Exercise {
    let n = scene.dice.between(2, 4);
    let mut record = Record::draw(scene, n);
    let before = record.write(Form::Json);
    let at = scene.dice.below(n);
    let key = record.0[at].0.clone();
    let instruction = match scene.dice.below(3) {
        0 => {
            record.0.remove(at);
            format!("Remove the key {key}.")
        }
        1 => {
            let value = scene.fill("{nonsense}");
            record.0[at].1.clone_from(&value);
            format!("Set {key} to {value}.")
        }
        _ => {
            let value = scene.fill("{item}");
            record.0.push(("extra".to_owned(), value.clone()));
            format!("Add extra with {value} at the end.")
        }
    };
    Exercise::new(instruction, before, record.write(Form::Json))
}

/// Lists: count, turn round, sort, first and last, number the lines.
pub(super) fn arrange(scene: &mut Scene<'_>) -> Exercise {
    let kind = scene
        .dice
        .pick(&["nonsense", "thing", "food", "first", "surname", "common", "common", "common", "common"]);
    let mut items: Vec<String> =
        (0..scene.dice.between(2, 6)).map(|_| scene.fill(&format!("{{{kind}}}"))).collect();
    let given = items.join(", ");
    let (instruction, answer) = match scene.dice.below(7) {
        0 => ("How many are in the list?", items.len().to_string()),
        1 => {
            items.reverse();
            ("Turn the list round.", items.join(", "))
        }
        2 => {
            items.sort();
            ("Sort the list by the alphabet.", items.join(", "))
        }
        3 => ("What comes first?", items[0].clone()),
        4 => ("What comes last?", items[items.len() - 1].clone()),
        5 => {
            let lines = items.iter().zip(1..).map(|(item, i)| format!("{i}. {item}"));
            ("Number the items.", lines.collect::<Vec<_>>().join("\n"))
        }
        _ => {
            let items: Vec<String> = items.iter().map(|item| capitalised(item)).collect();
            ("Begin each word with a capital letter.", items.join(", "))
        }
    };
    Exercise::new(instruction, given, answer)
}
