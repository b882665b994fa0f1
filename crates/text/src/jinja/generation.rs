//! `{% generation %}` ... `{% endgeneration %}`: the part of a template that the assistant says.
//!
//! minijinja has no statements of one's own. transformers makes the tag a call block, so the source is rewritten to one:
//! `{% call f() %}` ... `{% endcall %}`, with the same marks for whitespace and the same line breaks, and with the same
//! scoping of variables.

use std::borrow::Cow;

/// The function that a generation block calls.
pub(crate) const FUNCTION: &str = "taper_generation_block";

/// Whether the template has the tag, outside comments, strings and raw blocks.
pub(crate) fn has_generation_tags(source: &str) -> bool {
    tags(source).iter().any(|tag| tag.name == "generation")
}

/// The source with generation tags as call blocks.
pub(crate) fn rewrite_generation_tags(source: &str) -> Cow<'_, str> {
    let tags = tags(source);
    if tags.is_empty() {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len() + 32 * tags.len());
    let mut from = 0;
    for tag in tags {
        out.push_str(&source[from..tag.start]);
        match tag.name {
            "generation" => {
                out.push_str("call ");
                out.push_str(FUNCTION);
                out.push_str("()");
            }
            _ => out.push_str("endcall"),
        }
        from = tag.end;
    }
    out.push_str(&source[from..]);
    Cow::Owned(out)
}

/// The word `generation` or `endgeneration` in a tag of its own, by its bytes in the source.
struct Tag<'a> {
    name: &'a str,
    start: usize,
    end: usize,
}

fn tags(source: &str) -> Vec<Tag<'_>> {
    let mut found = Vec::new();
    let mut raw = false;
    let mut at = 0;
    while let Some(open) = source[at..].find('{').map(|i| at + i) {
        let rest = &source[open + 1..];
        let close = match rest.as_bytes().first() {
            Some(b'#') if !raw => rest.find("#}").map(|i| open + 1 + i + 2),
            Some(b'{') if !raw => end_of(source, open + 2, "}}"),
            Some(b'%') => end_of(source, open + 2, "%}"),
            _ => None,
        };
        let Some(close) = close else {
            at = open + 1;
            continue;
        };
        if rest.starts_with('%') {
            let inner = &source[open + 2..close - 2];
            let word = inner.trim_matches(['-', '+']).trim();
            let start = open + 2 + inner.find(word).unwrap_or(0);
            match word {
                "raw" => raw = true,
                "endraw" => raw = false,
                "generation" | "endgeneration" if !raw => {
                    found.push(Tag { name: word, start, end: start + word.len() });
                }
                // In a raw block, `{%` is text: look on right behind it.
                _ if raw => {
                    at = open + 2;
                    continue;
                }
                _ => {}
            }
        }
        at = close;
    }
    found
}

/// The end of a tag: the first `close` outside of a string.
pub(super) fn end_of(source: &str, from: usize, close: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            _ if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tags_are_rewritten_and_lines_stay() {
        let source = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{{ '{% endraw %}\n{%- generation -%}x{%+ endgeneration\n%}";
        let rewritten = rewrite_generation_tags(source);
        assert_eq!(
            rewritten,
            "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{{ '{% endraw %}\n{%- call taper_generation_block() -%}x{%+ endcall\n%}"
        );
        assert!(has_generation_tags(source));
        assert!(!has_generation_tags(
            "{# {% generation %} #} { {% if generation %}{% endif %} {{ \"it's }} \\\" %}"
        ));
    }

    #[test]
    fn a_source_that_is_no_template_does_no_harm() {
        for source in ["{%", "{{ '", "{#", "{% raw %}{%", "{", "{% 'é", "{%-%}", "{%%}"] {
            assert_eq!(rewrite_generation_tags(source), source);
        }
    }
}
