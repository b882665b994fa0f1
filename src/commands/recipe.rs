//! `taper recipe`: the recipes that ship inside the binary.

use crate::cli::RecipeVerb;
use crate::fault::user_error;
use crate::output::{print, say};
use std::path::{Path, PathBuf};
use taper_diagnostics::{ExitCode, did_you_mean, write_bytes_atomically};
use taper_recipe::{BuiltinRecipe, builtin_recipes, find_builtin};

pub(crate) fn recipe(verb: &RecipeVerb) -> anyhow::Result<ExitCode> {
    match verb {
        RecipeVerb::Ls => {
            let width = builtin_recipes().iter().map(|r| r.name.len()).max().unwrap_or(0);
            for recipe in builtin_recipes() {
                print(&format!("{:width$}  {}", recipe.name, recipe.summary()))?;
            }
        }
        RecipeVerb::Show { name } => print(find(name)?.text.trim_end())?,
        RecipeVerb::Cp { name, to } => copy(find(name)?, to.as_deref())?,
    }
    Ok(ExitCode::Passed)
}

fn find(name: &str) -> anyhow::Result<&'static BuiltinRecipe> {
    find_builtin(name).ok_or_else(|| {
        let hint = match did_you_mean(name, builtin_recipes().iter().map(|r| r.name)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`taper recipe ls` lists them".to_owned(),
        };
        user_error(format!("no built-in recipe is named `{name}`"), hint)
    })
}

fn copy(recipe: &BuiltinRecipe, to: Option<&Path>) -> anyhow::Result<()> {
    let last = recipe.name.rsplit('/').next().unwrap_or(recipe.name);
    let mut path = to.map_or_else(|| PathBuf::from(format!("{last}.toml")), Path::to_owned);
    if path.is_dir() {
        path.push(format!("{last}.toml"));
    }
    if path.exists() {
        return Err(user_error(
            format!("`{}` exists", path.display()),
            "name another file: nothing is overwritten",
        ));
    }
    write_bytes_atomically(&path, recipe.text.as_bytes())?;
    say(&format!("wrote {}", path.display()));
    say("its paths are relative to where it stands: change [model] base and [data] before you run it");
    Ok(())
}
