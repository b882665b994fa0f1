//! From a grammar to what matches it.

use super::limits::parser_limits;
use super::place::innermost;
use super::{Grammar, GrammarError, GrammarMatcher};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use taper_text::Tokenizer;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// Most grammars that are prepared at a time, those included that nobody waits for any more.
const MAX_RUNNING: usize = 4;
/// Stack of a preparation: it recurses by the depth of a grammar, which is bounded.
const STACK_BYTES: usize = 64 << 20;
/// The trie has 10 bits for the length of a token.
const MAX_TOKEN_BYTES: usize = 1000;
/// White space between the parts of a JSON text, at one place. A bound, because a model can get lost in line breaks.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Prepares grammars for one tokenizer. Made once; cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    shared: Arc<Shared>,
    time_limit: Duration,
}

struct Shared {
    factory: ParserFactory,
    vocab: usize,
    running: Mutex<usize>,
    ended: Condvar,
}

impl GrammarCompiler {
    /// For a tokenizer and a model whose logits have `vocab` entries. Rows of the model that have no token are never allowed, nor are
    /// special tokens, except where a Lark grammar names them (`<|name|>`).
    ///
    /// Takes half a second to one and a half for 150 000 tokens.
    ///
    /// # Errors
    /// When the tokenizer's decoder does not give tokens bytes of their own.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, GrammarError> {
        let unusable = |message: String| GrammarError::Tokenizer(message);
        let mut words = tokenizer.token_bytes(vocab).map_err(|error| unusable(error.to_string()))?;
        words.iter_mut().filter(|word| word.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        for (id, token) in tokenizer.added_tokens().filter(|(id, _)| tokenizer.is_special(*id)) {
            if let Some(word) = words.get_mut(id as usize).filter(|_| token.len() < MAX_TOKEN_BYTES) {
                *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat();
            }
        }
        let factory = catch_unwind(AssertUnwindSafe(|| factory(&words)))
            .map_err(|_| unusable("its vocabulary is too large".into()))?
            .map_err(unusable)?;
        let shared = Arc::new(Shared { factory, vocab, running: Mutex::new(0), ended: Condvar::new() });
        Ok(Self { shared, time_limit: Duration::from_secs(5) })
    }

    /// The same with another bound on the time of a preparation; without this it is 5 seconds.
    #[must_use]
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Self { time_limit, ..self }
    }

    /// Prepare a grammar. Blocks until it is ready or the time is up; the work is done on a thread of its own, since it cannot be broken
    /// off. That thread ends by the other bounds (size, depth, steps of the lexer); until then it takes one of four places.
    ///
    /// # Errors
    /// When the grammar is wrong, says what cannot be held to, no text of the tokenizer's tokens is of its form, it exceeds a bound, or
    /// no place became free in time.
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
        grammar.check_limits()?;
        let what = grammar.what();
        let end = Instant::now() + self.time_limit;
        let slot = Slot::take(&self.shared, self.time_limit)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let grammar = grammar.clone();
        let work = move || {
            let done = catch_unwind(AssertUnwindSafe(|| prepare(&slot.shared.factory, &grammar, end)));
            drop(slot);
            // Nobody may be waiting any more.
            let _ = sender.send(done);
        };
        let invalid = |message: String| GrammarError::Invalid { what, place: None, message };
        std::thread::Builder::new()
            .name("grammar".into())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|error| invalid(format!("there is no thread for it: {error}")))?;
        let done = receiver
            .recv_timeout(end.saturating_duration_since(Instant::now()))
            .map_err(|_| GrammarError::TooSlow { what, limit: self.time_limit })?;
        let fresh = done.map_err(|_| invalid("the library that prepares it panicked".into()))??;
        Ok(CompiledGrammar { fresh: Arc::new(Mutex::new(fresh)), vocab: self.shared.vocab })
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab", &self.shared.vocab).finish_non_exhaustive()
    }
}

/// A grammar that is ready. Cheap to clone.
#[derive(Clone)]
pub struct CompiledGrammar {
    /// Never advanced, so what it has cached stays small.
    fresh: Arc<Mutex<Matcher>>,
    vocab: usize,
}

impl CompiledGrammar {
    /// A matcher for one text, at its beginning, which ends with one of these tokens. It shares nothing with other texts.
    pub fn matcher(&self, stop_ids: &[u32]) -> GrammarMatcher {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarMatcher::new(fresh, self.vocab, stop_ids)
    }
}

impl std::fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledGrammar").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

/// One of the places for a preparation.
struct Slot {
    shared: Arc<Shared>,
}

impl Slot {
    /// A place, as soon as there is one within `wait`.
    fn take(shared: &Arc<Shared>, wait: Duration) -> Result<Self, GrammarError> {
        let running = shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut running, _) = shared
            .ended
            .wait_timeout_while(running, wait, |running| *running >= MAX_RUNNING)
            .unwrap_or_else(PoisonError::into_inner);
        if *running >= MAX_RUNNING {
            return Err(GrammarError::Busy { running: *running });
        }
        *running += 1;
        Ok(Self { shared: shared.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.shared.ended.notify_one();
    }
}

fn factory(words: &[Vec<u8>]) -> Result<ParserFactory, String> {
    let vocab = u32::try_from(words.len()).map_err(|_| "its vocabulary is too large".to_owned())?;
    // The matchers add the stop tokens of their request.
    let info = TokRxInfo::new(vocab, toktrie::INVALID_TOKEN);
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, words)));
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
        .map_err(|error| words_of(&error))?;
    *factory.limits_mut() = parser_limits();
    factory.quiet();
    Ok(factory)
}

/// A matcher at the beginning.
fn prepare(factory: &ParserFactory, grammar: &Grammar, end: Instant) -> Result<Matcher, GrammarError> {
    let what = grammar.what();
    let invalid = |place, message| GrammarError::Invalid { what, place, message };
    match grammar {
        Grammar::JsonObject => {
            ready(factory, of_schema(json!({ "type": "object" }))).map_err(|m| invalid(None, m))
        }
        Grammar::JsonSchema(schema) => ready(factory, of_schema(schema.clone())).map_err(|message| {
            let refusal = |part| {
                let in_time = Instant::now() < end;
                in_time.then(|| ready(factory, of_schema(part)).err()).flatten()
            };
            invalid(Some(innermost(schema, &message, refusal)), message)
        }),
        Grammar::Regex(regex) => {
            ready(factory, TopLevelGrammar::from_regex(regex)).map_err(|m| invalid(None, m))
        }
        Grammar::Lark(lark) => {
            ready(factory, TopLevelGrammar::from_lark(lark.clone())).map_err(|m| invalid(None, m))
        }
        Grammar::Choice(texts) => {
            let mut seen = HashSet::new();
            let quoted: Vec<String> = texts
                .iter()
                .filter(|text| seen.insert(text.as_str()))
                .map(|text| Value::from(text.as_str()).to_string())
                .collect();
            let lark = format!("start: {}", quoted.join(" | "));
            ready(factory, TopLevelGrammar::from_lark(lark)).map_err(|m| invalid(None, m))
        }
    }
}

/// llguidance takes options from a key of the schema; one that came with it gives way.
fn of_schema(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(map) = &mut schema {
        map.insert("x-guidance".into(), json!({ "whitespace_pattern": WHITESPACE }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// A matcher that has a first token to choose, or the words of the refusal.
fn ready(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Matcher, String> {
    let parser = factory.create_parser(grammar).map_err(|error| words_of(&error))?;
    let mut matcher = Matcher::new(Ok(parser));
    // Finds whether the empty text is all there is.
    matcher.consume_tokens(&[]).map_err(|error| words_of(&error))?;
    if !matcher.is_stopped() {
        let mut probe = matcher.deep_clone();
        probe.compute_mask().map_err(|error| match words_of(&error).as_str() {
            "NoExtensionBias" => "no text of the tokenizer's tokens is of this form".to_owned(),
            words => words.to_owned(),
        })?;
    }
    Ok(matcher)
}

/// An error of llguidance without the state and the backtraces that it may carry behind its words.
pub(super) fn words_of(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let words = ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"]
        .iter()
        .fold(text.as_str(), |text, mark| text.split(mark).next().unwrap_or(text));
    words.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_preparations_run_and_the_next_waits_for_room() {
        let words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let factory = factory(&words).unwrap();
        let shared = Arc::new(Shared { factory, vocab: 256, running: Mutex::new(0), ended: Condvar::new() });
        let compiler = |milliseconds| GrammarCompiler {
            shared: shared.clone(),
            time_limit: Duration::from_millis(milliseconds),
        };
        let mut taken: Vec<Slot> =
            (0..MAX_RUNNING).map(|_| Slot::take(&shared, Duration::ZERO).unwrap()).collect();
        let busy = compiler(10).compile(&Grammar::JsonObject);
        assert!(matches!(busy, Err(GrammarError::Busy { running: MAX_RUNNING })));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| compiler(60_000).compile(&Grammar::JsonObject).is_ok());
            taken.pop();
            assert!(waiting.join().unwrap());
        });
        assert_eq!(*shared.running.lock().unwrap(), MAX_RUNNING - 1);
    }

    #[test]
    fn words_end_before_what_is_not_for_the_user() {
        assert_eq!(words_of(&"no such rule\n<state>\nTokens"), "no such rule");
        assert_eq!(words_of(&"panic: no\n<backtrace>\n0: x\n</backtrace>\n<non-verbose/>"), "panic: no");
        assert_eq!(words_of(&"plain"), "plain");
    }
}
