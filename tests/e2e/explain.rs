//! `taper explain`: an example as the model will see it.

use crate::desk::Desk;

#[test]
fn a_table_shows_each_token_and_whether_it_is_learned() {
    let desk = Desk::new();
    // No weights are needed.
    fs_err::remove_file(desk.path("base/model.safetensors")).unwrap();
    let said = desk.taper(&["explain", "recipe.toml", "--sample", "1"]).exits(0);
    assert!(said.err.contains("train.jsonl:2\n") && said.err.contains("item 1 G<|im_end|>"), "{}", said.err);
    let mut lines = said.out.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["at", "id", "token", "role", "learned"]
    );
    let learned: Vec<&str> = lines.filter(|line| line.ends_with('*')).collect();
    // The answer and the token that ends it, and nothing else.
    let tokens: String = learned.iter().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(tokens, "green<|im_end|>");
    assert!(learned.iter().all(|line| line.contains("assistant")), "{}", said.out);
}

#[test]
fn json_shows_the_same_tokens() {
    let desk = Desk::new();
    let said = desk.taper(&["explain", "recipe.toml", "--json"]).exits(0);
    let explained = said.json();
    assert_eq!(explained["place"], "train.jsonl:1");
    let tokens = explained["tokens"].as_array().unwrap();
    let learned: String =
        tokens.iter().filter(|t| t["supervised"] == true).map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(learned, "red<|im_end|>");
    assert!(explained["text"].as_str().unwrap().ends_with("red<|im_end|>\n"));
}

#[test]
fn a_sample_that_is_not_there_is_told_with_how_many_are() {
    let desk = Desk::new();
    desk.taper(&["explain", "recipe.toml", "--sample", "96"]).exits(2).tells(&["no sample 96", "has 96"]);
    desk.taper(&["explain", "recipe.toml", "--sample", "-1"]).exits(2);
}
