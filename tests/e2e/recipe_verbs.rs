//! The recipes inside the binary: list, show, copy.

use crate::desk::Desk;

#[test]
fn recipes_are_listed_with_a_line_on_each() {
    let said = Desk::empty().taper(&["recipe", "ls"]).exits(0);
    let names: Vec<&str> = said.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in ["quickstart", "tickets", "pretrain-tiny", "smollm2/135m_lora"] {
        assert!(names.contains(&name), "{}", said.out);
    }
    assert!(said.out.lines().all(|line| line.split_whitespace().count() > 4), "{}", said.out);
}

#[test]
fn a_recipe_is_shown_as_it_is_copied() {
    let desk = Desk::empty();
    let shown = desk.taper(&["recipe", "show", "quickstart"]).exits(0);
    assert_eq!(shown.err, "");
    desk.taper(&["recipe", "cp", "quickstart"]).exits(0).tells(&["wrote quickstart.toml"]);
    assert_eq!(desk.read("quickstart.toml"), shown.out);
    desk.taper(&["recipe", "cp", "smollm2/135m_lora"]).exits(0).tells(&["wrote 135m_lora.toml"]);
    desk.taper(&["recipe", "cp", "quickstart.toml", "deep/own.toml"]).exits(0);
    assert_eq!(desk.read("deep/own.toml"), shown.out);
    fs_err::create_dir(desk.path("folder")).unwrap();
    desk.taper(&["recipe", "cp", "quickstart", "folder"]).exits(0);
    assert_eq!(desk.read("folder/quickstart.toml"), shown.out);
}

#[test]
fn a_copy_overwrites_nothing() {
    let desk = Desk::empty();
    desk.write("quickstart.toml", "mine");
    desk.taper(&["recipe", "cp", "quickstart"]).exits(2).tells(&["`quickstart.toml` exists", "help:"]);
    assert_eq!(desk.read("quickstart.toml"), "mine");
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let desk = Desk::empty();
    for verb in ["show", "cp"] {
        desk.taper(&["recipe", verb, "quikstart"])
            .exits(2)
            .tells(&["no built-in recipe is named `quikstart`", "help: did you mean `quickstart`?"]);
    }
    desk.taper(&["recipe", "show", "zzz"]).exits(2).tells(&["help: `taper recipe ls` lists them"]);
    assert!(desk.files("").is_empty());
}

/// What a copied recipe needs is told before anything is computed.
#[test]
fn a_copied_recipe_away_from_its_files_says_which_are_missing() {
    let desk = Desk::empty();
    desk.taper(&["recipe", "cp", "quickstart"]).exits(0);
    desk.taper(&["run", "quickstart.toml"]).exits(2).tells(&["no folder", "tiny-base", "help:"]);
    assert!(!desk.has("runs"));
}
