//! The whole of an evaluation over a tiny model: examples, prompts, answers, losses, comparison, report.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use taper_data::{DataSection, Example, Supervision, TextEncoder, load as load_data};
use taper_diagnostics::{Diagnose, ExitCode};
use taper_eval::{
    Error, EvalResult, EvalSection, EvalTask, Evaluation, Metric, Renderer, Report, RunFacts, Verdict,
    evaluate, judge,
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
        load_data(&[path], &DataSection::default()).unwrap().examples
    }

    fn prepare(&self, section: &EvalSection, examples: &[Example]) -> Result<EvalTask, Error> {
        let encoder = TextEncoder::new(&self.tokenizer, Some(&self.template), Supervision::Assistant);
        let renderer =
            Renderer { tokenizer: &self.tokenizer, template: Some(&self.template), encoder: &encoder };
        EvalTask::prepare(section, examples, &renderer)
    }

    fn run(&self, candidate: &str, model: &dyn CausalLm, task: &EvalTask) -> EvalResult {
        let on_progress = &mut |_| ControlFlow::Continue(());
        evaluate(candidate, model, &self.tokenizer, task, on_progress).unwrap().unwrap()
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
    assert_eq!(task.items[2].id, "test.jsonl:3");
    assert_eq!(task.items[2].input, questions[2]);
    assert!(task.items[2].prompt.ends_with("<|im_start|>assistant\n"));
    let result = setup.run("base", model.as_ref(), &task);
    let right: Vec<bool> = result.records.iter().map(|r| r.exact_match.unwrap()).collect();
    assert_eq!(right, [true, false, true, false, true, false]);
    let measured = result.measured(Metric::ExactMatch).unwrap();
    assert_eq!((measured.value, measured.n), (0.5, 6));
    let by_one = EvalTask { section: EvalSection { batch_size: 1, ..section }, ..task.clone() };
    assert_eq!(setup.run("base", model.as_ref(), &by_one).records, result.records);
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
        let layout = SequenceLayout::single(item.input_ids.len());
        let logits =
            forward_logits(model.as_ref(), &item.input_ids, &mut ForwardContext::new(&layout)).unwrap();
        for at in (1..item.input_ids.len()).filter(|&at| item.loss_mask[at]) {
            let row = to_vec_f32(&logits.get(at - 1).unwrap()).unwrap();
            let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            sum += total.ln() - f64::from(row[item.input_ids[at] as usize]);
            tokens += 1;
        }
    }
    assert!(tokens >= 15);
    let expected = (sum / f64::from(tokens)).exp();
    let measured = result.measured(Metric::Perplexity).unwrap();
    assert!((measured.value / expected - 1.0).abs() < 1e-4, "{} is not {expected}", measured.value);
    assert!(result.records.iter().all(|r| r.output.is_none() && r.exact_match.is_none()));
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
        let (a, b) =
            (setup.run("base", base.as_ref(), &task), setup.run("adapter", candidate.as_ref(), &task));
        let evaluation = Evaluation::new(&section, &task.items, Some(a), b).unwrap();
        assert_eq!(evaluation.verdict, Some(Verdict::Better));
        assert_eq!((evaluation.comparisons[0].won, evaluation.comparisons[0].lost), (12, 0));
        let gate = toml::from_str("min_exact_match = 1.0\nmin_exact_match_gain = 0.9").unwrap();
        let gates = judge(&gate, std::slice::from_ref(&evaluation));
        let facts = RunFacts { title: "tiny".into(), ..RunFacts::default() };
        let report = Report { facts: &facts, evaluations: std::slice::from_ref(&evaluation), gates: &gates };
        assert_eq!(report.exit_code(), ExitCode::Passed);
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
    assert_eq!(problems.iter().next().unwrap().code, "no-answer");
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
    let error =
        evaluate("base", setup.model().as_ref(), &setup.tokenizer, &task, &mut |_| ControlFlow::Continue(()))
            .unwrap_err();
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
    let result = evaluate("base", setup.model().as_ref(), &setup.tokenizer, &task, &mut |progress| {
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
    assert_eq!((problem.code, problem.location.as_ref().unwrap().line), ("no-answer", Some(1)));
}

#[test]
fn items_that_the_model_cannot_hold_are_told_before_it_runs() {
    let setup = setup();
    let rows =
        [row("short", "answer"), row("question", &"long answer ".repeat(40)), row(&"why ".repeat(90), "x")];
    let task = setup.prepare(&EvalSection::default(), &setup.examples(&rows)).unwrap();
    let longest = |i: usize| task.items[i].input_ids.len();
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
