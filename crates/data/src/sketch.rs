//! What is kept of an input's wording, so that inputs which say nearly the same are found without the words.
//!
//! A text is cut into words (Unicode's word boundaries, lower case; in scripts without blanks a character is a word), and every
//! three words in a row are a shingle, hashed to 32 bits. The sketch is the smallest [`SKETCH_HASHES`] of the distinct hashes (Broder,
//! "On the resemblance and containment of documents", 1997). The hash decides which shingles these are and knows nothing of the
//! texts, so those that two sketches share are a fair sample of those that the texts share. A text of up to that many shingles is
//! held whole, and two such texts are compared exactly.

use crate::example::{Example, ExampleKind};
use taper_text::Message;
use unicode_segmentation::UnicodeSegmentation;

/// Words of a shingle. Inputs of fine-tuning are short: with three, one word in the middle of 29 may be another and the texts are
/// still alike at 0.8; with five it takes 47 words.
const SHINGLE_WORDS: usize = 3;
/// Fewer words are not compared: a text of six is alike at 0.8 to any that only adds a word.
pub(crate) const LEAST_WORDS: usize = 8;
/// Hashes of a sketch: 512 bytes. An estimate of a similarity of 0.8 from so many has a standard error of 0.035. Four bytes a word is
/// less than the tokens take, which are kept too.
pub(crate) const SKETCH_HASHES: usize = 128;
/// Answers before the last one whose inputs are sketched: a conversation of thousands of turns must not take megabytes.
const MOST_EARLIER: usize = 7;

/// The sketch of one text; empty for one that is too short to be compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sketch {
    /// Ascending.
    hashes: Box<[u32]>,
    /// There are larger ones that are not kept.
    is_cut: bool,
}

impl Sketch {
    /// The kept hashes, ascending.
    pub(crate) fn hashes(&self) -> &[u32] {
        &self.hashes
    }

    /// Up to and with this hash, all of the text's are kept.
    pub(crate) fn horizon(&self) -> u32 {
        match self.hashes.last() {
            Some(&last) if self.is_cut => last,
            _ => u32::MAX,
        }
    }
}

/// The sketches of an example's inputs: what stands before its answers, without system prompts and tools, which are the same
/// over whole data sets and would make all inputs alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sketches {
    /// Of the answers before the last one, the first few.
    earlier: Box<[Sketch]>,
    last: Sketch,
}

impl Sketches {
    /// The sketches of an example.
    pub(crate) fn of(example: &Example) -> Self {
        let mut sketcher = Sketcher::default();
        let mut earlier = Vec::new();
        match &example.kind {
            ExampleKind::Chat { messages, .. } => {
                let before = messages.split_last().map_or(messages.as_slice(), |(_, before)| before);
                for (index, message) in before.iter().enumerate() {
                    if index > 0 && message.is_assistant() && earlier.len() < MOST_EARLIER {
                        earlier.push(sketcher.sketch());
                    }
                    sketcher.add_message(message);
                }
            }
            ExampleKind::Completion { prompt, .. } => sketcher.add(prompt),
            ExampleKind::Text(text) => sketcher.add(text),
        }
        Self { earlier: earlier.into(), last: sketcher.sketch() }
    }

    /// The sketch of the last answer's input.
    pub(crate) fn last(&self) -> &Sketch {
        &self.last
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sketch> {
        self.earlier.iter().chain(std::iter::once(&self.last))
    }
}

/// A sketch in the making, of a text that comes in parts.
#[derive(Default)]
struct Sketcher {
    words: usize,
    /// Hashes of the last words, the newest at the end.
    window: [u64; SHINGLE_WORDS],
    hashes: Vec<u32>,
    is_cut: bool,
}

impl Sketcher {
    fn add_message(&mut self, message: &Message) {
        if matches!(message.role.as_str(), "system" | "developer") {
            return;
        }
        self.add(&message.text().unwrap_or_default());
        if let Some(calls) = message.extra.get("tool_calls") {
            self.add(&calls.to_string());
        }
    }

    fn add(&mut self, text: &str) {
        for word in text.unicode_words() {
            self.window.rotate_left(1);
            self.window[SHINGLE_WORDS - 1] = hash_of_word(word);
            self.words += 1;
            if self.words >= SHINGLE_WORDS {
                self.push(hash_of_shingle(&self.window));
            }
        }
    }

    fn push(&mut self, hash: u32) {
        self.hashes.push(hash);
        if self.hashes.len() >= 8 * SKETCH_HASHES {
            self.shrink();
        }
    }

    /// Leave the smallest distinct hashes alone.
    fn shrink(&mut self) {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        self.is_cut |= self.hashes.len() > SKETCH_HASHES;
        self.hashes.truncate(SKETCH_HASHES);
    }

    /// The sketch of what was added so far.
    fn sketch(&mut self) -> Sketch {
        if self.words < LEAST_WORDS {
            return Sketch::default();
        }
        self.shrink();
        Sketch { hashes: self.hashes.as_slice().into(), is_cut: self.is_cut }
    }
}

/// FNV-1a over the lower-case characters: the same in every version and on every machine, so that an estimate is too.
fn hash_of_word(word: &str) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut add = |c: char| {
        let mut bytes = [0; 4];
        for byte in c.encode_utf8(&mut bytes).bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    };
    word.chars().flat_map(char::to_lowercase).for_each(&mut add);
    hash
}

/// The high half of the words' hashes mixed one after the other (the finaliser of SplitMix64).
fn hash_of_shingle(words: &[u64; SHINGLE_WORDS]) -> u32 {
    let mix = |hash: u64, word: &u64| {
        let mut z = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    (words.iter().fold(0, mix) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::RowPlace;
    use std::path::Path;

    fn of(kind: ExampleKind) -> Sketches {
        let place = RowPlace { file: Path::new("a.jsonl").into(), line: 1, element: None };
        Sketches::of(&Example::new(place, kind))
    }

    fn text(text: &str) -> Sketch {
        of(ExampleKind::Text(text.into())).last
    }

    fn numbered(words: usize) -> String {
        (0..words).map(|word| format!("w{word} ")).collect()
    }

    #[test]
    fn a_short_text_has_no_sketch_and_a_long_one_keeps_its_smallest_hashes() {
        assert_eq!(text(&numbered(LEAST_WORDS - 1)), Sketch::default());
        assert_eq!(text(&numbered(LEAST_WORDS)).hashes().len(), LEAST_WORDS - 2);
        let whole = text(&numbered(SKETCH_HASHES + 2));
        assert_eq!((whole.hashes().len(), whole.horizon()), (SKETCH_HASHES, u32::MAX));
        let long = text(&numbered(5000));
        assert_eq!(long.hashes().len(), SKETCH_HASHES);
        assert_eq!(long.horizon(), *long.hashes().last().unwrap());
        let mut all: Vec<u32> = (0..4998)
            .map(|at| {
                let words = [at, at + 1, at + 2].map(|word| hash_of_word(&format!("w{word}")));
                hash_of_shingle(&words)
            })
            .collect();
        all.sort_unstable();
        assert_eq!(long.hashes(), &all[..SKETCH_HASHES]);
    }

    #[test]
    fn case_punctuation_and_white_space_do_not_count_and_unspaced_scripts_have_a_word_a_character() {
        let one = "The patient, aged 4.10, can't come: Überweisung nach Köln folgt.";
        assert_eq!(text(one), text("the PATIENT aged 4.10\n can't come überweisung nach köln  folgt"));
        assert_ne!(text(one), text(&one.replace("4.10", "4.11")));
        assert_eq!(text("患者は明日の朝に来院する。").hashes().len(), 10);
        assert_eq!(text("ผู้ป่วยจะมาพรุ่งนี้"), text("ผู้ป่วยจะมาพรุ่งนี้ "));
        assert!(text("ผู้ป่วยจะมาพรุ่งนี้").hashes().len() > 4);
    }

    #[test]
    fn of_a_conversation_the_inputs_are_sketched_without_the_system_prompt() {
        let turns = |system: &str, texts: &[&str]| {
            let roles = ["user", "assistant"].into_iter().cycle();
            let turns = roles.zip(texts).map(|(role, text)| Message::new(role, *text));
            let messages = std::iter::once(Message::new("system", system)).chain(turns).collect();
            of(ExampleKind::Chat { messages, tools: Vec::new(), last_turn_only: false })
        };
        let (question, answer) = (numbered(9), "a b c d e f g h i j");
        let one = turns("do this", &[&question, answer]);
        assert_eq!(one, turns(&numbered(300), &[&question, "another answer"]));
        let two = turns("do this", &[&question, answer, "and then?", "x"]);
        assert_eq!(two.all().count(), 2);
        assert_eq!(two.all().next(), one.all().next());
        assert_eq!(two.last(), &text(&format!("{question} {answer} and then?")));
        let many = turns("do this", &vec!["x y z"; 400]);
        assert_eq!(many.all().count(), MOST_EARLIER + 1);
    }
}
