//! `taper verify`: scores and verdict of a run, computed again from what it stored, on any machine and without its model.

use crate::cli::VerifyArgs;
use crate::fault::{OrFault, user_error};
use crate::lineage::{LOCK_FILE, Lock, hashes_of_files, hashes_of_recipe, trained};
use crate::output::{print, say};
use crate::workspace::resolve;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::ExitCode;
use taper_eval::report::{RESULTS_SCHEMA, SampleLine, StoredResults, read_samples};
use taper_eval::score::Scorer;
use taper_eval::{
    Answers, Evaluation, GateOutcome, GateSection, GateStatus, ItemFacts, Roles, exit_code, judge,
};
use taper_hub::Fingerprint;
use taper_recipe::ResolvedRun;

/// One thing that was looked at.
struct Check {
    name: String,
    /// What is wrong; `None` where all is well.
    fault: Option<String>,
}

pub(crate) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.run;
    let lock = Lock::read(folder)?;
    let run = args.recipe.as_ref().map(|recipe| resolve(&recipe_args(recipe, args))).transpose()?;
    let mut checks = unchanged(folder, &lock)?;
    let (stored, text, evaluations) = match replayed(folder) {
        Ok(replayed) => replayed,
        // What was changed may also be unreadable: that it was changed is what counts.
        Err(error) if checks.iter().any(|check| check.fault.is_some()) => {
            checks.push(Check {
                name: "scores and verdict can be computed again".into(),
                fault: Some(format!("{error:#}")),
            });
            return tell(args, &checks, &[], &[]);
        }
        Err(error) => return Err(error),
    };
    checks.extend(same_scores(&text, &evaluations)?);
    let gates = hold(&stored.gate, &stored, &evaluations)?;
    let code = exit_code(&gates, &evaluations);
    checks.push(Check {
        name: "gates and exit code are those of the stored results".into(),
        fault: (gates != stored.gates || code as u8 != stored.exit_code)
            .then(|| format!("the run says exit code {}, its results give {}", stored.exit_code, code as u8)),
    });
    checks.extend(
        run.iter().map(|run| current(&lock, run)).collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten(),
    );
    // What is asked may be asked anew of the same results.
    let gates = match &run {
        Some(run) => hold(&run.recipe.gate, &stored, &evaluations)?,
        None => gates,
    };
    tell(args, &checks, &evaluations, &gates)
}

/// What is stored, and what follows from it.
fn replayed(folder: &Path) -> anyhow::Result<(StoredResults, Value, Vec<Evaluation>)> {
    let (stored, text) = read_results(folder)?;
    let samples = fs_err::read_to_string(folder.join("eval/samples.jsonl"))?;
    let evaluations = replay(&stored, &read_samples(&samples).or_fault()?)?;
    Ok((stored, text, evaluations))
}

fn recipe_args(recipe: &Path, args: &VerifyArgs) -> crate::cli::RecipeArgs {
    crate::cli::RecipeArgs { recipe: recipe.to_owned(), sets: args.sets.clone(), common: args.common.clone() }
}

/// Whether the files of the results, and what was trained where it is there, are what they were.
fn unchanged(folder: &Path, lock: &Lock) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (name, hash) in &lock.results {
        let path = folder.join(name);
        let found = path.is_file().then(|| Fingerprint::of_file(&path).or_fault()).transpose()?;
        let fault = match found {
            None => Some("it is not there".to_owned()),
            Some(found) if found.as_str() != hash => Some("it was changed after the run".to_owned()),
            Some(_) => None,
        };
        checks.push(Check { name: format!("{name} is as the run wrote it"), fault });
    }
    let is_full = !folder.join("adapter").is_dir();
    if let (Some(hash), Some(found)) = (&lock.trained, trained(folder, is_full)?) {
        let fault = (*hash != found).then(|| "it was changed after it was evaluated".to_owned());
        checks.push(Check { name: "what was trained is what was evaluated".into(), fault });
    }
    Ok(checks)
}

fn read_results(folder: &Path) -> anyhow::Result<(StoredResults, Value)> {
    let path = folder.join("eval/results.json");
    let broken = |reason: String| {
        user_error(
            format!("`{}` is no result of an evaluation: {reason}", path.display()),
            "evaluate again with `taper eval`",
        )
    };
    let text: Value = serde_json::from_slice(&fs_err::read(&path)?).map_err(|e| broken(e.to_string()))?;
    if text["schema"] != RESULTS_SCHEMA {
        return Err(broken(format!("its version is {}, this is for {RESULTS_SCHEMA}", text["schema"])));
    }
    let stored = serde_json::from_value(text.clone()).map_err(|e| broken(e.to_string()))?;
    Ok((stored, text))
}

/// Score and compare the stored responses anew.
fn replay(stored: &StoredResults, lines: &[SampleLine]) -> anyhow::Result<Vec<Evaluation>> {
    let mut by_eval: BTreeMap<&str, Vec<&SampleLine>> = BTreeMap::new();
    lines.iter().for_each(|line| by_eval.entry(&line.eval).or_default().push(line));
    let of = |evaluation: &Evaluation| {
        let lines = by_eval.get(evaluation.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let items: Vec<ItemFacts> = lines.iter().map(|line| line.item.clone()).collect();
        let answers = evaluation.candidates.iter().map(|result| {
            let responses = lines.iter().filter_map(|line| line.candidates.get(&result.candidate));
            Answers {
                candidate: result.candidate.clone(),
                about: result.about.clone(),
                responses: responses.map(|stored| stored.response.clone()).collect(),
                cached: 0,
            }
        });
        let scorer = Scorer::new(evaluation.scoring.clone()).or_fault()?;
        let roles = Roles { reference: evaluation.reference.clone(), trained: evaluation.trained.clone() };
        Evaluation::new(&scorer, items, answers.collect(), roles).or_fault()
    };
    stored.evaluations.iter().map(of).collect()
}

/// Whether what is stored of each evaluation is what its responses give.
fn same_scores(stored: &Value, evaluations: &[Evaluation]) -> anyhow::Result<Vec<Check>> {
    let of = |(index, evaluation): (usize, &Evaluation)| {
        // Through text, as the stored one came.
        let again: Value = serde_json::from_str(&serde_json::to_string(evaluation)?)?;
        let differs = first_difference(&stored["evaluations"][index], &again, String::new());
        Ok(Check {
            name: format!(
                "scores and verdict of `{}` follow from its {} responses",
                evaluation.name, evaluation.n
            ),
            fault: differs.map(|at| format!("`{at}` is another when computed again")),
        })
    };
    evaluations.iter().enumerate().map(of).collect()
}

/// Where two values part, as `candidates.0.measured.1.value`.
fn first_difference(a: &Value, b: &Value, at: String) -> Option<String> {
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let missing = y.keys().find(|key| !x.contains_key(*key)).map(|key| below(key));
            let differs = |(key, value): (&String, &Value)| {
                first_difference(value, y.get(key).unwrap_or(&Value::Null), below(key))
            };
            missing.or_else(|| x.iter().find_map(differs))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (x, y))| first_difference(x, y, below(&i.to_string())))
        }
        _ => (a != b).then_some(at),
    }
}

fn hold(
    gate: &GateSection,
    stored: &StoredResults,
    evaluations: &[Evaluation],
) -> anyhow::Result<Vec<GateOutcome>> {
    let evals: Vec<&str> = evaluations.iter().map(|evaluation| evaluation.name.as_str()).collect();
    let candidates: Vec<&str> = evaluations
        .iter()
        .flat_map(|evaluation| &evaluation.candidates)
        .map(|c| c.candidate.as_str())
        .collect();
    let requirements = gate.requirements_of(&evals, &candidates).map_err(|errors| {
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        user_error(
            format!("the gates cannot be held against the stored results: {}", told.join("; ")),
            "the stored run did not evaluate what they name: run the full tier again",
        )
    })?;
    Ok(judge(&requirements, evaluations, &stored.kept))
}

/// Whether the recipe and its data are those of the stored run, gates and reports aside.
fn current(lock: &Lock, run: &ResolvedRun) -> anyhow::Result<Vec<Check>> {
    let differing = |stored: &BTreeMap<String, String>, now: &BTreeMap<String, String>| {
        let names = stored.keys().chain(now.keys()).filter(|name| stored.get(*name) != now.get(*name));
        let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
        names.sort();
        names.dedup();
        (!names.is_empty()).then(|| format!("the stored run is stale: {} changed since", names.join(", ")))
    };
    let recipe = differing(&lock.recipe, &hashes_of_recipe(&run.recipe)?);
    let files = differing(&lock.files, &hashes_of_files(&run.recipe)?);
    Ok(vec![
        Check { name: "the recipe is that of the stored run, gates and reports aside".into(), fault: recipe },
        Check { name: "its data are those of the stored run".into(), fault: files },
    ])
}

fn tell(
    args: &VerifyArgs,
    checks: &[Check],
    evaluations: &[Evaluation],
    gates: &[GateOutcome],
) -> anyhow::Result<ExitCode> {
    for check in checks {
        match &check.fault {
            None => say(&format!("verified  {}", check.name)),
            Some(fault) => say(&format!("FAILED    {}: {fault}", check.name)),
        }
    }
    for evaluation in evaluations {
        say(&format!("{}: {}", evaluation.name, evaluation.headline));
    }
    for gate in gates {
        let status = match gate.status {
            GateStatus::Failed => "FAILED".to_owned(),
            other => other.to_string(),
        };
        say(&format!(
            "gate {}: {}: {}: {status}",
            gate.eval.as_deref().unwrap_or("-"),
            gate.text,
            gate.detail
        ));
    }
    let holds = checks.iter().all(|check| check.fault.is_none());
    let code = if holds { exit_code(gates, evaluations) } else { ExitCode::GateFailed };
    if args.common.json {
        let checks: Vec<Value> = checks
            .iter()
            .map(|check| json!({ "name": check.name, "verified": check.fault.is_none(), "fault": check.fault }))
            .collect();
        let verdicts: Vec<Value> = evaluations
            .iter()
            .map(|evaluation| json!({ "eval": evaluation.name, "verdict": evaluation.verdict, "headline": evaluation.headline }))
            .collect();
        print(&json!({ "verified": holds, "exit_code": code as u8, "checks": checks, "evaluations": verdicts, "gates": gates }).to_string())?;
    }
    if !holds {
        say(&format!("the run in {} is no evidence as it stands: see {LOCK_FILE}", args.run.display()));
    }
    Ok(code)
}
