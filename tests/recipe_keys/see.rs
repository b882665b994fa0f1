//! What is looked at: values that a key is for, taken from what a command wrote and printed. `null` when it is not there.

use crate::world::Ran;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use taper_hub::Fingerprint;

pub(crate) fn code(ran: &Ran) -> Value {
    json!(ran.code)
}

/// What was refused, and nothing where all was well.
pub(crate) fn refusal(ran: &Ran) -> Value {
    let refused = ran.err.lines().find(|line| line.starts_with("error["));
    json!([ran.code, refused])
}

/// What people read first: the run's name and description.
pub(crate) fn first_line(ran: &Ran) -> Value {
    json!(ran.err.lines().next())
}

/// The names of the runs' folders.
pub(crate) fn runs(ran: &Ran) -> Value {
    json!(names_in(&ran.folder.join("runs")))
}

/// What lies in the run's folder.
pub(crate) fn files(ran: &Ran) -> Value {
    if ran.code == 0 { json!(names_in(&run_folder(ran))) } else { json!("nothing") }
}

/// The bytes of the adapter.
pub(crate) fn weights(ran: &Ran) -> Value {
    let path = run_folder(ran).join("adapter/adapter_model.safetensors");
    Fingerprint::of_file(&path).map_or(Value::Null, |hash| json!(hash.as_str()))
}

/// The adapter's tensors and their shapes.
pub(crate) fn shapes(ran: &Ran) -> Value {
    let path = run_folder(ran).join("adapter/adapter_model.safetensors");
    let tensors = taper_testkit::read_safetensors(&path);
    tensors.iter().map(|(name, tensor)| (name.clone(), json!(tensor.dims()))).collect::<Map<_, _>>().into()
}

/// The types of the merged model's tensors, and nothing where there is none.
pub(crate) fn merged(ran: &Ran) -> Value {
    let path = run_folder(ran).join("merged/model.safetensors");
    if !path.is_file() {
        return json!("no merged model");
    }
    let tensors = taper_testkit::read_safetensors(&path);
    tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), json!(tensor.dtype().as_str())))
        .collect::<Map<_, _>>()
        .into()
}

/// The files for llama.cpp, and the Modelfile.
pub(crate) fn for_engines(ran: &Ran) -> Value {
    let folder = run_folder(ran);
    let modelfile = fs_err::read_to_string(folder.join("ollama/Modelfile")).unwrap_or_default();
    json!({ "gguf": names_in(&folder.join("gguf")), "modelfile": modelfile })
}

/// The share of the gain that the export was held to.
pub(crate) fn least_gain(ran: &Ran) -> Value {
    let told = ran.err.split_once("gain kept").and_then(|(_, rest)| rest.split_once("(at least "));
    told.and_then(|(_, rest)| rest.split_once(')')).map_or(Value::Null, |(least, _)| json!(least))
}

/// The steps that have a line of training.
pub(crate) fn steps(ran: &Ran) -> Value {
    logged(ran, "loss", "step")
}

/// The steps that were validated.
pub(crate) fn validated(ran: &Ran) -> Value {
    logged(ran, "eval_loss", "step")
}

/// When it was validated, and by what value where that is not the loss.
pub(crate) fn validation_metric(ran: &Ran) -> Value {
    json!([validated(ran), logged(ran, "eval_exact_match", "eval_exact_match")])
}

/// The validation losses.
pub(crate) fn validation_losses(ran: &Ran) -> Value {
    logged(ran, "eval_loss", "eval_loss")
}

/// The training loss, step by step.
pub(crate) fn losses(ran: &Ran) -> Value {
    logged(ran, "loss", "loss")
}

/// The learning rate, step by step.
pub(crate) fn rates(ran: &Ran) -> Value {
    logged(ran, "loss", "learning_rate")
}

/// The tokens seen, step by step.
pub(crate) fn tokens(ran: &Ran) -> Value {
    logged(ran, "loss", "tokens")
}

/// The checkpoints that were kept.
pub(crate) fn checkpoints(ran: &Ran) -> Value {
    json!(names_in(&run_folder(ran).join("checkpoints")))
}

/// How many files of tokens were kept for the next run.
pub(crate) fn kept(ran: &Ran) -> Value {
    json!(names_in(&ran.folder.join("cache/tokens")).len())
}

/// Whether the self-test was told of.
pub(crate) fn self_test(ran: &Ran) -> Value {
    json!(ran.err.contains("event=self_test"))
}

/// `taper check --json`.
pub(crate) fn checked(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_default()
}

/// `taper explain --json`: text, tokens, which of them are learned.
pub(crate) fn explained(ran: &Ran) -> Value {
    let all: Value = serde_json::from_str(&ran.out).unwrap_or_default();
    if all.is_null() { all } else { json!([all["text"], all["tokens"]]) }
}

/// The names of the evaluations.
pub(crate) fn evaluations(ran: &Ran) -> Value {
    of_evaluations(ran, |evaluation| evaluation["name"].clone())
}

/// The metrics that were measured.
pub(crate) fn measured(ran: &Ran) -> Value {
    of_evaluations(ran, |evaluation| evaluation["metrics"].clone())
}

/// The values that the trained model reached.
pub(crate) fn scores(ran: &Ran) -> Value {
    let values = |evaluation: &Value| {
        let trained =
            evaluation["candidates"].as_array().into_iter().flatten().find(|c| c["name"] == "adapter");
        let measured = trained.and_then(|c| c["measured"].as_array()).into_iter().flatten();
        measured.map(|m| json!([m["metric"], m["value"]])).collect::<Vec<_>>().into()
    };
    of_evaluations(ran, values)
}

/// What the cost stands on; amounts depend on measured times.
pub(crate) fn cost(ran: &Ran) -> Value {
    let cost = &results(ran)["cost"];
    json!([cost["currency"], cost["items_per_month"], cost["assumptions"]])
}

/// Which evaluation each gate was held against.
pub(crate) fn gated(ran: &Ran) -> Value {
    let gates = results(ran)["gates"].as_array().cloned();
    gates
        .map_or(Value::Null, |gates| gates.iter().map(|gate| gate["eval"].clone()).collect::<Vec<_>>().into())
}

/// How each gate ended.
pub(crate) fn gates(ran: &Ran) -> Value {
    let gates = results(ran)["gates"].as_array().cloned().unwrap_or_default();
    json!([ran.code, gates.iter().map(|gate| json!([gate["text"], gate["status"]])).collect::<Vec<_>>()])
}

/// Every candidate with its scores.
pub(crate) fn candidates(ran: &Ran) -> Value {
    let of = |candidate: &Value| {
        let measured = candidate["measured"].as_array().into_iter().flatten();
        json!([candidate["name"], measured.map(|m| m["value"].clone()).collect::<Vec<_>>()])
    };
    of_evaluations(ran, |e| {
        e["candidates"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>().into()
    })
}

/// The values of the slices and how many items each has.
pub(crate) fn slices(ran: &Ran) -> Value {
    let of = |slice: &Value| json!([slice["field"], slice["value"], slice["n"]]);
    of_evaluations(ran, |e| e["slices"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>().into())
}

/// The test behind each comparison, and its p-value.
pub(crate) fn tests(ran: &Ran) -> Value {
    let of = |comparison: &Value| json!([comparison["test"], comparison["p_value"]]);
    of_evaluations(ran, |e| {
        e["comparisons"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>().into()
    })
}

/// The labels that the trained model's answers were sorted by.
pub(crate) fn labels(ran: &Ran) -> Value {
    of_evaluations(ran, |evaluation| {
        let trained =
            evaluation["candidates"].as_array().into_iter().flatten().find(|c| c["name"] == "adapter");
        trained.map_or(Value::Null, |trained| trained["classes"]["labels"].clone())
    })
}

/// Items whose input was trained on, or that the command was refused.
pub(crate) fn overlap(ran: &Ran) -> Value {
    let touched = of_evaluations(ran, |evaluation| evaluation["overlap"]["touched"].clone());
    json!([ran.code, touched])
}

/// The prompts of the items.
pub(crate) fn prompts(ran: &Ran) -> Value {
    of_samples(ran, |sample| sample["prompt"].clone())
}

/// What the trained model wrote.
pub(crate) fn outputs(ran: &Ran) -> Value {
    of_samples(ran, |sample| sample["candidates"]["adapter"]["output"].clone())
}

/// The log-likelihoods of the choices.
pub(crate) fn likelihoods(ran: &Ran) -> Value {
    of_samples(ran, |sample| sample["candidates"]["adapter"]["choices"].clone())
}

/// The first answer expected, as the page shows it.
pub(crate) fn shown(ran: &Ran) -> Value {
    let page = fs_err::read_to_string(run_folder(ran).join("report.html")).unwrap_or_default();
    let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>"));
    let data = data.map(|(data, _)| serde_json::from_str::<Value>(data).unwrap());
    data.map_or(Value::Null, |data| data["samples"][0]["expected"].clone())
}

/// The lines of `report.md` that name single items.
pub(crate) fn items_named(ran: &Ran) -> Value {
    let report = fs_err::read_to_string(run_folder(ran).join("report.md")).unwrap_or_default();
    let is_named = |line: &&str| line.starts_with("Won (") || line.starts_with("Lost (");
    let named: Vec<&str> = report.lines().filter(is_named).collect();
    if report.is_empty() { Value::Null } else { json!(named) }
}

/// The ids of the items that were evaluated.
pub(crate) fn items(ran: &Ran) -> Value {
    of_samples(ran, |sample| sample["id"].clone())
}

/// Tokens that the trained model wrote.
pub(crate) fn written(ran: &Ran) -> Value {
    of_samples(ran, |sample| sample["candidates"]["adapter"]["completion_tokens"].clone())
}

/// The address that a server listened on, without its port.
pub(crate) fn host(ran: &Ran) -> Value {
    let url = answers(ran)["url"].clone();
    url.as_str().and_then(|url| url.rsplit_once(':')).map_or(Value::Null, |(host, _)| json!(host))
}

/// Whether a server took the default port, or would have.
pub(crate) fn default_port(ran: &Ran) -> Value {
    json!(ran.err.contains("127.0.0.1:8080"))
}

/// The models that a server lists.
pub(crate) fn models(ran: &Ran) -> Value {
    of_models(ran, "id")
}

/// The longest sequences that a server tells.
pub(crate) fn lengths(ran: &Ran) -> Value {
    of_models(ran, "max_model_len")
}

/// How a request for four texts was answered.
pub(crate) fn status(ran: &Ran) -> Value {
    answers(ran)["status"].clone()
}

/// The only run of a command.
fn run_folder(ran: &Ran) -> PathBuf {
    let runs = ran.folder.join("runs");
    let names = names_in(&runs);
    assert_eq!(names.len(), 1, "{}", ran.all());
    runs.join(&names[0])
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A field of those lines of `metrics.jsonl` that have `has`.
fn logged(ran: &Ran, has: &str, field: &str) -> Value {
    let lines = lines_of(&run_folder(ran).join("metrics.jsonl"));
    let found: Vec<Value> =
        lines.iter().filter(|line| line.get(has).is_some()).map(|line| line[field].clone()).collect();
    if found.is_empty() { Value::Null } else { found.into() }
}

fn results(ran: &Ran) -> Value {
    let path = run_folder(ran).join("eval/results.json");
    if path.is_file() { taper_testkit::read_json(&path) } else { Value::Null }
}

fn of_evaluations(ran: &Ran, see: impl Fn(&Value) -> Value) -> Value {
    let evaluations = results(ran)["evaluations"].as_array().cloned();
    evaluations.map_or(Value::Null, |all| all.iter().map(see).collect::<Vec<_>>().into())
}

fn of_samples(ran: &Ran, see: impl Fn(&Value) -> Value) -> Value {
    let samples = lines_of(&run_folder(ran).join("eval/samples.jsonl"));
    if samples.is_empty() { Value::Null } else { samples.iter().map(see).collect::<Vec<_>>().into() }
}

fn answers(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_default()
}

fn of_models(ran: &Ran, key: &str) -> Value {
    let models = answers(ran)["models"].as_array().cloned();
    models.map_or(Value::Null, |models| {
        models.iter().map(|model| model[key].clone()).collect::<Vec<_>>().into()
    })
}
