//! `ticket-triage`: a support message, and one line of JSON that says which product and version, what kind of trouble,
//! how urgent, and whose.
//!
//! The rules of the labels (the README says them to people):
//! - `version` is the one in use now; older, newer and other products' versions are distractors; `null` if none is named.
//! - `priority` is `urgent` if everybody is stopped, data is lost or strangers get in; `high` if the writer cannot work or
//!   has a deadline; `low` if the writer says that there is no hurry, and for a wish without a word on urgency; else `normal`.
//! - `customer` is the customer's number, never that of an order, invoice or case; `null` if none is given.

use crate::dataset::{Row, Splits};
use crate::grammar::{Grammar, Rule, Scene, rule, split_rule};
use crate::words::WORDS;
use serde_json::{Map, Value};

const SYSTEM: &str = "Triage the ticket as JSON.";
/// The closed set of categories; each is also the name of a rule.
const CATEGORIES: &[&str] = &["billing", "access", "crash", "sync", "speed", "request"];
/// The priorities, each with how often a ticket states it.
const PRIORITIES: &[(usize, &str)] = &[(18, "urgent"), (22, "high"), (22, "normal"), (18, "low"), (20, "")];

/// All rows of the dataset.
pub(crate) fn rows(seed: u64) -> Splits {
    let grammar = Grammar::new(&[WORDS, RULES]);
    Splits::draw(&grammar, "ticket-triage", seed, ticket)
}

fn ticket(scene: &mut Scene<'_>) -> Row {
    keep_versions(scene);
    for (kept, kind) in
        [("product", "{product_name}"), ("other", "{product_name}"), ("id", "{code}"), ("paper", "{code}")]
    {
        let value = scene.fill(kind);
        scene.keep(kept, value);
    }
    let category = scene.dice.pick(CATEGORIES);
    let stated = scene.dice.weighted(PRIORITIES);
    let named_version = scene.dice.chance(85);
    let named_customer = scene.dice.chance(92);

    let intro = scene.expand(if named_version { "intro" } else { "bare_intro" });
    let mut parts = vec![scene.expand(category)];
    if !stated.is_empty() {
        parts.push(scene.expand(stated));
    }
    let at = scene.dice.below(parts.len() + 1);
    if named_customer {
        let who = scene.expand("who");
        parts.insert(at, who);
    } else if scene.dice.chance(40) {
        let paper = scene.expand("paper_only");
        parts.insert(at, paper);
    }
    // Most people begin with the product, some end with it.
    parts.insert(if scene.dice.chance(80) { 0 } else { parts.len() }, intro);

    let priority = match (stated, category) {
        ("", "request") => "low",
        ("", _) => "normal",
        (stated, _) => stated,
    };
    let mut answer = Map::new();
    let text = |scene: &mut Scene<'_>, slot: &str| Value::String(scene.fill(slot));
    answer.insert("product".into(), text(scene, "{product}"));
    answer.insert("version".into(), if named_version { text(scene, "{v}") } else { Value::Null });
    answer.insert("category".into(), category.into());
    answer.insert("priority".into(), priority.into());
    answer.insert("customer".into(), if named_customer { text(scene, "{id}") } else { Value::Null });
    Row { system: SYSTEM.to_owned(), user: parts.join(" "), assistant: Value::Object(answer).to_string() }
}

/// An older, the present and a newer version.
fn keep_versions(scene: &mut Scene<'_>) {
    let dice = &mut scene.dice;
    let (major, minor, step) = (dice.between(1, 8), dice.between(1, 9), dice.between(1, 3));
    let patch = |dice: &mut crate::dice::Dice| {
        if dice.chance(40) { format!(".{}", dice.below(10)) } else { String::new() }
    };
    let versions = if dice.chance(70) {
        [(major, minor), (major, minor + step), (major, minor + step + 1)]
    } else {
        [(major, minor), (major + 1, 0), (major + 1, step)]
    };
    for ((major, minor), name) in versions.into_iter().zip(["old", "v", "new"]) {
        let patch = patch(&mut scene.dice);
        scene.keep(name, format!("{major}.{minor}{patch}"));
    }
}

const RULES: &[Rule] = &[
    rule("product_name", &["{made}", "{made} {suite}", "{made} {suite}"]),
    split_rule(
        "suite",
        &["Mail", "Sync", "Desk", "Vault", "Notes", "Pay", "Forms", "Chat"],
        &["Drive", "Board", "Link", "Stock"],
    ),
    split_rule(
        "intro",
        &[
            "We use {product} {v}.",
            "{product} {v} here.",
            "We updated {product} from {old} to {v}.",
            "I have {product} version {v} on my {device}.",
            "Our team went from {product} {old} to {v}.",
            "{product}, version {v}.",
            "{other} is fine, but {product} {v} is not.",
            "Still on {v} of {product}, not yet on {new}.",
            "Back on {product} {v} after trouble with {new}.",
            "{product} was fine in {old}; now we run {v}.",
            "This is about {product} {v}, not about {other}.",
        ],
        &[
            "{product} says {v}; the manual says {old}.",
            "My colleague has {new}, I have {product} {v}.",
            "We left {other} and took {product} {v}.",
        ],
    ),
    split_rule(
        "bare_intro",
        &[
            "Hello, this is about {product}.",
            "A note on {product}.",
            "{product} again.",
            "I write because of {product}, not {other}.",
        ],
        &["My trouble is with {product}.", "Is this the right desk for {product}?"],
    ),
    split_rule(
        "billing",
        &[
            "You charged me twice.",
            "The invoice shows the wrong amount.",
            "I still wait for my refund of {amount}.",
            "Why did the price go up?",
            "My card was debited after I cancelled.",
            "The receipt lacks our tax number.",
            "We paid {amount} but the invoice is open.",
            "The discount was not applied.",
            "I was billed for {few} seats, not one.",
        ],
        &[
            "There is a double payment of {amount}.",
            "The bill does not match our order.",
            "Please refund the second charge.",
        ],
    ),
    split_rule(
        "access",
        &[
            "My password is not accepted.",
            "The login page sends me back to the start.",
            "I am locked out of my account.",
            "The reset mail never arrives.",
            "It says that my user does not exist.",
            "The second factor code is refused.",
            "I cannot sign in with the new key.",
            "My role was removed and I see nothing.",
            "It asks for the password again and again.",
        ],
        &[
            "Signing in fails for my user.",
            "The code from my phone is not accepted.",
            "My account is locked.",
        ],
    ),
    split_rule(
        "crash",
        &[
            "It closes as soon as I open a {thing} file.",
            "The {feature} ends with error {big}.",
            "It stops with a white screen.",
            "The program quits when I print.",
            "It dies after {small} seconds.",
            "The {feature} freezes and I must restart.",
            "I get a fatal error in the {feature}.",
            "It shuts itself down at start.",
            "A stack trace appears, then nothing.",
        ],
        &[
            "The window vanishes when I open the {feature}.",
            "It quits with error {big}.",
            "The {feature} freezes at once.",
        ],
    ),
    split_rule(
        "sync",
        &[
            "My {computer} and my {handheld} show different data.",
            "Changes do not reach my other {device}.",
            "The {feature} is out of date on my {device}.",
            "Old copies come back after I delete them.",
            "Items appear twice on every {device}.",
            "It has not updated since {weekday}.",
            "What I save here is missing there.",
            "The two offices see different lists.",
            "Merging fails with a conflict.",
        ],
        &[
            "My {device} does not get the new items.",
            "The lists on both machines differ.",
            "Deleted items come back on my {device}.",
        ],
    ),
    split_rule(
        "speed",
        &[
            "The {feature} takes {num} seconds.",
            "Everything is slow since {weekday}.",
            "The {feature} loads forever.",
            "It needs minutes to open a page.",
            "Typing lags behind.",
            "The {feature} is much slower than before.",
            "It uses all memory and crawls.",
            "Each click takes ages.",
            "Search runs for {num} minutes.",
        ],
        &[
            "It takes ages to load the {feature}.",
            "The {feature} became very slow.",
            "I wait {num} seconds for each page.",
        ],
    ),
    split_rule(
        "request",
        &[
            "Could you add a dark mode?",
            "I would like to export to {colour} PDF files.",
            "Please let us rename the {feature}.",
            "It would be nice to have a {feature} for teams.",
            "Can we get a bigger font?",
            "I wish the {feature} had shortcuts.",
            "Will there be a version for my {device}?",
            "An option to hide the {feature} would help.",
            "Please support more languages.",
        ],
        &[
            "I would love a {feature} on my {device}.",
            "Could the {feature} get more colours?",
            "Please add an option for the {feature}.",
        ],
    ),
    split_rule(
        "urgent",
        &[
            "Nobody in the office can work.",
            "We are losing data.",
            "All our shops have stopped.",
            "Strangers can see our files.",
            "The whole site is down.",
            "Every customer of ours is hit.",
            "Records vanish while we watch.",
            "Someone else got into our account.",
        ],
        &["Nobody here can work at all.", "Our data is being lost.", "Everyone has stopped working."],
    ),
    split_rule(
        "high",
        &[
            "I cannot work until it is fixed.",
            "We have a deadline tomorrow.",
            "I am stuck with it.",
            "I need it by noon.",
            "Not everybody is hit, but I cannot work.",
            "My report is due today.",
            "It blocks me completely.",
            "No data is lost, but I am blocked.",
        ],
        &["I cannot do my work.", "The deadline is today.", "The others are fine, I am blocked."],
    ),
    split_rule(
        "normal",
        &[
            "There is a way around it.",
            "Nobody is blocked.",
            "No data is lost.",
            "We can live with it for a week.",
            "It is not down, only odd.",
            "I can still work.",
            "We have no deadline yet.",
            "A restart helps for a while.",
        ],
        &["I have a way around it.", "Nobody is stuck and no data is lost.", "We can still work."],
    ),
    split_rule(
        "low",
        &[
            "No hurry.",
            "Just asking.",
            "It is only cosmetic.",
            "This is not urgent at all.",
            "Whenever you have time.",
            "It can wait.",
            "A small thing, really.",
            "No need to answer today.",
        ],
        &["There is no hurry at all.", "It can wait until you have time.", "Only a small thing."],
    ),
    split_rule(
        "who",
        &[
            "Customer {id}.",
            "Our customer number is {id}.",
            "Customer {id}, invoice {paper}.",
            "Order {paper}, customer {id}.",
            "I am {person}, customer {id}.",
            "Case {paper} is closed, our customer number is {id}.",
            "Customer no. {id}.",
            "{first} here, customer {id}.",
        ],
        &[
            "You know us as customer {id}.",
            "Ticket {paper} was ours too; customer {id}.",
            "Our number as a customer: {id}.",
        ],
    ),
    rule("paper_only", &["See order {paper}.", "It was case {paper}.", "Invoice {paper}."]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn answers_are_one_line_of_json_with_the_five_keys_and_every_label_occurs() {
        let splits = rows(3);
        let mut counts = BTreeMap::<String, usize>::new();
        for row in splits.test.iter().chain(&splits.train) {
            assert!(!row.assistant.contains('\n') && !row.user.contains(['{', '}']), "{}", row.user);
            let answer: Map<String, Value> = serde_json::from_str(&row.assistant).unwrap();
            assert_eq!(
                answer.keys().collect::<Vec<_>>(),
                ["product", "version", "category", "priority", "customer"]
            );
            for key in ["product", "version", "customer"] {
                if let Some(copied) = answer[key].as_str() {
                    assert!(row.user.contains(copied), "{copied} in {}", row.user);
                }
            }
            for key in ["category", "priority"] {
                *counts.entry(answer[key].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 10);
        assert!(counts.values().all(|count| *count > 100), "{counts:?}");
    }
}
