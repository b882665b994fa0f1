//! `report.html`: one file that asks for nothing, to be opened from a disk, sent by mail and printed.
//!
//! The page is `page.html` with six places `{{name}}` filled: the policy, the title, the style, what is read without scripts, the
//! data, the script. All are filled in one pass, so that no data is ever looked at for places. `tests/report/render.mjs` does the
//! same for the tests of the page.
//!
//! What a model wrote is hostile. It stands in the file as JSON without any `<`, `>` or `&`, and scripts put it on the page as
//! text only. The policy lets no other script run than ours (by its hash) and no request leave the page.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// In this order; the last one draws the page.
const SCRIPTS: &[&str] = &[
    include_str!("dom.js"),
    include_str!("format.js"),
    include_str!("state.js"),
    include_str!("verdict.js"),
    include_str!("intervals.js"),
    include_str!("scores.js"),
    include_str!("curve.js"),
    include_str!("breakdown.js"),
    include_str!("diff.js"),
    include_str!("judging.js"),
    include_str!("example.js"),
    include_str!("examples.js"),
    include_str!("tokens.js"),
    include_str!("facts.js"),
    include_str!("main.js"),
];

/// The page for the data of a report (`schema` 2).
///
/// # Errors
/// When `data` is no JSON, or is not of the shape of a report.
pub fn render(data: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(data)?;
    let summary: Summary = serde_json::from_str(&json)?;
    let script = SCRIPTS.concat();
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        source_of(&script),
        source_of(STYLE)
    );
    Ok(filled(&[
        ("policy", policy),
        ("title", escaped(&format!("{} - taper report", summary.run.title))),
        ("style", STYLE.to_owned()),
        ("noscript", without_scripts(&summary)),
        ("data", inert(&json)),
        ("script", script),
    ]))
}

/// What of the data is told without scripts.
#[derive(Deserialize)]
struct Summary {
    run: SummaryRun,
    #[serde(default)]
    evaluations: Vec<SummaryEvaluation>,
    #[serde(default)]
    gates: Vec<SummaryGate>,
}

#[derive(Deserialize)]
struct SummaryRun {
    title: String,
}

#[derive(Deserialize)]
struct SummaryEvaluation {
    name: String,
    n: u64,
    #[serde(default)]
    headline: Option<String>,
    metrics: Vec<SummaryMetric>,
    candidates: Vec<SummaryCandidate>,
}

#[derive(Deserialize)]
struct SummaryMetric {
    metric: String,
    title: String,
    scale: String,
}

#[derive(Deserialize)]
struct SummaryCandidate {
    name: String,
    measured: Vec<SummaryMeasured>,
}

#[derive(Deserialize)]
struct SummaryMeasured {
    metric: String,
    /// Not there where it is no number.
    value: Option<f64>,
    interval: Option<SummaryInterval>,
}

#[derive(Deserialize)]
struct SummaryInterval {
    low: Option<f64>,
    high: Option<f64>,
}

#[derive(Deserialize)]
struct SummaryGate {
    text: String,
    status: String,
    #[serde(default)]
    detail: Option<String>,
}

/// The page with its places filled; a place that nothing fills is a fault of this file, which a test would find.
fn filled(values: &[(&str, String)]) -> String {
    let mut out =
        String::with_capacity(PAGE.len() + values.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        out.extend(values.iter().filter(|(of, _)| *of == name).map(|(_, value)| value.as_str()));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// JSON that ends no script element and begins no comment: the characters below stand only within its strings, where they can
/// be written as escapes.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out
}

/// Text for an element or an attribute in double quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Marks that turn the direction of the text after them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// The headlines, the gates and a plain table of scores.
fn without_scripts(summary: &Summary) -> String {
    let mut out = format!("<h1>{}</h1>", escaped(&summary.run.title));
    for evaluation in &summary.evaluations {
        if let Some(headline) = &evaluation.headline {
            let _ = write!(out, "<p><b>{}</b>: {}</p>", escaped(&evaluation.name), escaped(headline));
        }
    }
    for SummaryGate { text, status, detail } in &summary.gates {
        let status = status.replace('_', " ");
        let detail = detail.as_deref().unwrap_or_default();
        let _ = write!(
            out,
            "<p>Gate <code>{}</code>: <b>{}</b> ({})</p>",
            escaped(text),
            escaped(&status),
            escaped(detail)
        );
    }
    summary.evaluations.iter().for_each(|evaluation| score_table(&mut out, evaluation));
    out.push_str(
        "<p>The drawings, the examples and all else need scripts, which this browser does not run.</p>",
    );
    out
}

fn score_table(out: &mut String, SummaryEvaluation { name, n, metrics, candidates, .. }: &SummaryEvaluation) {
    let _ =
        write!(out, "<table><caption>{} ({n} items; in brackets 95 % intervals)</caption>", escaped(name));
    out.push_str("<thead><tr><th scope=\"col\">metric</th>");
    for candidate in candidates {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escaped(&candidate.name));
    }
    out.push_str("</tr></thead><tbody>");
    for metric in metrics {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escaped(&metric.title));
        for candidate in candidates {
            let measured = candidate.measured.iter().find(|one| one.metric == metric.metric);
            let _ = write!(out, "<td>{}</td>", measured.map_or("-".into(), |one| cell(&metric.scale, one)));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table>");
}

fn cell(scale: &str, measured: &SummaryMeasured) -> String {
    let show = |value: f64| match scale {
        "share" => format!("{:.1} %", 100.0 * value),
        "percent" => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    };
    let Some(value) = measured.value else { return "-".into() };
    match measured.interval {
        Some(SummaryInterval { low: Some(low), high: Some(high) }) => {
            format!("{} ({} to {})", show(value), show(low), show(high))
        }
        _ => show(value),
    }
}

/// How a Content-Security-Policy names an element by its text: `'sha256-...'`.
fn source_of(text: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(text)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(group.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * i) & 63]);
            out.push(if i <= group.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOSTILE: &str = "</script><script>alert(1)</script><!-- {{script}} & \u{2028}\u{2029}\u{202e}\"'";

    fn report() -> Value {
        json!({
            "schema": 2, "redaction": "full", "run": { "title": HOSTILE }, "exit_code": 100,
            "evaluations": [{
                "name": HOSTILE, "n": 3, "reference": null, "headline": HOSTILE,
                "metrics": [{ "metric": "em", "title": "exact match", "scale": "share" }, { "metric": "ppl", "title": "perplexity", "scale": "plain" }],
                "candidates": [{ "name": "adapter", "measured": [
                    { "metric": "em", "value": 0.635, "interval": { "low": 0.5, "high": 0.75 } },
                    { "metric": "ppl", "value": f64::NAN, "interval": null },
                ] }],
            }],
            "gates": [{ "text": "adapter.em >= 0.8", "status": "nothing_evaluated", "detail": "<b>" }],
            "samples": [{ "id": "1", "candidates": { "adapter": { "output": HOSTILE } } }],
        })
    }

    /// The text between the first `open` and the `close` after it.
    fn between<'a>(page: &'a str, open: &str, close: &str) -> &'a str {
        page.split_once(open).unwrap().1.split_once(close).unwrap().0
    }

    #[test]
    fn hostile_text_stays_in_its_place_and_comes_back_whole() {
        let page = render(&report()).unwrap();
        let lower = page.to_lowercase();
        assert_eq!((lower.matches("<script").count(), lower.matches("</script").count()), (2, 2));
        assert!(!page.contains("<!--"));
        let data = between(&page, "<script type=\"application/json\" id=\"data\">", "</script>");
        assert!(!data.contains(['<', '>', '&', '\u{2028}', '\u{2029}']));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), report());
        let title = between(&page, "<title>", "</title>");
        assert!(
            title
                .starts_with("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;!-- {{script}} &amp; ")
        );
        assert!(title.contains("&quot;&#39;") && !title.contains('\u{202e}'));
    }

    #[test]
    fn half_of_a_surrogate_pair_is_no_json_and_its_escape_stays_one() {
        assert!(serde_json::from_str::<Value>(r#""\ud800""#).is_err());
        assert_eq!(inert(r#""\ud83d\ude00 \u003c/script>""#), r#""\ud83d\ude00 \u003c/script\u003e""#);
    }

    #[test]
    fn every_place_is_filled_once_and_the_policy_names_what_stands_in_the_page() {
        let places = ["policy", "title", "style", "noscript", "data", "script"];
        assert_eq!(PAGE.matches("{{").count(), places.len());
        for place in places {
            assert_eq!(PAGE.matches(&format!("{{{{{place}}}}}")).count(), 1, "{place}");
        }
        let page = render(&report()).unwrap();
        let policy = between(&page, "content=\"default-src", "\"");
        assert!(policy.contains(&source_of(between(&page, "<style>", "</style>"))));
        assert!(policy.contains(&source_of(between(&page, "<script>", "</script>"))));
        assert!(!policy.contains("unsafe"));
    }

    #[test]
    fn scripts_and_style_end_no_element_and_ask_for_nothing() {
        for text in SCRIPTS.iter().chain([&STYLE]) {
            let lower = text.to_lowercase();
            for banned in [
                "</script",
                "<script",
                "</style",
                "<!--",
                "innerhtml",
                "insertadjacenthtml",
                "eval(",
                "fetch(",
                "@import",
                "url(",
            ] {
                assert!(!lower.contains(banned), "{banned} in {}", &text[..60]);
            }
        }
    }

    #[test]
    fn the_verdict_is_told_without_scripts() {
        let page = render(&report()).unwrap();
        let told = between(&page, "<noscript>", "</noscript>");
        assert!(told.contains("<td>63.5 % (50.0 % to 75.0 %)</td>"));
        assert!(told.contains("<th scope=\"row\">perplexity</th><td>-</td>"));
        assert!(told.contains("<code>adapter.em &gt;= 0.8</code>: <b>nothing evaluated</b> (&lt;b&gt;)"));
        assert!(told.contains(&escaped(HOSTILE)));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(render(&json!({ "run": {} })).unwrap_err().to_string().contains("title"));
        assert!(render(&json!([])).is_err());
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    /// For `tests/report`: the page of the data in `TAPER_REPORT_DATA`, written to `TAPER_REPORT_PAGE`.
    #[test]
    fn a_page_is_written_when_asked_for() {
        let (Ok(data), Ok(page)) = (std::env::var("TAPER_REPORT_DATA"), std::env::var("TAPER_REPORT_PAGE"))
        else {
            return;
        };
        let data: Value = serde_json::from_str(&fs_err::read_to_string(data).unwrap()).unwrap();
        fs_err::write(page, render(&data).unwrap()).unwrap();
    }
}
