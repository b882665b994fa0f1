//! A recipe that is being run: resolved, its base's files found, its data read and checked.

use crate::cli::RecipeArgs;
use crate::output::say;
use crate::workspace::{Base, check_device, prepare_data, resolve, run_folder};
use std::path::PathBuf;
use taper_data::PreparedData;
use taper_diagnostics::write_bytes_atomically;
use taper_models::CausalLm;
use taper_recipe::{ResolvedRun, resolved_toml};
use taper_train::TrainMethod;

/// Everything that the steps of a run share.
pub(crate) struct Session {
    pub(crate) args: RecipeArgs,
    pub(crate) run: ResolvedRun,
    pub(crate) folder: PathBuf,
    pub(crate) base: Base,
    pub(crate) data: PreparedData,
}

impl Session {
    /// Check everything that can be checked without weights, and say what will be run.
    pub(crate) fn open(args: &RecipeArgs) -> anyhow::Result<Self> {
        check_device(&args.common)?;
        let run = resolve(args)?;
        let folder = run_folder(args, &run);
        let base = Base::open(&run.recipe.model, &args.common)?;
        say(&format!(
            "recipe {}: {}",
            run.name,
            run.recipe.description.as_deref().unwrap_or("no description")
        ));
        say(&format!("base   {}", run.recipe.model.base));
        let data = prepare_data(&run, &base)?;
        let session = Self { args: args.clone(), run, folder, base, data };
        write_bytes_atomically(&session.path("resolved.toml"), resolved_toml(&session.run).as_bytes())?;
        Ok(session)
    }

    /// A file or folder of the run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether all weights are trained rather than an adapter.
    pub(crate) fn trains_all_weights(&self) -> bool {
        self.run.recipe.train.method == TrainMethod::Full
    }

    /// The weights of the base, as the recipe asks for them.
    pub(crate) fn load_base(&self) -> anyhow::Result<Box<dyn CausalLm>> {
        self.base.load(self.run.recipe.model.dtype.into())
    }

    /// The command that goes on with this run: the same recipe, overrides and folder, another verb.
    pub(crate) fn command(&self, verb: &str, flags: &str) -> String {
        let args = &self.args;
        let mut command = format!("taper {verb} {}", shell_word(&args.recipe.to_string_lossy()));
        if !flags.is_empty() {
            command.push_str(&format!(" {flags}"));
        }
        for set in &args.sets {
            command.push_str(&format!(" --set {}", shell_word(set)));
        }
        if let Some(out) = &args.out {
            command.push_str(&format!(" --out {}", shell_word(&out.to_string_lossy())));
        }
        command
    }
}

/// A word as a POSIX shell reads it back.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    let is_plain = !word.is_empty() && word.chars().all(plain);
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("train.max_steps=20"), "train.max_steps=20");
        assert_eq!(shell_word("it's here"), r"'it'\''s here'");
        assert_eq!(shell_word(""), "''");
    }
}
