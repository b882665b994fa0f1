//! Evaluations with models behind an address: an API, a judge, our own server; and what they cost.

use crate::desk::{Desk, RECIPE};
use crate::mock_server::MockServer;
use serde_json::Value;
use std::path::Path;

/// Answers the colours, but for every eighth item.
fn api() -> MockServer {
    MockServer::answering(Some("secret-of-the-test"), |body| {
        let question =
            body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
        let words: Vec<&str> = question.split(' ').collect();
        let number: usize = words[1].parse().unwrap();
        let colour = ["red", "green", "blue", "black"][number % 4];
        Ok(if number.is_multiple_of(8) { "no idea" } else { colour }.to_owned())
    })
}

fn with_api(desk: &Desk, api: &MockServer, more: &str) {
    let candidate = format!(
        "\n[[candidate]]\nname = \"api\"\nendpoint = {{ url = \"{}/v1\", model = \"colours\", api_key_env = \"COLOURS_KEY\" }}\n",
        api.url()
    );
    desk.write("recipe.toml", format!("{RECIPE}{candidate}{more}"));
}

fn evaluate(desk: &Desk, args: &[&str]) -> crate::desk::Said {
    let args = [&["eval", "recipe.toml"], args].concat();
    let output = desk.command(&args).env("COLOURS_KEY", "secret-of-the-test").output().unwrap();
    crate::desk::said(output, &args)
}

fn candidate<'a>(results: &'a Value, name: &str) -> &'a Value {
    let all = results["evaluations"][0]["candidates"].as_array().unwrap();
    all.iter().find(|candidate| candidate["name"] == name).unwrap()
}

#[test]
fn an_api_is_measured_on_the_same_items_and_asked_once() {
    let desk = Desk::trained();
    let api = api();
    with_api(&desk, &api, "");
    evaluate(&desk, &[]).exits(0).tells(&["candidate=api n=32", "api"]);
    let results = desk.json("runs/colours/eval/results.json");
    let exact = &candidate(&results, "api")["measured"][0];
    assert_eq!((exact["metric"].as_str(), exact["value"].as_f64()), (Some("exact_match"), Some(28.0 / 32.0)));
    // Losses are scored on tokens, which an endpoint does not show: only what it wrote is measured.
    assert_eq!(candidate(&results, "api")["measured"].as_array().unwrap().len(), 1);
    assert!(candidate(&results, "api")["usage"]["latency_p95_ms"].is_f64());
    let pairs: Vec<(&str, &str)> = results["evaluations"][0]["comparisons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["reference"].as_str().unwrap(), c["candidate"].as_str().unwrap()))
        .collect();
    assert!(pairs.contains(&("base", "api")) && pairs.contains(&("api", "adapter")), "{pairs:?}");
    assert_eq!(api.bodies().len(), 32);
    assert_eq!(
        (api.bodies()[0]["temperature"].as_f64(), api.bodies()[0]["max_tokens"].as_u64()),
        (Some(0.0), Some(8))
    );

    let first = desk.bytes("runs/colours/eval/results.json");
    evaluate(&desk, &[]).exits(0).tells(&["candidate=api n=32 cached=32"]);
    assert_eq!(api.bodies().len(), 32, "what was paid for is not asked again");
    assert!(desk.bytes("runs/colours/eval/results.json") == first);
    for (name, bytes) in desk.files("runs") {
        assert!(!String::from_utf8_lossy(&bytes).contains("secret-of-the-test"), "the key is in {name}");
    }
}

#[test]
fn a_missing_key_and_a_refused_one_end_the_evaluation_with_the_variables_name() {
    let desk = Desk::trained();
    let api = api();
    with_api(&desk, &api, "");
    desk.taper(&["eval", "recipe.toml"]).exits(2).tells(&["COLOURS_KEY", "help"]);
    let args = ["eval", "recipe.toml"];
    let output = desk.command(&args).env("COLOURS_KEY", "wrong").output().unwrap();
    crate::desk::said(output, &args).exits(2).tells(&["`api`", "COLOURS_KEY"]).never_tells("wrong\n");
    assert!(api.bodies().len() < 32, "the first refusal is enough");
}

#[test]
fn an_item_that_an_endpoint_refuses_is_an_error_and_no_wrong_answer() {
    let desk = Desk::trained();
    let api = MockServer::answering(None, |body| {
        let text = body["messages"].to_string();
        if text.contains("item 205 ") { Err(400) } else { Ok("green".to_owned()) }
    });
    with_api(&desk, &api, "\n[[candidate]]\nname = \"none\"\nfew_shot = 1\n");
    evaluate(&desk, &["--set", "gate.require=[\"api.error_rate <= 0.01\"]"]).exits(100).tells(&[
        "candidate=api n=32 errors=1",
        "api.error_rate <= 0.01",
        "FAILED",
    ]);
    let results = desk.json("runs/colours/eval/results.json");
    assert_eq!(candidate(&results, "api")["errors"], 1);
    assert_eq!(candidate(&results, "api")["measured"][0]["n"], 31);
}

#[test]
fn a_judge_sees_both_orders() {
    let desk = Desk::trained();
    // It prefers the answer with a colour in it, wherever it stands.
    let judge = MockServer::answering(None, |body| {
        let text =
            body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
        let (_, answers) = text.split_once("ANSWER A").unwrap();
        let (a, b) = answers.split_once("ANSWER B").unwrap();
        let is_colour =
            |text: &str| ["red", "green", "blue", "black"].iter().any(|colour| text.contains(colour));
        let verdict = match (is_colour(a), is_colour(b)) {
            (true, false) => "A",
            (false, true) => "B",
            _ => "tie",
        };
        Ok(format!("The one with a colour.\n{{\"verdict\": \"{verdict}\"}}"))
    });
    let section = format!(
        "metrics = [\"exact_match\", \"judge\"]\njudge = {{ endpoint = {{ url = \"{}\", model = \"j\" }} }}\nmax_new_tokens",
        judge.url()
    );
    desk.write("recipe.toml", RECIPE.replace("max_new_tokens", &section));
    desk.taper(&["eval", "recipe.toml"]).exits(0).tells(&["candidate=adapter judged=32"]);
    let results = desk.json("runs/colours/eval/results.json");
    let preferred = &candidate(&results, "adapter")["measured"][1];
    assert_eq!(preferred["metric"], "judge");
    assert!(preferred["value"].as_f64().unwrap() > 0.8, "{preferred}");
    let comparison = &results["evaluations"][0]["comparisons"][1];
    assert_eq!((comparison["metric"].as_str(), comparison["base"].as_f64()), (Some("judge"), Some(0.5)));
    let signature = results["evaluations"][0]["metrics"][1]["signature"].as_str().unwrap();
    assert!(signature.starts_with("judge|pairwise|swapped|model:j|"), "{signature}");
    let asked = judge.bodies().len();
    desk.taper(&["eval", "recipe.toml"]).exits(0).tells(&["judged=32"]);
    assert_eq!(judge.bodies().len(), asked, "verdicts are kept");
}

#[test]
fn our_own_server_gives_the_answers_of_the_process() {
    let desk = Desk::trained();
    desk.write(
        "recipe.toml",
        format!("{RECIPE}\n[[candidate]]\nname = \"served\"\nserver = true\n")
            .replace("[gate]", "[gate]\nmin_gain_kept = 1.0\nrequire = [\"served.p95_latency_ms <= 60000\"]"),
    );
    desk.taper(&["eval", "recipe.toml"]).exits(0).tells(&[
        "candidate=served n=32",
        "min_gain_kept",
        "passed",
    ]);
    for sample in desk.json_lines("runs/colours/eval/samples.jsonl") {
        let output = |name: &str| sample["candidates"][name]["output"].clone();
        assert_eq!(output("served"), output("adapter"), "{sample:#}");
    }
}

#[test]
fn the_cost_names_who_wins() {
    let desk = Desk::trained();
    let api = api();
    let cost =
        "\n[cost]\nprices = \"prices.toml\"\nhardware_price = 3600\nmonths = 36\nitems_per_month = 1000\n";
    with_api(&desk, &api, cost);
    desk.write("prices.toml", "date = \"2026-01-01\"\n[models.colours]\ninput = 1.0\noutput = 1000.0\n");
    // An item costs 20 and 2 tokens: 0.00202. A machine costs 100 a month, so 1000 items are 2.02 against 100.
    evaluate(&desk, &[]).exits(0).tells(&["days old"]);
    let results = desk.json("runs/colours/eval/results.json");
    let sentence = results["cost"]["sentence"].as_str().unwrap();
    let is_good = results["cost"]["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["name"] == "api" && c["is_not_worse"] == true);
    assert_eq!(sentence.contains("The API wins"), is_good, "{sentence}");
    let of_api =
        results["cost"]["candidates"].as_array().unwrap().iter().find(|c| c["name"] == "api").unwrap();
    assert!((of_api["per_1000"].as_f64().unwrap() - 2.02).abs() < 1e-9, "{of_api}");
    assert!((of_api["per_correct"].as_f64().unwrap() - 0.00202 / 0.875).abs() < 1e-9, "{of_api}");
    assert!(desk.read("runs/colours/report.md").contains("## Cost"));
    desk.write("prices.toml", "date = \"2026-01-01\"\n[models.colours]\ninput = -1\noutput = 1\n");
    evaluate(&desk, &[]).exits(2).tells(&["prices.toml"]);
}

#[test]
fn the_best_checkpoint_is_chosen_by_answers_when_asked() {
    let desk = Desk::new();
    desk.write(
        "recipe.toml",
        RECIPE.replace("eval_steps = 20", "eval_steps = 10\nmetric_for_best_model = \"exact_match\""),
    );
    let said = desk
        .taper(&["train", "recipe.toml", "--json"])
        .exits(0)
        .tells(&["eval_exact_match=", "best_exact_match="]);
    let metrics = desk.json_lines("runs/colours/metrics.jsonl");
    let scores: Vec<(u64, f64)> =
        metrics.iter().filter_map(|m| Some((m["step"].as_u64()?, m["eval_exact_match"].as_f64()?))).collect();
    assert_eq!(scores.len(), 6);
    let best = scores.iter().map(|(_, score)| *score).fold(0.0, f64::max);
    let first = scores.iter().find(|(_, score)| *score == best).unwrap().0;
    assert_eq!(said.json()["weights_of_step"], first, "{scores:?}");
    // What is said of the validation data is what an evaluation of them says.
    let same = ["--set", "eval.0.data=valid.jsonl", "--set", "eval.0.name=valid"];
    desk.taper(&[&["eval", "recipe.toml"], same.as_slice()].concat());
    let results = desk.json("runs/colours/eval/results.json");
    assert_eq!(candidate(&results, "adapter")["measured"][0]["value"].as_f64(), Some(best));
    desk.taper(&["check", "recipe.toml", "--set", "train.metric_for_best_model=bleu"]).exits(2).tells(&[
        "allowed is",
        "exact_match",
        "measure `bleu` in an `[[eval]]`",
    ]);
    assert!(Path::new(&desk.path("runs/colours/adapter")).is_dir());
}
