//! One plain loop: batch, forward, loss, backward, clip, step, log, checkpoint.
//!
//! A run is a function of its sections, its data and the weights it starts from: the same bits for any number of threads, and
//! the same whether it was interrupted or not (invariant 4). Random numbers are keyed by seed, step and place; sums are
//! taken in an order that the shapes decide; nothing is read from a clock but the speed that is shown.
//!
//! [`Trainer`] is the loop; [`forward_backward`] the layer-wise pass under it; [`self_test`] proves on the real model that every
//! trained parameter learns.

mod checkpoint;
mod driver;
mod error;
mod gradients;
mod metrics;
mod optimizer;
pub mod plan;
mod progress;
mod schedule;
mod sections;
mod self_test;
mod step;
mod tensor_file;
mod trained;
mod trainer;
mod validator;

pub use checkpoint::{BestValidation, CheckpointStore, LogWindow, OPTIMIZER_FILE, STATE_FILE, TrainerState};
pub use driver::{LOGITS_BYTES, Pass, PassOptions, evaluate_loss, forward_backward};
pub use error::{Error, Result};
pub use gradients::{Gradients, clip_factor};
pub use metrics::{Metrics, MetricsFile};
pub use optimizer::AdamW;
pub use progress::{Bar, Event, Lines, ProgressSink, Silent, resident_bytes};
pub use schedule::LrSchedule;
pub use sections::{
    OptimizerName, OptimizerSection, ScheduleSection, SchedulerType, TrainMethod, TrainSection,
    check_together,
};
pub use self_test::{SelfTestReport, TOLERANCE as SELF_TEST_TOLERANCE, self_test, shortest_example};
pub use step::{StepReport, Stepper};
pub use tensor_file::{NamedTensor, TensorFile, TensorValues};
pub use trained::Trained;
pub use trainer::{Outcome, RunPlace, Sections, Start, Trainer, TrainingData};
pub use validator::{EVAL_LOSS, MetricValue, Validator, ValidatorError};
