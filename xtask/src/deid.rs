//! `clinical-deid`: a short clinical note, and the same note with every identifier replaced by its kind.
//!
//! In the rules an identifier is written `‹KIND|text›`. Replaced are names of people (titles stay), calendar dates, phone
//! numbers, numbers that point to a person, and towns, streets and named hospitals. Kept are ages, durations, times,
//! doses, room numbers, blood pressures, and diseases that bear a person's name.

use crate::dataset::{Row, Splits};
use crate::grammar::{Grammar, Rule, Scene, rule, split_rule};
use crate::words::WORDS;

const SYSTEM: &str = "De-identify the clinical note.";

/// All rows of the dataset.
pub(crate) fn rows(seed: u64) -> Splits {
    let grammar = Grammar::new(&[WORDS, RULES]);
    Splits::draw(&grammar, "clinical-deid", seed, |scene| {
        let note = note(scene);
        Row { system: SYSTEM.to_owned(), user: plain(&note), assistant: masked(&note) }
    })
}

/// One to three sentences with marked identifiers, at least one of them.
fn note(scene: &mut Scene<'_>) -> String {
    loop {
        scene.forget();
        // The patient is one person for the whole note.
        for (kept, kind) in [("ti", "{title}"), ("pl", "{last}"), ("pf", "{given}")] {
            let value = scene.fill(kind);
            scene.keep(kept, value);
        }
        let plan: &[&str] = scene.dice.weighted(&[
            (25, &["opening"][..]),
            (25, &["opening", "finding"]),
            (25, &["opening", "closing"]),
            (10, &["finding", "closing"]),
            (15, &["opening", "finding", "closing"]),
        ]);
        let parts: Vec<String> = plan.iter().map(|kind| scene.expand(kind)).collect();
        let note = parts.join(" ");
        if note.contains('‹') && plain(&note).len() <= 190 {
            return note;
        }
    }
}

/// The note as it was written.
fn plain(note: &str) -> String {
    map_marks(note, |_, text| text.to_owned())
}

/// The note as it may leave the building.
fn masked(note: &str) -> String {
    map_marks(note, |kind, _| format!("[{kind}]"))
}

fn map_marks(note: &str, one: impl Fn(&str, &str) -> String) -> String {
    let mut out = String::with_capacity(note.len());
    for (i, piece) in note.split('‹').enumerate() {
        match (i, piece.split_once('›')) {
            (1.., Some((marked, rest))) => {
                let (kind, text) = marked.split_once('|').unwrap_or(("", marked));
                out.push_str(&one(kind, text));
                out.push_str(rest);
            }
            _ => out.push_str(piece),
        }
    }
    out
}

const RULES: &[Rule] = &[
    // People: some names are words that also occur as words.
    rule("last", &["{surname}", "{surname}", "{surname}", "{odd_last}"]),
    rule("title", &["Mr.", "Mrs.", "Ms."]),
    rule("given", &["{first}", "{first}", "{first}", "{odd_first}"]),
    split_rule(
        "odd_last",
        &[
            "Short",
            "May",
            "Price",
            "Cross",
            "Stone",
            "Winter",
            "Bell",
            "Graves",
            "Baker",
            "Long",
            "Burns",
            "Marsh",
            "Rush",
            "Parkinson",
        ],
        &["Sharp", "Wells", "Wilson", "Cushing", "Frost", "Good"],
    ),
    split_rule(
        "odd_first",
        &["Will", "Mark", "Rose", "Frank", "April", "Hope", "Bill"],
        &["Grace", "June", "Chase", "Summer"],
    ),
    rule(
        "patient",
        &[
            "{ti} ‹NAME|{pl}›",
            "{ti} ‹NAME|{pl}›",
            "{ti} ‹NAME|{pl}›",
            "‹NAME|{pf} {pl}›",
            "‹NAME|{pf} {pl}›",
            "‹NAME|{pl}›, ‹NAME|{pf}›",
        ],
    ),
    rule(
        "doctor",
        &["Dr. ‹NAME|{last}›", "Dr. ‹NAME|{last}›", "Dr. ‹NAME|{given} {last}›", "Prof. ‹NAME|{last}›"],
    ),
    rule("nurse", &["nurse ‹NAME|{given}›", "nurse ‹NAME|{last}›", "Sister ‹NAME|{last}›"]),
    rule(
        "relative",
        &[
            "a friend, ‹NAME|{given}›",
            "next of kin ‹NAME|{given}›",
            "the daughter",
            "a neighbour, Mr. ‹NAME|{last}›",
            "the carer ‹NAME|{given}›",
            "‹NAME|{given} {pl}› (family)",
        ],
    ),
    // Places, numbers, days.
    rule("home", &["‹PLACE|{town}›", "‹PLACE|{town}›", "‹PLACE|{num} {surname} Street, {town}›"]),
    split_rule(
        "site",
        &["‹PLACE|{town} Hospital›", "‹PLACE|St. {surname} Clinic›", "‹PLACE|{town} Medical Centre›"],
        &["‹PLACE|{town} Infirmary›", "‹PLACE|{surname} Hospice›"],
    ),
    rule("day", &["‹DATE|{date}›"]),
    rule("tel", &["‹PHONE|{phone}›"]),
    rule("record", &["MRN ‹ID|{code}›", "file no. ‹ID|{code}›", "case ‹ID|{code}›"]),
    rule("ident", &["‹ID|{code}›"]),
    split_rule(
        "eponym",
        &[
            "Parkinson disease",
            "Crohn disease",
            "Bell palsy",
            "Graves disease",
            "Addison disease",
            "Hodgkin lymphoma",
            "a Baker cyst",
            "Raynaud syndrome",
            "Alzheimer disease",
        ],
        &["Paget disease", "Cushing syndrome", "Wilson disease", "Marfan syndrome"],
    ),
    split_rule(
        "opening",
        &[
            "{patient}, {age} years old, was admitted to {site} on {day} with {complaint}.",
            "Seen on {day}: {patient}, {complaint} for {duration}.",
            "{doctor} reviewed {patient} for {complaint} in room {num}.",
            "{patient} ({record}) presents with {complaint} and {sign}.",
            "{day}: {patient} attended {site} after {complaint}.",
            "{patient} lives in {home} and reports {complaint} for {duration}.",
            "Referral from {doctor}, {site}: {patient} with {complaint}.",
            "{patient} is short of breath since {day}.",
            "{^record}, {patient}, known {eponym}, now {complaint}.",
            "Called by {relative} on {day}: {patient} has {complaint}.",
            "{patient} was brought in from {home} by {relative}.",
            "Follow-up of {patient}: {complaint} is better, no {sign}.",
            "Long history of {eponym} in {patient}, last seen {day}.",
            "A {age}-year-old from {home}, {record}, with {complaint} for {duration}.",
            "{patient} asks whether {drug} may cause {complaint}.",
            "Transfer of {patient} from {site} to {site}, bed {small}.",
            "{patient} has had {complaint} since ‹DATE|{month}›.",
            "{patient} and {relative} came to {site} about {complaint}.",
            "Home visit in {home} by {nurse}: {patient} has {complaint}.",
            "{patient} feels cold in winter and has {complaint}.",
        ],
        &[
            "We saw {patient} of {home} because of {complaint}.",
            "New on the ward: {patient}, {record}, {age}, {complaint}.",
            "On {day} {doctor} took over the care of {patient}.",
            "{^complaint} in {patient}, sent by {site} on {day}.",
            "{^relative} brought {patient} to {site}, long drive from {home}.",
        ],
    ),
    split_rule(
        "finding",
        &[
            "BP {bp}, pulse {num}.",
            "Started {drug} {dose} {often}.",
            "No sign of {eponym}.",
            "{^test} on {day} was normal.",
            "{^test} showed {eponym} and a small stone.",
            "{^eponym} was ruled out by {doctor}.",
            "Sharp pain in the {body}, a long scar, no burns.",
            "{doctor} changed {drug} to {other_drug} {dose}.",
            "BP was {bp} on {day} and is {bp} today.",
            "The mark on the {body} may be a burn.",
            "{ti} ‹NAME|{pl}› will stop {drug} after {duration}.",
            "We hope to stop {drug} after {duration}.",
            "{^test} from {site} is awaited.",
            "Frank blood was not seen; {drug} {dose} at {time}.",
            "Lives with {relative} in {home}.",
            "Bill for the {test} sent on {day}.",
            "Good response to {drug}, weight {num} kg.",
        ],
        &[
            "{^nurse} gave {drug} at {time}, BP {bp}.",
            "{^test} of {day}: {eponym} is likely.",
            "Wells score {small}, a good pulse, rose spots on the {body}.",
            "{^drug} was stopped by {doctor} on {day}.",
        ],
    ),
    split_rule(
        "closing",
        &[
            "Review on {day} with {doctor}.",
            "Call {relative} at {tel}.",
            "Results to {tel}.",
            "Discharged to {home} on {day}.",
            "Seen again at {site} in {duration}.",
            "Contact: {nurse}, {tel}.",
            "Copy to {doctor}, {site}.",
            "Old number {ident}, new number {ident}.",
            "{doctor} will call {ti} ‹NAME|{pl}› on {day}.",
            "Signed {doctor}, {day}.",
            "Ask for {nurse} in room {num}.",
            "Insurance no. {ident}.",
            "Next visit {day}, bring card {ident}.",
            "Phone {tel}, or {tel} at night.",
        ],
        &[
            "Next of kin: ‹NAME|{given} {last}›, {tel}.",
            "Letter sent to {home} on {day}.",
            "Please quote {ident} when you ring {tel}.",
            "Plan agreed with {relative} and {doctor}.",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_stripped_or_replaced() {
        let note = "‹NAME|Ann Short› is short; call ‹PHONE|555-1234›.";
        assert_eq!(plain(note), "Ann Short is short; call 555-1234.");
        assert_eq!(masked(note), "[NAME] is short; call [PHONE].");
    }

    #[test]
    fn answers_hold_placeholders_and_inputs_none() {
        let splits = rows(3);
        for row in splits.train.iter().chain(&splits.test) {
            assert!(!row.user.contains(['[', '‹', '|', '{']), "{}", row.user);
            assert!(!row.assistant.contains(['‹', '|', '{']), "{}", row.assistant);
            assert!(row.assistant.contains('['), "{}", row.assistant);
        }
        for kind in ["[NAME]", "[DATE]", "[PHONE]", "[ID]", "[PLACE]"] {
            assert!(splits.test.iter().filter(|row| row.assistant.contains(kind)).count() >= 20, "{kind}");
        }
    }
}
