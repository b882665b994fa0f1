//! The recipes that ship: they resolve, their files are there, their headers tell what a person needs to know.

use std::path::{Path, PathBuf};
use taper_recipe::{Recipe, builtin_recipes, resolve};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").canonicalize().unwrap()
}

/// Every `.toml` file below a folder, in the order of the names.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let files = entries.into_iter().flat_map(|path| match path.is_dir() {
        true => files_below(&path),
        false => vec![path],
    });
    files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect()
}

/// Every file and folder that a recipe names.
fn named_paths(recipe: &Recipe) -> Vec<PathBuf> {
    let data = [&recipe.data.train, &recipe.data.valid, &recipe.data.test];
    let lists = data.into_iter().chain(recipe.eval.iter().map(|eval| &eval.data));
    let base = Path::new(&recipe.model.base);
    let folder = base.is_absolute().then(|| base.to_owned());
    lists
        .flat_map(|list| list.paths().to_vec())
        .chain(recipe.model.chat_template.clone())
        .chain(folder)
        .collect()
}

#[test]
fn every_recipe_of_the_repository_resolves_without_a_warning() {
    let files = files_below(&recipes());
    for path in &files {
        let run = resolve(path, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(run.warnings.is_empty(), "{}", run.warnings);
        // What a recipe's own first command makes is not there before.
        let built = recipes().join("../target").canonicalize().unwrap_or_default();
        for named in named_paths(&run.recipe) {
            let is_made =
                named.starts_with(&built) || named.components().any(|part| part.as_os_str() == "target");
            assert!(is_made || named.exists(), "{} names `{}`", path.display(), named.display());
        }
        let is_hub_id = !Path::new(&run.recipe.model.base).is_absolute();
        assert_eq!(
            is_hub_id,
            path.parent() != Some(recipes().as_path()),
            "folders hold the recipes of hub models"
        );
    }
    assert_eq!(files.len(), builtin_recipes().len());
    assert!(files.len() >= 8, "only {} recipes were found", files.len());
}

#[test]
fn every_header_names_the_command_and_the_needs_and_what_comes_of_it() {
    for recipe in builtin_recipes() {
        let header: Vec<&str> = recipe.text.lines().take_while(|line| line.starts_with('#')).collect();
        let has = |word: &str| header.iter().any(|line| line.starts_with(&format!("#   {word} ")));
        assert!(header[0].len() > 20 && header[0].ends_with('.'), "`{}`: {}", recipe.name, header[0]);
        assert!(has("command") && has("needs"), "`{}` says neither its command nor its needs", recipe.name);
        assert!(
            has("result") || has("data"),
            "`{}` says neither its result nor whose data it takes",
            recipe.name
        );
        let command = format!(" recipes/{}.toml", recipe.name);
        assert!(
            header.iter().any(|line| line.contains("taper ") && line.contains(&command)),
            "`{}`",
            recipe.name
        );
    }
}
