//! The run of minutes that a recipe's `[smoke]` makes of it: overrides like those of `--set`, so that every check is made of it too.

use crate::cli::{FolderArgs, RecipeArgs, SmokeArgs};
use crate::fault::{OrFault, user_error};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_recipe::{ResolvedRun, SmokeSection};

/// The smoke tier of a recipe.
pub(crate) struct Tier {
    /// The recipe with its overrides, and the folder.
    pub(crate) args: FolderArgs,
    pub(crate) folder: PathBuf,
    pub(crate) section: SmokeSection,
}

impl Tier {
    /// The tier of the recipe that is named; what is wrong with the recipe itself is told first.
    pub(crate) fn of(args: &SmokeArgs) -> anyhow::Result<Self> {
        let run = taper_recipe::resolve(&args.recipe.recipe, &args.recipe.sets).or_fault()?;
        let overrides = overrides(&run)?;
        refuse_what_is_overridden(&args.recipe.sets, &overrides)?;
        let name = format!("{}-smoke", run.name);
        let folder = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
        let sets = args.recipe.sets.iter().cloned();
        let sets = sets.chain(overrides).chain([format!("name={}", Value::from(name))]).collect();
        let recipe = RecipeArgs { sets, ..args.recipe.clone() };
        let args = FolderArgs { recipe, out: Some(folder.clone()) };
        Ok(Self { args, folder, section: run.recipe.smoke })
    }
}

/// `key=value` for each key that the tier has a value of its own for.
fn overrides(run: &ResolvedRun) -> anyhow::Result<Vec<String>> {
    let (recipe, smoke) = (&run.recipe, &run.recipe.smoke);
    let mut sets = vec![format!("train.max_steps={}", smoke.max_steps)];
    if let Some(base) = &smoke.base {
        sets.extend(base_overrides(run, base)?);
    }
    // A warm-up for thousands of steps would leave these few at a rate of almost nothing.
    if recipe.schedule.warmup_steps.is_some_and(|warmup| warmup >= smoke.max_steps) {
        sets.push(format!("schedule.warmup_steps={}", smoke.max_steps / 10));
    }
    for (index, eval) in recipe.eval.iter().enumerate() {
        let limit = eval.limit.unwrap_or(usize::MAX).min(smoke.limit);
        sets.push(format!("eval.{index}.limit={limit}"));
    }
    // Neither says anything about a few steps, and a candidate may be a model of any size or another machine's.
    sets.extend(["gate={}", "candidate=[]"].map(str::to_owned));
    Ok(sets)
}

/// The base alone, or where a revision stands beside it, which is the other base's, the section without that.
fn base_overrides(run: &ResolvedRun, base: &str) -> anyhow::Result<Vec<String>> {
    let model = &run.recipe.model;
    if model.revision.is_none() {
        return Ok(vec![format!("model.base={}", Value::from(base))]);
    }
    let values = serde_json::to_value(model)?;
    let kept = values.as_object().into_iter().flatten().filter(|(key, value)| {
        !value.is_null() && !["base", "revision"].contains(&key.as_str())
    });
    let kept: String = kept.map(|(key, value)| format!(", {key} = {value}")).collect();
    Ok(vec![format!("model={{ base = {}{kept} }}", Value::from(base))])
}

/// Nothing that is typed is ignored.
fn refuse_what_is_overridden(typed: &[String], overrides: &[String]) -> anyhow::Result<()> {
    let key_of = |set: &str| set.split('=').next().unwrap_or_default().trim().to_owned();
    for typed in typed.iter().map(|set| key_of(set)) {
        let is_below = |key: &String| typed == *key || typed.starts_with(&format!("{key}."));
        if let Some(key) = overrides.iter().map(|set| key_of(set)).find(is_below) {
            return Err(user_error(
                format!("`--set {typed}` has no effect: the smoke tier has its own `{key}`"),
                "set `smoke.base`, `smoke.max_steps` or `smoke.limit`; gates and candidates are for `taper run`",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "schema = 1\n[model]\nbase = \"owner/name\"\nrevision = \"abc\"\nquantize = \"nf4\"\n[adapter]\n\
        [data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\n[schedule]\nwarmup_steps = 500\n[[eval]]\nname = \"a\"\n\
        [[eval]]\nname = \"b\"\nlimit = 3\n[gate]\neval = \"a\"\nmin_exact_match = 0.5\n[smoke]\nbase = \"tiny \\\"one\\\"\"\nmax_steps = 30\n";

    fn tier(sets: &[&str]) -> anyhow::Result<Tier> {
        let folder = tempfile::tempdir()?;
        let recipe = folder.path().join("big.toml");
        fs_err::write(&recipe, RECIPE)?;
        fs_err::create_dir(folder.path().join("tiny \"one\""))?;
        let common = crate::cli::CommonArgs { json: false, device: "auto".into(), offline: true };
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        let tier = Tier::of(&SmokeArgs { recipe: RecipeArgs { recipe, sets, common }, out: None })?;
        // The overridden recipe is one.
        let run = taper_recipe::resolve(&tier.args.recipe.recipe, &tier.args.recipe.sets).or_fault()?;
        assert_eq!(run.recipe.model.base, folder.path().join("tiny \"one\"").to_string_lossy());
        assert_eq!((run.recipe.model.revision, run.recipe.model.quantize.is_some()), (None, true));
        assert_eq!((run.recipe.train.max_steps, run.recipe.schedule.warmup_steps), (Some(30), Some(3)));
        assert_eq!(run.recipe.eval.iter().map(|eval| eval.limit).collect::<Vec<_>>(), [Some(8), Some(3)]);
        assert!(run.recipe.gate == Default::default() && run.name == "big-smoke");
        Ok(tier)
    }

    #[test]
    fn the_tier_is_the_recipe_over_a_small_base_for_a_few_steps() {
        let tier = tier(&["train.seed=7"]).unwrap();
        assert_eq!(tier.folder, Path::new("runs/big-smoke"));
    }

    #[test]
    fn what_the_tier_sets_itself_is_not_taken_from_the_command_line() {
        for (set, key) in [
            ("train.max_steps=5", "train.max_steps"),
            ("model.base=other", "model"),
            ("eval.1.limit=2", "eval.1.limit"),
            ("gate.max_perplexity=3", "gate"),
        ] {
            let told = tier(&[set]).err().unwrap().to_string();
            assert!(told.contains("has no effect") && told.contains(&format!("its own `{key}`")), "{told}");
        }
    }
}
