//! Help is read more often than the README: all of it is kept as it is printed at 100 columns.

use crate::desk::Desk;

fn help(name: &str, verb: &[&str]) {
    let desk = Desk::empty();
    let args: Vec<&str> = verb.iter().copied().chain(["--help"]).collect();
    let said = desk.taper(&args).exits(0);
    assert_eq!(said.err, "");
    assert!(said.out.lines().all(|line| line.chars().count() <= 100), "{}", said.out);
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(format!("help_{name}"), said.out);
    });
}

#[test]
fn help_of_the_whole_lists_verbs_examples_and_exit_codes() {
    help("taper", &[]);
}

#[test]
fn help_of_each_verb_says_what_it_does_and_every_default() {
    for verb in [
        "run", "check", "explain", "train", "eval", "verify", "export", "generate", "chat", "recipe",
        "bench", "plan", "adapter", "serve", "smoke",
    ] {
        help(verb, &[verb]);
    }
    for (verb, under) in [
        ("recipe", "cp"),
        ("recipe", "show"),
        ("bench", "train"),
        ("bench", "generate"),
        ("bench", "serve"),
        ("adapter", "show"),
        ("adapter", "check"),
        ("adapter", "combine"),
    ] {
        help(&format!("{verb}_{under}"), &[verb, under]);
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let said = Desk::empty().taper(&["--version"]).exits(0);
    assert_eq!(said.out, format!("taper {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_unknown_verb_and_an_unknown_flag_end_with_2_and_a_suggestion() {
    let desk = Desk::empty();
    desk.taper(&["trian", "x.toml"]).exits(2).tells(&["unrecognized subcommand 'trian'", "'train'"]);
    desk.taper(&["run", "x.toml", "--overwite"]).exits(2).tells(&["'--overwite'", "'--overwrite'"]);
    desk.taper(&["run", "x.toml", "--device", "tpu"]).exits(2).tells(&["'tpu'", "`auto`, `cpu`"]);
}

#[test]
fn without_a_verb_the_help_is_shown_and_it_is_an_error() {
    let said = Desk::empty().taper(&[]).exits(2).tells(&["Usage: taper <COMMAND>", "Exit codes"]);
    assert_eq!(said.out, "");
}
