//! The run of minutes that a recipe's `[smoke]` makes of it: overrides like those of `--set`, so that every check is made of it too.

use crate::cli::{FolderArgs, RecipeArgs, SmokeArgs};
use crate::fault::{OrFault, user_error};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_eval::{EvalSection, Metric};
use taper_hub::ModelSection;
use taper_recipe::{Recipe, ResolvedRun, SmokeSection};

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
        refuse_what_is_overridden(&args.recipe.sets, &run.recipe)?;
        let overrides = overrides(&run)?;
        let name = format!("{}-smoke", run.name);
        let folder = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&name));
        let sets = args.recipe.sets.iter().cloned();
        let sets = sets.chain(overrides).chain([format!("name={}", Value::from(name))]).collect();
        let recipe = RecipeArgs { sets, ..args.recipe.clone() };
        let args = FolderArgs { recipe, out: Some(folder.clone()) };
        Ok(Self { args, folder, section: run.recipe.smoke })
    }
}

/// `key=value` for what the tier has values of its own for.
fn overrides(run: &ResolvedRun) -> anyhow::Result<Vec<String>> {
    let (recipe, smoke) = (&run.recipe, &run.recipe.smoke);
    let mut sets = vec![format!("train.max_steps={}", smoke.max_steps)];
    if let Some(base) = &smoke.base {
        sets.push(base_override(&recipe.model, base)?);
    }
    if shortens_warmup(recipe) {
        sets.push(format!("schedule.warmup_steps={}", smoke.max_steps / 10));
    }
    sets.extend(eval_overrides(recipe)?);
    // Neither says anything about a few steps, and a candidate may be a model of any size or on another machine.
    sets.extend(["gate={}", "candidate=[]"].map(str::to_owned));
    Ok(sets)
}

/// A warm-up for thousands of steps would leave these few at a rate of almost nothing.
fn shortens_warmup(recipe: &Recipe) -> bool {
    recipe.schedule.warmup_steps.is_some_and(|warmup| warmup >= recipe.smoke.max_steps)
}

/// The base alone, or where a revision stands beside it, which is the other base's, the section without that.
fn base_override(model: &ModelSection, base: &str) -> anyhow::Result<String> {
    if model.revision.is_none() {
        return Ok(format!("model.base={}", Value::from(base)));
    }
    let mut values = serde_json::to_value(model)?;
    values["base"] = base.into();
    values["revision"] = Value::Null;
    Ok(format!("model={}", inline_toml(&values)))
}

/// Few items of each evaluation, and nobody asked to judge them: the smoke tier needs no other machine.
fn eval_overrides(recipe: &Recipe) -> anyhow::Result<Vec<String>> {
    let limit = |eval: &EvalSection| eval.limit.map_or(recipe.smoke.limit, |own| own.min(recipe.smoke.limit));
    if recipe.eval.iter().all(|eval| eval.judge.is_none()) {
        let each = recipe.eval.iter().enumerate();
        return Ok(each.map(|(index, eval)| format!("eval.{index}.limit={}", limit(eval))).collect());
    }
    let sections = recipe.eval.iter().map(|eval| {
        let mut metrics: Vec<Metric> = Vec::new();
        for metric in eval.metrics.iter().map(|&m| if m == Metric::Judge { Metric::ExactMatch } else { m }) {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        let section = EvalSection { limit: Some(limit(eval)), judge: None, metrics, ..eval.clone() };
        serde_json::to_value(section)
    });
    let sections = sections.collect::<Result<Vec<_>, _>>()?;
    Ok(vec![format!("eval={}", inline_toml(&sections.into()))])
}

/// A value as TOML writes it in one line. JSON's strings, numbers and booleans are TOML's.
fn inline_toml(value: &Value) -> String {
    match value {
        Value::Object(table) => {
            let entries = table.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> = entries
                .map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), inline_toml(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline_toml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Nothing that is typed is ignored.
fn refuse_what_is_overridden(typed: &[String], recipe: &Recipe) -> anyhow::Result<()> {
    for key in typed.iter().filter_map(|set| set.split('=').next()).map(str::trim) {
        let of_eval = key.strip_prefix("eval.").and_then(|rest| rest.split_once('.')).map(|(_, key)| key);
        let section = key.split('.').next().unwrap_or(key);
        let is_overridden = match (section, of_eval) {
            ("gate" | "candidate", _) => true,
            (_, Some(of_eval)) => of_eval == "limit" || of_eval.starts_with("judge"),
            _ => match key {
                "train.max_steps" => true,
                "model.base" | "model.revision" => recipe.smoke.base.is_some(),
                "schedule.warmup_steps" => shortens_warmup(recipe),
                _ => false,
            },
        };
        if is_overridden {
            return Err(user_error(
                format!("`--set {key}` has no effect on the smoke tier, which has its own value there"),
                "set `smoke.base`, `smoke.max_steps` or `smoke.limit`; gates, judges and candidates are for `taper run`",
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
        let common =
            crate::cli::CommonArgs { json: false, device: crate::device::DeviceChoice::Auto, offline: true };
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
    fn nobody_is_asked_to_judge() {
        let judged = "eval.1={ name = \"b\", metrics = [\"judge\", \"perplexity\"], limit = 3, max_new_tokens = 9, \
            judge = { endpoint = { url = \"http://127.0.0.1:9/v1\", model = \"j\" } } }";
        let tier = tier(&[judged]).unwrap();
        let eval = tier.args.recipe.sets.iter().find(|set| set.starts_with("eval=")).unwrap();
        assert!(
            eval.contains("\"metrics\" = [\"exact_match\", \"perplexity\"]") && !eval.contains("127.0.0.1"),
            "{eval}"
        );
    }

    #[test]
    fn what_the_tier_sets_itself_is_not_taken_from_the_command_line() {
        for set in [
            "train.max_steps=5000",
            "model.base=owner/other",
            "eval.1.limit=2",
            "gate.max_perplexity=3",
            "schedule.warmup_steps=50",
        ] {
            let told = tier(&[set]).err().unwrap().to_string();
            let key = set.split('=').next().unwrap();
            assert!(told.contains(&format!("`--set {key}` has no effect")), "{told}");
        }
    }
}
