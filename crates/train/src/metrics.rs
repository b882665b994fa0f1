//! `metrics.jsonl`: one JSON object a line, as the run goes.

use crate::error::{Error, Result};
use crate::validator::{MetricValue, in_line};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use taper_diagnostics::write_atomically;
use taper_nn::DeviceMemory;

/// A line: of training (`loss` and what follows) or of validation (`eval_loss`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The step, from 1.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Mean cross-entropy over the targets since the last line, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Norm of the gradient of this step before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Learning rate of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Tokens since the start of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Tokens through the model a second of training since the last line: the one value that differs from run to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// On a device, MiB of its memory that tensors took at most since the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_mb: Option<u64>,
    /// MiB that they take between two steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_used_mb: Option<u64>,
    /// MiB that are held of the device for them, free parts between them included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_reserved_mb: Option<u64>,
    /// Mean cross-entropy over the targets of the validation data, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// What the run's [`crate::Validator`] measured; in the file under `eval_` and its name.
    #[serde(flatten, with = "in_line")]
    pub eval_metric: Option<MetricValue>,
}

impl Metrics {
    /// The same with what a device says of its memory, where there is one.
    #[must_use]
    pub(crate) fn with_memory(self, memory: Option<DeviceMemory>) -> Self {
        let mib = |bytes: usize| bytes as u64 >> 20;
        Self {
            gpu_memory_mb: memory.map(|m| mib(m.peak)),
            gpu_used_mb: memory.map(|m| mib(m.used)),
            gpu_reserved_mb: memory.map(|m| mib(m.reserved)),
            ..self
        }
    }
}

/// The file of a run.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
}

impl MetricsFile {
    /// The file of the run in `run_folder`, cut back to the lines of the first `steps` steps (0: emptied). A last line that
    /// was not finished is dropped.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(run_folder: &Path, steps: u64) -> Result<Self> {
        let path = run_folder.join("metrics.jsonl");
        let kept: Vec<String> = match fs::read_to_string(&path) {
            Ok(text) => text
                .lines()
                .filter(|line| step_of(line).is_some_and(|s| s <= steps))
                .map(Into::into)
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::Disk { doing: "read", path, source }),
        };
        let kept = if steps == 0 { Vec::new() } else { kept };
        write_atomically(&path, |writer| kept.iter().try_for_each(|line| writeln!(writer, "{line}")))
            .map_err(|source| Error::Disk { doing: "write", path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// Add a line.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&self, metrics: &Metrics) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut line = serde_json::to_string(metrics)?;
            line.push('\n');
            fs::OpenOptions::new().append(true).create(true).open(&self.path)?.write_all(line.as_bytes())
        };
        write().map_err(|source| Error::Disk { doing: "write", path: self.path.clone(), source })
    }
}

fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<Metrics>(line).ok().map(|metrics| metrics.step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_stands_under_its_own_name_and_is_read_back() {
        let metric = |value| Some(MetricValue { name: "exact_match".into(), value });
        let metrics =
            Metrics { step: 3, eval_loss: Some(1.5), eval_metric: metric(0.25), ..Metrics::default() };
        let line = serde_json::to_string(&metrics).unwrap();
        assert_eq!(line, r#"{"step":3,"epoch":0.0,"eval_loss":1.5,"eval_exact_match":0.25}"#);
        assert_eq!(serde_json::from_str::<Metrics>(&line).unwrap(), metrics);
        let none = serde_json::to_string(&Metrics { eval_metric: metric(f64::NAN), ..metrics }).unwrap();
        assert!(none.ends_with("\"eval_exact_match\":null}"), "{none}");
        let read: Metrics = serde_json::from_str(&none).unwrap();
        assert!(read.eval_metric.is_some_and(|metric| metric.value.is_nan()));
        let other: Metrics = serde_json::from_str(r#"{"step":1,"epoch":0,"eval_of":"x","more":{}}"#).unwrap();
        assert_eq!(other.eval_metric, None);
    }

    #[test]
    fn resuming_cuts_the_file_back_to_the_resumed_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let file = MetricsFile::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            file.append(&Metrics { step, loss: Some(0.5), ..Metrics::default() }).unwrap();
        }
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":2,\"ep").unwrap();
        MetricsFile::open(folder.path(), 2).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"epoch\":0.0,\"loss\":0.5}\n{\"step\":2,\"epoch\":0.0,\"loss\":0.5}\n"
        );
        MetricsFile::open(folder.path(), 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
