//! The network is used only when the user names a hub id, and never with `--offline` (invariant 10).

use crate::desk::{Desk, RECIPE};
use std::time::Instant;

#[test]
fn offline_a_hub_id_that_is_not_in_the_cache_ends_at_once() {
    let desk = Desk::new();
    desk.write("recipe.toml", RECIPE.replace("base = \"base\"", "base = \"nobody/nothing\""));
    let started = Instant::now();
    for verb in ["check", "explain", "run", "train", "eval", "export"] {
        desk.taper(&[verb, "recipe.toml", "--offline"]).exits(2).tells(&[
            "`nobody/nothing`",
            "offline",
            "help:",
            "--offline",
        ]);
    }
    for verb in [["generate", "--prompt", "x"].as_slice(), &["chat"]] {
        desk.taper(&[verb, &["--model", "nobody/nothing", "--offline"]].concat())
            .exits(2)
            .tells(&["offline"]);
    }
    assert!(started.elapsed().as_secs() < 20);
    assert!(!desk.has("runs"));
}

#[test]
fn a_hub_that_cannot_be_reached_is_told_with_what_to_do() {
    let desk = Desk::new();
    desk.taper(&["generate", "--model", "nobody/nothing", "--prompt", "x"]).exits(2).tells(&[
        "cannot fetch",
        "`nobody/nothing`",
        "help: check the network, or name a folder",
    ]);
}

/// The hub's address of every desk answers nobody: a journey that asked it would fail.
#[test]
fn a_folder_never_asks_the_hub() {
    let desk = Desk::new();
    desk.taper(&[
        "run",
        "recipe.toml",
        "--set",
        "train.max_steps=2",
        "--set",
        "gate.min_exact_match_gain=-1",
    ])
    .exits(0);
    assert!(!desk.has("hub-cache"));
}
