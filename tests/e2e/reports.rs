//! What an evaluation leaves for people, pages and CI: the same bytes each time, and at each level of redaction no more than it says.

use crate::desk::{Desk, RECIPE, row};
use quick_junit::{NonSuccessKind, Report, TestCaseStatus};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Words that stand in no other place than in the data.
const WORDS: [&str; 5] = ["Quetzalia", "xylofant", "zimbrelle", "brunkelot", "vorplix"];
/// What a page or a table may trip over.
const HOSTILE: &str = "</script><script>alert(1)</script> | `x` ]]> & \u{1b}[31m <!-- brunkelot";

/// Questions with names in them and answers to match; the last ones are hostile.
fn confidential(numbers: std::ops::Range<usize>) -> String {
    let mut rows = String::new();
    for number in numbers.clone() {
        let (question, colour) = crate::desk::question(number);
        writeln!(rows, "{}", row(&format!("Quetzalia {question}"), &format!("xylofant {colour}"))).unwrap();
    }
    for (at, number) in numbers.take(2).enumerate() {
        writeln!(rows, "{}", row(&format!("{HOSTILE} {number}{at}"), HOSTILE)).unwrap();
    }
    rows
}

/// A run over confidential data, with documents by name.
fn confidential_desk() -> Desk {
    let desk = Desk::new();
    for (file, numbers) in [("train.jsonl", 0..96), ("valid.jsonl", 100..116), ("test.jsonl", 200..232)] {
        let rows = confidential(numbers);
        let named = rows.lines().enumerate().map(|(at, line)| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            row["patient"] = json!(format!("zimbrelle {at}"));
            format!("{row}\n")
        });
        desk.write(file, named.collect::<String>());
    }
    let recipe = RECIPE
        .replace("max_new_tokens = 8", "max_new_tokens = 24\ncluster_by = \"patient\"")
        .replace("max_steps = 60", "max_steps = 30");
    desk.write("recipe.toml", recipe.replace("min_exact_match_gain = 0.3", "min_exact_match_gain = 0.0"));
    desk
}

/// What can leave the machine: reports, and what CI shows.
fn shared(desk: &Desk, sets: &[&str]) -> Vec<(&'static str, String)> {
    let _ = fs_err::remove_file(desk.path("summary.md"));
    let mut args = vec!["eval", "recipe.toml"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let output = desk
        .command(&args)
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", desk.path("summary.md"))
        .output()
        .unwrap();
    let said = crate::desk::said(output, &args).exits(0);
    let read = |name: &'static str| (name, desk.read(&format!("runs/colours/{name}")));
    let mut all: Vec<_> =
        ["report.html", "report.md", "junit.xml", "eval/metrics.txt", "eval/results.json"].map(read).into();
    all.push(("summary.md", desk.read("summary.md")));
    all.push(("annotations", said.err.lines().filter(|line| line.starts_with("::")).collect()));
    all
}

fn page_data(page: &str) -> Value {
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    serde_json::from_str(data).unwrap()
}

#[test]
fn at_each_level_reports_say_no_more_than_the_level_allows() {
    let desk = confidential_desk();
    desk.taper(&["train", "recipe.toml"]).exits(0);
    let full = shared(&desk, &[]);
    let page = &full[0].1;
    for word in &WORDS[..4] {
        assert!(page.contains(word), "the page does not show `{word}`: this test would find nothing");
    }
    // What is made to be shared never holds a text.
    for (name, text) in &full[1..] {
        assert_silent(name, text);
    }
    for level in ["aggregate", "hashed", "redacted"] {
        for shared_level in ["aggregate", "hashed"] {
            let sets = [format!("report.level={level}"), format!("report.shared={shared_level}")];
            let all = shared(&desk, &[&sets[0], &sets[1]]);
            for (name, text) in &all {
                assert_silent(name, text);
            }
            let data = page_data(&all[0].1);
            assert_eq!(data["redaction"], level);
            let samples = data["samples"].as_array().unwrap();
            let training = data["training_samples"].as_array().unwrap();
            assert_eq!(
                (samples.len(), training.len()),
                match level {
                    "aggregate" => (0, 0),
                    "hashed" => (34, 0),
                    _ => (34, 5),
                }
            );
            let names_items = all[1].1.contains("`test.jsonl:1");
            assert_eq!(names_items, shared_level == "hashed", "{}", all[1].1);
        }
    }
    // The shapes of texts are kept, equal texts have equal hashes.
    let of =
        |level: &str| page_data(&shared(&desk, &[&format!("report.level={level}")])[0].1)["samples"].clone();
    let (shapes, hashes) = (of("redacted"), of("hashed"));
    assert_eq!(
        (&shapes[0]["input"], &shapes[0]["expected"]),
        (&json!("xxxxxxxxx xxxx 000 x"), &json!("xxxxxxxx xxx"))
    );
    assert!(hashes[0]["expected"] == hashes[4]["expected"] && hashes[0]["expected"] != hashes[1]["expected"]);
    assert_ne!(hashes[0]["cluster"], hashes[1]["cluster"]);
    // The texts stay where scores are computed from.
    assert!(desk.read("runs/colours/eval/samples.jsonl").contains("Quetzalia"));
}

fn assert_silent(name: &str, text: &str) {
    for word in WORDS {
        assert!(!text.to_lowercase().contains(&word.to_lowercase()), "`{word}` stands in {name}:\n{text}");
    }
}

#[test]
fn the_page_asks_for_nothing_and_hostile_answers_stay_text() {
    let desk = confidential_desk();
    desk.taper(&["train", "recipe.toml"]).exits(0);
    let page = shared(&desk, &[]).remove(0).1;
    let lower = page.to_lowercase();
    assert_eq!((lower.matches("<script").count(), lower.matches("</script").count()), (2, 2));
    assert!(!page.contains("<!--") && !page.contains('\u{1b}'));
    let data = page_data(&page);
    let expected: Vec<&str> =
        data["samples"].as_array().unwrap().iter().map(|s| s["expected"].as_str().unwrap()).collect();
    assert!(expected.contains(&HOSTILE), "it comes back whole");
    let (head, body) = page
        .split_once("id=\"data\">")
        .map(|(head, rest)| (head, rest.split_once("</script>").unwrap().1))
        .unwrap();
    for part in [head, body] {
        for request in [
            "src=",
            "href=\"http",
            "http://",
            "https://",
            "url(",
            "@import",
            "<link rel=\"stylesheet",
            "<iframe",
            "fetch(",
            "XMLHttpRequest",
        ] {
            let allowed = part.matches("http://www.w3.org/").count();
            let found = part.matches(request).count();
            assert!(found == 0 || (request == "http://" && found == allowed), "`{request}` in the page");
        }
    }
    assert!(head.contains("default-src 'none'"));
}

#[test]
fn gates_are_test_cases_for_ci() {
    let desk = Desk::trained();
    let junit = |sets: &[&str], code: i32| -> Report {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        desk.taper(&["eval", "recipe.toml"].into_iter().chain(sets).collect::<Vec<_>>()).exits(code);
        Report::deserialize_from_str(&desk.read("runs/colours/junit.xml")).unwrap()
    };
    let passed = junit(&[], 0);
    assert_eq!(
        (passed.name.as_ref().unwrap().as_str(), passed.test_suites.len(), passed.failures),
        ("colours", 1, 0)
    );
    let suite = &passed.test_suites[0];
    let names: Vec<&str> = suite.test_cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!((suite.name.as_str(), names), ("held-out", vec!["measured", "min_exact_match_gain = 0.3"]));
    let require = "gate.require=[\"adapter.exact_match > 1\", \"p95_latency_ms <= 60000\", \"adapter better than base by 0.8\"]";
    let failed = junit(&[require, "eval.0.name=a <b> & \"c\""], 100);
    let suite = &failed.test_suites[0];
    assert_eq!((suite.name.as_str(), suite.failures, suite.errors), ("a <b> & \"c\"", 2, 0));
    let told = |at: usize| match &suite.test_cases[at].status {
        TestCaseStatus::NonSuccess { kind, message, .. } => {
            Some((*kind, message.as_ref().unwrap().as_str().to_owned()))
        }
        _ => None,
    };
    let (kind, message) = told(1).unwrap();
    assert!(kind == NonSuccessKind::Failure && message.starts_with("failed: "), "{message}");
    assert!(told(2).is_none() && told(3).unwrap().1.starts_with("not decided: "));
    let nothing = junit(
        &[
            "gate.require=[\"p95_latency_ms <= 1\"]",
            "gate.min_exact_match_gain=-1",
            "eval.0.metrics=[\"perplexity\", \"exact_match\"]",
        ],
        100,
    );
    assert_eq!(nothing.test_suites[0].failures, 1);
}

#[test]
fn github_is_told_by_annotations_and_a_summary() {
    let desk = Desk::trained();
    let eval = |env: &[(&str, &str)], sets: &[&str]| {
        let args: Vec<&str> =
            ["eval", "recipe.toml"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect();
        let mut command = desk.command(&args);
        command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY").envs(env.iter().copied());
        crate::desk::said(command.output().unwrap(), &args)
    };
    let failing = ["gate.require=[\"adapter.exact_match > 1\", \"adapter better than base by 0.8\"]"];
    eval(&[], &failing).exits(100).never_tells("::error");
    assert!(!desk.has("summary.md"));
    let env = [("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", "summary.md")];
    desk.write("summary.md", "of an earlier step\n");
    eval(&env, &failing).exits(100).tells(&[
        "::error title=gate failed::held-out: adapter.exact_match > 1: ",
        "::warning title=gate not decided::held-out: adapter better than base by 0.8: ",
        "::notice title=held-out%3A better::The adapter is better than the base: ",
    ]);
    assert_eq!(
        desk.read("summary.md"),
        format!("of an earlier step\n{}", desk.read("runs/colours/report.md"))
    );
    let metrics = desk.read("runs/colours/eval/metrics.txt");
    assert!(
        metrics.contains("taper_eval{eval=\"held-out\",candidate=\"adapter\",metric=\"exact_match\"} 0."),
        "{metrics}"
    );
    assert!(metrics.starts_with("# TYPE taper_eval gauge\n") && metrics.ends_with("# EOF\n"));
    // A summary that cannot be written does not change how the run ends.
    let nowhere = [("GITHUB_STEP_SUMMARY", "nowhere/summary.md")];
    eval(&nowhere, &[]).exits(0).tells(&["warning: the step summary cannot be written"]);
}

#[test]
fn two_runs_leave_the_same_bytes() {
    let (one, two) = (Desk::new(), Desk::new());
    let sections = "\n[[candidate]]\nname = \"shots\"\nfew_shot = 2\n";
    for desk in [&one, &two] {
        desk.write("recipe.toml", format!("{RECIPE}{sections}"));
        desk.taper(&["run", "recipe.toml"]).exits(0);
    }
    // The same desk, into another folder: the answers come from the cache.
    one.taper(&["run", "recipe.toml", "--out", "runs/again"])
        .exits(0)
        .tells(&["candidate=shots n=32 cached=32"]);
    for name in [
        "eval/results.json",
        "eval/samples.jsonl",
        "eval/metrics.txt",
        "report.md",
        "report.html",
        "junit.xml",
    ] {
        let of = |desk: &Desk, folder: &str| desk.read(&format!("runs/{folder}/{name}"));
        let first = of(&one, "colours");
        assert!(first == of(&two, "colours"), "`{name}` differs between two runs");
        // Only the commands that use the result, and proofs, name the folder.
        assert!(
            first == of(&one, "again").replace("runs/again", "runs/colours"),
            "`{name}` differs between two folders"
        );
    }
}
