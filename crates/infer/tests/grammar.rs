//! Texts written by a grammar, token by token at random, are of its form; the reference is the `jsonschema` crate.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use taper_infer::{CompiledGrammar, Grammar, GrammarCompiler, GrammarError};
use taper_kernels::rng::{CounterRng, mix, stream_of};
use taper_testkit::{golden, read_json, real_data_or_skip};
use taper_text::{Tokenizer, TokenizerFiles};

/// Rows of the model that have no token.
const PADDING: usize = 61;

/// A tokenizer and what is known of its tokens.
struct World {
    tokenizer: Tokenizer,
    bytes: Vec<Vec<u8>>,
    compiler: GrammarCompiler,
    stop: u32,
}

impl World {
    fn of(tokenizer: Tokenizer) -> Self {
        let v = tokenizer.vocab_size() + PADDING;
        Self {
            bytes: tokenizer.token_bytes(v).unwrap(),
            compiler: GrammarCompiler::new(&tokenizer, v).unwrap(),
            stop: tokenizer.eos_id().unwrap(),
            tokenizer,
        }
    }

    fn byte_level() -> Self {
        Self::of(Tokenizer::load(&TokenizerFiles::in_folder(&golden("chat/tokenizer_chatml"))).unwrap())
    }

    /// The sentencepiece fixture, its byte tokens no longer special, as in Llama 2's tokenizer.
    fn sentencepiece() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = golden("chat/tokenizer_spm");
        let mut json = read_json(&from.join("tokenizer.json"));
        json["added_tokens"].as_array_mut().unwrap().truncate(3);
        fs_err::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let config = "tokenizer_config.json";
        fs_err::copy(from.join(config), folder.path().join(config)).unwrap();
        Self::of(Tokenizer::load(&TokenizerFiles::in_folder(folder.path())).unwrap())
    }

    fn compile(&self, grammar: &Grammar) -> CompiledGrammar {
        self.compiler.compile(grammar).unwrap_or_else(|error| panic!("{grammar:?}: {error}"))
    }

    /// A text of the grammar. Brackets and quotes that close are preferred, so that it ends.
    fn random_text(&self, grammar: &CompiledGrammar, seed: u64) -> String {
        let mut matcher = grammar.matcher(&[self.stop]);
        let rng = CounterRng::new(seed, stream_of("walk"));
        let mut ids = Vec::new();
        for step in 0..1500u64 {
            if matcher.is_complete() {
                return self.tokenizer.decode(&ids, true).unwrap();
            }
            let may_stop = matcher.may_stop().unwrap();
            let mask = matcher.allowed().unwrap();
            assert_eq!(mask.allows(self.stop), may_stop);
            let mut choices: Vec<u32> = mask.ids().filter(|id| *id != self.stop).collect();
            let closing = |id: &u32| matches!(self.bytes[*id as usize].first(), Some(b'"' | b']' | b'}'));
            for id in &choices {
                let known = (*id as usize) < self.tokenizer.vocab_size();
                assert!(known && !self.tokenizer.is_special(*id), "token {id} is allowed");
            }
            let coin = |n: u64| rng.uniform_f64_at(4 * step + n);
            if may_stop && (choices.is_empty() || coin(0) < 0.3) {
                matcher.accept(self.stop).unwrap();
                continue;
            }
            if (coin(1) < 0.3 || step > 200) && choices.iter().any(closing) {
                choices.retain(closing);
            }
            let id = choices[(coin(2) * choices.len() as f64) as usize];
            matcher.accept(id).unwrap();
            ids.push(id);
        }
        panic!("no end after {:?}", self.tokenizer.decode(&ids, true).unwrap());
    }
}

/// The text as JSON. None where a number is too large for serde: JSON has no largest number.
fn parsed(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().starts_with("number out of range") => None,
        Err(error) => panic!("{error} in {text}"),
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 12 },
                "address": {
                    "type": "object",
                    "properties": { "street": { "type": "string" }, "number": { "type": "integer" } },
                    "required": ["street", "number"],
                    "additionalProperties": false,
                },
                "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 },
                "note": { "type": ["string", "null"] },
            },
            "required": ["name", "address"],
            "additionalProperties": false,
        }),
        json!({ "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 12 }, "minItems": 2, "maxItems": 4 }),
        json!({ "enum": ["red", "g\"re\\en", "blå 🦀", 7, null, { "k": [true] }] }),
        json!({ "const": { "ünï": "çödé" } }),
        json!({ "type": "number", "minimum": -1.5, "exclusiveMaximum": 20.25 }),
        json!({ "type": "array", "items": { "type": "integer", "multipleOf": 5, "minimum": -20, "maximum": 5000 }, "minItems": 1, "maxItems": 3 }),
        json!({
            "type": "object",
            "properties": {
                "code": { "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$" },
                "inside": { "type": "string", "pattern": "b", "maxLength": 6 },
                "day": { "type": "string", "format": "date" },
            },
            "required": ["code", "inside", "day"],
        }),
        json!({
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "value": { "type": "integer" },
                        "children": { "type": "array", "items": { "$ref": "#/$defs/node" }, "maxItems": 2 },
                    },
                    "required": ["value"],
                    "additionalProperties": false,
                },
            },
        }),
        json!({
            "anyOf": [
                { "type": "boolean" },
                { "type": "object", "properties": { "kind": { "const": "x" } }, "required": ["kind"] },
                { "allOf": [{ "type": "integer", "minimum": 3 }, { "maximum": 9 }] },
            ],
        }),
        json!({
            "oneOf": [
                { "type": "object", "properties": { "kind": { "const": "cat" }, "lives": { "type": "integer" } }, "required": ["kind", "lives"] },
                { "type": "object", "properties": { "kind": { "const": "dog" }, "name": { "type": "string" } }, "required": ["kind", "name"] },
            ],
        }),
        json!({ "type": "array", "prefixItems": [{ "type": "string" }, { "type": "null" }], "items": false, "minItems": 2 }),
        json!({
            "type": "object",
            "properties": { "größe": { "type": "number" }, "名前": { "type": "string" }, "a/b~c": { "type": "null" } },
            "required": ["größe", "名前", "a/b~c"],
            "additionalProperties": { "type": "boolean" },
        }),
        json!({
            "title": "Answer",
            "description": "As Pydantic writes it",
            "type": "object",
            "properties": {
                "steps": { "title": "Steps", "type": "array", "items": { "$ref": "#/$defs/Step" } },
                "final": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null, "title": "Final" },
            },
            "required": ["steps"],
            "$defs": { "Step": { "type": "object", "properties": { "text": { "type": "string", "title": "Text" } }, "required": ["text"] } },
        }),
    ]
}

#[test]
fn random_texts_by_a_schema_are_json_that_is_valid_by_it() {
    for world in [World::byte_level(), World::sentencepiece()] {
        for (index, schema) in schemas().into_iter().enumerate() {
            let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            let grammar = world.compile(&Grammar::JsonSchema(schema.clone()));
            let mut texts = Vec::new();
            for seed in 0..8 {
                let text = world.random_text(&grammar, mix(seed, index as u64));
                assert!(parsed(&text).is_none_or(|value| validator.is_valid(&value)), "{text} by {schema}");
                texts.push(text);
            }
            texts.sort();
            texts.dedup();
            // Only a `const` has but one value, and even that can be spaced.
            assert!(texts.len() > 1 || schema.get("const").is_some(), "{texts:?}");
        }
    }
}

#[test]
fn random_texts_of_a_json_object_are_json_objects() {
    for world in [World::byte_level(), World::sentencepiece()] {
        let grammar = world.compile(&Grammar::JsonObject);
        for seed in 0..20 {
            let text = world.random_text(&grammar, seed);
            assert!(parsed(&text).is_none_or(|value| value.is_object()), "{text}");
        }
    }
}

#[test]
fn a_text_is_complete_with_its_last_bracket_and_not_before() {
    let world = World::byte_level();
    let mut matcher = world.compile(&Grammar::JsonObject).matcher(&[world.stop]);
    for id in world.tokenizer.encode("{\"a\": 12}", false).unwrap() {
        assert!(!matcher.is_complete() && !matcher.may_stop().unwrap());
        assert!(matcher.allowed().unwrap().allows(id));
        matcher.accept(id).unwrap();
    }
    assert!(matcher.is_complete() && matcher.may_stop().unwrap());
    assert_eq!(matcher.allowed().unwrap().ids().collect::<Vec<_>>(), [world.stop]);
    assert!(matches!(matcher.accept(10), Err(GrammarError::Matching(_))));
    matcher.accept(world.stop).unwrap();
}

#[test]
fn what_is_not_allowed_is_not_accepted() {
    let world = World::byte_level();
    let number = world.compile(&Grammar::JsonSchema(json!({ "type": "integer" })));
    let one = |text: &str| world.tokenizer.encode(text, false).unwrap()[0];
    let mut matcher = number.matcher(&[world.stop]);
    assert!(!matcher.allowed().unwrap().allows(world.stop));
    assert!(matches!(matcher.accept(world.stop), Err(GrammarError::Matching(_))));
    let mut matcher = number.matcher(&[world.stop]);
    assert!(matcher.accept(one("x")).is_err());
    // A number may end, and may go on.
    let mut matcher = number.matcher(&[world.stop]);
    matcher.accept(one("1")).unwrap();
    assert!(!matcher.is_complete() && matcher.may_stop().unwrap());
    assert!(matcher.allowed().unwrap().allows(world.stop) && matcher.allowed().unwrap().allows(one("2")));
    // A digit that is a stop token of the request ends it and is no digit.
    let mut matcher = number.matcher(&[one("2")]);
    assert!(!matcher.allowed().unwrap().allows(one("2")));
    matcher.accept(one("1")).unwrap();
    assert!(matcher.allowed().unwrap().allows(one("2")) && !matcher.allowed().unwrap().allows(world.stop));
    matcher.accept(one("2")).unwrap();
    assert!(matcher.is_complete());
}

#[test]
fn a_regex_a_choice_and_a_grammar_give_their_texts() {
    for world in [World::byte_level(), World::sentencepiece()] {
        let regex = world.compile(&Grammar::Regex(r"[a-c]{2,4}/\d{1,2}(\n|é)".into()));
        let choice = vec!["yes".into(), "no \"maybe\"\n".into(), "y\\é🦀".into(), "yes".into()];
        let choices = world.compile(&Grammar::Choice(choice.clone()));
        let lark = world.compile(&Grammar::Lark("start: word (\" \" word)*\nword: \"ab\" | \"c\"".into()));
        let mut chosen = Vec::new();
        for seed in 0..20 {
            let text = world.random_text(&regex, seed);
            let (letters, rest) = text.split_once('/').unwrap();
            assert!((2..=4).contains(&letters.len()) && letters.chars().all(|c| ('a'..='c').contains(&c)));
            assert!(
                matches!(rest.chars().last(), Some('\n' | 'é')) && rest.chars().next().unwrap().is_numeric()
            );
            chosen.push(world.random_text(&choices, seed));
            let words = world.random_text(&lark, seed);
            assert!(words.split(' ').all(|word| word == "ab" || word == "c"), "{words:?}");
        }
        assert!(chosen.iter().all(|text| choice.contains(text)), "{chosen:?}");
        assert!(choice.iter().all(|text| chosen.contains(text)), "{chosen:?}");
    }
}

#[test]
fn what_cannot_be_held_to_is_refused_with_its_place() {
    let world = World::byte_level();
    let cases = [
        (
            json!({ "type": "object", "properties": { "a": { "not": { "type": "null" } } } }),
            "#/properties/a",
            "not",
        ),
        (json!({ "properties": { "a": { "items": { "type": "strin" } } } }), "#/properties/a/items", "strin"),
        (json!({ "anyOf": [{ "type": "null" }, { "type": "string", "pattern": "(a" }] }), "#/anyOf/1", "a"),
        (json!({ "type": "string", "format": "telephone" }), "#", "telephone"),
        (json!({ "properties": { "a": 3 } }), "#/properties/a", "object or boolean"),
        (json!({ "properties": [] }), "#", "properties must be an object"),
        (json!({ "items": { "$ref": "#/$defs/nope" }, "$defs": {} }), "#/items", "nope"),
        (json!({ "$ref": "https://example.com/schema.json" }), "#", "example.com"),
        (
            json!({ "type": "array", "items": { "type": "integer", "minimum": 5, "maximum": 4 }, "minItems": 1 }),
            "#",
            "item is unsatisfiable",
        ),
        (json!(false), "#", "false"),
        (json!("text"), "#", "object or boolean"),
        (json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }), "#", "oneOf"),
    ];
    for (schema, place, words) in cases {
        match world.compiler.compile(&Grammar::JsonSchema(schema.clone())) {
            Err(GrammarError::Invalid { place: Some(found), message, .. }) => {
                assert_eq!(found, place, "{schema}: {message}");
                assert!(message.contains(words), "{schema}: {message}");
                assert!(message.len() < 2000 && !message.contains("backtrace"), "{message}");
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
    for grammar in
        [Grammar::Regex("(a".into()), Grammar::Lark("start: nope".into()), Grammar::Lark(String::new())]
    {
        assert!(matches!(world.compiler.compile(&grammar), Err(GrammarError::Invalid { .. })), "{grammar:?}");
    }
}

fn hostile() -> Vec<Grammar> {
    let schema = Grammar::JsonSchema;
    let many = |n: usize| {
        (0..n).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>()
    };
    vec![
        schema(json!({ "$ref": "#" })),
        schema(
            json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
        ),
        schema(json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] })),
        schema(json!({ "type": "array", "items": { "$ref": "#" }, "minItems": 1 })),
        schema(json!({ "type": "object", "properties": many(4000), "additionalProperties": false })),
        schema(json!({ "type": "array", "minItems": 1_000_000_000 })),
        schema(json!({ "type": "array", "maxItems": 4_000_000_000u64 })),
        schema(json!({ "type": "string", "minLength": 1_000_000_000 })),
        schema(json!({ "type": "string", "minLength": -1 })),
        schema(json!({ "type": "string", "pattern": "(a{1,1000}){1,1000}" })),
        schema(json!({ "type": "string", "pattern": "(x+x+)+y" })),
        schema(json!({ "type": "string", "pattern": ".*a.{500}" })),
        schema(json!({ "type": "string", "pattern": "(?=a)b" })),
        schema(json!({ "type": "integer", "multipleOf": 1_000_003, "minimum": 1, "maximum": 1e18 })),
        schema(json!({ "type": "number", "multipleOf": 1e-300 })),
        schema(json!({ "type": "number", "minimum": 1e308, "maximum": 1.1e308 })),
        schema(json!({ "type": "number", "multipleOf": 0 })),
        schema(json!({ "enum": (0..9000).map(|i| format!("value {i}")).collect::<Vec<_>>() })),
        schema(json!({ "enum": [] })),
        schema(json!({ "required": ["a"], "properties": { "a": false } })),
        schema(
            json!({ "pattern": format!("{}é{}", "x".repeat(99), "y".repeat(50)), "minLength": "é".repeat(99) }),
        ),
        schema(json!({ "$id": "https://example.com/a", "$ref": "b" })),
        schema(json!({ "$schema": 3, "type": [] })),
        schema(json!({ "type": "object", "x-guidance": { "whitespace_pattern": "(" }, "properties": 3 })),
        schema(json!({ "allOf": (0..2000).map(|i| json!({ "minLength": i })).collect::<Vec<_>>() })),
        schema(
            json!({ "type": "object", "patternProperties": { "^(a|b)*c{1,500}$": {}, "(.*x){200}": {} } }),
        ),
        Grammar::Regex("((a{1,900}){1,900}){1,900}".into()),
        Grammar::Regex("(.{0,900}b){0,900}".into()),
        Grammar::Regex("[^\\x00-\\x{10FFFF}]".into()),
        Grammar::Regex("*".into()),
        Grammar::Regex(String::new()),
        Grammar::Lark("start: start".into()),
        Grammar::Lark("start: a\na: b\nb: a | b b a".into()),
        Grammar::Lark("start: %json { \"type\": \"strin\" }".into()),
        Grammar::Lark("start: \"a\"{1,1000000000}".into()),
        Grammar::Lark("%llguidance { \"no_forcing\": 3 }\nstart: \"a\"".into()),
        Grammar::Choice((0..10_000).map(|i| format!("t{i}")).collect()),
    ]
}

#[test]
fn hostile_grammars_are_refused_or_followed_within_the_bounds() {
    let world = World::byte_level();
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for grammar in hostile() {
        let begin = Instant::now();
        match world.compiler.compile(&grammar) {
            Ok(grammar) => {
                let mut matcher = grammar.matcher(&[world.stop]);
                for step in 0..30 {
                    let Ok(mask) = matcher.allowed() else { break };
                    let Some(id) = mask.ids().nth(step % 3).or_else(|| mask.ids().next()) else { break };
                    if matcher.accept(id).is_err() {
                        break;
                    }
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() < 3000, "{error}");
            }
        }
        slowest = slowest.max(begin.elapsed());
        println!(
            "{:>6} ms {}",
            begin.elapsed().as_millis(),
            &format!("{grammar:?}").chars().take(90).collect::<String>()
        );
        assert!(begin.elapsed() < Duration::from_secs(20), "{grammar:?}");
    }
    println!("{refused} refused, slowest {slowest:?}");
    assert!(refused > 10);
    // It still works.
    let text = world.random_text(&world.compile(&Grammar::JsonObject), 1);
    parsed(&text);
}

#[test]
fn a_grammar_that_is_not_ready_in_time_is_refused() {
    let hurried = World::byte_level().compiler.with_time_limit(Duration::ZERO);
    let properties: serde_json::Map<_, _> =
        (0..4000).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect();
    let slow = Grammar::JsonSchema(json!({ "type": "object", "properties": properties }));
    assert!(matches!(hurried.compile(&slow), Err(GrammarError::TooSlow { .. })));
}

#[test]
fn a_tokenizer_that_cannot_write_json_is_told() {
    // Its byte tokens are special, and it has no bracket of its own.
    let tokenizer = Tokenizer::load(&TokenizerFiles::in_folder(&golden("chat/tokenizer_spm"))).unwrap();
    let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size()).unwrap();
    let error = compiler.compile(&Grammar::JsonSchema(json!({ "type": "array" }))).unwrap_err().to_string();
    assert!(error.contains("no text of the tokenizer's tokens"), "{error}");
}

#[test]
fn matchers_of_a_grammar_do_not_disturb_one_another() {
    let world = World::byte_level();
    let grammar = world.compile(&Grammar::JsonSchema(schemas().swap_remove(0)));
    let alone: Vec<String> = (0..6).map(|seed| world.random_text(&grammar, seed)).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|seed| {
                scope.spawn({
                    let (world, grammar) = (&world, &grammar);
                    move || world.random_text(grammar, seed)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn real_tokenizers_write_by_a_schema() {
    let Some(folder) = real_data_or_skip("grammars with real tokenizers") else { return };
    for name in ["qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat"] {
        let files = TokenizerFiles::in_folder(&folder.join("tokenizers").join(name));
        let begin = Instant::now();
        let world = World::of(Tokenizer::load(&files).unwrap());
        println!("{name}: {} tokens, ready after {:?}", world.bytes.len(), begin.elapsed());
        for (index, schema) in schemas().into_iter().enumerate() {
            let validator = jsonschema::validator_for(&schema).unwrap();
            let begin = Instant::now();
            let grammar = world.compile(&Grammar::JsonSchema(schema.clone()));
            let compiled = begin.elapsed();
            let text = world.random_text(&grammar, index as u64);
            println!("{name}: compiled in {compiled:?}; {text:?}");
            assert!(parsed(&text).is_none_or(|value| validator.is_valid(&value)), "{text} by {schema}");
        }
    }
}
