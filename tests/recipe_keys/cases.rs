//! A case for each key: the value to try, what stands beside it in both runs, and what is looked at.

use crate::see;
use crate::world::Ran;
use serde_json::Value;

/// How a key is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The key as in the schema.
    pub(crate) key: &'static str,
    /// The recipe, without `.toml`.
    pub(crate) recipe: &'static str,
    /// What brings the key in.
    pub(crate) change: Change,
    /// Settings of both runs.
    pub(crate) beside: &'static [&'static str],
    /// The verb.
    pub(crate) verb: &'static str,
    /// What is looked at.
    pub(crate) see: fn(&Ran) -> Value,
    /// Exit codes that are no failure of the case, besides 0.
    pub(crate) may_end_with: &'static [i32],
}

/// What brings a key in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// `--set` with this value.
    Set(&'static str),
    /// Another recipe: this one.
    Recipe(&'static str),
}

/// A key, a value, a verb, and what is looked at.
const fn case(key: &'static str, value: &'static str, verb: &'static str, see: fn(&Ran) -> Value) -> Case {
    Case { key, recipe: "recipe", change: Change::Set(value), beside: &[], verb, see, may_end_with: &[] }
}

impl Case {
    const fn beside(self, beside: &'static [&'static str]) -> Self {
        Self { beside, ..self }
    }

    const fn of(self, recipe: &'static str) -> Self {
        Self { recipe, ..self }
    }

    const fn may_end_with(self, may_end_with: &'static [i32]) -> Self {
        Self { may_end_with, ..self }
    }
}

/// What a wrong value ends with.
const REFUSED: &[i32] = &[2];
/// What a gate ends with that is not kept.
const FAILED: &[i32] = &[100];
/// A rate at which the validation gets worse before the end.
const DIVERGING: &[&str] = &[
    "train.num_train_epochs=8",
    "train.eval_steps=1",
    "train.max_grad_norm=0",
    "optimizer.learning_rate=0.3",
];

/// The cases of the binary.
pub(crate) fn cases() -> Vec<Case> {
    [
        top(),
        model(),
        adapter(),
        data(),
        train(),
        optimizer(),
        schedule(),
        eval(),
        scoring(),
        candidate(),
        addresses(),
        cost(),
        gate(),
        report(),
        export(),
        serve(),
        smoke(),
    ]
    .concat()
}

fn top() -> Vec<Case> {
    let extends = Case { change: Change::Recipe("extending"), ..case("extends", "", "train", see::weights) };
    vec![
        // There is one format yet.
        case("schema", "2", "check", see::refusal).may_end_with(REFUSED),
        case("name", "another", "train", see::runs),
        case("description", "what it is for", "train", see::first_line),
        extends,
    ]
}

fn model() -> Vec<Case> {
    vec![
        case("model.base", "../other", "train", see::losses),
        case("model.revision", "v1", "train", see::losses).beside(&["model.base=owner/tiny"]),
        case("model.dtype", "bf16", "train", see::losses),
        case("model.quantize", "nf4", "train", see::losses),
        case("model.double_quant", "true", "train", see::losses).beside(&["model.quantize=nf4"]),
        case("model.quantize_block_size", "32", "train", see::losses).beside(&["model.quantize=nf4"]),
        case("model.quantize_embeddings", "true", "train", see::losses).beside(&["model.quantize=int8"]),
        case("model.chat_template", "../other.jinja", "explain", see::explained),
        // What it does is shown on a device, in tests/gpu.
        case("model.max_memory", "much", "check", see::refusal).may_end_with(REFUSED),
        case("model.init", "random", "train", see::losses).of("full"),
    ]
}

fn adapter() -> Vec<Case> {
    const VERA: &[&str] = &["adapter.peft_type=vera"];
    const LOKR: &str = "adapter.peft_type=lokr";
    vec![
        case("adapter.r", "2", "train", see::shapes),
        case("adapter.lora_alpha", "64", "train", see::weights),
        case("adapter.lora_dropout", "0.5", "train", see::weights),
        case("adapter.target_modules", "[\"q_proj\"]", "train", see::shapes),
        case("adapter.exclude_modules", "[\"q_proj\"]", "train", see::shapes),
        case("adapter.rank_pattern", "{ q_proj = 2 }", "train", see::shapes),
        case("adapter.alpha_pattern", "{ q_proj = 64 }", "train", see::weights),
        case("adapter.layers_to_transform", "[1]", "train", see::shapes),
        case("adapter.use_rslora", "true", "train", see::weights),
        case("adapter.bias", "all", "train", see::shapes),
        case("adapter.modules_to_save", "[\"lm_head\"]", "train", see::shapes),
        case("adapter.init_lora_weights", "gaussian", "train", see::weights),
        case("adapter.use_dora", "true", "train", see::shapes),
        case("adapter.lora_bias", "true", "train", see::shapes),
        case("adapter.trainable_token_indices", "[5, 7]", "train", see::shapes),
        case("adapter.ensure_weight_tying", "true", "train", see::shapes)
            .beside(&["model.base=../tied", "adapter.modules_to_save=[\"embed_tokens\"]"]),
        case("adapter.peft_type", "loha", "train", see::shapes),
        case("adapter.feedforward_modules", "[]", "train", see::shapes)
            .of("unsaid")
            .beside(&["adapter.peft_type=ia3", "adapter.target_modules=[\"down_proj\"]"]),
        case("adapter.d_initial", "0.5", "train", see::weights).of("unsaid").beside(VERA),
        case("adapter.projection_prng_key", "3", "train", see::weights).of("unsaid").beside(VERA),
        case("adapter.decompose_both", "true", "train", see::shapes).beside(&[LOKR, "adapter.r=1"]),
        case("adapter.decompose_factor", "2", "train", see::shapes).beside(&[LOKR]),
    ]
}

fn data() -> Vec<Case> {
    vec![
        case("data.train", "../more.jsonl", "train", see::tokens),
        case("data.valid", "../more_valid.jsonl", "train", see::validation_losses),
        case("data.test", "../more_test.jsonl", "eval", see::items),
        case("data.format", "text", "explain", see::explained)
            .of("bare")
            .beside(&["data.train=../both.jsonl"]),
        case("data.columns", "{ prompt = \"question\" }", "explain", see::explained)
            .of("bare")
            .beside(&["data.train=../columns.jsonl"]),
        case("data.max_length", "16", "check", see::checked).may_end_with(REFUSED),
        case("data.packing", "true", "train", see::tokens),
        case("data.truncation", "drop", "check", see::checked)
            .beside(&["data.train=../long.jsonl", "data.max_length=100"])
            .may_end_with(REFUSED),
        case("data.on_error", "skip", "check", see::checked)
            .beside(&["data.train=../faulty.jsonl"])
            .may_end_with(REFUSED),
        case("data.supervise", "all", "explain", see::explained),
        case("data.system_prompt", "Answer with a colour.", "explain", see::explained),
        case("data.apply_chat_template", "false", "explain", see::explained)
            .of("bare")
            .beside(&["data.train=../columns.jsonl"]),
        case("data.shuffle", "false", "train", see::weights),
        case("data.cache", "false", "check", see::kept),
        case("data.overlap", "report", "eval", see::overlap)
            .beside(&["eval.0.data=../touched.jsonl"])
            .may_end_with(REFUSED),
        case("data.validation_split", "0.25", "check", see::checked).of("bare"),
    ]
}

fn train() -> Vec<Case> {
    vec![
        case("train.method", "full", "train", see::files).of("unsaid").may_end_with(REFUSED),
        // What it does is shown on a device, in tests/gpu.
        case("train.activation_offloading", "true", "check", see::refusal).may_end_with(REFUSED),
        case("train.num_train_epochs", "2", "train", see::steps),
        case("train.max_steps", "1", "train", see::steps),
        case("train.batch_size", "2", "train", see::steps),
        case("train.gradient_accumulation_steps", "3", "train", see::steps),
        case("train.seed", "7", "train", see::weights),
        case("train.max_grad_norm", "0.001", "train", see::weights),
        case("train.neftune_noise_alpha", "5.0", "train", see::losses),
        case("train.logging_steps", "2", "train", see::steps),
        case("train.eval_steps", "1", "train", see::validated),
        case("train.save_steps", "1", "train", see::checkpoints)
            .beside(&["train.save_total_limit=9", "train.load_best_model_at_end=false"]),
        case("train.save_total_limit", "1", "train", see::checkpoints).beside(&["train.save_steps=1"]),
        case("train.metric_for_best_model", "exact_match", "train", see::validation_metric),
        case("train.early_stopping_patience", "1", "train", see::steps).beside(DIVERGING),
        case("train.load_best_model_at_end", "false", "train", see::weights).beside(DIVERGING),
        case("train.self_test", "true", "train", see::self_test),
    ]
}

fn optimizer() -> Vec<Case> {
    vec![
        // A matrix of 4096 elements: of smaller ones the moments stay in f32.
        case("optimizer.name", "adamw_8bit", "train", see::weights).beside(&["adapter.r=64"]),
        case("optimizer.learning_rate", "1e-3", "train", see::rates),
        case("optimizer.weight_decay", "0.5", "train", see::weights),
        case("optimizer.adam_beta1", "0.5", "train", see::weights),
        case("optimizer.adam_beta2", "0.5", "train", see::weights),
        case("optimizer.adam_epsilon", "0.01", "train", see::weights),
        case("optimizer.loraplus_lr_ratio", "16", "train", see::weights),
    ]
}

fn schedule() -> Vec<Case> {
    vec![
        case("schedule.lr_scheduler_type", "cosine", "train", see::rates),
        case("schedule.warmup_steps", "1", "train", see::rates),
        case("schedule.warmup_ratio", "0.3", "train", see::rates),
        case("schedule.min_lr_ratio", "0.5", "train", see::rates),
        case("schedule.decay_ratio", "1.0", "train", see::rates)
            .beside(&["schedule.lr_scheduler_type=warmup_stable_decay"]),
    ]
}

fn eval() -> Vec<Case> {
    vec![
        case("eval.name", "another", "eval", see::evaluations),
        case("eval.data", "../more_test.jsonl", "eval", see::items),
        case("eval.metrics", "[\"perplexity\"]", "eval", see::measured),
        case("eval.max_new_tokens", "1", "eval", see::written),
        case("eval.limit", "2", "eval", see::items),
        case("eval.normalize", "lenient", "eval", see::scores).beside(&["eval.0.data=../echo.jsonl"]),
        case("eval.seed", "3", "eval", see::items).beside(&["eval.0.limit=2"]),
        case("eval.few_shot", "2", "eval", see::prompts),
        case("eval.few_shot_data", "../shots.jsonl", "eval", see::prompts).beside(&["eval.0.few_shot=2"]),
        case("eval.system", "Answer with a colour.", "eval", see::prompts),
        case("eval.temperature", "5.0", "eval", see::outputs).of("constant"),
        case("eval.top_k", "1", "eval", see::outputs).of("constant").beside(HOT),
        case("eval.top_p", "0.01", "eval", see::outputs).of("constant").beside(HOT),
        case("eval.stop", "[\"10\"]", "eval", see::outputs).of("constant"),
        case("eval.slices", "[\"site\"]", "eval", see::slices).beside(FIELDS),
        case("eval.cluster_by", "document", "eval", see::tests).beside(FIELDS),
    ]
}

/// Draws that show what is left out of them.
const HOT: &[&str] = &["eval.0.temperature=5.0"];
/// Rows with more than a question and its answer.
const FIELDS: &[&str] = &["eval.0.data=../fields.jsonl"];

/// How answers are scored.
fn scoring() -> Vec<Case> {
    const CHOICES: &[&str] = &["eval.0.data=../fields.jsonl", "eval.0.metrics=[\"acc\"]"];
    const BARE: &[&str] = &["eval.0.strip_fence=true"];
    const LABELS: &[&str] = &["eval.0.metrics=[\"accuracy\"]"];
    vec![
        case("eval.pattern", "\"b\": \\d+", "eval", see::scores).of("constant"),
        case("eval.number", "first", "eval", see::scores).of("constant"),
        case("eval.tolerance", "1.0", "eval", see::scores).of("constant"),
        case("eval.relative_tolerance", "0.1", "eval", see::scores).of("constant"),
        case("eval.strip_fence", "true", "eval", see::scores).of("constant"),
        case("eval.schema", "../lenient.schema.json", "eval", see::scores).of("constant").beside(BARE),
        case("eval.labels", "[\"blue\", \"green\", \"red\", \"black\"]", "eval", see::labels).beside(LABELS),
        case("eval.choices", "options", "eval", see::likelihoods).beside(CHOICES),
    ]
}

fn candidate() -> Vec<Case> {
    const MERGED: &[&str] = &["export.formats=[\"merged\"]", "export.min_gain_kept=0"];
    vec![
        case("candidate.name", "challenger", "eval", see::candidates).of("rival"),
        case("candidate.model", "../other", "eval", see::candidates).of("rival"),
        case("candidate.adapter", "../adapter", "eval", see::candidates).of("rival"),
        case("candidate.few_shot", "2", "eval", see::candidates).of("rival"),
        case("candidate.export", "merged", "run", see::candidates).of("rival").beside(MERGED),
        case("candidate.server", "true", "eval", see::candidates).of("rival"),
    ]
}

/// Keys of addresses are shown by values that are refused; what each does is shown in `tests/e2e/endpoints.rs` and `crates/eval/src/remote`.
fn addresses() -> Vec<Case> {
    const API: &[&str] =
        &["candidate=[{ name = \"api\", endpoint = { url = \"http://127.0.0.1:9\", model = \"m\" } }]"];
    const JUDGE: &[&str] = &[
        "eval.0.metrics=[\"exact_match\", \"judge\"]",
        "eval.0.judge={ endpoint = { url = \"http://127.0.0.1:9\", model = \"m\" } }",
    ];
    let refused =
        |key, value, beside| case(key, value, "check", see::refusal).beside(beside).may_end_with(REFUSED);
    vec![
        refused("candidate.endpoint.url", "nowhere", API),
        refused("candidate.endpoint.model", "\"\"", API),
        refused("candidate.endpoint.api_key_env", "sk-1234567890", API),
        refused("candidate.endpoint.requests_per_minute", "0", API),
        refused("candidate.endpoint.concurrency", "0", API),
        refused("candidate.endpoint.timeout_s", "0", API),
        refused("candidate.endpoint.max_retries", "-1", API),
        refused("candidate.endpoint.extra", "{ stream = true }", API),
        refused("eval.judge.endpoint.url", "nowhere", JUDGE),
        refused("eval.judge.endpoint.model", "\"\"", JUDGE),
        refused("eval.judge.endpoint.api_key_env", "sk-1234567890", JUDGE),
        refused("eval.judge.endpoint.requests_per_minute", "0", JUDGE),
        refused("eval.judge.endpoint.concurrency", "0", JUDGE),
        refused("eval.judge.endpoint.timeout_s", "0", JUDGE),
        refused("eval.judge.endpoint.max_retries", "-1", JUDGE),
        refused("eval.judge.endpoint.extra", "{ stream = true }", JUDGE),
        refused("eval.judge.criteria", "\"\"", JUDGE),
        refused("eval.judge.max_tokens", "0", JUDGE),
    ]
}

fn cost() -> Vec<Case> {
    const BOUGHT: &[&str] = &["cost.hardware_price=3600"];
    const POWERED: &[&str] = &[
        "cost.hardware_price=3600",
        "cost.power_price_per_kwh=0.25",
        "cost.idle_watts=50",
        "cost.busy_watts=300",
    ];
    const CARED: &[&str] = &["cost.hardware_price=3600", "cost.care_hours_per_month=1", "cost.care_rate=50"];
    let told = |key, value, beside| case(key, value, "eval", see::cost).beside(beside);
    vec![
        told("cost.hardware_price", "9999", BOUGHT),
        told("cost.months", "12", BOUGHT),
        told("cost.currency", "EUR", BOUGHT),
        told("cost.items_per_month", "1000", BOUGHT),
        told("cost.training_cost", "70", BOUGHT),
        told("cost.utilisation", "0.5", POWERED),
        told("cost.power_price_per_kwh", "0.75", POWERED),
        told("cost.idle_watts", "70", POWERED),
        told("cost.busy_watts", "444", POWERED),
        told("cost.care_hours_per_month", "3", CARED),
        told("cost.care_rate", "77", CARED),
        case("cost.rent_per_hour", "2", "check", see::refusal).beside(BOUGHT).may_end_with(REFUSED),
        case("cost.prices", "../nothing.toml", "eval", see::refusal).beside(BOUGHT).may_end_with(REFUSED),
    ]
}

fn report() -> Vec<Case> {
    const WON: &[&str] = &["eval.0.metrics=[\"perplexity\"]"];
    vec![
        case("report.level", "redacted", "eval", see::shown),
        case("report.shared", "hashed", "eval", see::items_named).beside(WON),
    ]
}

fn gate() -> Vec<Case> {
    const JSON: &[&str] = &["eval.0.data=../json.jsonl", "eval.0.metrics=[\"json_fields\"]"];
    vec![
        case("gate.eval", "second", "eval", see::gated).of("two").beside(&["gate.max_perplexity=1e9"]),
        case("gate.require", "[\"adapter.exact_match >= 0.99\"]", "eval", see::code).may_end_with(FAILED),
        case("gate.min_exact_match", "1.0", "eval", see::code).may_end_with(FAILED),
        case("gate.min_exact_match_gain", "1.0", "eval", see::code).may_end_with(FAILED),
        case("gate.min_json_fields", "1.0", "eval", see::code).beside(JSON).may_end_with(FAILED),
        case("gate.min_json_fields_gain", "1.0", "eval", see::code).beside(JSON).may_end_with(FAILED),
        case("gate.max_perplexity", "1.0", "eval", see::code).may_end_with(FAILED),
        case("gate.max_perplexity_ratio", "0.001", "eval", see::code).may_end_with(FAILED),
        case("gate.min_gain_kept", "0.9", "run", see::gates).of("kept"),
    ]
}

fn export() -> Vec<Case> {
    const OLLAMA: &[&str] = &["export.formats=[\"ollama\"]", "export.min_gain_kept=0"];
    vec![
        case("export.formats", "[\"merged\"]", "export", see::merged),
        case("export.min_gain_kept", "0.5", "export", see::least_gain),
        case("export.merged_dtype", "bf16", "export", see::merged).beside(&["export.formats=[\"merged\"]"]),
        case("export.gguf_type", "f16", "export", see::for_engines)
            .beside(&["export.formats=[\"gguf\"]", "export.min_gain_kept=0"]),
        case("export.ollama_base", "tiny:1b", "export", see::for_engines).beside(OLLAMA),
        case("export.ollama_system", "Be brief.", "export", see::for_engines).beside(OLLAMA),
    ]
}

fn serve() -> Vec<Case> {
    // Several at a time run on one machine.
    const PORT: &[&str] = &["serve.port=0"];
    const BATCH_OF_ONE: &[&str] = &["serve.port=0", "serve.max_batch=1"];
    const QUEUE_OF_ONE: &[&str] = &["serve.port=0", "serve.max_queue=1"];
    vec![
        case("serve.host", "127.0.0.2", "serve", see::host).beside(PORT),
        // The default may be taken.
        case("serve.port", "0", "serve", see::default_port).may_end_with(REFUSED),
        case("serve.served_model_name", "another", "serve", see::models).beside(PORT),
        case("serve.adapters", "{ another = \"../adapter\" }", "serve", see::models).beside(PORT),
        case("serve.max_batch", "1", "serve", see::status).beside(QUEUE_OF_ONE),
        case("serve.max_queue", "1", "serve", see::status).beside(BATCH_OF_ONE),
        case("serve.max_model_len", "200", "serve", see::lengths).beside(PORT),
        case("serve.cache_memory", "64KiB", "serve", see::lengths).beside(PORT),
        case("serve.adapter_memory", "1k", "serve", see::code).beside(PORT).may_end_with(REFUSED),
        case("serve.request_timeout", "0.001", "serve", see::status).beside(PORT),
    ]
}

fn smoke() -> Vec<Case> {
    const SHORT: &[&str] = &["smoke.max_steps=2"];
    const FAR: &[&str] = &["smoke.max_steps=2", "smoke.golden_loss=5.0"];
    vec![
        case("smoke.base", "../other", "smoke", see::losses).beside(SHORT),
        case("smoke.max_steps", "3", "smoke", see::steps),
        case("smoke.golden_loss", "1000", "smoke", see::code).beside(SHORT).may_end_with(FAILED),
        case("smoke.tolerance", "0.99", "smoke", see::code).beside(FAR).may_end_with(FAILED),
        case("smoke.limit", "2", "smoke", see::items).beside(SHORT),
    ]
}
