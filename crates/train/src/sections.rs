//! The `[train]`, `[optimizer]` and `[schedule]` sections of a recipe.

use crate::validator::{EVAL_LOSS, PREFIX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_diagnostics::{Location, Problem, Problems};
use taper_kernels::adamw8bit::StateFormat;

/// What is trained, for how long, and what is kept of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// "adapter" trains the low-rank matrices of `[adapter]` on a frozen base; "full" trains every weight of the base in
    /// f32: 16 bytes of memory a parameter, for small models.
    pub method: TrainMethod,
    /// Times the training data is seen; may be a fraction. More fits the data closer and, past some point, only that data.
    pub num_train_epochs: f64,
    /// Optimiser steps to make; takes the place of `num_train_epochs` when set. Learning-rate schedules end there.
    pub max_steps: Option<u64>,
    /// Rows in a forward pass: examples, or packed rows of up to `data.max_length` tokens. Memory grows with it; speed does
    /// too until the processor is busy. It does not change the result of a step of `batch_size * gradient_accumulation_steps`
    /// rows but for rounding.
    pub batch_size: usize,
    /// Forward passes an optimiser step, their losses weighted by their target tokens. Raise it in place of `batch_size`
    /// when memory is short.
    pub gradient_accumulation_steps: usize,
    /// Where every random number of the run comes from: the adapter's start, the order of the data, dropout, noise.
    pub seed: u64,
    /// Longest allowed gradient (Euclidean norm over all trained parameters); a longer one is scaled down to it. 0 switches
    /// clipping off.
    pub max_grad_norm: f64,
    /// NEFTune: uniform noise of at most `alpha / sqrt(length * hidden_size)` on the embeddings while training (Jain et al.
    /// 2023). 5 is usual; left out, there is none. Helps chat data, hurts exact formats.
    pub neftune_noise_alpha: Option<f64>,
    /// Keep only the input of each block and compute the block again in the backward pass: the memory of one block's
    /// activations instead of all, for about a third more time. The result is the same, bit for bit.
    pub gradient_checkpointing: bool,
    /// With `gradient_checkpointing` on a GPU: the inputs of the blocks wait in the host's memory for the backward pass, `4 * tokens *
    /// hidden_size` bytes a block less on the GPU, for the time of two copies. On the CPU there is nothing to move.
    pub activation_offloading: bool,
    /// Steps from one line of `metrics.jsonl` to the next; its loss is the mean over the target tokens of these steps.
    pub logging_steps: u64,
    /// Steps from one validation to the next; left out, at the end of each epoch. The last step is always validated.
    pub eval_steps: Option<u64>,
    /// Steps from one checkpoint to the next; left out, at the end of each epoch. The last step always makes one.
    pub save_steps: Option<u64>,
    /// Checkpoints to keep: the newest, and beyond this number the best one.
    pub save_total_limit: usize,
    /// What makes a validation the best one: "eval_loss", its loss, or "eval_" and the name of a metric that is measured on the
    /// validation data beside it, also written without "eval_". Lowest or highest, as the metric is better. Early stopping and the
    /// checkpoint that is kept go by it.
    pub metric_for_best_model: String,
    /// Validations in a row without a new best after which the run stops; left out, it never stops early.
    pub early_stopping_patience: Option<u64>,
    /// End with the weights of the best validation in place of the last ones. Without validation data the last ones are kept.
    pub load_best_model_at_end: bool,
    /// Before step 1, prove on the real model and a short example that every trained parameter gets a correct gradient and
    /// no frozen weight gets one. Costs about eight short forward passes.
    pub self_test: bool,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            method: TrainMethod::Adapter,
            num_train_epochs: 3.0,
            max_steps: None,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            seed: 42,
            max_grad_norm: 1.0,
            neftune_noise_alpha: None,
            gradient_checkpointing: false,
            activation_offloading: false,
            logging_steps: 10,
            eval_steps: None,
            save_steps: None,
            save_total_limit: 2,
            metric_for_best_model: EVAL_LOSS.to_owned(),
            early_stopping_patience: None,
            load_best_model_at_end: true,
            self_test: true,
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainMethod {
    /// The adapter of `[adapter]`, on a frozen base.
    #[default]
    Adapter,
    /// All weights.
    Full,
}

/// How a gradient becomes a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// The rule, and how its state is held. "adamw" is Adam with decoupled weight decay; its two moments are f32, 8 bytes a trained
    /// parameter (transformers' "adamw_torch"). "adamw_8bit" holds them in about 2 bytes, as bitsandbytes does: blocks of 256 with an 8-bit
    /// code an element; tensors of fewer than 4096 elements keep f32. "paged_adamw_32bit" and "paged_adamw_8bit" hold the same in memory
    /// that the driver moves between the GPU and the host, for states that have no room on the GPU; on the CPU they are no different.
    pub name: OptimizerName,
    /// Highest learning rate, before the schedule's factor. 1e-4 to 5e-4 for adapters; a tenth of that for full training of
    /// a model that knows much already.
    pub learning_rate: f64,
    /// Share of a parameter, times the learning rate, that is taken away at each step. Biases and norms are spared.
    pub weight_decay: f64,
    /// Decay of the running mean of gradients.
    pub adam_beta1: f64,
    /// Decay of the running mean of squared gradients. 0.95 to 0.98 forget faster, for noisy or short runs.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// LoRA+ (Hayou et al. 2024): learning rate of B over that of A. 16 is the paper's choice; left out, they are equal. As
    /// in PEFT, biases and norms that are trained beside the adapter take B's rate.
    pub loraplus_lr_ratio: Option<f64>,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adamw,
            learning_rate: 2e-4,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            loraplus_lr_ratio: None,
        }
    }
}

/// The optimisers, named as in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OptimizerName {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    #[default]
    #[serde(rename = "adamw")]
    Adamw,
    /// The same with moments in 8 bits (Dettmers et al. 2022).
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// "adamw" with its moments in paged memory (Dettmers et al. 2023).
    #[serde(rename = "paged_adamw_32bit")]
    PagedAdamw32bit,
    /// "adamw_8bit" with its moments in paged memory.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamw8bit,
}

impl OptimizerName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Adamw, Self::Adamw8bit, Self::PagedAdamw32bit, Self::PagedAdamw8bit];

    /// How the moments are held.
    pub fn state_format(self) -> StateFormat {
        StateFormat {
            eight_bit: matches!(self, Self::Adamw8bit | Self::PagedAdamw8bit),
            paged: matches!(self, Self::PagedAdamw32bit | Self::PagedAdamw8bit),
        }
    }
}

impl std::fmt::Display for OptimizerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw_8bit",
            Self::PagedAdamw32bit => "paged_adamw_32bit",
            Self::PagedAdamw8bit => "paged_adamw_8bit",
        })
    }
}

/// The learning rate over the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSection {
    /// The shape after warm-up: "linear" (to 0, the default), "cosine", "constant", or "warmup_stable_decay" (constant, then
    /// a cosine over the last `decay_ratio` of the run).
    pub lr_scheduler_type: SchedulerType,
    /// Steps over which the rate rises in a line from 0; the first step's rate is 0. Calms the first steps, when the moments
    /// of the optimiser are still empty.
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps (0 to below 1), rounded up, in place of `warmup_steps`.
    pub warmup_ratio: Option<f64>,
    /// Lowest rate after the decay, as a share of `learning_rate` (0 to 1; 0 when left out).
    pub min_lr_ratio: Option<f64>,
    /// Share of all steps (above 0 to 1; 0.1 when left out), rounded up, in which "warmup_stable_decay" decays.
    pub decay_ratio: Option<f64>,
}

/// The shapes of a learning rate over a run, named as in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// The full rate throughout, after warm-up.
    Constant,
    /// In a line to the lowest rate.
    #[default]
    Linear,
    /// Half a cosine to the lowest rate.
    Cosine,
    /// The full rate, then half a cosine over the last steps (Hu et al. 2024).
    WarmupStableDecay,
}

/// Collects what is out of range in one section.
struct Faults {
    section: &'static str,
    problems: Problems,
}

impl Faults {
    fn new(section: &'static str) -> Self {
        Self { section, problems: Problems::new() }
    }

    fn push(&mut self, code: &'static str, key: &str, message: String, hint: &str) {
        let at = Location::default().with_key(format!("{}.{key}", self.section));
        self.problems.push(Problem::error(code, message).at(at).hint(hint));
    }

    fn at_least_one(&mut self, key: &str, given: Option<u64>, hint: &str) {
        if given == Some(0) {
            self.push("out-of-range", key, format!("`{key}` is 0, at least 1 is needed"), hint);
        }
    }

    fn number(&mut self, key: &str, given: f64, allowed: impl Fn(f64) -> bool, range: &str, hint: &str) {
        if !given.is_finite() || !allowed(given) {
            self.push("out-of-range", key, format!("`{key}` is {given}, allowed is {range}"), hint);
        }
    }
}

impl TrainSection {
    /// The metric by which the best validation is chosen, without `eval_`; `None` when that is the loss.
    pub fn best_metric(&self) -> Option<&str> {
        let name = self.metric_for_best_model.strip_prefix(PREFIX).unwrap_or(&self.metric_for_best_model);
        (name != "loss").then_some(name)
    }

    /// Everything about the section that can be known from itself.
    pub fn check(&self) -> Problems {
        let mut faults = Faults::new("train");
        let epochs = "1 to 5 are usual";
        faults.number("num_train_epochs", self.num_train_epochs, |v| v > 0.0, "a number above 0", epochs);
        if self.activation_offloading && !self.gradient_checkpointing {
            let what =
                "`activation_offloading` moves the inputs of blocks that are computed again, and none is";
            faults.push(
                "no-effect",
                "activation_offloading",
                what.into(),
                "set `gradient_checkpointing = true`, or remove the key",
            );
        }
        let leave_out = "leave the key out to have the default";
        faults.at_least_one("max_steps", self.max_steps, "leave the key out to go by `num_train_epochs`");
        faults.at_least_one("batch_size", Some(self.batch_size as u64), leave_out);
        faults.at_least_one(
            "gradient_accumulation_steps",
            Some(self.gradient_accumulation_steps as u64),
            leave_out,
        );
        faults.at_least_one("logging_steps", Some(self.logging_steps), leave_out);
        faults.at_least_one("eval_steps", self.eval_steps, "leave the key out to validate once an epoch");
        faults.at_least_one("save_steps", self.save_steps, "leave the key out to save once an epoch");
        faults.at_least_one(
            "save_total_limit",
            Some(self.save_total_limit as u64),
            "a large number keeps them all",
        );
        let patience = "leave the key out to never stop early";
        faults.at_least_one("early_stopping_patience", self.early_stopping_patience, patience);
        if self.best_metric().is_some_and(|name| name.trim().is_empty()) {
            let message = "`metric_for_best_model` names no metric".to_owned();
            faults.push(
                "out-of-range",
                "metric_for_best_model",
                message,
                "\"eval_loss\" goes by the validation loss",
            );
        }
        let clip = "0 switches clipping off";
        faults.number("max_grad_norm", self.max_grad_norm, |v| v >= 0.0, "0 or more", clip);
        if let Some(alpha) = self.neftune_noise_alpha {
            let hint = "leave the key out to add no noise";
            faults.number("neftune_noise_alpha", alpha, |v| v > 0.0, "a number above 0", hint);
        }
        faults.problems
    }
}

impl OptimizerSection {
    /// Bytes of the state of a parameter of so many elements. On a device a state that is paged
    /// ([`OptimizerName::state_format`]) need not have room there.
    pub fn state_bytes(&self, elements: usize) -> usize {
        self.name.state_format().bytes(elements)
    }

    /// Everything about the section that can be known from itself.
    pub fn check(&self) -> Problems {
        let mut faults = Faults::new("optimizer");
        let positive = |v: f64| v > 0.0;
        let share = |v: f64| (0.0..1.0).contains(&v);
        let rate = "2e-4 is usual for adapters";
        faults.number("learning_rate", self.learning_rate, |v| v > 0.0 && v <= 1.0, "above 0 to 1", rate);
        faults.number(
            "weight_decay",
            self.weight_decay,
            |v| (0.0..=1.0).contains(&v),
            "0 to 1",
            "0.01 is usual",
        );
        faults.number("adam_beta1", self.adam_beta1, share, "0 to below 1", "0.9 is usual");
        faults.number("adam_beta2", self.adam_beta2, share, "0 to below 1", "0.999 is usual");
        // The step is made in f32.
        let lasting = |v: f64| v as f32 > 0.0;
        faults.number("adam_epsilon", self.adam_epsilon, lasting, "above 1e-45", "1e-8 is usual");
        if let Some(ratio) = self.loraplus_lr_ratio {
            faults.number(
                "loraplus_lr_ratio",
                ratio,
                positive,
                "a number above 0",
                "16 is the paper's choice",
            );
        }
        faults.problems
    }
}

impl ScheduleSection {
    /// Everything about the section that can be known from itself; a key without effect on the chosen shape is a fault.
    pub fn check(&self) -> Problems {
        let mut faults = Faults::new("schedule");
        let share = |v: f64| (0.0..1.0).contains(&v);
        if let Some(ratio) = self.warmup_ratio {
            faults.number("warmup_ratio", ratio, share, "0 to below 1", "0.03 to 0.1 are usual");
            if self.warmup_steps.is_some() {
                let message = "both `warmup_steps` and `warmup_ratio` are set".to_owned();
                faults.push("contradiction", "warmup_ratio", message, "keep one of them");
            }
        }
        if let Some(ratio) = self.min_lr_ratio {
            faults.number("min_lr_ratio", ratio, |v| (0.0..=1.0).contains(&v), "0 to 1", "0.1 is usual");
            if self.lr_scheduler_type == SchedulerType::Constant {
                let message = "`min_lr_ratio` has no effect on a constant rate".to_owned();
                faults.push(
                    "no-effect",
                    "min_lr_ratio",
                    message,
                    "remove it, or choose a schedule that decays",
                );
            }
        }
        if let Some(ratio) = self.decay_ratio {
            faults.number(
                "decay_ratio",
                ratio,
                |v| v > 0.0 && v <= 1.0,
                "above 0 to 1",
                "0.1 to 0.2 are usual",
            );
            if self.lr_scheduler_type != SchedulerType::WarmupStableDecay {
                let message = "`decay_ratio` has an effect on \"warmup_stable_decay\" alone".to_owned();
                faults.push("no-effect", "decay_ratio", message, "remove it, or choose that schedule");
            }
        }
        faults.problems
    }
}

/// What can be known from the three sections together, beside what each says of itself.
pub fn check_together(
    train: &TrainSection,
    optimizer: &OptimizerSection,
    schedule: &ScheduleSection,
) -> Problems {
    let mut problems = Problems::new();
    let mut fault = |code, key: &str, message: String, hint: &str| {
        problems.push(Problem::error(code, message).at(Location::default().with_key(key)).hint(hint));
    };
    if train.method == TrainMethod::Full && optimizer.loraplus_lr_ratio.is_some() {
        let message = "`loraplus_lr_ratio` has no effect on full training".to_owned();
        fault("no-effect", "optimizer.loraplus_lr_ratio", message, "remove it, or train an adapter");
    }
    if let (Some(warmup), Some(max)) = (schedule.warmup_steps, train.max_steps)
        && warmup >= max
    {
        let message = format!("the warm-up of {warmup} steps does not end before the run of {max}");
        fault("out-of-range", "schedule.warmup_steps", message, "a tenth of the steps or less is usual");
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(problems: &Problems) -> Vec<String> {
        problems.iter().filter_map(|p| p.location.clone()?.key).collect()
    }

    #[test]
    fn the_defaults_have_no_fault() {
        let (train, optimizer, schedule) =
            (TrainSection::default(), OptimizerSection::default(), ScheduleSection::default());
        assert!(train.check().is_empty() && optimizer.check().is_empty() && schedule.check().is_empty());
        assert!(check_together(&train, &optimizer, &schedule).is_empty());
    }

    #[test]
    fn all_faults_of_a_section_are_found_at_once() {
        let train: TrainSection = toml::from_str(
            "num_train_epochs = nan\nmax_steps = 0\nbatch_size = 0\ngradient_accumulation_steps = 0\nlogging_steps = 0\neval_steps = 0\n\
             save_steps = 0\nsave_total_limit = 0\nearly_stopping_patience = 0\nmax_grad_norm = -1.0\nneftune_noise_alpha = 0.0\nmetric_for_best_model = \"eval_\"",
        )
        .unwrap();
        assert_eq!(keys(&train.check()).len(), 12);
        let optimizer: OptimizerSection = toml::from_str(
            "learning_rate = 0.0\nweight_decay = 2.0\nadam_beta1 = 1.0\nadam_beta2 = -0.1\nadam_epsilon = 0.0\nloraplus_lr_ratio = inf",
        )
        .unwrap();
        assert_eq!(keys(&optimizer.check()).len(), 6);
    }

    #[test]
    fn the_metric_of_the_best_model_is_read_with_and_without_its_prefix() {
        let metric =
            |name: &str| TrainSection { metric_for_best_model: name.into(), ..TrainSection::default() };
        assert_eq!(TrainSection::default().best_metric(), None);
        for (name, want) in
            [("eval_loss", None), ("loss", None), ("f1", Some("f1")), ("eval_f1", Some("f1")), ("", Some(""))]
        {
            assert_eq!(metric(name).best_metric(), want);
        }
        assert_eq!(keys(&metric(" ").check()), ["train.metric_for_best_model"]);
    }

    #[test]
    fn an_epsilon_that_vanishes_in_f32_is_a_fault() {
        // Where the gradient is zero (A at the first step), the step would be 0 / 0.
        let optimizer = OptimizerSection { adam_epsilon: 1e-50, ..OptimizerSection::default() };
        assert_eq!(keys(&optimizer.check()), ["optimizer.adam_epsilon"]);
        let optimizer = OptimizerSection { adam_epsilon: 1e-30, ..OptimizerSection::default() };
        assert!(optimizer.check().is_empty());
    }

    #[test]
    fn keys_without_effect_are_faults() {
        let schedule: ScheduleSection = toml::from_str(
            "lr_scheduler_type = \"constant\"\nmin_lr_ratio = 0.1\ndecay_ratio = 0.1\nwarmup_steps = 2\nwarmup_ratio = 0.1",
        )
        .unwrap();
        assert_eq!(
            keys(&schedule.check()),
            ["schedule.warmup_ratio", "schedule.min_lr_ratio", "schedule.decay_ratio"]
        );
        let train = TrainSection { method: TrainMethod::Full, max_steps: Some(2), ..TrainSection::default() };
        let optimizer = OptimizerSection { loraplus_lr_ratio: Some(4.0), ..OptimizerSection::default() };
        assert_eq!(
            keys(&check_together(&train, &optimizer, &schedule)),
            ["optimizer.loraplus_lr_ratio", "schedule.warmup_steps"]
        );
    }

    #[test]
    fn unknown_keys_are_refused_and_sections_are_written_back() {
        let error = toml::from_str::<TrainSection>("num_epochs = 3").unwrap_err().to_string();
        assert!(error.contains("num_epochs") && error.contains("num_train_epochs"), "{error}");
        let train: TrainSection =
            toml::from_str("method = \"full\"\nmax_steps = 7\nneftune_noise_alpha = 5.0").unwrap();
        assert_eq!(toml::from_str::<TrainSection>(&toml::to_string(&train).unwrap()).unwrap(), train);
    }

    #[test]
    fn optimisers_are_read_and_told_by_one_name_and_others_refused_by_those_that_are_known() {
        for name in OptimizerName::ALL {
            let section: OptimizerSection = toml::from_str(&format!("name = \"{name}\"")).unwrap();
            assert_eq!(section.name, name);
        }
        let error = toml::from_str::<OptimizerSection>("name = \"adamw_4bit\"").unwrap_err().to_string();
        assert!(OptimizerName::ALL.iter().all(|name| error.contains(&format!("`{name}`"))), "{error}");
        let bytes = |name| OptimizerSection { name, ..OptimizerSection::default() }.state_bytes(1 << 20);
        assert_eq!(OptimizerName::ALL.map(bytes), [8 << 20, 2_129_920, 8 << 20, 2_129_920]);
    }

    #[test]
    fn every_key_is_described() {
        for schema in [
            schemars::schema_for!(TrainSection),
            schemars::schema_for!(OptimizerSection),
            schemars::schema_for!(ScheduleSection),
        ] {
            let schema = serde_json::to_value(schema).unwrap();
            let properties = schema["properties"].as_object().unwrap();
            assert!(
                properties.len() >= 5 && properties.values().all(|p| p["description"].is_string()),
                "{schema:#}"
            );
        }
    }
}
