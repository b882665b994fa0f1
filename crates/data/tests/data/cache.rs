//! Tokens kept on the disk: what comes out is the same with them, without them, and with broken ones.

use fs_err as fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use taper_data::{
    DataSection, Encode, Encoded, Example, ExplainedToken, OnError, PrepareOptions, PreparedData, Result,
    Supervision, TextEncoder, TokenCache, Truncation, prepare_with,
};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};
use tempfile::TempDir;

const ROWS: usize = 60;
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A text encoder that counts.
struct Counting<'a> {
    inner: TextEncoder<'a>,
    encoded: AtomicUsize,
}

impl Encode for Counting<'_> {
    fn encode(&self, example: &Example) -> Result<Encoded> {
        self.encoded.fetch_add(1, Ordering::Relaxed);
        self.inner.encode(example)
    }

    fn explain(&self, example: &Example) -> Result<(String, Vec<ExplainedToken>)> {
        self.inner.explain(example)
    }

    fn token(&self, id: u32) -> String {
        self.inner.token(id)
    }

    fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id()
    }

    fn stop_ids(&self) -> Vec<u32> {
        self.inner.stop_ids()
    }

    fn has_chat_template(&self) -> bool {
        self.inner.has_chat_template()
    }

    fn fingerprint(&self) -> Option<[u8; 32]> {
        self.inner.fingerprint()
    }
}

/// A data file, a tokenizer's folder, a template, a section and a cache.
struct Desk {
    folder: TempDir,
    section: DataSection,
    template: String,
    /// What the template's clock shows; `None` for the machine's.
    clock: Option<u64>,
    /// Fields that are asked for.
    fields: Vec<String>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat/tokenizer_chatml");
        for entry in fs::read_dir(tokenizer).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let row = |i: usize| {
            let (prompt, completion) = (format!("question {i} on things"), format!("answer {i}"));
            format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\", \"other\": \"o{i}\"}}\n")
        };
        let rows: String = (0..ROWS).map(row).collect();
        fs::write(folder.path().join("train.jsonl"), rows).unwrap();
        let section = DataSection { train: ["train.jsonl"].into_iter().collect(), ..DataSection::default() };
        Self { folder, section, template: CHATML.to_owned(), clock: Some(0), fields: Vec::new() }
    }

    fn cache(&self) -> TokenCache {
        TokenCache::new(self.folder.path().join("cache"))
    }

    /// The files in the cache.
    fn kept(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().folder()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Prepare, and the number of examples that were encoded.
    fn prepare_in(&self, cache: Option<&TokenCache>) -> (PreparedData, usize) {
        let tokenizer = Tokenizer::load(&TokenizerFiles::in_folder(self.folder.path())).unwrap();
        let mut template = ChatTemplate::from_source(&self.template, &tokenizer).unwrap();
        if let Some(clock) = self.clock {
            template = template.with_fixed_clock(clock, &tokenizer).unwrap();
        }
        let inner = TextEncoder::new(&tokenizer, Some(&template), self.section.supervise);
        let encoder = Counting { inner, encoded: AtomicUsize::new(0) };
        let data = prepare_with(
            &self.section,
            self.folder.path(),
            1,
            &encoder,
            PrepareOptions { cache, fields: &self.fields },
        );
        (data, encoder.encoded.into_inner())
    }

    fn prepare(&self) -> (PreparedData, usize) {
        self.prepare_in(Some(&self.cache()))
    }

    fn without_cache(&self) -> PreparedData {
        self.prepare_in(None).0
    }

    fn add(&self, rows: &str) {
        let path = self.folder.path().join("train.jsonl");
        fs::write(&path, fs::read_to_string(&path).unwrap() + rows).unwrap();
    }
}

/// All that a run sees of the data, but for how many tokens were kept.
fn seen(data: &PreparedData) -> String {
    format!("{:?}", PreparedData { reused: 0, ..data.clone() })
}

#[test]
fn a_second_run_encodes_nothing_and_sees_the_same() {
    let desk = Desk::new();
    let (first, encoded) = desk.prepare();
    assert_eq!((first.reused, encoded), (0, ROWS), "{}", first.problems);
    let (second, encoded) = desk.prepare();
    assert_eq!((second.reused, encoded), (ROWS, 0));
    assert_eq!(second.train.tokenized.len(), ROWS);
    assert!(seen(&first) == seen(&second) && seen(&first) == seen(&desk.without_cache()));
}

#[test]
fn fields_are_on_the_test_examples_alone_and_change_no_name_in_the_cache() {
    let mut desk = Desk::new();
    let long = "x".repeat(1 << 20);
    // Twenty rows whose field would fill more than one chunk, if it counted.
    let row = |i: usize| {
        format!(
            "{{\"prompt\": \"test {i}\", \"completion\": \"a\", \"other\": {{\"is\": [{i}, \"{long}\"]}}}}\n"
        )
    };
    fs::write(desk.folder.path().join("test.jsonl"), (0..20).map(row).collect::<String>()).unwrap();
    desk.section.test = ["test.jsonl"].into_iter().collect();
    let (plain, _) = desk.prepare();
    assert!(plain.problems.to_string().contains("`other`"), "{}", plain.problems);
    desk.fields = vec!["other.is".into()];
    let (with, encoded) = desk.prepare();
    assert_eq!((with.reused, encoded), (ROWS + 20, 0));
    assert!(!with.problems.to_string().contains("`other`"), "{}", with.problems);
    for (i, example) in with.test.examples.iter().enumerate() {
        assert_eq!(example.fields["other.is"][0], i);
    }
    assert_eq!(with.test.tokenized, plain.test.tokenized);
    assert!(plain.test.examples.iter().all(|example| example.fields.is_empty()));
}

#[test]
fn faults_and_warnings_are_told_again() {
    let mut desk = Desk::new();
    let long = "far too long ".repeat(80);
    // A row that repeats, one over the length, one that is no object, one that the template refuses, one with a special token.
    desk.add(&format!("{{\"prompt\": \"question 1 on things\", \"completion\": \"answer 1\"}}\n{{\"prompt\": \"{long}\", \"completion\": \"a\"}}\n[1]\n"));
    desk.add("{\"prompt\": \"refuse\", \"completion\": \"a\"}\n{\"prompt\": \"<|im_start|>\", \"completion\": \"a\"}\n");
    desk.template = "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('no') }}{% endif %}{% endfor %}".to_owned() + CHATML;
    desk.section.max_length = 60;
    for (on_error, truncation) in [
        (OnError::Stop, Truncation::Error),
        (OnError::Skip, Truncation::Drop),
        (OnError::Skip, Truncation::Right),
        (OnError::Skip, Truncation::Error),
    ] {
        (desk.section.on_error, desk.section.truncation) = (on_error, truncation);
        let plain = desk.without_cache();
        assert!(!plain.problems.is_empty());
        let (first, _) = desk.prepare();
        assert!(seen(&plain) == seen(&first));
        let (second, encoded) = desk.prepare();
        assert!(seen(&plain) == seen(&second));
        if on_error == OnError::Skip {
            assert_eq!((second.reused, encoded), (ROWS + 3, 1), "the refused row alone is tried again");
        }
    }
}

#[test]
fn a_broken_file_is_told_not_used_and_written_anew() {
    let desk = Desk::new();
    let plain = desk.without_cache();
    desk.prepare();
    let [path] = desk.kept().try_into().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for broken in [&flipped, &whole[..whole.len() / 2], b"", b"something else", &whole.repeat(2)] {
        fs::write(&path, broken).unwrap();
        let (mut data, encoded) = desk.prepare();
        assert_eq!((data.reused, encoded), (0, ROWS));
        let told = data.problems.iter().filter(|problem| problem.code == "token-cache");
        assert_eq!((told.count(), data.problems.len()), (1, plain.problems.len() + 1));
        assert!(!data.problems.has_errors());
        data.problems = plain.problems.clone();
        assert!(seen(&data) == seen(&plain));
        assert!(fs::read(&path).unwrap() == whole);
        assert_eq!(desk.prepare().1, 0);
    }
}

#[test]
fn whatever_changes_the_tokens_of_examples_makes_them_anew() {
    type Change = fn(&mut Desk);
    let changes: [(&str, Change); 9] = [
        ("a row", |desk| {
            let path = desk.folder.path().join("train.jsonl");
            fs::write(&path, fs::read_to_string(&path).unwrap().replace("question 7 ", "Question 7 "))
                .unwrap();
        }),
        ("system_prompt", |desk| desk.section.system_prompt = Some("be brief".into())),
        ("supervise", |desk| desk.section.supervise = Supervision::All),
        ("columns", |desk| {
            desk.section.columns.insert("completion".into(), "other".into());
        }),
        ("apply_chat_template", |desk| desk.section.apply_chat_template = false),
        ("the template", |desk| desk.template.push_str("{# a remark #}")),
        ("the template's clock", |desk| desk.clock = Some(1)),
        ("tokenizer.json", |desk| {
            let path = desk.folder.path().join("tokenizer.json");
            fs::write(&path, fs::read_to_string(&path).unwrap() + "\n").unwrap();
        }),
        ("generation_config.json", |desk| {
            fs::write(desk.folder.path().join("generation_config.json"), "{\"eos_token_id\": [1]}").unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut desk = Desk::new();
        desk.prepare();
        change(&mut desk);
        let (data, encoded) = desk.prepare();
        assert_eq!((data.reused, encoded), (0, ROWS), "{what}");
        assert!(seen(&data) == seen(&desk.without_cache()), "{what}");
        assert_eq!(desk.prepare().0.reused, ROWS, "{what}");
    }
}

#[test]
fn what_is_done_with_tokens_later_needs_no_others() {
    let changes: [fn(&mut DataSection); 5] = [
        |section| (section.max_length, section.truncation) = (20, Truncation::Right),
        |section| (section.max_length, section.truncation) = (20, Truncation::Drop),
        |section| section.validation_split = 0.3,
        |section| section.on_error = OnError::Skip,
        |section| section.packing = true,
    ];
    for change in changes {
        let mut desk = Desk::new();
        desk.prepare();
        change(&mut desk.section);
        let (data, encoded) = desk.prepare();
        assert_eq!((data.reused, encoded), (ROWS, 0));
        assert!(seen(&data) == seen(&desk.without_cache()));
    }
}

#[test]
fn a_row_that_is_added_leaves_the_chunks_before_it() {
    let desk = Desk::new();
    let row = |i: usize| format!("{{\"prompt\": \"further {i}\", \"completion\": \"answer {i}\"}}\n");
    desk.add(&(0..4200).map(row).collect::<String>());
    desk.prepare();
    assert_eq!(desk.kept().len(), 2);
    desk.add(&row(4200));
    let (data, encoded) = desk.prepare();
    assert_eq!((data.reused, encoded), (4096, 4200 + ROWS + 1 - 4096));
    assert!(seen(&data) == seen(&desk.without_cache()));
}

#[test]
fn nothing_is_kept_where_it_is_switched_off_or_a_template_sees_todays_date() {
    let mut desk = Desk::new();
    desk.section.cache = false;
    desk.prepare();
    desk.section.cache = true;
    desk.clock = None;
    desk.prepare();
    assert!(desk.kept().is_empty() && !desk.cache().folder().exists());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_a_warning_and_no_more() {
    let desk = Desk::new();
    let cache = TokenCache::new(desk.folder.path().join("train.jsonl/cache"));
    let (mut data, _) = desk.prepare_in(Some(&cache));
    let told: Vec<_> = data.problems.iter().filter(|problem| problem.code == "token-cache").collect();
    assert!(!told.is_empty() && told.iter().all(|problem| problem.hint.is_some()), "{}", data.problems);
    assert!(data.problems.to_string().contains("TAPER_CACHE_DIR"), "{}", data.problems);
    assert!(!data.problems.has_errors());
    let plain = desk.without_cache();
    data.problems = plain.problems.clone();
    assert!(seen(&data) == seen(&plain));
}
