//! What the filters and methods of a template may cost.
//!
//! Fuel counts instructions, and one instruction can be a filter over a million items. So each call of a filter or method
//! pays for the size of what it is given from an allowance of the rendering, sequences that a template made up
//! (`[1] * 1000000000000` takes no memory until somebody walks over it) are cut short by an error, and arguments that
//! alone decide the size of a result (a width, a count) have a limit.

use super::python;
use minijinja::value::{Kwargs, Object, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use std::sync::atomic::{AtomicU64, Ordering};

/// What the calls of one rendering may cost together, in bytes. 1000 messages of 10 kB are 10 MB.
const ALLOWANCE: u64 = 1 << 28;
/// What an item of a sequence counts for, in bytes.
const ITEM: u64 = 32;
/// The most items of a sequence that a filter takes.
const MOST_ITEMS: usize = 1_000_000;
/// The longest text that a filter or method takes or makes, in bytes.
pub(crate) const LONGEST: usize = super::MAX_OUTPUT_BYTES;
/// The longest text that one list or map may be printed as, in bytes.
const LONGEST_VALUE: usize = 8 << 20;
/// What a byte of a printed list or map counts for: it takes as long as so many bytes of a text.
const PRINTED: u64 = 32;
/// The largest width, precision or count that is given as an argument.
const WIDEST: u64 = 10_000;

/// Put the limits around minijinja's filters.
pub(crate) fn install(env: &mut Environment<'_>) {
    let plain = [
        ("list", Value::from_function(filters::list)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
        ("reverse", Value::from_function(filters::reverse)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sum", Value::from_function(filters::sum)),
        ("map", Value::from_function(filters::map)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("groupby", Value::from_function(filters::groupby)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("items", Value::from_function(filters::items)),
        ("zip", Value::from_function(filters::zip)),
        ("last", Value::from_function(filters::last)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("upper", Value::from_function(filters::upper)),
        ("lower", Value::from_function(filters::lower)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
    ];
    for (name, inner) in plain {
        guard(env, name, inner, |_| Ok(()));
    }
    guard(env, "replace", Value::from_function(filters::replace), replacing);
    guard(env, "format", Value::from_function(filters::format), formatting);
    for (name, inner) in [
        ("indent", Value::from_function(filters::indent)),
        ("slice", Value::from_function(filters::slice)),
        ("batch", Value::from_function(filters::batch)),
    ] {
        guard(env, name, inner, |args| args.iter().skip(1).try_for_each(narrow));
    }
    // Its output has no place for Python's values, and no limit.
    env.remove_filter("pprint");
    env.remove_filter("chain");
}

type Check = fn(&[Value]) -> Result<(), Error>;

fn guard(env: &mut Environment<'_>, name: &'static str, inner: Value, check: Check) {
    env.add_filter(name, move |state: &State, args: Rest<Value>| -> Result<Value, Error> {
        let mut args = args.0;
        spend(state, &args)?;
        check(&args)?;
        if let Some(first) = args.first_mut().filter(|first| first.kind() == ValueKind::Iterable) {
            *first = Value::from(walked(first)?);
        }
        inner.call(state, &args)
    });
}

/// A method pays like a filter.
pub(crate) fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<(), Error> {
    let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
    spend(state, &all)?;
    match name {
        "replace" => replacing(&all),
        "format" => formatting(&all),
        _ => Ok(()),
    }
}

/// The items of a sequence that may be without end.
pub(crate) fn walked(value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() == MOST_ITEMS {
            return Err(too_much("a sequence of more than 1000000 items"));
        }
        items.push(item);
    }
    Ok(items)
}

/// Refuse a text that is longer than any honest rendering.
pub(crate) fn within(bytes: usize) -> Result<(), Error> {
    if bytes > LONGEST { Err(too_much("a text over 64 MiB")) } else { Ok(()) }
}

/// Refuse to print a list or a map on and on.
pub(crate) fn within_value(bytes: usize) -> Result<(), Error> {
    if bytes > LONGEST_VALUE { Err(too_much("a list or map of over 8 MiB as text")) } else { Ok(()) }
}

/// `str(value)`, paid for.
pub(crate) fn shown(state: &State, value: &Value) -> Result<String, Error> {
    let text = python::str_of(value)?;
    let weight = if value.kind() == ValueKind::String { 1 } else { PRINTED };
    pay(state, (text.len() as u64).saturating_mul(weight))?;
    Ok(text)
}

/// `json.dumps(value)`, paid for.
pub(crate) fn tojson(
    state: &State,
    value: &Value,
    ascii: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let json = python::tojson(value, ascii, kwargs)?;
    pay(state, (json.len().unwrap_or(0) as u64).saturating_mul(PRINTED))?;
    Ok(json)
}

#[derive(Debug, Default)]
struct Spent(AtomicU64);

impl Object for Spent {}

fn spend(state: &State, args: &[Value]) -> Result<(), Error> {
    let mut cost: u64 = 0;
    for arg in args {
        cost = cost.saturating_add(match arg.as_str() {
            Some(text) => {
                within(text.len())?;
                text.len() as u64
            }
            None => (arg.len().unwrap_or(0) as u64).saturating_mul(ITEM),
        });
    }
    pay(state, cost)
}

fn pay(state: &State, cost: u64) -> Result<(), Error> {
    let spent = state.get_or_set_temp_object("taper_spent", Spent::default);
    let before = spent.0.fetch_add(cost.min(ALLOWANCE), Ordering::Relaxed);
    if before.saturating_add(cost) > ALLOWANCE {
        Err(too_much("more work than 256 MiB of text"))
    } else {
        Ok(())
    }
}

/// `value.replace(from, to)`, before it is done.
fn replacing(args: &[Value]) -> Result<(), Error> {
    let texts: Vec<&str> = args.iter().take(3).filter_map(Value::as_str).collect();
    let [value, from, to] = texts.as_slice() else { return Ok(()) };
    let most = if from.is_empty() { value.len() + 1 } else { value.len() / from.len() };
    if most.saturating_mul(to.len()) <= LONGEST {
        return Ok(());
    }
    within(value.len().saturating_add(value.matches(from).count().saturating_mul(to.len())))
}

/// A width stands in the format, or among the arguments for a `*`.
fn formatting(args: &[Value]) -> Result<(), Error> {
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    for digits in text.split(|c: char| !c.is_ascii_digit()).filter(|digits| digits.len() > 4) {
        if digits.trim_start_matches('0').len() > 4 {
            return Err(too_much("a width over 9999"));
        }
    }
    if text.contains('*') { args.iter().skip(1).try_for_each(narrow) } else { Ok(()) }
}

/// A count or a width that was given as a number.
fn narrow(arg: &Value) -> Result<(), Error> {
    let wide = |value: &Value| value.is_integer() && value.as_usize().is_some_and(|n| n as u64 > WIDEST);
    let keyword = ["width", "count", "linecount", "slices"];
    let named = arg.is_kwargs() && keyword.iter().any(|name| arg.get_attr(name).is_ok_and(|v| wide(&v)));
    if named || wide(arg) { Err(too_much("a width or count over 10000")) } else { Ok(()) }
}

fn too_much(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the template asks for {what}"))
}

#[cfg(test)]
mod tests {
    use crate::jinja::{Clock, environment, render_bounded};
    use minijinja::Value;

    fn render(source: &str) -> Result<String, String> {
        let mut env = environment(Clock::Fixed(0), false);
        env.add_template("t", source).unwrap();
        render_bounded(&env.get_template("t").unwrap(), &Value::from(()), false).map_err(|e| e.to_string())
    }

    #[test]
    fn what_a_number_alone_could_make_endless_is_refused() {
        for source in [
            "{{ 'a'|indent(1000000000000) }}",
            "{{ 'a'|indent(width=1000000000000) }}",
            "{{ [1]|batch(1000000000000) }}",
            "{{ [1]|slice(1000000000000) }}",
            "{{ '%999999999d'|format(1) }}",
            "{{ '{:>999999999}'.format('a') }}",
            "{{ '%*d'|format(999999999, 1) }}",
            "{{ ([1] * 1000000000000)|list|length }}",
            "{{ ([1] * 1000000000000)|map('string')|first }}",
            "{{ ([1] * 1000000000000)|join }}",
            "{{ ','.join([1] * 1000000000000) }}",
            "{{ [1] * 1000000000000 }}",
            "{{ ([1] * 1000000000000)|tojson }}",
            "{{ ([1] * 1000000000000).count(1) }}",
            "{{ ('a' * 90000000)|upper|length }}",
            "{{ ('a' * 10000000).replace('a', 'bbbbbbbbbb')|length }}",
            "{{ ('a' * 10000000)|replace('', 'bbbbbbbbbb')|length }}",
        ] {
            let error = render(source).expect_err(source);
            assert!(error.contains("the template asks for"), "{source}: {error}");
        }
    }

    #[test]
    fn two_hundred_calls_over_a_megabyte_are_paid_and_two_thousand_are_not() {
        let of = |count: usize| {
            let text = "{% set x = 'a' * 1000000 %}";
            render(&format!("{text}{{% for i in range({count}) %}}{{% set y = x|upper %}}{{% endfor %}}done"))
        };
        assert_eq!(of(200).unwrap(), "done");
        assert!(of(2000).unwrap_err().contains("more work"));
    }

    #[test]
    fn values_that_share_parts_are_printed_to_the_limit_only() {
        let doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
        for print in ["{{ ns.x|tojson }}", "{{ [ns.x]|join }}"] {
            let error = render(&format!("{doubled}{print}")).expect_err(print);
            assert!(error.contains("over 8 MiB as text"), "{print}: {error}");
        }
    }

    #[test]
    fn printing_is_paid_for_also_where_nobody_sees_it() {
        let of = |count: usize, print: &str| {
            let list = "{% set x = [1] * 200000 %}";
            render(&format!("{list}{{% for i in range({count}) %}}{{% set y = {print} %}}{{% endfor %}}done"))
        };
        for print in ["x|tojson", "x|string", "x|trim", "x|join"] {
            assert_eq!(of(2, print).unwrap(), "done", "{print}");
            assert!(of(100_000, print).unwrap_err().contains("more work"), "{print}");
        }
        let captured = of(100_000, "1")
            .map(|_| "{% for i in range(100000) %}{% set y %}{{ [1] * 200000 }}{% endset %}{% endfor %}");
        assert!(render(captured.unwrap()).unwrap_err().contains("more work"));
    }

    #[test]
    fn filters_still_do_what_they_did() {
        for (source, expected) in [
            ("{{ [3, 1, 2]|sort|list }}{{ 'a\nb'|indent(2) }}", "[1, 2, 3]a\n  b"),
            (
                "{{ [1, 2, 3]|batch(2, 'x')|list }}{{ [1, 2, 3]|slice(2)|list }}",
                "[[1, 2], [3, 'x']][[1, 2], [3]]",
            ),
            ("{{ '%s-%03d'|format('a', 7) }}{{ '{:>3}'.format('b') }}", "a-007  b"),
            (
                "{{ [{'a': 1}, {'a': 2}]|map(attribute='a')|list }}{{ range(3)|select('odd')|list }}",
                "[1, 2][1]",
            ),
            (
                "{{ [{'a': 1}, {}]|selectattr('a', 'defined')|list }}{{ 'a'|replace('a', 'b') }}",
                "[{'a': 1}]b",
            ),
            (
                "{{ ', '.join(['a', 'b']) }}{{ [1, 2]|sum }}{{ {'b': 1, 'a': 2}|dictsort }}",
                "a, b3[['a', 2], ['b', 1]]",
            ),
            (
                "{{ (['a'] * 2)|list }}{{ 'ab'|list }}{{ 'ab'|reverse }}{{ [1, 1]|unique|list }}",
                "['a', 'a']['a', 'b']ba[1]",
            ),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }
}
