use super::*;
use serde_json::json;

fn invoice() -> Value {
    json!({
        "type": "object",
        "required": ["number", "lines"],
        "additionalProperties": false,
        "$defs": {
            "line": {
                "type": "object",
                "properties": {
                    "what": { "type": "string" },
                    "price": { "type": "number", "x-compare": { "as": "number", "absolute": 0.01 } },
                    "code": { "type": "string", "x-compare": { "as": "exact" } }
                }
            }
        },
        "properties": {
            "number": { "type": "string", "x-compare": { "as": "exact" } },
            "date": { "type": "string", "format": "date" },
            "status": { "enum": ["paid", "open"] },
            "buyer": { "anyOf": [{ "type": "null" }, { "type": "object", "properties": { "name": { "type": "string" } } }] },
            "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } },
            "tags": { "type": "array", "items": { "type": "string" }, "x-compare": { "as": "set" } },
            "steps": { "type": "array", "items": { "type": "string" }, "x-compare": { "as": "ordered" } }
        }
    })
}

fn score(expected: &Value, output: &Value) -> DocumentScore {
    let extraction = Extraction::new(&invoice(), ExtractionOptions::default()).unwrap();
    extraction.score(expected, &output.to_string())
}

fn counts(document: &DocumentScore, path: &str) -> [u64; 4] {
    let counts = document.fields[path];
    [counts.equal, counts.wrong, counts.missing, counts.invented]
}

#[test]
fn each_field_is_compared_by_its_type() {
    let expected = json!({ "number": "A-1", "date": "2024-03-31", "status": "paid", "buyer": { "name": "Ann Lee" },
        "lines": [{ "what": "Tea", "price": 2.5 }] });
    let same = json!({ "number": "A-1", "date": "2024-03-31", "status": "paid", "buyer": { "name": "ann  lee." },
        "lines": [{ "price": 2.509, "what": "tea" }] });
    let document = score(&expected, &same);
    assert!(document.is_correct() && document.is_valid, "{document:?}");
    assert_eq!(document.total().equal, 6);
    let other = json!({ "number": "a-1", "date": "31.3.2024", "status": "Paid", "buyer": { "name": "Bob" },
        "lines": [{ "price": 2.52, "what": "Tea" }] });
    let document = score(&expected, &other);
    // The date is the right day in a form that the schema refuses; the status in another case is another value.
    assert_eq!(counts(&document, "date"), [1, 0, 0, 0]);
    for path in ["number", "status", "buyer.name", "lines[].price"] {
        assert_eq!(counts(&document, path), [0, 1, 0, 0], "{path}");
    }
    assert_eq!(document.violations, ["/date: format", "/status: enum"]);
    let total = document.total();
    assert!((total.precision() - 2.0 / 6.0).abs() < 1e-15 && total.precision() == total.recall());
}

#[test]
fn missing_invented_and_wrong_are_told_apart() {
    let expected = json!({ "number": "1", "status": "open", "buyer": null, "lines": [] });
    let output = json!({ "number": "1", "buyer": { "name": "X" }, "total": 3, "date": null });
    let document = score(&expected, &output);
    assert_eq!(counts(&document, "number"), [1, 0, 0, 0]);
    assert_eq!(counts(&document, "status"), [0, 0, 1, 0]);
    assert_eq!(counts(&document, "buyer.name"), [0, 0, 0, 1]);
    assert_eq!(counts(&document, "*"), [0, 0, 0, 1]);
    assert!(!document.fields.contains_key("date") && !document.is_valid);
    // E 1, M 1, I 2.
    let total = document.total();
    assert!((total.precision() - 1.0 / 3.0).abs() < 1e-15 && (total.recall() - 0.5).abs() < 1e-15);
    assert!((total.f1() - 2.0 / 5.0).abs() < 1e-15);
    // An object where a text is expected is not a wrong text: the text is missing, what is in the object invented.
    let document = score(&json!({ "number": "1" }), &json!({ "number": { "a": 1, "b": [2, 3] } }));
    assert_eq!(counts(&document, "number"), [0, 0, 1, 0]);
    assert_eq!(counts(&document, "number.*[]"), [0, 0, 0, 2]);
}

#[test]
fn keys_that_a_model_makes_up_are_one_field() {
    let output: serde_json::Value =
        (0..1000).map(|n| (format!("Ann {n}"), json!({ "b": n }))).collect::<serde_json::Map<_, _>>().into();
    let document = score(&json!({ "number": "1", "own": 2 }), &output);
    let paths: Vec<&str> = document.fields.keys().map(String::as_str).collect();
    assert_eq!(paths, ["*.*", "number", "own"]);
    assert_eq!(counts(&document, "*.*"), [0, 0, 0, 1000]);
}

#[test]
fn lists_are_paired_as_their_schema_says() {
    let line = |what: &str, price: f64, code: &str| json!({ "what": what, "price": price, "code": code });
    let expected = json!({ "lines": [line("tea", 1.0, "a"), line("rum", 2.0, "b"), line("gin", 3.0, "c")],
        "tags": ["x", "y", "y"], "steps": ["one", "two", "three"] });
    let output = json!({ "lines": [line("gin", 3.0, "x"), line("ale", 9.0, "z"), line("tea", 1.0, "a")],
        "tags": ["y", "X", "w", "w"], "steps": ["one", "three"] });
    let document = score(&expected, &output);
    // Tea and gin are found in other places; rum is missing and ale invented.
    assert_eq!(counts(&document, "lines[].what"), [2, 0, 1, 1]);
    assert_eq!(counts(&document, "lines[].code"), [1, 1, 1, 1]);
    assert_eq!(counts(&document, "tags[]"), [2, 0, 0, 1]);
    assert_eq!(counts(&document, "steps[]"), [1, 1, 1, 0]);
}

#[test]
fn long_and_deep_answers_end() {
    let many: Vec<Value> = (0..5000).map(|i| json!({ "what": format!("w{i}") })).collect();
    let document = score(&json!({ "lines": many }), &json!({ "lines": many }));
    assert!(document.is_correct());
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let expected: Value = serde_json::from_str(&deep).unwrap();
    let extraction = Extraction::new(&json!({}), ExtractionOptions::default()).unwrap();
    assert_eq!(extraction.score(&expected, &deep).total().equal, 1);
    assert!(!extraction.score(&expected, &"[".repeat(100_000)).is_json);
    // A schema that refers to itself describes as many levels as the data has.
    let tree = json!({ "$defs": { "node": { "properties": { "v": { "type": "number" }, "next": { "$ref": "#/$defs/node" } } } },
        "$ref": "#/$defs/node" });
    let extraction = Extraction::new(&tree, ExtractionOptions::default()).unwrap();
    let value = json!({ "v": 1, "next": { "v": 2, "next": { "v": 3 } } });
    assert_eq!(counts(&extraction.score(&value, &value.to_string()), "next.next.v"), [1, 0, 0, 0]);
    let circle = json!({ "$defs": { "a": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" });
    if let Ok(extraction) = Extraction::new(&circle, ExtractionOptions::default()) {
        extraction.violations(&json!({}));
    }
}

#[test]
fn an_answer_that_is_not_json_misses_everything() {
    let document = Extraction::new(&invoice(), ExtractionOptions::default())
        .unwrap()
        .score(&json!({ "number": "1", "tags": ["a", "b"] }), "```json\n{\"number\": \"1\"}\n```");
    assert!(!document.is_json && !document.is_valid && !document.is_correct());
    assert_eq!(document.total(), FieldCounts { missing: 3, ..FieldCounts::default() });
    let fenced = ExtractionOptions { strip_fence: true, ..ExtractionOptions::default() };
    let extraction = Extraction::new(&invoice(), fenced).unwrap();
    assert!(extraction.score(&json!({ "number": "1" }), "```json\n{\"number\": \"1\"}\n```").is_correct());
}

#[test]
fn a_table_sums_documents_and_keeps_their_shares() {
    let right = score(&json!({ "number": "1", "lines": [] }), &json!({ "number": "1", "lines": [] }));
    let wrong = score(&json!({ "number": "1", "status": "open" }), &json!({ "number": "2", "lines": [] }));
    let table = FieldTable::of([&right, &wrong]);
    assert_eq!((table.documents, table.json, table.valid, table.correct), (2, 2, 2, 1));
    assert_eq!(table.document_rate(), Some(0.5));
    // `number`: E 1, W 1, so 2/4; `status`: M 1, so 0.
    assert_eq!(table.macro_f1(), Some(0.25));
    assert!((table.total().f1() - 2.0 / 5.0).abs() < 1e-15);
    let mut weighted = FieldTable::default();
    weighted.add(&right, 0);
    weighted.add(&wrong, 3);
    assert_eq!((weighted.documents, weighted.fields["status"].missing), (3, 3));
    assert_eq!(FieldTable::default().document_rate(), None);
}

#[test]
fn a_schema_that_cannot_be_used_is_refused() {
    let refused =
        |schema: Value| Extraction::new(&schema, ExtractionOptions::default()).unwrap_err().to_string();
    assert!(refused(json!({ "type": "nothing" })).contains("cannot be used"));
    assert!(refused(json!({ "$ref": "https://example.com/other.json" })).contains("cannot be used"));
    assert!(refused(json!({ "$ref": "file:///etc/hostname" })).contains("cannot be used"));
    let unknown = json!({ "properties": { "a": { "x-compare": { "as": "fuzzy" } } } });
    let message = refused(unknown);
    assert!(message.contains("/properties/a/x-compare") && message.contains("fuzzy"), "{message}");
    let below = json!({ "items": { "x-compare": { "as": "number", "absolute": -1 } } });
    assert!(refused(below).contains("below 0"));
    // A field may have that name.
    let field = json!({ "properties": { "x-compare": { "type": "string" } } });
    assert!(Extraction::new(&field, ExtractionOptions::default()).is_ok());
}

#[test]
fn large_whole_numbers_are_not_compared_as_doubles() {
    let schema = json!({ "properties": { "id": { "type": "integer" } } });
    let extraction = Extraction::new(&schema, ExtractionOptions::default()).unwrap();
    let expected = json!({ "id": 9_007_199_254_740_993_u64 });
    assert!(!extraction.score(&expected, "{\"id\": 9007199254740992}").is_correct());
    assert!(extraction.score(&json!({ "id": 3 }), "{\"id\": 3.0}").is_correct());
    assert!(!extraction.score(&json!({ "id": 3 }), "{\"id\": \"3\"}").is_correct());
}
