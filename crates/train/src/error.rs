//! What can stop a run.

use crate::validator::ValidatorError;
use std::io;
use std::path::{Path, PathBuf};
use taper_diagnostics::{Diagnose, ExitCode, Location, list_names};
use taper_nn::{DeviceMemory, bytes_asked_of_full_device};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arithmetic failed.
    #[error("failed to {doing}")]
    Arithmetic {
        /// What was being done.
        doing: String,
        /// What candle says.
        source: candle_core::Error,
    },
    /// The memory of the device is spent.
    #[error("the GPU's memory is spent: failed to {doing}{}", told(*asked_bytes, memory.as_deref()))]
    OutOfDeviceMemory {
        /// What was being done.
        doing: String,
        /// What was asked for, where that is known.
        asked_bytes: Option<u64>,
        /// The device's memory when the run had stopped; its peak is that of the run.
        memory: Option<Box<DeviceMemory>>,
        /// Settings with which the run would fit, each with the bytes that it would take.
        settings: Vec<String>,
        /// Where the last good state is.
        checkpoint: Option<PathBuf>,
    },
    /// Nothing would be trained.
    #[error("there is no parameter to train")]
    NoParameters,
    /// All weights are to be trained, and some are quantised.
    #[error("`{path}` is quantised, and quantised weights cannot be trained")]
    QuantizedWeight {
        /// The module.
        path: String,
    },
    /// Two parameters have one name.
    #[error("two trained parameters are named `{name}`")]
    DuplicateParameter {
        /// The name.
        name: String,
    },
    /// The run would make no step.
    #[error("the run has no step: {rows} rows of training data, {epochs} epochs")]
    NoSteps {
        /// Rows that there are.
        rows: usize,
        /// Epochs asked for.
        epochs: f64,
    },
    /// The learning rate would never reach its height.
    #[error("the warm-up of {warmup_steps} steps does not end before the run of {steps}")]
    OnlyWarmUp {
        /// Steps of the warm-up.
        warmup_steps: u64,
        /// Steps of the run.
        steps: u64,
    },
    /// The data of a step teaches nothing.
    #[error("step {step} has no supervised token")]
    NoTargets {
        /// The step, from 1.
        step: u64,
    },
    /// The loss is NaN or infinite.
    #[error("the loss of step {step} is {loss}")]
    LossNotFinite {
        /// The step, from 1.
        step: u64,
        /// What it is.
        loss: f64,
        /// Where the last good state is.
        checkpoint: Option<PathBuf>,
    },
    /// A gradient is NaN or infinite.
    #[error("the gradient of step {step} is not finite in {}", list_names(parameters, 4))]
    GradientNotFinite {
        /// The step, from 1.
        step: u64,
        /// The parameters.
        parameters: Vec<String>,
        /// Where the last good state is.
        checkpoint: Option<PathBuf>,
    },
    /// A part of the model lets no gradient through.
    #[error("no gradient comes out of {place}")]
    GradientCut {
        /// Which part.
        place: String,
    },
    /// The self-test found that the run would not train what it is asked to train.
    #[error("the self-test failed: {what}")]
    SelfTest {
        /// What was found, naming the tensors.
        what: String,
    },
    /// The disk failed.
    #[error("failed to {doing} `{}`", path.display())]
    Disk {
        /// What was being done: `read`, `write`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A checkpoint cannot be used.
    #[error("{what}")]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The checkpoint is one of another run.
    #[error("the checkpoint belongs to another run: {}", differences.join("; "))]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, each with then and now.
        differences: Vec<String>,
    },
    /// A new run would write over the checkpoints of an old one.
    #[error("there are checkpoints of an earlier run, the newest `{}`", newest.display())]
    CheckpointsExist {
        /// The newest.
        newest: PathBuf,
    },
    /// The best checkpoint is to be chosen by what nobody measures.
    #[error(
        "the best checkpoint is to be chosen by `{asked}`, and what is measured is {}",
        list_names(measured, 4)
    )]
    NotMeasured {
        /// As asked for.
        asked: String,
        /// What is measured.
        measured: Vec<String>,
    },
    /// The best checkpoint is to be chosen by a metric, and there is nothing to measure it on.
    #[error("the best checkpoint is to be chosen by `{asked}`, and there is no validation data")]
    NothingToValidate {
        /// As asked for.
        asked: String,
    },
    /// A score could not be measured.
    #[error("failed to measure `{metric}` after step {step}")]
    Score {
        /// The metric.
        metric: String,
        /// The step.
        step: u64,
        /// Why.
        source: ValidatorError,
    },
    /// There is nothing to go on from.
    #[error("there is no complete checkpoint to resume from")]
    NothingToResume {
        /// Where one was looked for.
        folder: PathBuf,
    },
    /// The data loader failed.
    #[error(transparent)]
    Data(Box<taper_data::Error>),
    /// The adapter could not be written or read.
    #[error(transparent)]
    Adapter(Box<taper_peft::Error>),
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<taper_data::Error> for Error {
    fn from(error: taper_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<taper_peft::Error> for Error {
    fn from(error: taper_peft::Error) -> Self {
        Self::Adapter(Box::new(error))
    }
}

/// Names what was being done when candle failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for candle_core::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| match bytes_asked_of_full_device(&source) {
            None => Error::Arithmetic { doing: what(), source },
            Some(bytes) => Error::OutOfDeviceMemory {
                doing: what(),
                asked_bytes: Some(bytes).filter(|bytes| *bytes > 0),
                memory: None,
                settings: Vec::new(),
                checkpoint: None,
            },
        })
    }
}

/// What is known of a device whose memory is spent.
fn told(asked_bytes: Option<u64>, memory: Option<&DeviceMemory>) -> String {
    let size = |bytes: u64| match bytes as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b => format!("{:.1} MB", b / 1e6),
    };
    let asked = asked_bytes.map(|bytes| format!(", which asks for {} more", size(bytes)));
    let memory = memory.map(|memory| {
        format!(
            "; of {} the run had taken {} at most, {} are free without it",
            size(memory.total as u64),
            size(memory.peak as u64),
            size((memory.free + memory.reserved).min(memory.total) as u64)
        )
    });
    asked.unwrap_or_default() + &memory.unwrap_or_default()
}

/// What to set when a device's memory is spent, and where the run can go on from.
fn spent_hint(settings: &[String], checkpoint: Option<&Path>) -> String {
    let advice = match settings {
        [] => {
            "set `train.gradient_checkpointing = true`, a smaller `train.batch_size` with as many times more \
               `train.gradient_accumulation_steps`, or `model.quantize = \"nf4\"`"
                .to_owned()
        }
        settings => format!("as planned, the run fits with {}", settings.join(", or with ")),
    };
    match checkpoint {
        Some(path) => format!("{advice}; the last good state is `{}`", path.display()),
        None => format!("{advice}; no step was completed before"),
    }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::LossNotFinite { checkpoint, .. } | Self::GradientNotFinite { checkpoint, .. } => {
                let advice =
                    "lower `optimizer.learning_rate`, lengthen the warm-up, or set `train.max_grad_norm`";
                Some(match checkpoint {
                    Some(path) => format!("{advice}; the last good state is `{}`", path.display()),
                    None => format!("{advice}; no step was completed before"),
                })
            }
            Self::OutOfDeviceMemory { settings, checkpoint, .. } => Some(spent_hint(settings, checkpoint.as_deref())),
            Self::QuantizedWeight { .. } => Some(
                "train an adapter over them (`train.method = \"adapter\"`), or name the model they were quantised from".into(),
            ),
            Self::NoTargets { .. } => Some("look at the examples with `taper explain`".into()),
            Self::SelfTest { .. } => Some(
                "this is a fault of taper, not of the recipe; `train.self_test = false` skips the check"
                    .into(),
            ),
            Self::NoSteps { .. } => Some("raise `train.num_train_epochs`, or set `train.max_steps`".into()),
            Self::OnlyWarmUp { .. } => Some(
                "train longer, or shorten `schedule.warmup_steps` or `schedule.warmup_ratio`: a tenth of the steps or less is usual"
                    .into(),
            ),
            Self::OtherRun { .. } => {
                Some("give the run what it began with, or start anew in another folder with `--out`".into())
            }
            Self::CheckpointsExist { .. } => {
                Some("go on from there with `--resume`, begin again with `--overwrite`, or choose another folder with `--out`".into())
            }
            Self::NothingToResume { .. } => Some("start the run without `--resume`".into()),
            Self::Checkpoint { .. } => Some("remove the folder to go on from an older checkpoint".into()),
            Self::NotMeasured { .. } => Some("set `train.metric_for_best_model` to what is measured".into()),
            Self::NothingToValidate { .. } => {
                Some("name a file with `data.valid`, or set `data.validation_split`".into())
            }
            Self::Data(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            _ => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Checkpoint { path, .. } | Self::OtherRun { path, .. } => Some(Location::file(path)),
            Self::NothingToResume { folder } => Some(Location::file(folder)),
            Self::Data(error) => error.location(),
            Self::Adapter(error) => error.location(),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Arithmetic { .. }
            | Self::Score { .. }
            | Self::GradientCut { .. }
            | Self::SelfTest { .. }
            | Self::DuplicateParameter { .. } => ExitCode::Fault,
            Self::Data(error) => error.exit_code(),
            Self::Adapter(error) => error.exit_code(),
            _ => ExitCode::UserError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spent_memory_of_a_device_names_the_part_the_bytes_and_the_way_out() {
        let said = candle_core::Error::Msg("out of GPU memory: 2500000 more bytes are not to be had".into());
        let failed: candle_core::Result<()> = Err(said.context("lora-linear"));
        let mut error = failed.doing(|| "differentiate block 3".into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the GPU's memory is spent: failed to differentiate block 3, which asks for 2.5 MB more"
        );
        assert!(error.hint().unwrap().contains("no step was completed"), "{:?}", error.hint());
        if let Error::OutOfDeviceMemory { memory, settings, checkpoint, .. } = &mut error {
            let of = DeviceMemory {
                total: 8_000_000_000,
                free: 1_000_000_000,
                used: 0,
                peak: 6_500_000_000,
                reserved: 6_600_000_000,
            };
            *memory = Some(Box::new(of));
            *settings = vec![
                "`train.batch_size = 2` (3.10 GB)".into(),
                "`model.quantize = \"nf4\"` (5.00 GB)".into(),
            ];
            *checkpoint = Some("runs/a/checkpoints/4".into());
        }
        assert!(
            error
                .to_string()
                .ends_with("; of 8.00 GB the run had taken 6.50 GB at most, 7.60 GB are free without it"),
            "{error}"
        );
        assert_eq!(
            error.hint().unwrap(),
            "as planned, the run fits with `train.batch_size = 2` (3.10 GB), or with `model.quantize = \"nf4\"` (5.00 GB); \
             the last good state is `runs/a/checkpoints/4`"
        );
        assert_eq!(error.exit_code(), ExitCode::UserError);
        let other: candle_core::Result<()> = Err(candle_core::Error::Msg("shapes differ".into()));
        assert!(matches!(other.doing(|| "add".into()), Err(Error::Arithmetic { .. })));
    }
}
