//! Metrics beside sacrebleu, rouge-score, NLTK, scikit-learn, scipy, jsonschema and SQuAD's definitions.

use crate::{golden, list, near, number, numbers, text};
use serde_json::Value;
use taper_eval::metrics::bleu::{BleuCounts, corpus_bleu_signature, sentence_bleu_signature, tokenize_13a};
use taper_eval::metrics::chrf::{Chrf, ChrfCounts};
use taper_eval::metrics::classification::{ClassMeans, Confusion, ZeroDivision};
use taper_eval::metrics::extraction::{Extraction, ExtractionOptions};
use taper_eval::metrics::numeric;
use taper_eval::metrics::rouge::RougeL;
use taper_eval::metrics::squad::{SquadVersion, normalised_match, normalize_answer, token_f1};

const EXACT: f64 = 1e-9;

fn metrics() -> Value {
    golden("metrics/metrics.json")
}

/// The texts of each pair with what the libraries make of it.
fn pairs(golden: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let pairs = list(&golden["pairs"]);
    assert!(pairs.len() >= 60);
    pairs.iter().map(|pair| (text(&pair["expected"]), text(&pair["output"]), pair))
}

#[test]
fn squad_scores_are_those_of_the_scripts() {
    for (expected, output, pair) in pairs(&metrics()) {
        assert_eq!(normalize_answer(output), text(&pair["normalized"]), "{output:?}");
        assert_eq!(normalised_match(expected, output), pair["match"], "{output:?}");
        near(token_f1(expected, output, SquadVersion::V1), number(&pair["f1_v1"]), EXACT, output);
        near(token_f1(expected, output, SquadVersion::V2), number(&pair["f1_v2"]), EXACT, output);
    }
}

#[test]
fn bleu_of_one_answer_is_that_of_sacrebleu() {
    for (expected, output, pair) in pairs(&metrics()) {
        assert_eq!(tokenize_13a(output), text(&pair["tokens_13a"]));
        let counts = BleuCounts::of(expected, output);
        near(counts.sentence_bleu(), number(&pair["sentence_bleu"]), EXACT, output);
        near(counts.corpus_bleu(), number(&pair["bleu_alone"]), EXACT, output);
    }
}

#[test]
fn chrf_of_one_answer_is_that_of_sacrebleu() {
    for (expected, output, pair) in pairs(&metrics()) {
        for (kind, key) in [(Chrf::Chrf, "chrf"), (Chrf::PlusPlus, "chrf_pp")] {
            near(ChrfCounts::of(expected, output, kind).score(), number(&pair[key]), EXACT, output);
        }
    }
}

#[test]
fn corpus_scores_are_those_of_sacrebleu_and_weights_count_rows() {
    let golden = metrics();
    let pairs: Vec<_> = pairs(&golden).collect();
    for corpus in list(&golden["corpora"]) {
        let mut weights = vec![0u32; pairs.len()];
        list(&corpus["rows"]).iter().for_each(|row| weights[row.as_u64().unwrap() as usize] += 1);
        let (mut bleu, mut chrf, mut plus) =
            (BleuCounts::default(), ChrfCounts::empty(Chrf::Chrf), ChrfCounts::empty(Chrf::PlusPlus));
        for ((expected, output, _), weight) in pairs.iter().zip(weights) {
            bleu += BleuCounts::of(expected, output).times(weight);
            chrf += ChrfCounts::of(expected, output, Chrf::Chrf).times(weight);
            plus += ChrfCounts::of(expected, output, Chrf::PlusPlus).times(weight);
        }
        near(bleu.corpus_bleu(), number(&corpus["bleu"]), EXACT, "bleu");
        near(chrf.score(), number(&corpus["chrf"]), EXACT, "chrf");
        near(plus.score(), number(&corpus["chrf_pp"]), EXACT, "chrf++");
    }
}

#[test]
fn signatures_state_what_sacrebleus_state() {
    let golden = metrics();
    for (ours, key) in [
        (corpus_bleu_signature(), "bleu"),
        (sentence_bleu_signature(), "sentence_bleu"),
        (Chrf::Chrf.signature(), "chrf"),
        (Chrf::PlusPlus.signature(), "chrf_pp"),
    ] {
        let theirs = text(&golden["signatures"][key]).rsplit_once("|version").unwrap().0;
        let ours = ours.split_once('|').unwrap().1.rsplit_once("|version").unwrap().0.to_owned();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn rouge_is_that_of_rouge_score() {
    for (expected, output, pair) in pairs(&metrics()) {
        for (stem, by_line, key) in [
            (false, false, "rougeL"),
            (true, false, "rougeL_stem"),
            (false, true, "rougeLsum"),
            (true, true, "rougeLsum_stem"),
        ] {
            let score = RougeL { stem, by_line }.score(expected, output);
            for (ours, theirs) in
                [score.precision, score.recall, score.f1].into_iter().zip(numbers(&pair["rouge"][key]))
            {
                near(ours, theirs, EXACT, &format!("{key} {output:?}"));
            }
        }
    }
}

#[test]
fn stems_are_those_of_nltk() {
    // Words of more than three letters are stemmed on their way into ROUGE: equal stems, and no others, score 1.
    let golden = metrics();
    let stems = golden["stems"].as_object().unwrap();
    assert!(stems.len() > 150);
    let rouge = RougeL { stem: true, by_line: false };
    for (word, stem) in stems.iter().filter(|(word, _)| word.len() > 3) {
        // A stem of three letters or less is compared as it is, a longer one only if it is its own stem.
        let is_fixed = |stem: &str| stem.len() <= 3 || stems.get(stem).and_then(Value::as_str) == Some(stem);
        let stem = text(stem);
        if is_fixed(stem) {
            assert_eq!(rouge.score(stem, word).f1, 1.0, "{word} {stem}");
        }
        for (other, other_stem) in stems.iter().filter(|(other, _)| other.len() > 3) {
            let same = rouge.score(other, word).f1 == 1.0;
            assert_eq!(same, text(other_stem) == stem, "{word} {other}");
        }
    }
}

#[test]
fn numbers_are_found_where_one_expression_finds_them() {
    for case in list(&metrics()["numbers"]) {
        assert_eq!(numeric::numbers(text(&case[0])), numbers(&case[1]), "{}", case[0]);
    }
}

#[test]
fn classes_are_scored_as_scikit_learn_does() {
    let golden = metrics();
    for (name, case) in golden["classes"].as_object().unwrap() {
        let labels: Vec<String> = list(&case["labels"]).iter().map(|l| text(l).to_owned()).collect();
        let pairs = list(&case["expected"])
            .iter()
            .zip(list(&case["predicted"]))
            .map(|(expected, predicted)| (text(expected), Some(text(predicted))));
        let confusion = Confusion::new(&labels, pairs);
        near(confusion.accuracy().unwrap(), number(&case["accuracy"]), EXACT, name);
        for (ours, theirs) in confusion.counts.iter().zip(list(&case["confusion"])) {
            // The last column is of answers that are no label, which scikit-learn leaves out.
            let ours: Vec<f64> = ours[..labels.len()].iter().map(|c| *c as f64).collect();
            assert_eq!(ours, numbers(theirs), "{name}");
        }
        for (zero, digit) in [(ZeroDivision::Zero, 0), (ZeroDivision::One, 1)] {
            let theirs: Vec<Vec<f64>> =
                list(&case[format!("by_class_{digit}")]).iter().map(numbers).collect();
            for (class, ours) in confusion.by_class(zero).iter().enumerate() {
                let ours = [ours.precision, ours.recall, ours.f1, ours.support as f64];
                for (column, ours) in ours.into_iter().enumerate() {
                    near(ours, theirs[column][class], EXACT, &format!("{name} {class} {column} {digit}"));
                }
            }
            let means = [("macro", confusion.macro_mean(zero)), ("weighted", confusion.weighted_mean(zero))];
            for (kind, mean) in means {
                let ClassMeans { precision, recall, f1 } = mean.unwrap();
                let theirs = numbers(&case[format!("{kind}_{digit}")]);
                for (ours, theirs) in [precision, recall, f1].into_iter().zip(theirs) {
                    near(ours, theirs, EXACT, &format!("{name} {kind} {digit}"));
                }
            }
        }
    }
}

#[test]
fn answers_are_valid_where_jsonschema_says_so() {
    let golden = metrics();
    let instances = list(&golden["instances"]);
    for case in list(&golden["schemas"]) {
        let extraction = Extraction::new(&case["schema"], ExtractionOptions::default()).unwrap();
        for (instance, valid) in instances.iter().zip(list(&case["valid"])) {
            let score = extraction.score(instance, &instance.to_string());
            assert_eq!(score.is_valid, *valid, "{instance} by {}: {:?}", case["schema"], score.violations);
            assert!(score.is_correct());
        }
    }
}

#[test]
fn lists_are_paired_as_well_as_scipy_pairs_them() {
    // Item i of the one list shares `weights[i][j]` fields with item j of the other: lists of objects with that many equal keys.
    for case in list(&metrics()["assignments"]) {
        let weights: Vec<Vec<usize>> = list(&case["weights"])
            .iter()
            .map(|row| numbers(row).into_iter().map(|w| w as usize).collect())
            .collect();
        let object =
            |keys: Vec<String>| Value::Object(keys.into_iter().map(|key| (key, Value::from(1))).collect());
        let expected: Vec<Value> = weights
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let keys = row.iter().enumerate();
                object(keys.flat_map(|(j, w)| (0..*w).map(move |k| format!("{i}-{j}-{k}"))).collect())
            })
            .collect();
        let output: Vec<Value> = (0..weights[0].len())
            .map(|j| {
                let keys = weights.iter().enumerate();
                object(keys.flat_map(|(i, row)| (0..row[j]).map(move |k| format!("{i}-{j}-{k}"))).collect())
            })
            .collect();
        let extraction = Extraction::new(&serde_json::json!({}), ExtractionOptions::default()).unwrap();
        let score = extraction.score(&Value::from(expected), &Value::from(output).to_string());
        assert_eq!(score.total().equal as f64, number(&case["sum"]));
    }
}
