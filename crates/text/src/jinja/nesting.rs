//! Which templates can nest values so deeply that a thread's usual stack is too small to drop or compare them.
//!
//! `{% set ns.x = [ns.x] %}` in a loop puts a list in a list with every step. A loop keeps nothing but what is in a
//! namespace; without one, each level takes a tag of its own.

use super::generation::end_of;

/// Shorter templates, in bytes, have no more than some thousands of tags.
const LONG: usize = 1 << 16;

/// Whether a rendering may nest values deeply. In doubt it may.
pub(crate) fn nests_deeply(source: &str) -> bool {
    source.len() > LONG || (source.contains("namespace") && assignments(source).any(can_nest))
}

/// What is assigned to an attribute, in each tag that does so. Comments and raw blocks count as tags.
fn assignments(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices("{%").filter_map(|(at, _)| {
        let from = at + 2;
        let inner = &source[from..end_of(source, from, "%}").unwrap_or(source.len())];
        let (target, value) =
            inner.trim_start_matches(['-', '+']).trim_start().strip_prefix("set")?.split_once('=')?;
        target
            .contains('.')
            .then(|| value.strip_suffix("%}").unwrap_or(value).trim_end_matches(['-', '+']).trim())
    })
}

/// A literal, what a loop counts, and a sum with a number are no lists. A name may be one.
fn can_nest(value: &str) -> bool {
    let name = |text: &str| text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let quoted = |quote: char| {
        let inside = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        inside.is_some_and(|text| !text.contains(quote))
    };
    let sum = value.split_once(['+', '-']).is_some_and(|(a, b)| name(a.trim()) && number(b.trim()));
    let literal = ["true", "false", "none", "True", "False", "None"].contains(&value) || number(value);
    let counter =
        value.strip_prefix("loop.").is_some_and(|rest| ["index", "index0", "first", "last"].contains(&rest));
    !(sum || literal || counter || quoted('\'') || quoted('"'))
}

#[cfg(test)]
mod tests {
    use super::nests_deeply;

    #[test]
    fn counters_and_literals_do_not_nest_and_all_else_may() {
        let of = |tag: &str| nests_deeply(&format!("{{% set ns = namespace(x=[]) %}}{tag}"));
        for tag in [
            "{%- set ns.n = ns.n + 1 -%}",
            "{% set ns.found=true %}",
            "{% set ns.last = loop.index0 %}",
            "{% set ns.text = '[x]' %}",
            "{% set x = [x] %}",
            "{{ [ns.x] }}",
        ] {
            assert!(!of(tag), "{tag}");
        }
        for tag in [
            "{% set ns.x = [ns.x] %}",
            "{%+set ns.x={'a': ns.x}%}",
            "{% set ns.x = ns.x + [1] %}",
            "{% set ns.x = ns.x|list %}",
            "{% set ns.x = '%}' ~ [ns.x] %}",
            "{% set ns.x = 'a' ~ [ns.x] ~ 'b' %}",
            "{% set ns.x = (ns.x,) %}",
            "{% set y = [ns.x] %}{% set ns.x = y %}",
            "{# {% #}{% set ns.x = [ns.x] %}",
        ] {
            assert!(of(tag), "{tag}");
        }
        assert!(!nests_deeply("{% set x.y = [x] %}"));
        assert!(nests_deeply(&"x".repeat(70_000)));
    }
}
