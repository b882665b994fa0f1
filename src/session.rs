//! A recipe that is being run: resolved, its base's files found, its data read and checked.

use crate::cli::FolderArgs;
use crate::device;
use crate::output::say;
use crate::tasks::HeldOut;
use crate::workspace::{Base, prepare, resolve, run_folder};
use std::path::PathBuf;
use taper_data::PreparedData;
use taper_diagnostics::write_bytes_atomically;
use taper_models::CausalLm;
use taper_recipe::{ResolvedRun, resolved_toml};
use taper_train::TrainMethod;

/// Everything that the steps of a run share.
pub(crate) struct Session {
    pub(crate) args: FolderArgs,
    pub(crate) run: ResolvedRun,
    pub(crate) folder: PathBuf,
    pub(crate) base: Base,
    pub(crate) data: PreparedData,
    /// The evaluations, ready for any candidate.
    pub(crate) tasks: Vec<HeldOut>,
}

impl Session {
    /// Check everything that can be checked without weights, and say what will be run.
    pub(crate) fn open(args: &FolderArgs) -> anyhow::Result<Self> {
        device::check(&args.recipe.common)?;
        let run = resolve(&args.recipe)?;
        let folder = run_folder(args, &run);
        let base = Base::of_recipe(&run.recipe.model, &args.recipe.common)?;
        match &run.recipe.description {
            Some(description) => say(&format!("recipe {}: {description}", run.name)),
            None => say(&format!("recipe {}", run.name)),
        }
        say(&format!("base   {}", base.source));
        let (data, tasks) = prepare(&run, &base)?;
        Ok(Self { args: args.clone(), run, folder, base, data, tasks })
    }

    /// Write every value of the run and where it came from.
    pub(crate) fn write_resolved(&self) -> anyhow::Result<()> {
        write_bytes_atomically(&self.path("resolved.toml"), resolved_toml(&self.run).as_bytes())?;
        Ok(())
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
        self.base.load((&self.run.recipe.model).into())
    }

    /// The command that goes on with this run: the same recipe, overrides and folder, another verb.
    pub(crate) fn command(&self, verb: &str, flags: &str) -> String {
        let args = &self.args.recipe;
        let mut command = format!("taper {verb} {}", shell_word(&args.recipe.to_string_lossy()));
        if !flags.is_empty() {
            command.push_str(&format!(" {flags}"));
        }
        for set in &args.sets {
            command.push_str(&format!(" --set {}", shell_word(set)));
        }
        if let Some(out) = &self.args.out {
            command.push_str(&format!(" --out {}", shell_word(&out.to_string_lossy())));
        }
        if args.common.offline {
            command.push_str(" --offline");
        }
        command
    }
}

/// A word as a POSIX shell reads it back.
pub(crate) fn shell_word(word: &str) -> String {
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
