//! The CI files and their page: what they type is read by taper's own command line, and they ask for no more than they need.

use crate::desk::Desk;
use std::path::Path;

const FILES: [&str; 3] = [".github/workflows/recipe.yml", "ci/gitlab-recipe.yml", "docs/ci.md"];

fn text(name: &str) -> String {
    fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// What is typed after `taper` in a file: lines of shell, cells and words in backticks.
fn commands(text: &str) -> Vec<Vec<String>> {
    let pieces = text.lines().flat_map(|line| line.split('`')).map(str::trim);
    let typed = pieces.filter_map(|piece| {
        let piece = piece.trim_start_matches("- ").trim_start_matches("run: ");
        let (program, rest) = piece.split_once(' ')?;
        let is_taper = program == "taper" || program.ends_with("/taper");
        let end = rest.find(" #").unwrap_or(rest.len());
        let words = rest[..end].split_whitespace().map(|word| word.trim_matches('"').to_owned());
        is_taper
            .then(|| words.take_while(|word| !["&&", "||", "|", ">", ";"].contains(&word.as_str())).collect())
    });
    typed.collect()
}

#[test]
fn every_command_of_the_ci_files_is_one_that_taper_reads() {
    let desk = Desk::empty();
    for (name, least) in FILES.into_iter().zip([2, 2, 6]) {
        let commands = commands(&text(name));
        assert!(commands.len() >= least, "only {commands:?} in {name}");
        for verb in ["smoke", "verify"] {
            assert!(commands.iter().any(|words| words[0] == verb), "no `taper {verb}` in {name}");
        }
        for words in &commands {
            // Read from left to right: a verb or a flag that is not known is told before the help.
            let args: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
            let said = desk.taper(&args);
            assert_eq!(said.code, 0, "{name}: taper {}\n{}", words.join(" "), said.err);
        }
    }
    let unknown = desk.taper(&["smoke", "recipe.toml", "--no-such-flag", "--help"]);
    assert_eq!(unknown.code, 2, "the test above would find no fault");
}

/// Indentation by twos, no tab, each key once on its level and behind it a value or lines that are further in: the YAML that these files keep to.
fn checked_yaml(name: &str) {
    let mut open: Vec<(usize, std::collections::BTreeSet<String>)> = Vec::new();
    let mut block: Option<usize> = None;
    for (number, line) in (1..).zip(text(name).lines()) {
        let at = format!("{name}:{number}: {line}");
        assert!(!line.contains('\t') && line.trim_end() == line, "{at}");
        let indent = line.len() - line.trim_start().len();
        if line.trim().is_empty() || block.is_some_and(|of| indent > of) || line.trim().starts_with('#') {
            continue;
        }
        block = line.ends_with(": |").then_some(indent);
        assert!(indent.is_multiple_of(2), "{at}");
        let dashes = line.trim_start().chars().take_while(|c| *c == '-').count().min(1) * 2;
        let (indent, rest) = (indent + dashes, line.trim_start().trim_start_matches("- "));
        open.retain(|(level, _)| *level <= indent && !(dashes > 0 && *level == indent));
        let Some((key, value)) = rest.split_once(':') else {
            assert!(dashes > 0, "neither a key nor an item: {at}");
            continue;
        };
        let is_key = value.is_empty() || value.starts_with(' ');
        if !is_key || key.contains(' ') || key.contains('/') {
            assert!(dashes > 0, "{at}");
            continue;
        }
        for (opening, closing) in [('[', ']'), ('{', '}'), ('"', '"')] {
            let count = |c| value.matches(c).count();
            assert!(count(opening) == count(closing) && (opening != '"' || count('"') % 2 == 0), "{at}");
        }
        match open.last_mut().filter(|(level, _)| *level == indent) {
            Some((_, keys)) => assert!(keys.insert(key.to_owned()), "`{key}` twice: {at}"),
            None => {
                assert!(open.last().is_none_or(|(level, _)| *level < indent), "{at}");
                open.push((indent, [key.to_owned()].into()));
            }
        }
    }
}

#[test]
fn the_workflows_are_well_formed_and_ask_for_no_more_than_they_need() {
    for name in &FILES[..2] {
        checked_yaml(name);
    }
    let workflow = text(FILES[0]);
    assert!(workflow.contains("\npermissions:\n  contents: read\n"), "read alone");
    assert_eq!(workflow.matches("permissions:").count(), 1);
    assert!(!workflow.contains("secrets.") && !workflow.contains("pull_request_target"));
    let actions: Vec<&str> = workflow.lines().filter_map(|line| line.split("uses: ").nth(1)).collect();
    assert!(actions.len() >= 5);
    for action in actions {
        let pinned = action.split_once("@v").is_some_and(|(_, version)| version.parse::<u32>().is_ok());
        assert!(pinned && action.starts_with("actions/"), "`{action}` is not pinned to a major version");
    }
    // What is uploaded has no text of an example in it.
    for name in &FILES[..2] {
        let paths = text(name);
        let paths = paths.lines().filter(|line| line.contains("runs/") && !line.trim().starts_with('#'));
        for path in paths {
            let harmless = ["junit.xml", "smoke.json", "metrics.txt"];
            assert!(harmless.iter().any(|file| path.ends_with(file)), "{name} uploads {path}");
        }
    }
}

#[test]
fn the_shipped_recipe_has_a_golden_loss_and_the_files_are_where_ci_looks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = taper_recipe::resolve(&root.join("recipes/quickstart.toml"), &[]).unwrap().recipe;
    assert!(recipe.smoke.golden_loss.is_some());
    for name in &FILES[..2] {
        assert!(text(name).contains("RECIPE: recipes/quickstart.toml"));
    }
}
