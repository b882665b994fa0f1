//! What holds of any text, however odd.

use serde_json::{Value, json};
use taper_eval::Normalize;
use taper_eval::metrics::bleu::BleuCounts;
use taper_eval::metrics::chrf::{Chrf, ChrfCounts};
use taper_eval::metrics::contains::{Pattern, contains};
use taper_eval::metrics::extraction::{Extraction, ExtractionOptions};
use taper_eval::metrics::numeric::{Numeric, numbers};
use taper_eval::metrics::rouge::RougeL;
use taper_eval::metrics::squad::{SquadVersion, normalised_match, normalize_answer, token_f1};
use taper_kernels::rng::CounterRng;

/// Pieces that meet at the edges of every rule.
const PIECES: [&str; 40] = [
    "a",
    "an",
    "the",
    "The",
    "cat",
    "cats",
    "running",
    "1",
    "23",
    ",456",
    ".5",
    "-",
    "\u{2212}",
    "e",
    "E+",
    " ",
    "  ",
    "\n",
    "-\n",
    "\u{1c}",
    "\u{a0}",
    "&amp;",
    "&",
    "<skipped>",
    "(",
    ")",
    "\"",
    "'",
    "_",
    "\u{301}",
    "é",
    "ß",
    "İ",
    "Σ",
    "日本",
    "👍🏽",
    "٣",
    "2024-02-30",
    "31.3.2024",
    "T10:00Z",
];

fn texts(name: u64, count: u64) -> Vec<String> {
    (0..count)
        .map(|i| {
            let rng = CounterRng::new(name, i);
            (1..=rng.below(0, 14)).map(|at| PIECES[rng.below(at, PIECES.len() as u64) as usize]).collect()
        })
        .collect()
}

#[test]
fn scores_of_odd_texts_are_shares_and_a_text_equals_itself() {
    let (expected, output) = (texts(1, 2000), texts(2, 2000));
    let pattern = Pattern::new(r"(\d+)").unwrap();
    for (e, o) in expected.iter().zip(&output) {
        let mut shares = vec![token_f1(e, o, SquadVersion::V1), token_f1(e, o, SquadVersion::V2)];
        for (stem, by_line) in [(false, false), (true, false), (false, true), (true, true)] {
            let score = RougeL { stem, by_line }.score(e, o);
            shares.extend([score.precision, score.recall, score.f1]);
        }
        let bleu = BleuCounts::of(e, o);
        shares.extend([bleu.corpus_bleu() / 100.0, bleu.sentence_bleu() / 100.0]);
        shares.extend([Chrf::Chrf, Chrf::PlusPlus].map(|kind| ChrfCounts::of(e, o, kind).score() / 100.0));
        assert!(shares.iter().all(|share| (0.0..=1.0 + 1e-12).contains(share)), "{e:?} {o:?} {shares:?}");
        assert!(numbers(o).iter().all(|number| number.is_finite()));
        pattern.matches(e, o, Normalize::Lenient);
        assert!(normalised_match(o, o) && token_f1(o, o, SquadVersion::V2) == 1.0);
        assert_eq!(
            normalize_answer(&normalize_answer(o)),
            normalize_answer(&normalize_answer(&normalize_answer(o)))
        );
        assert!(o.is_empty() || contains(o, &format!("{e}{o}"), Normalize::None));
        assert!(Numeric::default().matches(o, o).unwrap_or(true));
        let own = BleuCounts::of(o, o);
        assert!(own.output_len == 0 || (own.sentence_bleu() - 100.0).abs() < 1e-9);
    }
}

#[test]
fn a_document_of_odd_texts_equals_itself_and_its_fields_add_up() {
    let schema = json!({ "type": "object", "properties": {
        "date": { "type": "string", "format": "date" },
        "number": { "type": ["number", "string"], "x-compare": { "as": "number", "relative": 0.1 } },
        "list": { "type": "array", "items": { "type": "string" } },
        "set": { "type": "array", "x-compare": { "as": "set" } },
        "rows": { "type": "array", "items": { "type": "object", "properties": { "a": { "type": "string" } } } }
    } });
    let extraction = Extraction::new(&schema, ExtractionOptions::default()).unwrap();
    let document = |texts: &[String]| -> Value {
        json!({ "date": texts[0], "number": texts[1], "list": texts[2..4], "set": [texts[4], texts[4]],
            "rows": [{ "a": texts[5], "b": texts[6].len() }, { "a": texts[7], "b": null }], texts[0].clone(): texts[1] })
    };
    let (expected, output) = (texts(3, 8 * 200), texts(4, 8 * 200));
    for (e, o) in expected.chunks(8).zip(output.chunks(8)) {
        let (expected, output) = (document(e), document(o));
        assert!(extraction.score(&expected, &expected.to_string()).is_correct(), "{expected}");
        let total = extraction.score(&expected, &output.to_string()).total();
        let back = extraction.score(&output, &expected.to_string()).total();
        // Turned round, what was missing is invented; tolerances are shares of the expected number and may differ.
        assert_eq!(total.equal + total.wrong + total.missing, back.equal + back.wrong + back.invented);
        assert!((0.0..=1.0).contains(&total.f1()) && total.precision() <= 1.0 && total.recall() <= 1.0);
    }
}
