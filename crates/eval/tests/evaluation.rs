//! The whole of an evaluation over a tiny model: examples, prompts, answers, losses, comparison, report.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use taper_data::{DataSection, Example, Supervision, TextEncoder, TouchKind, load_with_fields};
use taper_diagnostics::{Diagnose, ExitCode};
use taper_eval::report::{read_samples, results_schema};
use taper_eval::score::Scorer;
use taper_eval::{
    Answers, Error, EvalResult, EvalSection, EvalTask, Evaluation, GateSection, Metric, Progress, Prompting,
    Renderer, Report, ReportSection, ResponseCache, Roles, RunFacts, Verdict, Work, choose_shots, judge,
};
use taper_hub::ModelFiles;
use taper_infer::{Engine, EngineOptions, GenerationConfig, Request};
use taper_models::{CausalLm, LoadOptions, forward_logits};
use taper_nn::{ForwardContext, SequenceLayout, to_vec_f32};
use taper_testkit::{TinySpec, tiny_checkpoint};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

struct Setup {
    folder: tempfile::TempDir,
    files: ModelFiles,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("base");
    let spec = TinySpec { tie_word_embeddings: false, initializer_range: 0.3, ..TinySpec::default() };
    let files = tiny_checkpoint(&root, &spec);
    let names = TokenizerFiles::in_folder(&root);
    let tokenizer = Tokenizer::load(&names).unwrap();
    let template = ChatTemplate::load(&names, &tokenizer).unwrap().unwrap();
    Setup { folder, files, tokenizer, template }
}

impl Setup {
    fn model(&self) -> Box<dyn CausalLm> {
        taper_models::load(&self.files, LoadOptions::default()).unwrap()
    }

    fn examples(&self, lines: &[String]) -> Vec<Example> {
        let path: PathBuf = self.folder.path().join("test.jsonl");
        fs_err::write(&path, lines.join("\n")).unwrap();
        let fields = ["site", "choices", "doc"].map(String::from);
        load_with_fields(&[path], &DataSection::default(), &fields).unwrap().examples
    }

    fn prepare_with(
        &self,
        section: &EvalSection,
        examples: &[Example],
        prompting: &Prompting<'_>,
    ) -> Result<EvalTask, Error> {
        let encoder = TextEncoder::new(&self.tokenizer, Some(&self.template), Supervision::Assistant);
        let renderer =
            Renderer { tokenizer: &self.tokenizer, template: Some(&self.template), encoder: &encoder };
        let touched = BTreeMap::from([(1, TouchKind::Near)]);
        EvalTask::prepare(section, examples, prompting, &renderer, &touched)
    }

    fn prepare(&self, section: &EvalSection, examples: &[Example]) -> Result<EvalTask, Error> {
        self.prepare_with(section, examples, &Prompting::default())
    }

    fn answer(&self, candidate: &str, model: &dyn CausalLm, task: &EvalTask) -> Answers {
        let on_progress = &mut |_| ControlFlow::Continue(());
        let work = Work::new(task, "", None, false);
        work.answer((candidate, ""), model, &self.tokenizer, on_progress).unwrap().unwrap()
    }

    fn run(&self, candidate: &str, model: &dyn CausalLm, task: &EvalTask) -> EvalResult {
        let roles = Roles { reference: None, trained: candidate.to_owned() };
        let answers = vec![self.answer(candidate, model, task)];
        Evaluation::new(&task.scorer, task.facts(), answers, roles).unwrap().candidates.remove(0)
    }

    /// What the model itself answers to the question.
    fn own_answer(&self, model: &dyn CausalLm, question: &str, most: usize) -> String {
        let messages = [taper_text::Message::new("user", question)];
        let options = taper_text::RenderOptions::default();
        let ids =
            taper_text::encode_prompt_chat(&self.tokenizer, &self.template, &messages, &options).unwrap();
        let config = GenerationConfig {
            stop_token_ids: self.template.stop_ids(&self.tokenizer),
            ..GenerationConfig::greedy(most)
        };
        let engine = Engine::new(model, &self.tokenizer, EngineOptions::default());
        engine.generate(&Request::numbered([ids]), &config).unwrap().remove(0).text
    }
}

fn row(question: &str, answer: &str) -> String {
    serde_json::json!({ "messages": [
        { "role": "user", "content": question }, { "role": "assistant", "content": answer }
    ] })
    .to_string()
}

#[test]
fn the_published_schema_of_results_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results.schema.json");
    let published: serde_json::Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert!(published == results_schema(), "docs/results.schema.json is old: run `cargo xtask schema`");
}

/// Scores and comparisons computed again from the stored samples are those of the run.
fn replayed(evaluation: &Evaluation, samples: &str) {
    let lines = read_samples(samples).unwrap();
    let scorer = Scorer::new(evaluation.scoring.clone()).unwrap();
    let answers = evaluation.candidates.iter().map(|result| Answers {
        candidate: result.candidate.clone(),
        about: result.about.clone(),
        responses: lines.iter().map(|line| line.candidates[&result.candidate].response.clone()).collect(),
        cached: 0,
    });
    let roles = Roles { reference: evaluation.reference.clone(), trained: evaluation.trained.clone() };
    let items = lines.iter().map(|line| line.item.clone()).collect();
    let again = Evaluation::new(&scorer, items, answers.collect(), roles).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(evaluation).unwrap());
}

#[test]
fn exact_match_counts_the_answers_that_the_model_gives() {
    let setup = setup();
    let model = setup.model();
    let questions: Vec<String> = (0..6).map(|i| format!("what is {i} and {}", 3 * i)).collect();
    let rows: Vec<String> = questions
        .iter()
        .enumerate()
        .map(|(i, question)| match i % 2 {
            0 => row(question, &format!("  {}\n", setup.own_answer(model.as_ref(), question, 8))),
            _ => row(question, "something else"),
        })
        .collect();
    let section = EvalSection { max_new_tokens: 8, batch_size: 4, ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    assert_eq!(task.items[2].facts.id, "test.jsonl:3");
    assert_eq!(task.items[2].facts.input, questions[2]);
    assert!(task.items[2].facts.prompt.ends_with("<|im_start|>assistant\n"));
    let result = setup.run("base", model.as_ref(), &task);
    let right: Vec<f64> = result
        .records
        .iter()
        .map(|r| r.score.tallies[&Metric::ExactMatch].value(Metric::ExactMatch))
        .collect();
    assert_eq!(right, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    let measured = result.measured(Metric::ExactMatch).unwrap();
    assert_eq!((measured.value, measured.n), (0.5, 6));
    let by_one = EvalTask { section: EvalSection { batch_size: 1, ..section }, ..task.clone() };
    let outputs = |result: &EvalResult| -> Vec<_> {
        result.records.iter().map(|record| record.response.output.clone()).collect()
    };
    assert_eq!(outputs(&setup.run("base", model.as_ref(), &by_one)), outputs(&result));
}

#[test]
fn perplexity_is_over_the_supervised_tokens_of_a_full_forward() {
    let setup = setup();
    let model = setup.model();
    let rows: Vec<String> =
        (0..5).map(|i| row(&format!("question {i}"), &format!("answer number {i}"))).collect();
    let section = EvalSection { metrics: vec![Metric::Perplexity], ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let result = setup.run("base", model.as_ref(), &task);
    let (mut sum, mut tokens) = (0.0, 0);
    for item in &task.items {
        let layout = SequenceLayout::single(item.whole.input_ids.len());
        let logits =
            forward_logits(model.as_ref(), &item.whole.input_ids, &mut ForwardContext::new(&layout)).unwrap();
        for at in (1..item.whole.input_ids.len()).filter(|&at| item.whole.mask[at]) {
            let row = to_vec_f32(&logits.get(at - 1).unwrap()).unwrap();
            let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            sum += total.ln() - f64::from(row[item.whole.input_ids[at] as usize]);
            tokens += 1;
        }
    }
    assert!(tokens >= 15);
    let expected = (sum / f64::from(tokens)).exp();
    let measured = result.measured(Metric::Perplexity).unwrap();
    assert!((measured.value / expected - 1.0).abs() < 1e-4, "{} is not {expected}", measured.value);
    assert!(result.records.iter().all(|r| r.response.output.is_none() && r.score.tallies.len() == 1));
}

#[test]
fn a_better_candidate_is_found_better_and_the_report_is_the_same_every_time() {
    let setup = setup();
    let candidate = setup.model();
    let other =
        tiny_checkpoint(&setup.folder.path().join("other"), &TinySpec { seed: 5, ..TinySpec::default() });
    let base = taper_models::load(&other, LoadOptions::default()).unwrap();
    let rows: Vec<String> = (0..12)
        .map(|i| {
            let question = format!("question {i} of {}", 7 * i);
            row(&question, &setup.own_answer(candidate.as_ref(), &question, 6))
        })
        .collect();
    let section = EvalSection { max_new_tokens: 6, ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let report = || {
        let answers = vec![
            setup.answer("base", base.as_ref(), &task),
            setup.answer("adapter", candidate.as_ref(), &task),
        ];
        let roles = Roles { reference: Some("base".into()), trained: "adapter".into() };
        let evaluation = Evaluation::new(&task.scorer, task.facts(), answers, roles).unwrap();
        assert_eq!(evaluation.verdict, Some(Verdict::Better));
        assert_eq!((evaluation.comparisons[0].won, evaluation.comparisons[0].lost), (12, 0));
        assert_eq!((evaluation.overlap.touched, evaluation.overlap.without.as_ref().unwrap().n), (1, 11));
        let gate: GateSection = toml::from_str(
            "min_exact_match = 1.0\nmin_exact_match_gain = 0.9\nrequire = ['adapter better than base']",
        )
        .unwrap();
        let requirements = gate.requirements(std::slice::from_ref(&section), &[]).unwrap();
        let gates = judge(&requirements, std::slice::from_ref(&evaluation), &[]);
        let facts = RunFacts { title: "tiny".into(), ..RunFacts::default() };
        let evaluations = std::slice::from_ref(&evaluation);
        let report = Report {
            facts: &facts,
            evaluations,
            gates: &gates,
            gate: &gate,
            kept: &[],
            section: ReportSection::default(),
            uses: &[],
            cost: None,
            training_samples: &[],
        };
        assert_eq!(report.exit_code(), ExitCode::Passed);
        replayed(&evaluation, &report.samples_jsonl().unwrap());
        let results: serde_json::Value = serde_json::from_str(&report.results_json().unwrap()).unwrap();
        let schema = jsonschema::validator_for(&results_schema()).unwrap();
        let faults: Vec<String> = schema.iter_errors(&results).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{faults:?}");
        (report.results_json().unwrap(), report.samples_jsonl().unwrap(), report.markdown())
    };
    let first = report();
    assert_eq!(first, report());
    assert!(!first.0.contains(&setup.folder.path().display().to_string()));
}

#[test]
fn examples_that_cannot_be_measured_are_named_with_their_places() {
    let setup = setup();
    let rows = [row("a", "{\"x\": 1}"), row("b", "no json"), row("c", "7")];
    let section = EvalSection { metrics: vec![Metric::JsonFields], ..EvalSection::default() };
    let Err(Error::Problems(problems)) = setup.prepare(&section, &setup.examples(&rows)) else { panic!() };
    let lines: Vec<_> = problems.iter().map(|p| p.location.clone().unwrap().line.unwrap()).collect();
    assert_eq!(lines, [2, 3]);

    let text = [serde_json::json!({ "text": "plain words" }).to_string()];
    let Err(Error::Problems(problems)) = setup.prepare(&EvalSection::default(), &setup.examples(&text))
    else {
        panic!()
    };
    assert_eq!(problems.iter().next().unwrap().code, "cannot-measure");
    let alone = EvalSection { metrics: vec![Metric::Perplexity], ..EvalSection::default() };
    let task = setup.prepare(&alone, &setup.examples(&text)).unwrap();
    assert_eq!(setup.run("base", setup.model().as_ref(), &task).measured(Metric::Perplexity).unwrap().n, 1);

    let nothing = setup.prepare(&EvalSection::default(), &[]).unwrap_err();
    assert_eq!(nothing.exit_code(), ExitCode::NothingEvaluated);
}

#[test]
fn a_prompt_that_does_not_fit_is_named_by_its_row() {
    let setup = setup();
    let rows = [row("short", "x"), row(&"long words ".repeat(2000), "x")];
    let section = EvalSection { metrics: vec![Metric::ExactMatch], ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let go_on = &mut |_: Progress| ControlFlow::Continue(());
    let work = Work::new(&task, "", None, false);
    let error = work.answer(("base", ""), setup.model().as_ref(), &setup.tokenizer, go_on).unwrap_err();
    let location = error.location().unwrap();
    assert_eq!(location.line, Some(2));
    assert_eq!(location.file.as_deref().and_then(Path::file_name), Some("test.jsonl".as_ref()));
}

#[test]
fn an_evaluation_can_be_broken_off() {
    let setup = setup();
    let rows: Vec<String> = (0..8).map(|i| row(&format!("question {i}"), "x")).collect();
    let section = EvalSection { max_new_tokens: 4, batch_size: 2, ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let mut seen = Vec::new();
    let work = Work::new(&task, "", None, false);
    let result = work.answer(("base", ""), setup.model().as_ref(), &setup.tokenizer, &mut |progress| {
        seen.push(progress.done);
        if progress.done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(result.unwrap().is_none());
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn an_answer_that_only_calls_tools_has_no_text_to_match() {
    let setup = setup();
    let call = serde_json::json!({ "messages": [
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": "", "tool_calls": [
            { "type": "function", "function": { "name": "weather", "arguments": {} } }
        ] }
    ] });
    let examples = setup.examples(&[call.to_string()]);
    // A candidate that says nothing at all would be right on every such row.
    let Err(Error::Problems(problems)) = setup.prepare(&EvalSection::default(), &examples) else {
        panic!("it was accepted")
    };
    let problem = problems.iter().next().unwrap();
    assert_eq!((problem.code, problem.location.as_ref().unwrap().line), ("cannot-measure", Some(1)));
}

#[test]
fn items_that_the_model_cannot_hold_are_told_before_it_runs() {
    let setup = setup();
    let rows =
        [row("short", "answer"), row("question", &"long answer ".repeat(40)), row(&"why ".repeat(90), "x")];
    let task = setup.prepare(&EvalSection::default(), &setup.examples(&rows)).unwrap();
    let longest = |i: usize| task.items[i].whole.input_ids.len();
    assert!(task.check_length(longest(1).max(longest(2))).is_empty());
    let lines = |limit| -> Vec<Option<usize>> {
        task.check_length(limit).iter().map(|p| p.location.as_ref().unwrap().line).collect()
    };
    assert_eq!(lines(longest(0)), [Some(2), Some(3)]);
    assert_eq!(lines(0), [Some(1), Some(2), Some(3)]);
    // Where nothing is scored only the prompt has to fit, with one token of the answer.
    let section = EvalSection { metrics: vec![Metric::ExactMatch], ..EvalSection::default() };
    let generating = EvalTask { section, ..task.clone() };
    let prompt = task.items[1].prompt_ids.len();
    let told =
        |limit| generating.check_length(limit).iter().any(|p| p.location.as_ref().unwrap().line == Some(2));
    assert!(told(prompt) && !told(prompt + 1));
}

/// The sum of the log-probabilities of the tokens at `from` and after, by a full forward.
fn log_likelihood(model: &dyn CausalLm, ids: &[u32], mask: &[bool]) -> f64 {
    let layout = SequenceLayout::single(ids.len());
    let logits = forward_logits(model, ids, &mut ForwardContext::new(&layout)).unwrap();
    let mut sum = 0.0;
    for at in (1..ids.len()).filter(|at| mask[*at]) {
        let row = to_vec_f32(&logits.get(at - 1).unwrap()).unwrap();
        let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        sum += f64::from(row[ids[at] as usize]) - total.ln();
    }
    sum
}

#[test]
fn choices_are_scored_as_the_answer_without_its_end() {
    let setup = setup();
    let model = setup.model();
    let choices = ["yes", "certainly not", "no"];
    let rows: Vec<String> = (0..4)
        .map(|i| {
            let mut row: serde_json::Value = serde_json::from_str(&row(&format!("is it {i}"), "no")).unwrap();
            row["choices"] = serde_json::json!(choices);
            row.to_string()
        })
        .collect();
    let section = EvalSection { metrics: vec![Metric::Acc, Metric::AccNorm], ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let result = setup.run("base", model.as_ref(), &task);
    let mut right = 0;
    for (item, record) in task.items.iter().zip(&result.records) {
        let found = record.response.choices.as_ref().unwrap();
        let expected: Vec<f64> = item
            .choices
            .iter()
            .zip(choices)
            .map(|(scored, text)| {
                let ids: Vec<u32> =
                    scored.input_ids.iter().zip(&scored.mask).filter(|(_, m)| **m).map(|(i, _)| *i).collect();
                assert_eq!(setup.tokenizer.decode(&ids, false).unwrap().trim(), text);
                log_likelihood(model.as_ref(), &scored.input_ids, &scored.mask)
            })
            .collect();
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-3, "{a} is not {b}");
        }
        let best = (0..3).max_by(|a, b| expected[*a].total_cmp(&expected[*b])).unwrap();
        right += usize::from(best == 2);
    }
    assert_eq!(result.measured(Metric::Acc).unwrap().value, right as f64 / 4.0);

    let without = [row("a", "no")];
    let Err(Error::Problems(problems)) = setup.prepare(&section, &setup.examples(&without)) else { panic!() };
    assert!(problems.iter().next().unwrap().message.contains("no list of two choices"));
}

#[test]
fn shown_examples_stand_before_the_question_and_are_not_scored() {
    let setup = setup();
    let rows: Vec<String> = (0..3).map(|i| row(&format!("question {i}"), &format!("answer {i}"))).collect();
    let pool: Vec<String> =
        (0..5).map(|i| row(&format!("shown {i}"), &format!("told {i}"))).chain([rows[0].clone()]).collect();
    let (pool, examples) = (setup.examples(&pool), setup.examples(&rows));
    let shots = choose_shots(&pool, &examples, 5, 3);
    assert_eq!(shots.len(), 5, "what is asked is not shown");
    let section = EvalSection {
        metrics: vec![Metric::Perplexity],
        system: Some("be short".into()),
        ..EvalSection::default()
    };
    let prompting = Prompting { shots: shots[..2].to_vec(), schema: None };
    let task = setup.prepare_with(&section, &examples, &prompting).unwrap();
    for (index, item) in task.items.iter().enumerate() {
        assert!(item.facts.prompt.starts_with("<|im_start|>system\nbe short"), "{}", item.facts.prompt);
        assert_eq!(item.facts.prompt.matches("told").count(), 2);
        assert_eq!(item.messages.len(), 6);
        let scored: Vec<u32> = item
            .whole
            .input_ids
            .iter()
            .zip(&item.whole.mask)
            .filter(|(_, m)| **m)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(setup.tokenizer.decode(&scored, true).unwrap().trim(), format!("answer {index}"));
        assert_eq!(item.whole.bytes, "answer 0".len());
    }
}

#[test]
fn what_was_answered_is_not_asked_again_and_a_broken_evaluation_goes_on() {
    let setup = setup();
    let model = setup.model();
    let cache = ResponseCache::new(setup.folder.path().join("cache"));
    let rows: Vec<String> = (0..20).map(|i| row(&format!("question {i}"), "x")).collect();
    let section = EvalSection { max_new_tokens: 4, batch_size: 2, ..EvalSection::default() };
    let task = setup.prepare(&section, &setup.examples(&rows)).unwrap();
    let answer = |identity: &str, stop_at: usize| {
        let mut asked = 0;
        let work = Work::new(&task, identity, Some(&cache), false);
        let done = work.is_done();
        let answers = work
            .answer(("base", ""), model.as_ref(), &setup.tokenizer, &mut |_| {
                asked += 1;
                if asked == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        (answers, asked, done)
    };
    // Two chunks of eight are whole when it is broken off in the third.
    assert_eq!(answer("a", 18).0, None);
    let (resumed, asked, _) = answer("a", 99);
    assert_eq!(asked, 4);
    let (again, asked, done) = answer("a", 99);
    assert!(done && asked == 0);
    let fresh = setup.answer("base", model.as_ref(), &task);
    assert_eq!(resumed.unwrap().responses, fresh.responses);
    assert_eq!(again.unwrap().responses, fresh.responses);
    assert_eq!(answer("b", 99).1, 20, "another candidate answers for itself");
    let longer = EvalTask { section: EvalSection { max_new_tokens: 5, ..section }, ..task.clone() };
    assert!(!Work::new(&longer, "a", Some(&cache), false).is_done());
}

#[test]
fn slices_and_clusters_follow_the_fields_of_the_rows() {
    let setup = setup();
    let model = setup.model();
    let rows: Vec<String> = (0..12)
        .map(|i| {
            let mut value: serde_json::Value =
                serde_json::from_str(&row(&format!("question {i}"), "x")).unwrap();
            value["site"] = serde_json::json!(if i % 3 == 0 { "north" } else { "south" });
            value["doc"] = serde_json::json!(i / 4);
            value.to_string()
        })
        .collect();
    let section = EvalSection {
        max_new_tokens: 4,
        slices: vec!["site".into()],
        cluster_by: Some("doc".into()),
        ..EvalSection::default()
    };
    let examples = setup.examples(&rows);
    let task = setup.prepare(&section, &examples).unwrap();
    let answers = ["base", "adapter"].map(|name| setup.answer(name, model.as_ref(), &task)).to_vec();
    let roles = Roles { reference: Some("base".into()), trained: "adapter".into() };
    let evaluation = Evaluation::new(&task.scorer, task.facts(), answers, roles).unwrap();
    let sizes: Vec<(&str, usize)> = evaluation.slices.iter().map(|s| (s.value.as_str(), s.part.n)).collect();
    assert_eq!(sizes, [("north", 4), ("south", 8)]);
    assert_eq!(evaluation.comparisons[0].test, "permutation", "documents are counted, not items");
    assert_eq!(evaluation.verdict, Some(Verdict::Inconclusive));

    let wrong = EvalSection { slices: vec!["sites".into()], ..section.clone() };
    let Err(Error::Problems(problems)) = setup.prepare(&wrong, &examples) else { panic!() };
    assert!(problems.iter().next().unwrap().hint.as_deref().unwrap().contains("`site`"));
    let wrong = EvalSection { cluster_by: Some("nothing".into()), ..section };
    assert!(matches!(setup.prepare(&wrong, &examples), Err(Error::Problems(_))));
}
