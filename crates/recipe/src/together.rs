//! What the sections of a recipe say together: contradictions, and keys that have no effect beside others.

use crate::node::Node;
use crate::resolve::placed_key;
use crate::sections::Recipe;
use taper_diagnostics::{Location, Problem, Problems};
use taper_eval::{BASE, EvalSection, ExportedModel};
use taper_export::ExportFormat;
use taper_hub::InitChoice;
use taper_peft::{Bias, PeftType};
use taper_train::{TrainMethod, TrainSection, check_together};

/// Defaults that depend on another section: full training makes no adapter, so the whole model is what is written.
pub(crate) fn fill_in(recipe: &mut Recipe, root: &Node) {
    if recipe.train.method == TrainMethod::Full && root.at("export.formats").is_none() {
        recipe.export.formats = vec![ExportFormat::Merged];
    }
}

/// Everything that can be known from the recipe alone and that no section knows of itself.
pub(crate) fn across_sections(recipe: &Recipe, root: &Node) -> Problems {
    let mut faults = Faults { root, problems: Problems::new() };
    faults.name(recipe);
    faults.method(recipe);
    faults.formats_hold_the_adapter(recipe);
    faults.validation(recipe);
    faults.length(recipe);
    faults.evaluations(recipe);
    faults.candidates(recipe);
    faults.gates(recipe);
    for problem in check_together(&recipe.train, &recipe.optimizer, &recipe.schedule).iter() {
        let key = problem.location.as_ref().and_then(|l| l.key.clone()).unwrap_or_default();
        faults.problems.push(problem.clone().at(faults.at(&key)));
    }
    faults.problems
}

struct Faults<'a> {
    root: &'a Node,
    problems: Problems,
}

impl Faults<'_> {
    fn at(&self, key: &str) -> Location {
        self.root.origin_of(key).location(key)
    }

    fn push(&mut self, key: &str, problem: Problem) {
        let at = self.at(key);
        self.problems.push(problem.at(at));
    }

    /// The name is that of a folder.
    fn name(&mut self, recipe: &Recipe) {
        let Some(name) = &recipe.name else { return };
        let is_folder_name = !name.trim().is_empty()
            && name != "."
            && name != ".."
            && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
        if !is_folder_name {
            let problem =
                Problem::error("out-of-range", format!("`name` is {name:?}, which no folder can be named"));
            self.push(
                "name",
                problem.hint("the run is written to `runs/<name>`; another folder is named by `--out`"),
            );
        }
    }

    /// What is trained, from which start, and what can be exported of it.
    fn method(&mut self, recipe: &Recipe) {
        let is_full = recipe.train.method == TrainMethod::Full;
        match &recipe.adapter {
            Some(_) if is_full => self.push(
                "adapter",
                Problem::error("conflict", "`train.method = \"full\"` trains all weights, yet there is an `[adapter]`")
                    .hint("remove `[adapter]`, or set `train.method = \"adapter\"`"),
            ),
            None if !is_full => self.push(
                "train.method",
                Problem::error("missing-key", "the recipe has no `[adapter]`")
                    .hint("add `[adapter]` (its defaults are a LoRA on all linear layers), or `train.method = \"full\"`"),
            ),
            _ => {}
        }
        if recipe.model.init == InitChoice::Random && !is_full {
            self.push(
                "model.init",
                Problem::error("conflict", "`model.init = \"random\"` with an adapter: the random base would not be kept")
                    .hint("set `train.method = \"full\"` to train all weights, or take the weights of the checkpoint"),
            );
        }
        if recipe.model.quantize.is_some() && is_full {
            self.push(
                "model.quantize",
                Problem::error(
                    "conflict",
                    "`model.quantize` with `train.method = \"full\"`: quantised weights cannot be trained",
                )
                .hint("remove the key, or train an adapter over the quantised weights"),
            );
        }
        let of_an_adapter = recipe.export.formats.iter().find(|format| format.is_adapter());
        if let (true, Some(format)) = (is_full, of_an_adapter) {
            self.push(
                "export.formats",
                Problem::error(
                    "conflict",
                    format!("`export.formats` has \"{format}\", and full training makes no adapter"),
                )
                .hint("set `formats = [\"merged\"]` or `[\"gguf\"]` under `[export]`"),
            );
        }
        if is_full && recipe.export.ollama_base.is_some() {
            self.push(
                "export.ollama_base",
                Problem::error(
                    "conflict",
                    "`export.ollama_base` is for an adapter, and full training makes none",
                )
                .hint("leave it out, and the whole model is written"),
            );
        }
    }

    /// What a format has no words for is told before the training, where the recipe shows it.
    fn formats_hold_the_adapter(&mut self, recipe: &Recipe) {
        let (Some(adapter), export) = (&recipe.adapter, &recipe.export) else { return };
        let beyond = [
            ("peft_type", adapter.peft_type != PeftType::Lora),
            ("use_dora", adapter.use_dora),
            ("lora_bias", adapter.lora_bias),
            ("bias", adapter.bias != Bias::None),
            ("modules_to_save", !adapter.modules_to_save.is_empty()),
            ("trainable_token_indices", adapter.trainable_token_indices.is_some()),
        ];
        for &format in &export.formats {
            let is_mlx = format == ExportFormat::Mlx;
            let over_a_base = format == ExportFormat::Ollama && export.ollama_base.is_some();
            if !is_mlx && !over_a_base && format != ExportFormat::GgufAdapter {
                continue;
            }
            // mlx-lm has DoRA; GGUF adapters are A and B alone.
            let found = beyond.iter().find(|(key, has)| *has && !(is_mlx && *key == "use_dora"));
            if let Some((key, _)) = found {
                let what =
                    format!("`export.formats` has \"{format}\", which cannot hold an adapter with `{key}`");
                let hint = "export the whole model, \"merged\" or \"gguf\", or leave the key out";
                self.push("export.formats", Problem::error("conflict", what).hint(hint));
            }
        }
    }

    /// Keys that ask for validation, without data for it.
    fn validation(&mut self, recipe: &Recipe) {
        if !recipe.data.valid.is_empty() || recipe.data.validation_split > 0.0 {
            return;
        }
        let train = &recipe.train;
        for (key, is_set) in [
            ("eval_steps", train.eval_steps.is_some()),
            ("early_stopping_patience", train.early_stopping_patience.is_some()),
        ] {
            if is_set {
                self.push(
                    &format!("train.{key}"),
                    Problem::warning("no-effect", format!("`{key}` has no effect: there is nothing to validate on"))
                        .hint("name a `valid` file under `[data]`, hold a share out with `validation_split`, or remove the key"),
                );
            }
        }
    }

    /// One file that gives the length of the run twice. To override the one by the other is what `extends` and `--set` are for.
    fn length(&mut self, recipe: &Recipe) {
        let file_of = |key: &str| self.root.at(key).and_then(|_| self.at(key).file);
        let (epochs, steps) = (file_of("train.num_train_epochs"), file_of("train.max_steps"));
        let is_default = recipe.train.num_train_epochs == TrainSection::default().num_train_epochs;
        if recipe.train.max_steps.is_some() && epochs.is_some() && epochs == steps && !is_default {
            self.push(
                "train.num_train_epochs",
                Problem::warning("no-effect", "`num_train_epochs` has no effect, since `max_steps` is set")
                    .hint("remove one of them"),
            );
        }
    }

    fn evaluations(&mut self, recipe: &Recipe) {
        for (i, eval) in recipe.eval.iter().enumerate() {
            if recipe.eval[..i].iter().any(|earlier| earlier.name == eval.name) {
                self.push(
                    &format!("eval.{i}.name"),
                    Problem::error("conflict", format!("two evaluations are named `{}`", eval.name))
                        .hint("give each `[[eval]]` a `name` of its own"),
                );
            }
            if eval.data.is_empty() && recipe.data.test.is_empty() {
                self.push(
                    &format!("eval.{i}"),
                    Problem::error("missing-key", format!("the evaluation `{}` has no examples", eval.name))
                        .hint("name a `test` file under `[data]`, or `data` in this `[[eval]]`"),
                );
            }
            let shows = |few_shot: Option<usize>| few_shot.is_some_and(|shots| shots > 0);
            let anyone = recipe.candidate.iter().any(|candidate| shows(candidate.few_shot));
            if !eval.few_shot_data.is_empty() && eval.few_shot == 0 && !anyone {
                self.push(
                    &format!("eval.{i}.few_shot_data"),
                    Problem::error("conflict", "`few_shot_data` is set, but no examples are shown")
                        .hint("set `few_shot` here or in a `[[candidate]]`, or take it out"),
                );
            }
            for (key, is_set) in [("top_p", eval.top_p < 1.0), ("top_k", eval.top_k > 0)] {
                if is_set && eval.temperature == 0.0 && eval.generates() {
                    self.push(
                        &format!("eval.{i}.{key}"),
                        Problem::warning(
                            "no-effect",
                            format!("`{key}` has no effect: nothing is drawn at `temperature = 0`"),
                        )
                        .hint("remove it, or set a `temperature`"),
                    );
                }
            }
            for key in without_effect(eval) {
                self.push(
                    &format!("eval.{i}.{key}"),
                    Problem::warning(
                        "no-effect",
                        format!("`{key}` has no effect: nothing that is measured asks for an answer"),
                    )
                    .hint("remove it, or measure `exact_match` or another metric of answers too"),
                );
            }
        }
    }

    fn candidates(&mut self, recipe: &Recipe) {
        for (i, candidate) in recipe.candidate.iter().enumerate() {
            let name = &candidate.name;
            if recipe.candidate[..i].iter().any(|earlier| earlier.name == *name) {
                self.push(
                    &format!("candidate.{i}.name"),
                    Problem::error("conflict", format!("two candidates are named `{name}`"))
                        .hint("give each `[[candidate]]` a `name` of its own"),
                );
            }
            let format = match candidate.export {
                Some(ExportedModel::Merged) => ExportFormat::Merged,
                Some(ExportedModel::Gguf) => ExportFormat::Gguf,
                None => continue,
            };
            if !recipe.export.formats.contains(&format) {
                self.push(
                    &format!("candidate.{i}.export"),
                    Problem::error(
                        "conflict",
                        format!("the candidate `{name}` is no format that is exported"),
                    )
                    .hint(format!("add \"{format}\" to `export.formats`")),
                );
            }
        }
        if !recipe.candidate.is_empty() && recipe.eval.is_empty() {
            self.push(
                "candidate",
                Problem::error("no-effect", "there are candidates, but nothing to evaluate them on")
                    .hint("add an `[[eval]]`, or remove the candidates"),
            );
        }
    }

    fn gates(&mut self, recipe: &Recipe) {
        for problem in recipe.gate.check_against(&recipe.eval, &recipe.candidate).iter() {
            self.push(&placed_key(problem, "gate"), problem.clone());
        }
        let Ok(requirements) = recipe.gate.requirements(&recipe.eval, &recipe.candidate) else { return };
        if recipe.gate.eval.is_some() && requirements.iter().all(|requirement| requirement.key == "require") {
            self.push(
                "gate.eval",
                Problem::error("no-effect", "`gate.eval` is set, but there is no limit for it")
                    .hint("add a limit, for example `min_exact_match = 0.8`, or remove `eval`"),
            );
        }
        if recipe.model.init == InitChoice::Random {
            for requirement in requirements.iter().filter(|requirement| requirement.other() == Some(BASE)) {
                let problem = format!("`{requirement}` compares with the base, and there is none");
                self.push(
                    &format!("gate.{}", requirement.key),
                    Problem::error("conflict", problem)
                        .hint("a model from random weights is held to limits of its own, for example `max_perplexity`"),
                );
            }
        }
    }
}

/// Keys with a value of their own that only answers would show.
fn without_effect(eval: &EvalSection) -> Vec<&'static str> {
    let default = EvalSection::default();
    let changed = [
        ("max_new_tokens", eval.max_new_tokens != default.max_new_tokens),
        ("batch_size", eval.batch_size != default.batch_size),
        ("normalize", eval.normalize != default.normalize),
        ("temperature", eval.temperature != default.temperature),
        ("stop", eval.stop != default.stop),
    ];
    let changed = changed.into_iter().filter(|(_, changed)| *changed && !eval.generates());
    changed.map(|(key, _)| key).collect()
}
