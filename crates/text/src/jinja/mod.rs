//! The Jinja dialect of chat templates: what transformers adds to Jinja2, on minijinja.
//!
//! Blocks are trimmed and left-stripped, `{% break %}` and `{% continue %}` work, values print as in Python, and there
//! are `raise_exception`, `strftime_now`, `tojson` as `json.dumps` and `{% generation %}`. A template is foreign code,
//! so it can load nothing, its steps are counted, its recursion and its output are bounded, and so are the filters and
//! methods ([`limits`]). It is compiled, and where it can nest values deeply rendered, on a stack that has room for it. What is not: the operators. `x ~ x` in a loop doubles a text with every step.

mod generation;
mod limits;
mod methods;
mod nesting;
mod python;
mod strftime;

pub(crate) use generation::{has_generation_tags, rewrite_generation_tags};
pub(crate) use methods::is_space;
pub(crate) use nesting::nests_deeply;

use crate::contained::{contained, contained_deep};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use std::io;
use std::time::SystemTime;

/// Steps that one rendering may take; a conversation of 1000 messages takes about 200 000.
const FUEL: u64 = 4_000_000;
/// Nesting of blocks, macros and calls.
const RECURSION: usize = 200;
/// The longest text that a rendering may give, in bytes.
pub(crate) const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// Stands before what is inside `{% generation %}`, when spans are asked for.
pub(crate) const GENERATION_START: char = '\u{10FFF0}';
/// Stands after it.
pub(crate) const GENERATION_END: char = '\u{10FFF1}';

/// The template's own words, given to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("the template raised an exception")]
struct Raised;

/// What `strftime_now` sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The machine's clock, in UTC.
    System,
    /// A fixed moment: seconds since 1970 in UTC.
    Fixed(u64),
}

/// An environment with all that a chat template may use. `track`: put marks around generation blocks.
pub(crate) fn environment(clock: Clock, track: bool) -> Environment<'static> {
    let mut env = Environment::empty_like_jinja2();
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
    });
    env.add_function("strftime_now", move |format: String| {
        let now = match clock {
            Clock::System => SystemTime::now(),
            Clock::Fixed(seconds) => strftime::at(seconds),
        };
        strftime::strftime(&format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
    });
    env.add_function(generation::FUNCTION, move |state: &State, kwargs: Kwargs| {
        let body = kwargs.get::<Value>("caller")?.call(state, &[])?;
        let text = limits::shown(state, &body)?;
        Ok::<_, Error>(if track { format!("{GENERATION_START}{text}{GENERATION_END}") } else { text })
    });
    env
}

/// Whether an error came from `raise_exception`.
pub(crate) fn was_raised(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<Raised>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Render into a string of bounded length. `deep`: on a stack of its own, which takes some 50 microseconds.
pub(crate) fn render_bounded(
    template: &minijinja::Template,
    context: &Value,
    deep: bool,
) -> Result<String, Error> {
    let call = || {
        let mut out = Bounded(Vec::new());
        template.render_captured_to(context, &mut out).map(drop)?;
        Ok(out.0)
    };
    let outcome: Result<Result<Vec<u8>, Error>, String> =
        if deep { contained_deep(call) } else { contained(call) };
    let bytes = outcome.map_err(|panic| Error::new(ErrorKind::InvalidOperation, panic))??;
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::BadSerialization, "the output is not UTF-8"))
}

/// Jinja2's settings and manners, before anything that transformers adds.
trait LikeJinja2 {
    fn empty_like_jinja2() -> Environment<'static>;
}

impl LikeJinja2 for Environment<'_> {
    fn empty_like_jinja2() -> Environment<'static> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(RECURSION);
        // An error would carry the values of the template's variables, however deep, to a stack that has no room for them.
        env.set_debug(false);
        env.set_unknown_method_callback(methods::call);
        limits::install(&mut env);
        env.set_formatter(|out, state, value| {
            out.write_str(&limits::shown(state, value)?).map_err(|_| Error::from(ErrorKind::WriteFailure))
        });
        env.add_filter("tojson", limits::tojson);
        env.add_filter("string", |state: &State, value: &Value| limits::shown(state, value));
        env.add_filter("trim", trim);
        env.add_filter("join", join);
        // In Python a string is a sequence, and so is a dict to Jinja2's test.
        env.add_test("sequence", |value: &Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        env
    }
}

fn trim(state: &State, value: &Value, chars: Option<String>) -> Result<String, Error> {
    let text = limits::shown(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keywords over by value")]
fn join(state: &State, value: &Value, joiner: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let joiner = match joiner {
        Some(joiner) => Some(joiner),
        None => kwargs.get::<Option<Value>>("d")?,
    };
    let joiner = joiner.map(|j| python::str_of(&j)).transpose()?.unwrap_or_default();
    let attribute = kwargs.get::<Option<String>>("attribute")?;
    kwargs.assert_all_used()?;
    joined(state, value, &joiner, attribute.as_deref())
}

/// The items, or an attribute of each, with `joiner` between them.
fn joined(state: &State, items: &Value, joiner: &str, attribute: Option<&str>) -> Result<String, Error> {
    let mut out = String::new();
    for (i, item) in limits::walked(items)?.into_iter().enumerate() {
        if i > 0 {
            out.push_str(joiner);
        }
        let item = match attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        out.push_str(&limits::shown(state, &item)?);
        limits::within(out.len())?;
    }
    Ok(out)
}

struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(format!("the text is longer than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
