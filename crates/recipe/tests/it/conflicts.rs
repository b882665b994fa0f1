//! What sections say together.

use crate::support::{LEAST, Place, problems, run, told};
use taper_export::ExportFormat;

const FULL: &str = "\
schema = 1
[model]
base = \"owner/name\"
[data]
train = \"train.jsonl\"
[export]
formats = [\"merged\"]
[train]
method = \"full\"
";

fn with(more: &str) -> Vec<String> {
    problems(&format!("{LEAST}{more}"))
}

#[test]
fn full_training_and_an_adapter_exclude_each_other_and_one_is_needed() {
    assert_eq!(problems(FULL), [""; 0]);
    assert_eq!(
        problems(&format!("{FULL}[adapter]\n")),
        [
            "10 adapter conflict: `train.method = \"full\"` trains all weights, yet there is an `[adapter]` | remove `[adapter]`, or set `train.method = \"adapter\"`"
        ]
    );
    assert_eq!(
        Place::with(FULL).problems(&["train.method=adapter"]),
        [
            "--set train.method missing-key: the recipe has no `[adapter]` | add `[adapter]` (its defaults are a LoRA on all linear layers), or `train.method = \"full\"`"
        ]
    );
}

#[test]
fn quantised_weights_are_not_trained_in_full() {
    let quantised = FULL.replace("base =", "quantize = \"nf4\"\nbase =");
    assert_eq!(
        problems(&quantised),
        [
            "3 model.quantize conflict: `model.quantize` with `train.method = \"full\"`: quantised weights cannot be trained | remove the key, or train an adapter over the quantised weights"
        ]
    );
}

#[test]
fn a_format_that_cannot_hold_the_adapter_is_told_before_the_training() {
    let place = Place::with(LEAST);
    let told = |sets: &[&str]| place.problems(sets);
    for (set, formats, refused) in [
        ("adapter.use_dora=true", "\"gguf-adapter\", \"mlx\"", 1),
        ("adapter.lora_bias=true", "\"gguf-adapter\", \"mlx\", \"merged\"", 2),
        ("adapter.peft_type=\"ia3\"", "\"gguf-adapter\", \"mlx\", \"gguf\"", 2),
        ("adapter.modules_to_save=[\"norm\"]", "\"mlx\"", 1),
        ("adapter.use_rslora=true", "\"gguf-adapter\", \"mlx\"", 0),
    ] {
        let formats = format!("export.formats=[{formats}]");
        let problems = told(&[set, &formats]);
        assert_eq!(
            problems.iter().filter(|p| p.contains("which cannot hold")).count(),
            refused,
            "{problems:?}"
        );
    }
}

#[test]
fn full_training_has_no_adapter_to_export() {
    let place = Place::with(FULL);
    let hint = "set `formats = [\"merged\"]` or `[\"gguf\"]` under `[export]`";
    for format in ["peft", "mlx", "gguf-adapter"] {
        assert_eq!(
            place.problems(&[&format!("export.formats=[\"merged\", \"{format}\"]")]),
            [format!(
                "--set export.formats conflict: `export.formats` has \"{format}\", and full training makes no adapter | {hint}"
            )]
        );
    }
    let base = place.problems(&["export.formats=[\"ollama\"]", "export.ollama_base=\"llama3.2:1b\""]);
    assert!(base.len() == 1 && base[0].contains("`export.ollama_base` is for an adapter"), "{base:?}");
    // Where nothing is said, it is what there is.
    let unsaid = FULL.replace("[export]\nformats = [\"merged\"]\n", "");
    assert_eq!(run(&unsaid).recipe.export.formats, [ExportFormat::Merged]);
    assert_eq!(run(LEAST).recipe.export.formats, [ExportFormat::Peft]);
}

#[test]
fn random_weights_are_trained_in_full_and_have_no_base_to_compare_with() {
    let random = FULL.replace("base =", "init = \"random\"\nbase =");
    assert_eq!(problems(&random), [""; 0]);
    let told = with("[model.x]\n");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        Place::with(LEAST).problems(&["model.init=random"]),
        [
            "--set model.init conflict: `model.init = \"random\"` with an adapter: the random base would not be kept | set `train.method = \"full\"` to train all weights, or take the weights of the checkpoint"
        ]
    );
    let gate =
        format!("{random}[[eval]]\ndata = \"x\"\n[gate]\nmax_perplexity = 9.0\nmax_perplexity_ratio = 0.9\n");
    assert_eq!(
        problems(&gate),
        [
            "15 gate.max_perplexity_ratio conflict: `max_perplexity_ratio = 0.9` compares with the base, and there is none | a model from random weights is held to limits of its own, for example `max_perplexity`"
        ]
    );
}

#[test]
fn evaluations_have_names_of_their_own_and_data() {
    let told = with(
        "[[eval]]\nname = \"a\"\n[[eval]]\nname = \"b\"\ndata = \"x.jsonl\"\n[[eval]]\nname = \"a\"\ndata = \"x.jsonl\"\n",
    );
    assert_eq!(
        told,
        [
            "7 eval.0 missing-key: the evaluation `a` has no examples | name a `test` file under `[data]`, or `data` in this `[[eval]]`",
            "13 eval.2.name conflict: two evaluations are named `a` | give each `[[eval]]` a `name` of its own",
        ]
    );
}

#[test]
fn a_gate_needs_an_evaluation_that_measures_it() {
    let eval = "[[eval]]\nname = \"notes\"\ndata = \"x.jsonl\"\nmetrics = [\"perplexity\"]\n";
    assert_eq!(
        with(&format!("{eval}[gate]\neval = \"note\"\nmin_exact_match = 0.5\n")),
        ["12 gate.eval unknown-eval: there is no evaluation named `note` | did you mean `notes`?"]
    );
    assert_eq!(
        with(&format!("{eval}[gate]\nmax_perplexity = 3.0\nmin_exact_match = 0.5\n")),
        [
            "13 gate.min_exact_match gate-without-metric: `min_exact_match = 0.5` is asked, but no evaluation measures `exact_match` | add \"exact_match\" to the `metrics` of an `[[eval]]`"
        ]
    );
    assert_eq!(
        with(&format!("{eval}[gate]\neval = \"notes\"\n")),
        [
            "12 gate.eval no-effect: `gate.eval` is set, but there is no limit for it | add a limit, for example `min_exact_match = 0.8`, or remove `eval`"
        ]
    );
    assert_eq!(
        with("[gate]\nmin_exact_match = 0.5\n"),
        [
            "8 gate.min_exact_match gate-without-metric: `min_exact_match = 0.5` is asked, but there is no `[[eval]]` | add an `[[eval]]` section"
        ]
    );
}

#[test]
fn training_sections_are_looked_at_together() {
    assert_eq!(
        with("[schedule]\nwarmup_steps = 9\n[train]\nmax_steps = 9\n"),
        [
            "8 schedule.warmup_steps out-of-range: the warm-up of 9 steps does not end before the run of 9 | a tenth of the steps or less is usual"
        ]
    );
    assert_eq!(
        Place::with(FULL).problems(&["optimizer.loraplus_lr_ratio=4"]),
        [
            "--set optimizer.loraplus_lr_ratio no-effect: `loraplus_lr_ratio` has no effect on full training | remove it, or train an adapter"
        ]
    );
}

#[test]
fn keys_of_validation_are_warned_of_without_data_to_validate_on() {
    let keys = "[train]\neval_steps = 5\nearly_stopping_patience = 2\n";
    let place = Place::with(&format!("{LEAST}{keys}"));
    let warned = |set: &str| place.resolve(&[set]).unwrap().warnings.iter().map(told).collect::<Vec<_>>();
    let hint =
        "name a `valid` file under `[data]`, hold a share out with `validation_split`, or remove the key";
    assert_eq!(
        warned("train.seed=1"),
        [
            format!(
                "8 train.eval_steps no-effect: `eval_steps` has no effect: there is nothing to validate on | {hint}"
            ),
            format!(
                "9 train.early_stopping_patience no-effect: `early_stopping_patience` has no effect: there is nothing to validate on | {hint}"
            ),
        ]
    );
    assert_eq!(warned("data.valid=v.jsonl"), [""; 0]);
    assert_eq!(warned("data.validation_split=0.1"), [""; 0]);
}

#[test]
fn keys_without_effect_beside_others_are_warned_of() {
    let warned = |recipe: &str| run(recipe).warnings.iter().map(told).collect::<Vec<_>>();
    let both = format!("{LEAST}[train]\nmax_steps = 9\nnum_train_epochs = 2\n");
    assert_eq!(
        warned(&both),
        [
            "9 train.num_train_epochs no-effect: `num_train_epochs` has no effect, since `max_steps` is set | remove one of them"
        ]
    );
    let epochs = Place::with(&format!("{LEAST}[train]\nnum_train_epochs = 2\n"));
    assert!(epochs.resolve(&["train.max_steps=9"]).unwrap().warnings.is_empty(), "an override is meant");
    let eval = format!(
        "{LEAST}[[eval]]\ndata = \"x\"\nmetrics = [\"perplexity\"]\nmax_new_tokens = 9\nbatch_size = 16\nnormalize = \"none\"\n"
    );
    let hint = "remove it, or measure `exact_match` or another metric of answers too";
    assert_eq!(
        warned(&eval),
        [
            format!(
                "10 eval.0.max_new_tokens no-effect: `max_new_tokens` has no effect: nothing that is measured asks for an answer | {hint}"
            ),
            format!(
                "12 eval.0.normalize no-effect: `normalize` has no effect: nothing that is measured asks for an answer | {hint}"
            ),
        ]
    );
    let drawn = format!("{LEAST}[[eval]]\ndata = \"x\"\ntop_p = 0.5\n");
    assert_eq!(
        warned(&drawn),
        [
            "9 eval.0.top_p no-effect: `top_p` has no effect: nothing is drawn at `temperature = 0` | remove it, or set a `temperature`"
        ]
    );
    assert!(warned(&format!("{drawn}temperature = 1.0\n")).is_empty());
}

#[test]
fn the_name_is_that_of_a_folder() {
    for name in ["", " ", ".", "..", "a/b", "a\\\\b", "a\\nb"] {
        let told = problems(&format!("name = \"{name}\"\n{LEAST}"));
        assert!(told.len() == 1 && told[0].starts_with("1 name out-of-range: "), "{name}: {told:?}");
    }
    let run = run(&format!("name = \"Notes, 2nd try (ä)\"\n{LEAST}"));
    assert_eq!(run.name, "Notes, 2nd try (ä)");
    let run = Place::with(LEAST).resolve(&[]).unwrap();
    assert_eq!((run.name.as_str(), run.recipe.name.as_deref()), ("recipe", Some("recipe")));
}
