//! Text from rules: a template is text with slots, a slot names a rule or a value, a rule is a list of templates.
//!
//! | slot | meaning |
//! | --- | --- |
//! | `{drug}` | one option of the rule `drug`, or a value such as `date` |
//! | `{p=person}` | the same, kept under the name `p` |
//! | `{p}` | what was kept under `p` |
//! | `{^thing}` | with a capital first letter |
//! | `a(n)` | `a` or `an`, by the letter that follows |
//! | `{thing}(s)` | the plural |

use crate::dice::Dice;
use crate::names::{self, Pool};
use crate::values;
use std::collections::BTreeMap;

/// A named list of templates. What stands in `held_out` is used in no training row.
pub(crate) struct Rule {
    /// The name that slots use.
    pub(crate) name: &'static str,
    /// Templates for every row.
    pub(crate) options: &'static [&'static str],
    /// Templates for held-out rows alone.
    pub(crate) held_out: &'static [&'static str],
}

/// A rule without held-out templates.
pub(crate) const fn rule(name: &'static str, options: &'static [&'static str]) -> Rule {
    Rule { name, options, held_out: &[] }
}

/// A rule with them.
pub(crate) const fn split_rule(
    name: &'static str,
    options: &'static [&'static str],
    held_out: &'static [&'static str],
) -> Rule {
    Rule { name, options, held_out }
}

/// Rules by name.
pub(crate) struct Grammar {
    rules: BTreeMap<&'static str, &'static Rule>,
}

impl Grammar {
    /// Gather the rules of several tables.
    pub(crate) fn new(tables: &[&'static [Rule]]) -> Self {
        Self { rules: tables.iter().flat_map(|table| table.iter()).map(|rule| (rule.name, rule)).collect() }
    }

    /// The rule `name`.
    ///
    /// # Panics
    /// On an unknown name: the tables are part of the program, and a test expands every template.
    pub(crate) fn rule(&self, name: &str) -> &'static Rule {
        self.rules.get(name).copied().unwrap_or_else(|| panic!("no rule and no value is named `{name}`"))
    }

    /// The names of all rules.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.rules.keys().copied().collect()
    }
}

/// One document in the making: dice, what was kept, and whose names and phrases may be used.
pub(crate) struct Scene<'g> {
    grammar: &'g Grammar,
    /// The document's draws.
    pub(crate) dice: Dice,
    kept: BTreeMap<String, String>,
    /// Whose built names and codes.
    pub(crate) values_from: Pool,
    /// Whether rules that have held-out templates must use those.
    pub(crate) held_out_phrases: bool,
}

impl<'g> Scene<'g> {
    /// An empty scene.
    pub(crate) fn new(grammar: &'g Grammar, dice: Dice, values_from: Pool) -> Self {
        Self { grammar, dice, kept: BTreeMap::new(), values_from, held_out_phrases: false }
    }

    /// Keep a value under a name, for `{name}`.
    pub(crate) fn keep(&mut self, name: &str, value: impl Into<String>) {
        self.kept.insert(name.to_owned(), value.into());
    }

    /// Forget what was kept.
    pub(crate) fn forget(&mut self) {
        self.kept.clear();
    }

    /// Fill the slots of a template.
    pub(crate) fn fill(&mut self, template: &str) -> String {
        let mut text = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            text.push_str(&rest[..open]);
            let close = open + rest[open..].find('}').unwrap_or_else(|| panic!("no `}}` in `{template}`"));
            text.push_str(&self.slot(&rest[open + 1..close]));
            rest = &rest[close + 1..];
        }
        text.push_str(rest);
        let text = if text.contains("(n) ") { with_articles(&text) } else { text };
        if text.contains("(s)") { with_plurals(&text) } else { text }
    }

    /// One option of a rule, filled.
    pub(crate) fn expand(&mut self, rule: &str) -> String {
        let rule = self.grammar.rule(rule);
        let options =
            if self.held_out_phrases && !rule.held_out.is_empty() { rule.held_out } else { rule.options };
        let template = self.dice.pick(options);
        self.fill(template)
    }

    fn slot(&mut self, slot: &str) -> String {
        let (capital, slot) = slot.strip_prefix('^').map_or((false, slot), |rest| (true, rest));
        let value = match slot.split_once('=') {
            Some((name, kind)) => {
                let value = self.value(kind);
                self.keep(name, value.clone());
                value
            }
            None => self.kept.get(slot).cloned().unwrap_or_else(|| self.value(slot)),
        };
        if capital { names::capitalised(&value) } else { value }
    }

    fn value(&mut self, kind: &str) -> String {
        let (dice, pool) = (&mut self.dice, self.values_from);
        match kind {
            "first" => names::first_name(dice, pool),
            "surname" => names::surname(dice, pool),
            "person" => format!("{} {}", names::first_name(dice, pool), names::surname(dice, pool)),
            "town" => names::built_place(dice, pool),
            "made" => names::built_product(dice, pool),
            "nonsense" => names::nonsense(dice, pool),
            "code" => values::code(dice, pool),
            "date" => values::date(dice),
            "month" => values::month(dice).to_owned(),
            "time" => values::time(dice),
            "phone" => values::phone(dice),
            "version" => values::version(dice),
            "amount" => values::amount(dice),
            "bp" => values::blood_pressure(dice),
            "small" => dice.between(2, 9).to_string(),
            "few" => dice.pick(&["two", "three", "four", "five", "six"]).to_owned(),
            "num" => dice.between(10, 99).to_string(),
            "big" => values::digits(dice, 3),
            "long" => values::digits(dice, 5),
            "age" => dice.between(19, 91).to_string(),
            _ => self.expand(kind),
        }
    }
}

/// Settle every `a(n)`.
fn with_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("(n) ") {
        out.push_str(&rest[..at]);
        rest = &rest[at + 4..];
        let vowel = rest.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U', '8']);
        out.push_str(if vowel { "n " } else { " " });
    }
    out.push_str(rest);
    out
}

/// Settle every `(s)`.
fn with_plurals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut pieces = text.split("(s)").peekable();
    while let Some(piece) = pieces.next() {
        out.push_str(piece);
        if pieces.peek().is_none() {
            break;
        }
        let stem = |n: usize| out[..out.len() - n].to_owned();
        if out.ends_with("fe") {
            out = stem(2) + "ves";
        } else if out.ends_with('f') {
            out = stem(1) + "ves";
        } else if out.ends_with("ry") {
            out = stem(1) + "ies";
        } else if out.ends_with(['x', 's', 'z']) || out.ends_with("ch") || out.ends_with("sh") {
            out.push_str("es");
        } else {
            out.push('s');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &[Rule] = &[
        rule("greeting", &["{^who=animal} greets {who}, a(n) {who}."]),
        split_rule("animal", &["cat"], &["owl"]),
    ];

    #[test]
    fn plurals_follow_the_ending() {
        assert_eq!(
            with_plurals("box(s), knife(s), shelf(s), battery(s), key(s)"),
            "boxes, knives, shelves, batteries, keys"
        );
    }

    #[test]
    fn a_kept_value_comes_back_and_articles_agree() {
        let grammar = Grammar::new(&[RULES]);
        let mut scene = Scene::new(&grammar, Dice::new(1, "test", 0), Pool::Corpus);
        assert_eq!(scene.expand("greeting"), "Cat greets cat, a cat.");
        scene.held_out_phrases = true;
        assert_eq!(scene.expand("greeting"), "Owl greets owl, an owl.");
    }
}
