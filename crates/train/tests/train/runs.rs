//! Invariant 4: the same bits for any number of threads, and for any interruption.

use crate::support::{bits, data, model, new_adapter, place, sections};
use fs_err as fs;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use taper_train::{
    CheckpointStore, Event, Outcome, ProgressSink, STATE_FILE, Sections, Silent, Start, TrainMethod, Trained,
    Trainer,
};

/// What a run leaves: the bits of what was trained, the bytes of its files, and the log without the speed.
#[derive(Debug, PartialEq)]
struct Left {
    parameters: BTreeMap<String, Vec<u32>>,
    checkpoint: BTreeMap<String, Vec<u8>>,
    metrics: String,
    outcome: String,
}

fn train(
    sections: &Sections,
    folder: &Path,
    start: Start,
    sink: &mut dyn ProgressSink,
    flag: &Arc<AtomicBool>,
) -> (Outcome, Left) {
    let mut base =
        model(if sections.train.method == TrainMethod::Full { "llama_tied" } else { "llama_untied" });
    let trained = match sections.train.method {
        TrainMethod::Adapter => new_adapter(base.as_mut(), 1),
        TrainMethod::Full => Trained::full(base.as_mut()).unwrap(),
    };
    let mut place = place(folder, start);
    place.interrupt = Arc::clone(flag);
    let outcome = Trainer::new(base.as_ref(), &trained, data(), sections, place).unwrap().run(sink).unwrap();
    let (Outcome::Finished { checkpoint, .. } | Outcome::Interrupted { checkpoint, .. }) = &outcome;
    let files = fs::read_dir(checkpoint).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
    });
    let text = format!("{outcome:?}").replace(&folder.display().to_string(), "");
    let left = Left {
        parameters: bits(trained.parameters()),
        checkpoint: files.collect(),
        metrics: without_speed(&folder.join("metrics.jsonl")),
        outcome: text,
    };
    (outcome, left)
}

fn to_the_end(sections: &Sections, folder: &Path, start: Start) -> Left {
    let (outcome, left) = train(sections, folder, start, &mut Silent, &Arc::default());
    assert!(matches!(outcome, Outcome::Finished { .. }));
    left
}

fn without_speed(path: &Path) -> String {
    let line = |line: &str| {
        let mut value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        value.remove("tokens_per_second");
        serde_json::to_string(&value).unwrap() + "\n"
    };
    fs::read_to_string(path).unwrap().lines().map(line).collect()
}

/// Counts events; at one of them it does something.
struct At<F> {
    left: usize,
    act: F,
}

impl<F: FnMut()> ProgressSink for At<F> {
    fn event(&mut self, _: &Event<'_>) {
        if self.left == 0 {
            (self.act)();
        }
        self.left = self.left.wrapping_sub(1);
    }
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn invariant_4_the_same_seed_gives_the_same_bytes_for_any_number_of_threads() {
    let runs: Vec<Left> = [1, 2, 3, 2]
        .into_iter()
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| to_the_end(&sections(), temporary().path(), Start::Fresh))
        })
        .collect();
    assert!(runs[0].checkpoint.contains_key("adapter_model.safetensors"));
    assert!(runs.iter().all(|run| *run == runs[0]));
    let mut other = sections();
    other.train.seed = 43;
    assert_ne!(to_the_end(&other, temporary().path(), Start::Fresh).parameters, runs[0].parameters);
}

#[test]
fn invariant_4_an_interrupted_run_that_is_resumed_ends_as_the_uninterrupted_one() {
    let want = to_the_end(&sections(), temporary().path(), Start::Fresh);
    for events in [0, 1, 5, 9, 13, 17] {
        let folder = temporary();
        let flag: Arc<AtomicBool> = Arc::default();
        let mut sink = At { left: events, act: || flag.store(true, Ordering::Relaxed) };
        let (outcome, _) = train(&sections(), folder.path(), Start::Fresh, &mut sink, &flag);
        let Outcome::Interrupted { steps, checkpoint } = outcome else { panic!("{outcome:?}") };
        assert!(checkpoint.ends_with(format!("step-{steps}")));
        assert_eq!(
            to_the_end(&sections(), folder.path(), Start::Resume),
            want,
            "interrupted after {events} events"
        );
    }
}

#[test]
fn invariant_4_a_run_that_dies_anywhere_and_is_resumed_ends_as_the_uninterrupted_one() {
    let want = to_the_end(&sections(), temporary().path(), Start::Fresh);
    let mut died = 0;
    for events in (1..).step_by(2) {
        let folder = temporary();
        // Unwinding past the trainer leaves its files as a killed process would.
        let mut sink = At { left: events, act: || std::panic::resume_unwind(Box::new("killed")) };
        let run = || train(&sections(), folder.path(), Start::Fresh, &mut sink, &Arc::default());
        if catch_unwind(AssertUnwindSafe(run)).is_ok() {
            break;
        }
        died += 1;
        litter(folder.path());
        let resumable = CheckpointStore::new(folder.path()).newest().unwrap().is_some();
        let start = if resumable { Start::Resume } else { Start::Fresh };
        assert_eq!(to_the_end(&sections(), folder.path(), start), want, "killed after {events} events");
    }
    assert!(died > 8, "{died}");
}

/// What a death in the middle of a write leaves.
fn litter(folder: &Path) {
    let unfinished = folder.join("checkpoints").join(".unfinished-step-99");
    fs::create_dir_all(&unfinished).unwrap();
    fs::write(unfinished.join("adapter_model.safetensors"), b"half").unwrap();
    let metrics = folder.join("metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).unwrap_or_default();
    text.push_str("{\"step\":1,\"epo");
    fs::write(metrics, text).unwrap();
}

#[test]
fn invariant_4_holds_for_full_training_with_checkpointed_blocks() {
    let mut sections = sections();
    sections.train.method = TrainMethod::Full;
    sections.train.gradient_checkpointing = true;
    sections.train.max_steps = Some(5);
    sections.optimizer.learning_rate = 1e-3;
    let want = to_the_end(&sections, temporary().path(), Start::Fresh);
    assert!(want.checkpoint.contains_key("model.safetensors"));
    let folder = temporary();
    let flag: Arc<AtomicBool> = Arc::default();
    let mut sink = At { left: 3, act: || flag.store(true, Ordering::Relaxed) };
    train(&sections, folder.path(), Start::Fresh, &mut sink, &flag);
    assert_eq!(to_the_end(&sections, folder.path(), Start::Resume), want);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let want = to_the_end(&sections(), temporary().path(), Start::Fresh);
    let folder = temporary();
    let flag: Arc<AtomicBool> = Arc::default();
    let mut sink = At { left: 14, act: || flag.store(true, Ordering::Relaxed) };
    let (outcome, _) = train(&sections(), folder.path(), Start::Fresh, &mut sink, &flag);
    let Outcome::Interrupted { checkpoint, .. } = outcome else { panic!("{outcome:?}") };
    fs::write(checkpoint.join("optimizer.safetensors"), b"").unwrap();
    assert_ne!(CheckpointStore::new(folder.path()).newest().unwrap(), Some(checkpoint));
    assert_eq!(to_the_end(&sections(), folder.path(), Start::Resume), want);
}

#[test]
fn a_finished_run_can_be_resumed_and_ends_the_same() {
    let folder = temporary();
    let want = to_the_end(&sections(), folder.path(), Start::Fresh);
    assert_eq!(to_the_end(&sections(), folder.path(), Start::Resume), want);
}

#[test]
fn checkpoints_are_rotated_and_the_log_has_its_lines() {
    let folder = temporary();
    let mut sections = sections();
    sections.train.save_total_limit = 1;
    let left = to_the_end(&sections, folder.path(), Start::Fresh);
    let store = CheckpointStore::new(folder.path());
    let steps = store.steps().unwrap();
    let state = store.state(&store.path(11)).unwrap();
    let best = state.best.unwrap();
    assert_eq!(steps, if best.step == 11 { vec![11] } else { vec![best.step, 11] });
    let lines: Vec<serde_json::Value> =
        left.metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let with = |key: &str| -> Vec<u64> {
        lines
            .iter()
            .filter(|line| line.get(key).is_some())
            .map(|line| line["step"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(with("loss"), [3, 6, 9, 11]);
    assert_eq!(with("eval_loss"), [3, 6, 9, 11]);
    let lowest = lines.iter().filter_map(|line| line["eval_loss"].as_f64()).fold(f64::INFINITY, f64::min);
    assert!((lowest - best.loss).abs() < 1e-12, "the best validation is the one with the lowest loss");
    assert!(lines[0]["loss"].as_f64() > lines[6]["loss"].as_f64(), "the loss falls: {}", left.metrics);
    let files: Vec<PathBuf> = fs::read_dir(store.path(11)).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.iter().any(|path| path.ends_with(STATE_FILE)));
}

#[test]
fn the_self_test_changes_nothing_of_the_run() {
    struct Seen(Vec<usize>);
    impl ProgressSink for Seen {
        fn event(&mut self, event: &Event<'_>) {
            if let Event::SelfTested(report) = event {
                self.0.push(report.parameters);
            }
        }
    }
    let mut tested = sections();
    tested.train.self_test = true;
    let mut seen = Seen(Vec::new());
    let (_, left) = train(&tested, temporary().path(), Start::Fresh, &mut seen, &Arc::default());
    assert_eq!(seen.0, [28], "A and B of seven layers in two blocks");
    assert_eq!(left, to_the_end(&sections(), temporary().path(), Start::Fresh));
}
