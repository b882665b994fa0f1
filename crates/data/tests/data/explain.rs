//! `explain`: text, tokens, roles, and what is learned.

use crate::fake::{FakeEncoder, place};
use taper_data::{Error, Example, ExampleKind, explain};
use taper_text::Message;

fn sample() -> Vec<Example> {
    let messages = vec![Message::new("user", "a b"), Message::new("assistant", "\n")];
    let kind = ExampleKind::Chat { messages, tools: Vec::new(), last_turn_only: false };
    vec![Example::new(place(3), kind)]
}

#[test]
fn the_table_shows_every_token_with_its_role_and_marks_the_learned_ones() {
    let explanation = explain(&sample(), 0, &FakeEncoder::default(), 100).unwrap();
    assert_eq!(explanation.supervised(), 2);
    assert_eq!(explanation.text, "<s><turn>ua b</s><turn>a\n</s>");
    let expected = "   at       id  token   role       learned
    0      256  <s>     template
    1      258  <turn>  user
    2      117  u       user
    3       97  a       user
    4       32  ␣       user
    5       98  b       user
    6      257  </s>    user
    7      258  <turn>  assistant
    8       97  a       assistant
    9       10  \\n      assistant  *
   10      257  </s>    assistant  *
a.jsonl:3: 11 tokens, 2 learned
";
    assert_eq!(explanation.table(), expected);
}

#[test]
fn tokens_over_max_length_are_marked() {
    let explanation = explain(&sample(), 0, &FakeEncoder::default(), 10).unwrap();
    assert!(explanation.table().contains("   10      257  </s>    assistant  over max_length\n"));
}

#[test]
fn a_sample_that_does_not_exist_is_an_error_with_the_count() {
    let error = explain(&sample(), 1, &FakeEncoder::default(), 10).unwrap_err();
    assert!(matches!(error, Error::NoSuchSample { index: 1, count: 1 }));
}
