//! What a person sees of a run while it runs.

use crate::checkpoint::BestValidation;
use crate::metrics::Metrics;
use crate::self_test::SelfTestReport;
use crate::step::StepReport;
use crate::validator::MetricValue;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::path::Path;
use std::time::Instant;
use taper_nn::DeviceMemory;

/// Something that happened in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins, or goes on.
    Started {
        /// Steps already made.
        step: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Numbers that are trained.
        parameters: usize,
    },
    /// The self-test passed.
    SelfTested(&'a SelfTestReport),
    /// A step was made.
    Stepped(&'a StepReport),
    /// A line of training was logged.
    Logged(&'a Metrics),
    /// A validation was made.
    Validated {
        /// Its line.
        metrics: &'a Metrics,
        /// The best one so far, this one included; `None` while no loss, or no score, was finite.
        best: Option<&'a BestValidation>,
    },
    /// A checkpoint was written.
    Saved {
        /// Its folder.
        path: &'a Path,
    },
    /// No more steps will be made.
    Ended {
        /// Steps made.
        step: u64,
        /// The memory of the device that computed; `None` for the CPU.
        memory: Option<DeviceMemory>,
    },
}

/// Who is told.
pub trait ProgressSink {
    /// Called for every event, on the training thread: return soon.
    fn event(&mut self, event: &Event<'_>);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl ProgressSink for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}

/// A bar on a terminal: step, loss, tokens a second, memory, time left.
#[derive(Debug)]
pub struct Bar {
    target: fn() -> ProgressDrawTarget,
    bar: ProgressBar,
    loss: f64,
    rate: f64,
    eval_loss: Option<f64>,
    eval_metric: Option<MetricValue>,
    gpu_memory_mb: Option<u64>,
}

impl Bar {
    /// A bar on standard error.
    pub fn stderr() -> Self {
        Self {
            target: ProgressDrawTarget::stderr,
            bar: ProgressBar::hidden(),
            loss: f64::NAN,
            rate: f64::NAN,
            eval_loss: None,
            eval_metric: None,
            gpu_memory_mb: None,
        }
    }
}

impl ProgressSink for Bar {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { step, total_steps, .. } => {
                self.bar =
                    ProgressBar::with_draw_target(Some(*total_steps), (self.target)()).with_position(*step);
                let template = "{bar:30} {pos}/{len} {msg} {elapsed_precise} left {eta_precise}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style);
                }
                self.bar.reset_eta();
            }
            Event::Stepped(report) => {
                self.loss = smooth(self.loss, report.loss());
                self.rate = smooth(self.rate, report.tokens as f64 / report.seconds.max(1e-9));
                let mut message = format!("loss {:.4} {:.0} tokens/s", self.loss, self.rate);
                if let Some(loss) = self.eval_loss {
                    message.push_str(&format!(" eval {loss:.4}"));
                }
                if let Some(metric) = &self.eval_metric {
                    message.push_str(&format!(" {} {:.4}", metric.name, metric.value));
                }
                if let Some(mb) = self.gpu_memory_mb {
                    message.push_str(&format!(" {mb} MB on the GPU"));
                } else if let Some(bytes) = resident_bytes() {
                    message.push_str(&format!(" {} MB", bytes >> 20));
                }
                self.bar.set_message(message);
                self.bar.set_position(report.step);
            }
            Event::Validated { metrics, .. } => {
                self.eval_loss = metrics.eval_loss;
                self.eval_metric.clone_from(&metrics.eval_metric);
            }
            Event::Ended { .. } => self.bar.abandon(),
            Event::Logged(metrics) => self.gpu_memory_mb = metrics.gpu_memory_mb,
            Event::SelfTested(_) | Event::Saved { .. } => {}
        }
    }
}

/// Steps differ much: the bar shows running means, a tenth of them new at each step.
fn smooth(mean: f64, value: f64) -> f64 {
    if mean.is_nan() { value } else { 0.9 * mean + 0.1 * value }
}

/// Lines of `key=value`, for logs and CI.
#[derive(Debug)]
pub struct Lines<W> {
    out: W,
    started: Instant,
    first_step: u64,
    total_steps: u64,
}

impl<W: Write> Lines<W> {
    /// Lines to `out`; what it cannot take is lost, a run does not stop for that.
    pub fn new(out: W) -> Self {
        Self { out, started: Instant::now(), first_step: 0, total_steps: 0 }
    }

    fn line(&mut self, line: &str) {
        if writeln!(self.out, "{line}").is_ok() {
            self.out.flush().unwrap_or_default();
        }
    }

    fn seconds_left(&self, step: u64) -> f64 {
        let made = step.saturating_sub(self.first_step).max(1);
        self.started.elapsed().as_secs_f64() / made as f64 * self.total_steps.saturating_sub(step) as f64
    }

    fn validated(&mut self, metrics: &Metrics, best: Option<&BestValidation>) {
        let metric = |metric: &Option<MetricValue>, before: &str| match metric {
            Some(metric) => format!(" {before}_{}={:.4}", metric.name, metric.value),
            None => String::new(),
        };
        let loss = metrics.eval_loss.unwrap_or(f64::NAN);
        let score = metric(&metrics.eval_metric, "eval");
        let best = best.map_or_else(String::new, |best| {
            format!(" best_step={} best_loss={:.4}{}", best.step, best.loss, metric(&best.metric, "best"))
        });
        let step = metrics.step;
        self.line(&format!("event=eval step={step}/{} eval_loss={loss:.4}{score}{best}", self.total_steps));
    }

    fn logged(&mut self, m: &Metrics) {
        let mut line = format!("event=train step={}/{} epoch={:.2}", m.step, self.total_steps, m.epoch);
        let values = [
            ("loss", m.loss.map(|v| format!("{v:.4}"))),
            ("learning_rate", m.learning_rate.map(|v| format!("{v:.3e}"))),
            ("grad_norm", m.grad_norm.map(|v| format!("{v:.3}"))),
            ("tokens_per_second", m.tokens_per_second.map(|v| format!("{v:.0}"))),
            ("memory_mb", resident_bytes().map(|bytes| (bytes >> 20).to_string())),
            ("gpu_memory_mb", m.gpu_memory_mb.map(|mb| mb.to_string())),
            ("gpu_used_mb", m.gpu_used_mb.map(|mb| mb.to_string())),
            ("gpu_reserved_mb", m.gpu_reserved_mb.map(|mb| mb.to_string())),
            ("seconds_left", Some(format!("{:.0}", self.seconds_left(m.step)))),
        ];
        for (key, value) in values {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        self.line(&line);
    }
}

impl<W: Write> ProgressSink for Lines<W> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { step, total_steps, parameters } => {
                (self.started, self.first_step, self.total_steps) = (Instant::now(), *step, *total_steps);
                self.line(&format!("event=start step={step}/{total_steps} trained_parameters={parameters}"));
            }
            Event::SelfTested(report) => self.line(&format!(
                "event=self_test parameters={} tokens={} difference={:.1e}",
                report.parameters, report.tokens, report.difference
            )),
            Event::Logged(metrics) => self.logged(metrics),
            Event::Validated { metrics, best } => self.validated(metrics, *best),
            Event::Saved { path } => self.line(&format!("event=checkpoint path={}", path.display())),
            Event::Ended { step, memory } => {
                let memory = memory.map(|memory| told(&memory)).unwrap_or_default();
                self.line(&format!("event=end step={step}/{}{memory}", self.total_steps));
            }
            Event::Stepped(_) => {}
        }
    }
}

/// What a run took of a device's memory, for a line.
fn told(memory: &DeviceMemory) -> String {
    format!(
        " gpu_memory_mb={} gpu_used_mb={} gpu_reserved_mb={} gpu_total_mb={}",
        memory.peak >> 20,
        memory.used >> 20,
        memory.reserved >> 20,
        memory.total >> 20
    )
}

/// Memory of this process that lies in RAM, where the system tells (Linux).
pub fn resident_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_a_log_needs() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out);
        lines.event(&Event::Started { step: 2, total_steps: 4, parameters: 10 });
        let metrics = Metrics {
            step: 3,
            epoch: 0.5,
            loss: Some(1.25),
            learning_rate: Some(2e-4),
            ..Metrics::default()
        };
        lines.event(&Event::Logged(&metrics));
        let validated = Metrics { step: 4, eval_loss: Some(1.0), ..Metrics::default() };
        let best = BestValidation { step: 4, loss: 1.0, metric: None };
        lines.event(&Event::Validated { metrics: &validated, best: Some(&best) });
        let metric = |value| Some(MetricValue { name: "f1".into(), value });
        let validated = Metrics { eval_metric: metric(0.25), ..validated };
        let best = BestValidation { step: 2, loss: 1.5, metric: metric(0.5) };
        lines.event(&Event::Validated { metrics: &validated, best: Some(&best) });
        lines.event(&Event::Ended { step: 4, memory: None });
        let memory =
            DeviceMemory { total: 8 << 30, free: 1 << 30, used: 1 << 30, peak: 3 << 30, reserved: 4 << 30 };
        lines.event(&Event::Logged(&Metrics { step: 4, ..Metrics::default() }.with_memory(Some(memory))));
        lines.event(&Event::Ended { step: 4, memory: Some(memory) });
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "event=start step=2/4 trained_parameters=10");
        assert!(
            lines[1].starts_with("event=train step=3/4 epoch=0.50 loss=1.2500 learning_rate=2.000e-4"),
            "{text}"
        );
        assert!(lines[1].contains(" seconds_left="));
        assert_eq!(lines[2], "event=eval step=4/4 eval_loss=1.0000 best_step=4 best_loss=1.0000");
        assert_eq!(
            lines[3],
            "event=eval step=4/4 eval_loss=1.0000 eval_f1=0.2500 best_step=2 best_loss=1.5000 best_f1=0.5000"
        );
        assert_eq!(lines[4], "event=end step=4/4");
        assert!(lines[5].contains(" gpu_memory_mb=3072 gpu_used_mb=1024 gpu_reserved_mb=4096 "), "{text}");
        assert!(lines[6].starts_with("event=end step=4/4 gpu_memory_mb=3072"), "{text}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_the_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
