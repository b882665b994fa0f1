//! Unknown keys, wrong types, values out of range: all of them, each with its line.

use crate::support::{LEAST, Place, problems};

/// The problems of [`LEAST`] with more lines; its own end with line 6.
fn with(more: &str) -> Vec<String> {
    problems(&format!("{LEAST}{more}"))
}

#[test]
fn the_least_recipe_has_no_fault() {
    assert_eq!(with(""), [""; 0]);
}

#[test]
fn unknown_keys_are_all_told_with_their_lines_and_what_was_meant() {
    let told = with(
        "rank = 8\nlora_aplha = 16\n[optimizer]\nlerning_rate = 1e-4\n[trian]\nseed = 1\n[train]\nlr = 1\n",
    );
    assert_eq!(
        told,
        [
            "7 adapter.rank unknown-key: unknown key `adapter.rank` | did you mean `r`?",
            "8 adapter.lora_aplha unknown-key: unknown key `adapter.lora_aplha` | did you mean `lora_alpha`?",
            "10 optimizer.lerning_rate unknown-key: unknown key `optimizer.lerning_rate` | did you mean `learning_rate`?",
            "11 trian unknown-key: unknown key `trian` | did you mean `train`?",
            "14 train.lr unknown-key: unknown key `train.lr` | did you mean `learning_rate` of `[optimizer]`?",
        ]
    );
}

#[test]
fn a_key_of_another_section_is_sent_home() {
    let told = with(
        "[train]\nlearning_rate = 1e-4\nwarmup_setps = 3\ntrain = 1\n[[eval]]\nmax_length = 8\nname = \"x\"\n",
    );
    assert_eq!(
        told,
        [
            "8 train.learning_rate unknown-key: unknown key `train.learning_rate` | `learning_rate` belongs to `[optimizer]`",
            "9 train.warmup_setps unknown-key: unknown key `train.warmup_setps` | did you mean `warmup_steps` of `[schedule]`?",
            "10 train.train unknown-key: unknown key `train.train` | `train` belongs to `[data]` or the top of the recipe",
            "12 eval.0.max_length unknown-key: unknown key `eval.0.max_length` | `max_length` belongs to `[data]`",
        ]
    );
    let told = problems(
        "schema = 1\nlimit = 3\n[model]\nbase = \"a/b\"\n[data]\ntrain = \"t\"\n[adapter]\nseed = 1\n",
    );
    assert_eq!(
        told,
        [
            "2 limit unknown-key: unknown key `limit` | `limit` belongs to `[[eval]]` or `[smoke]`",
            "8 adapter.seed unknown-key: unknown key `adapter.seed` | `seed` belongs to `[train]` or `[[eval]]`",
        ]
    );
}

#[test]
fn a_key_like_no_other_is_answered_with_those_there_are() {
    let told = with("[schedule]\nzzz = 1\n");
    assert_eq!(
        told,
        ["8 schedule.zzz unknown-key: unknown key `schedule.zzz` | the keys here are `lr_scheduler_type`, \
          `warmup_steps`, `warmup_ratio`, `min_lr_ratio`, `decay_ratio`"]
    );
}

#[test]
fn a_wrong_type_is_told_in_every_shape() {
    let cases = [
        (
            "[train]\nbatch_size = \"4\"",
            "8 train.batch_size wrong-type: `train.batch_size` is a whole number from 0, not `\"4\"`",
        ),
        (
            "[train]\nbatch_size = -4",
            "8 train.batch_size wrong-type: `train.batch_size` is a whole number from 0, not `-4`",
        ),
        (
            "[train]\nbatch_size = 4.0",
            "8 train.batch_size wrong-type: `train.batch_size` is a whole number from 0, not `4.0`",
        ),
        (
            "[train]\nmax_steps = true",
            "8 train.max_steps wrong-type: `train.max_steps` is a whole number from 0, not `true`",
        ),
        (
            "[train]\nmax_steps = -1",
            "8 train.max_steps wrong-type: `train.max_steps` is a whole number from 0, not `-1`",
        ),
        (
            "[train]\nself_test = 1",
            "8 train.self_test wrong-type: `train.self_test` is true or false, not `1`",
        ),
        (
            "[train]\nmax_grad_norm = [1.0]",
            "8 train.max_grad_norm wrong-type: `train.max_grad_norm` is a number, not `[1.0]`",
        ),
        (
            "[data.columns]\nprompt = 3",
            "8 data.columns.prompt wrong-type: `data.columns.prompt` is a string, not `3`",
        ),
        ("r = { x = 1 }", "7 adapter.r wrong-type: `adapter.r` is a whole number from 0, not `{\"x\":1}`"),
        (
            "[adapter.rank_pattern]\n\"a.b\" = 2\nq_proj = \"four\"",
            "9 adapter.rank_pattern.q_proj wrong-type: `adapter.rank_pattern.q_proj` is a whole number from 0, not `four`",
        ),
        (
            "[adapter.alpha_pattern]\n\"a.b\" = \"x\"",
            "8 adapter.alpha_pattern.\"a.b\" wrong-type: `adapter.alpha_pattern.\"a.b\"` is a number, not `x`",
        ),
        ("rank_pattern = 4", "7 adapter.rank_pattern wrong-type: `adapter.rank_pattern` is a table, not `4`"),
        (
            "target_modules = 3",
            "7 adapter.target_modules wrong-type: `adapter.target_modules` is a string or a list, not `3`",
        ),
        (
            "target_modules = [\n  \"q_proj\",\n  3,\n]",
            "9 adapter.target_modules.1 wrong-type: `adapter.target_modules.1` is a string, not `3`",
        ),
        (
            "init_lora_weights = 3",
            "7 adapter.init_lora_weights wrong-type: `adapter.init_lora_weights` is true or false or one of `gaussian`, `pissa`, `pissa_niter_4`, `pissa_niter_16`, `olora`, `loftq`, not `3`",
        ),
        (
            "exclude_modules = true",
            "7 adapter.exclude_modules wrong-type: `adapter.exclude_modules` is a string or a list, not `true`",
        ),
        (
            "layers_to_transform = \"0\"",
            "7 adapter.layers_to_transform wrong-type: `adapter.layers_to_transform` is a list, not `\"0\"`",
        ),
        (
            "[[eval]]\n[[eval]]\nname = \"b\"\nmetrics = [\"perplexity\", 3]",
            "10 eval.1.metrics.1 wrong-type: `eval.1.metrics.1` is one of `exact_match`, `normalised_match`, `token_f1`, `rouge_l`, `bleu`, `chrf`, `contains`, `regex`, `numeric`, `accuracy`, `macro_f1`, `acc`, `acc_norm`, `perplexity`, `bits_per_byte`, `json_fields`, `json_valid`, `field_f1`, `document_match`, `judge`, not `3`",
        ),
        (
            "[[eval]]\n[[eval]]\nname = \"b\"\nlimit = \"all\"",
            "10 eval.1.limit wrong-type: `eval.1.limit` is a whole number from 0, not `all`",
        ),
        ("[eval]\nname = \"b\"", "7 eval wrong-type: `eval` is a list, not `{\"name\":\"b\"}`"),
        (
            "[train]\n[schedule]\nlr_scheduler_type = 3",
            "9 schedule.lr_scheduler_type wrong-type: `schedule.lr_scheduler_type` is one of `constant`, `linear`, `cosine`, `warmup_stable_decay`, not `3`",
        ),
    ];
    for (more, expected) in cases {
        assert_eq!(with(&format!("{more}\n")), [expected], "{more}");
    }
}

#[test]
fn a_section_that_is_no_table_is_told() {
    let told = problems("schema = \"1\"\nname = 3\nmodel = \"a/b\"\ndata = []\nadapter = true\ntrain = 3\n");
    assert_eq!(
        told,
        [
            "recipe missing-key: the recipe has no `model.base` | add `base = \"HuggingFaceTB/SmolLM2-135M-Instruct\"` under `[model]`",
            "recipe missing-key: the recipe has no `data.train` | add `train = \"train.jsonl\"` under `[data]`",
            "1 schema wrong-type: `schema` is a whole number from 0, not `\"1\"`",
            "2 name wrong-type: `name` is a string, not `3`",
            "3 model wrong-type: `model` is a table, not `a/b`",
            "4 data wrong-type: `data` is a table, not `[]`",
            "5 adapter wrong-type: `adapter` is a table, not `true`",
            "6 train wrong-type: `train` is a table, not `3`",
        ]
    );
}

#[test]
fn several_faults_of_the_optional_section_are_each_told() {
    let told = with("r = \"a\"\nlora_alpha = \"b\"\nbias = \"nome\"\nmodules_to_save = [1, \"x\", 2]\n");
    assert_eq!(
        told,
        [
            "7 adapter.r wrong-type: `adapter.r` is a whole number from 0, not `a`",
            "8 adapter.lora_alpha wrong-type: `adapter.lora_alpha` is a number, not `b`",
            "9 adapter.bias unknown-value: `adapter.bias` cannot be `nome` | did you mean `none`? It can be `none`, `all`, `lora_only`",
            "10 adapter.modules_to_save.0 wrong-type: `adapter.modules_to_save.0` is a string, not `1`",
            "10 adapter.modules_to_save.2 wrong-type: `adapter.modules_to_save.2` is a string, not `2`",
        ]
    );
}

#[test]
fn a_value_that_is_not_offered_is_answered_with_those_that_are() {
    let told = with(
        "init_lora_weights = \"gausian\"\n[train]\nmethod = \"lora\"\n[schedule]\nlr_scheduler_type = \"cosin\"\n[export]\nformats = [\"peft\", \"onnx\"]\n",
    );
    assert_eq!(
        told,
        [
            "7 adapter.init_lora_weights unknown-value: `adapter.init_lora_weights` cannot be `gausian` | did you mean `gaussian`? It can be `gaussian`, `pissa`, `pissa_niter_4`, `pissa_niter_16`, `olora`, `loftq`",
            "9 train.method unknown-value: `train.method` cannot be `lora` | it can be `adapter`, `full`",
            "11 schedule.lr_scheduler_type unknown-value: `schedule.lr_scheduler_type` cannot be `cosin` | did you mean `cosine`? It can be `constant`, `linear`, `cosine`, `warmup_stable_decay`",
            "13 export.formats.1 unknown-value: `export.formats.1` cannot be `onnx` | it can be `peft`, `merged`, `gguf`, `gguf-adapter`, `mlx`, `ollama`",
        ]
    );
}

#[test]
fn numbers_that_are_none_and_dates_are_told_with_the_rest() {
    let told =
        with("[optimizer]\nlearning_rate = nan\nweight_decay = -inf\nadam_beta1 = 2024-01-01\nfoo = nan\n");
    assert_eq!(
        told,
        [
            "8 optimizer.learning_rate wrong-type: a value is finite: neither `nan` nor `inf`",
            "9 optimizer.weight_decay wrong-type: a value is finite: neither `nan` nor `inf`",
            "10 optimizer.adam_beta1 wrong-type: a value is no date or time; a text that looks like one stands in quotes",
            "11 optimizer.foo unknown-key: unknown key `optimizer.foo` | the keys here are `name`, `learning_rate`, \
             `weight_decay`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `loraplus_lr_ratio`",
        ]
    );
    assert_eq!(
        Place::with(LEAST).problems(&["optimizer.learning_rate=inf"]),
        ["--set optimizer.learning_rate wrong-type: a value is finite: neither `nan` nor `inf`"]
    );
}

#[test]
fn values_out_of_range_are_told_together_with_wrong_types_elsewhere() {
    let told = with(
        "r = 0\nlora_dropout = 1.0\n[train]\nbatch_size = 0\n[optimizer]\nlearning_rate = 3.0\nadam_beta1 = 1\n[schedule]\nlr_scheduler_type = 1\ndecay_ratio = 7.0\n",
    );
    assert_eq!(
        told,
        [
            "7 adapter.r out-of-range: `r` is 0, allowed are 1 to 16384 | 8 to 64 are usual",
            "8 adapter.lora_dropout out-of-range: `lora_dropout` is 1, allowed are 0 to below 1 | it is a share: 0.05 drops every twentieth element",
            "10 train.batch_size out-of-range: `batch_size` is 0, at least 1 is needed | leave the key out to have the default",
            "12 optimizer.learning_rate out-of-range: `learning_rate` is 3, allowed is above 0 to 1 | 2e-4 is usual for adapters",
            "13 optimizer.adam_beta1 out-of-range: `adam_beta1` is 1, allowed is 0 to below 1 | 0.9 is usual",
            "15 schedule.lr_scheduler_type wrong-type: `schedule.lr_scheduler_type` is one of `constant`, `linear`, `cosine`, `warmup_stable_decay`, not `1`",
            "16 schedule.decay_ratio out-of-range: `decay_ratio` is 7, allowed is above 0 to 1 | 0.1 to 0.2 are usual",
        ]
    );
}

#[test]
fn nothing_is_said_of_a_default_in_the_place_of_a_wrong_value() {
    let told = with("[schedule]\nlr_scheduler_type = \"wsd\"\ndecay_ratio = 0.2\nmin_lr_ratio = 2\n");
    assert_eq!(
        told,
        [
            "8 schedule.lr_scheduler_type unknown-value: `schedule.lr_scheduler_type` cannot be `wsd` | it can be `constant`, `linear`, `cosine`, `warmup_stable_decay`",
            "10 schedule.min_lr_ratio out-of-range: `min_lr_ratio` is 2, allowed is 0 to 1 | 0.1 is usual",
        ]
    );
}

#[test]
fn ranges_inside_lists_and_tables_have_their_own_line() {
    let told = with(
        "[data.columns]\npromt = \"q\"\ntext = \"\"\n[[eval]]\n[[eval]]\nname = \"b\"\nlimit = 0\n[gate]\nmin_exact_match = 95\n",
    );
    assert_eq!(
        told,
        [
            "8 data.columns.promt unknown-column: no format has a column `promt` | did you mean `prompt`?",
            "9 data.columns.text out-of-range: the name for column `text` is empty | write the name that the column has in the file",
            "13 eval.1.limit out-of-range: `limit` is 0, allowed is 1 or more",
            "15 gate.min_exact_match out-of-range: `min_exact_match` is 95, allowed is 0 to 1",
        ]
    );
}

#[test]
fn empty_paths_are_refused() {
    let told = problems(
        "schema = 1\n[model]\nbase = \" \"\nchat_template = \"\"\n[data]\ntrain = [\"a\", \"\"]\ntest = \"\"\n[adapter]\n",
    );
    assert_eq!(
        told,
        [
            "3 model.base out-of-range: no base model is named | set `model.base` to a folder or a hub id",
            "4 model.chat_template out-of-range: `chat_template` is empty | leave the key out for the checkpoint's own",
            "6 data.train.1 out-of-range: `data.train.1` is empty",
            "7 data.test out-of-range: `data.test` is empty",
        ]
    );
}

#[test]
fn what_is_set_on_the_command_line_is_named_as_such() {
    let place = Place::with(LEAST);
    let told = place.problems(&[
        "train.sed=3",
        "train.batch_size=0",
        "optimizer.name=adam",
        "adapter.r=8.5",
        "data.train=5",
    ]);
    assert_eq!(
        told,
        [
            "--set data.train wrong-type: `data.train` is a string or a list, not `5`",
            "--set adapter.r wrong-type: `adapter.r` is a whole number from 0, not `8.5`",
            "--set train.sed unknown-key: unknown key `train.sed` | did you mean `seed`?",
            "--set optimizer.name unknown-value: `optimizer.name` cannot be `adam` | did you mean `adamw`? It can be `adamw`, `adamw_8bit`, `paged_adamw_32bit`, `paged_adamw_8bit`",
            "--set train.batch_size out-of-range: `batch_size` is 0, at least 1 is needed | leave the key out to have the default",
        ]
    );
    let told = place.problems(&["train", "extends=other.toml", "schema.x=1", "train.seed=x"]);
    let usage = "write `--set section.key=value`, for example `--set train.max_steps=20`";
    assert_eq!(
        told,
        [
            format!("set: `--set train` has no `=` | {usage}"),
            "set: `--set extends` comes too late: the recipe has been read by then | write `extends` into a recipe of your own, above what it changes".to_owned(),
            format!("set: `--set schema.x=1`: `x` stands in a list that is not so long, or in something that is no table | {usage}"),
            "--set train.seed wrong-type: `train.seed` is a whole number from 0, not `x`".to_owned(),
        ]
    );
    assert_eq!(
        place.problems(&["eval.0.limit=3"]),
        ["--set eval wrong-type: `eval` is a list, not `{\"0\":{\"limit\":3}}`"]
    );
    let one = Place::with(&format!("{LEAST}[[eval]]\ndata = \"x.jsonl\"\n"));
    assert_eq!(one.resolve(&["eval.0.limit=3"]).unwrap().recipe.eval[0].limit, Some(3));
    assert!(one.problems(&["eval.1.limit=3"])[0].contains("`1` stands in a list that is not so long"));
}

#[test]
fn a_value_on_the_command_line_is_one_value() {
    let place = Place::with(LEAST);
    let prompt = |set: &str| place.resolve(&[set]).unwrap().recipe.data.system_prompt.unwrap();
    assert_eq!(prompt("data.system_prompt=Answer in = one word"), "Answer in = one word");
    assert_eq!(prompt("data.system_prompt=\"3\""), "3");
    assert_eq!(
        prompt("data.system_prompt=1\nname = \"x\""),
        "1\nname = \"x\"",
        "a line break begins no other key"
    );
}

#[test]
fn another_format_is_refused_before_its_keys_are_looked_at() {
    assert_eq!(
        problems("schema = 2\nnew_key = 1\n"),
        ["1 schema schema: recipe format 2 is not known | this version reads `schema = 1`"]
    );
    assert_eq!(
        problems("[model]\n"),
        [
            "recipe missing-key: the recipe has no `schema` | add `schema = 1`",
            "recipe missing-key: the recipe has no `model.base` | add `base = \"HuggingFaceTB/SmolLM2-135M-Instruct\"` under `[model]`",
            "recipe missing-key: the recipe has no `data.train` | add `train = \"train.jsonl\"` under `[data]`",
        ]
    );
}
