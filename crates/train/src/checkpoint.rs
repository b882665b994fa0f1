//! `checkpoints/step-N/`: everything a run needs to go on as if it had never stopped.
//!
//! A checkpoint is written into a temporary folder beside its place, every file is flushed to the disk, and the folder is
//! renamed: a folder named `step-N` is whole (invariant 9). `trainer_state.json` lists the files and their lengths, so that a
//! folder which lost something later is passed over.

use crate::error::{Error, Result};
use crate::validator::{EVAL_LOSS, MetricValue};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use taper_data::DataLoaderState;
use taper_diagnostics::{sync_files, sync_folder};

/// The file that makes a folder a checkpoint.
pub const STATE_FILE: &str = "trainer_state.json";
/// The optimiser's moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const TEMPORARY: &str = ".unfinished-";

/// What a run knows at the end of a step, beside weights and moments. Random numbers are functions of seed and step, and so
/// is the learning rate; neither has a state of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Version of this file: 1.
    pub schema: u32,
    /// Steps made.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The run's seed.
    pub seed: u64,
    /// Where the data goes on.
    pub data: DataLoaderState,
    /// Hashes of what the run was made from (recipe, data, base), by name.
    pub fingerprints: BTreeMap<String, String>,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// What has been added up since the last line of the log.
    pub window: LogWindow,
    /// The best validation: by the loss, or by the metric that the run goes by.
    pub best: Option<BestValidation>,
    /// Validations since the best one.
    pub validations_since_best: u64,
    /// Files of the checkpoint and their lengths in bytes.
    pub files: BTreeMap<String, u64>,
}

/// Sums since the last line of the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogWindow {
    /// Losses over the targets, in nats.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Targets.
    pub target_tokens: u64,
    /// Tokens through the model, for the speed; like the seconds not saved, so that a checkpoint has the same bytes whenever it
    /// is written.
    #[serde(skip)]
    pub tokens: u64,
    /// Wall-clock seconds.
    #[serde(skip)]
    pub seconds: f64,
}

/// A validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestValidation {
    /// After which step.
    pub step: u64,
    /// Mean loss over the targets, in nats.
    #[serde(with = "exact")]
    pub loss: f64,
    /// The metric by which it is the best; `None` when that is the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricValue>,
}

impl BestValidation {
    /// What it is the best by, as `train.metric_for_best_model` names it.
    pub fn metric_name(&self) -> String {
        self.metric.as_ref().map_or_else(|| EVAL_LOSS.to_owned(), MetricValue::logged_name)
    }
}

/// Numbers as text: `serde_json` may read a number one bit off, and these must come back as they were.
pub(crate) mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl TrainerState {
    /// Whether the run that wrote this is the run that now goes on; what differs is named.
    ///
    /// # Errors
    /// [`Error::OtherRun`].
    pub fn check_same_run(&self, path: &Path, now: &TrainerState) -> Result<()> {
        let mut differences = Vec::new();
        let mut differ = |what: &str, then: &str, now: &str| {
            if then != now {
                differences.push(format!("{what} was `{then}`, is `{now}`"));
            }
        };
        for (name, value) in &now.fingerprints {
            differ(name, self.fingerprints.get(name).map_or("absent", String::as_str), value);
        }
        for (name, value) in
            self.fingerprints.iter().filter(|(name, _)| !now.fingerprints.contains_key(*name))
        {
            differ(name, value, "absent");
        }
        differ("the seed", &self.seed.to_string(), &now.seed.to_string());
        differ("the number of steps", &self.total_steps.to_string(), &now.total_steps.to_string());
        differ("the order of the data", &self.data.fingerprint, &now.data.fingerprint);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(Error::OtherRun { path: path.to_owned(), differences })
        }
    }
}

/// The folder of a run's checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
}

impl CheckpointStore {
    /// The checkpoints of the run in `run_folder`; nothing is made yet.
    pub fn new(run_folder: &Path) -> Self {
        Self { folder: run_folder.join("checkpoints") }
    }

    /// Where the checkpoint of a step is or would be.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// The steps of the complete checkpoints, in rising order.
    ///
    /// # Errors
    /// What the disk says.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> =
            self.names()?.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.retain(|step| self.is_complete(*step));
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest complete checkpoint.
    ///
    /// # Errors
    /// What the disk says.
    pub fn newest(&self) -> Result<Option<PathBuf>> {
        Ok(self.steps()?.last().map(|step| self.path(*step)))
    }

    /// The state in a checkpoint.
    ///
    /// # Errors
    /// When it cannot be read, or is not one that this version writes.
    pub fn state(&self, path: &Path) -> Result<TrainerState> {
        let file = path.join(STATE_FILE);
        let fault = |what: String| Error::Checkpoint { path: file.clone(), what };
        let text = fs::read_to_string(&file).map_err(disk("read", &file))?;
        let state: TrainerState = serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        if state.schema != 1 {
            return Err(fault(format!("the format {} is not known, only 1", state.schema)));
        }
        Ok(state)
    }

    /// Write the checkpoint of `state.step`: `fill` puts its files into a folder, which then becomes the checkpoint.
    ///
    /// # Errors
    /// What the disk or `fill` says; there is then no checkpoint of that step.
    pub fn write(&self, state: &TrainerState, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(state.step);
        fs::create_dir_all(&self.folder).map_err(disk("write", &self.folder))?;
        self.remove_unfinished()?;
        let temporary = self.folder.join(format!("{TEMPORARY}step-{}", state.step));
        fs::create_dir(&temporary).map_err(disk("write", &temporary))?;
        fill(&temporary)?;
        let state = TrainerState { files: lengths(&temporary)?, ..state.clone() };
        let text =
            serde_json::to_string_pretty(&state).map_err(|e| disk("write", &path)(io::Error::other(e)))?;
        fs::write(temporary.join(STATE_FILE), text).map_err(disk("write", &path))?;
        sync_files(&temporary).map_err(disk("write", &temporary))?;
        if path.exists() {
            self.discard(state.step)?;
        }
        fs::rename(&temporary, &path).map_err(disk("write", &path))?;
        sync_folder(&self.folder).map_err(disk("write", &self.folder))?;
        Ok(path)
    }

    /// Remove the oldest checkpoints until `limit` are left; never the newest, and never that of `best`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn rotate(&self, limit: usize, best: Option<u64>) -> Result<()> {
        let steps = self.steps()?;
        let newest = steps.last().copied();
        let removable = steps.iter().copied().filter(|step| Some(*step) != newest && Some(*step) != best);
        removable.take(steps.len().saturating_sub(limit.max(1))).try_for_each(|step| self.discard(step))
    }

    /// Remove all checkpoints: a run starts anew.
    ///
    /// # Errors
    /// What the disk says.
    pub fn clear(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with("step-")) {
            let path = self.folder.join(name);
            fs::remove_dir_all(&path).map_err(disk("remove", &path))?;
        }
        self.remove_unfinished()
    }

    /// Whether the folder has a readable state and every file that the state lists, at its length.
    fn is_complete(&self, step: u64) -> bool {
        let path = self.path(step);
        let Ok(state) = self.state(&path) else { return false };
        let whole = |(name, length): (&String, &u64)| {
            fs::metadata(path.join(name)).is_ok_and(|metadata| metadata.len() == *length)
        };
        state.step == step && !state.files.is_empty() && state.files.iter().all(whole)
    }

    fn names(&self) -> Result<Vec<String>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.folder).map_err(disk("read", &self.folder))?;
        let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(disk("read", &self.folder))
    }

    /// Remove a checkpoint. It first takes a temporary name: half of one must not be seen, not even after a kill.
    fn discard(&self, step: u64) -> Result<()> {
        let (path, temporary) = (self.path(step), self.folder.join(format!("{TEMPORARY}removed-{step}")));
        fs::rename(&path, &temporary).map_err(disk("remove", &path))?;
        fs::remove_dir_all(&temporary).map_err(disk("remove", &path))
    }

    /// Remove what a kill left of checkpoints that were being written or removed.
    ///
    /// # Errors
    /// What the disk says.
    pub fn remove_unfinished(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(TEMPORARY)) {
            let path = self.folder.join(name);
            fs::remove_dir_all(&path).map_err(disk("remove", &path))?;
        }
        Ok(())
    }
}

fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Disk { doing, path, source }
}

/// Name and length of every file in `folder`, which has no folders in it.
fn lengths(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let list = || -> io::Result<BTreeMap<String, u64>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
            })
            .collect()
    };
    list().map_err(disk("read", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> TrainerState {
        TrainerState {
            schema: 1,
            step,
            total_steps: 9,
            seed: 42,
            data: DataLoaderState { epoch: 0, step_in_epoch: step, fingerprint: "f".into() },
            fingerprints: BTreeMap::from([("recipe".to_owned(), "r1".to_owned())]),
            tokens: 7,
            window: LogWindow { loss_sum: 0.1 + 0.2, ..LogWindow::default() },
            best: Some(BestValidation { step: 1, loss: 5.300_000_000_000_001, metric: None }),
            validations_since_best: 0,
            files: BTreeMap::new(),
        }
    }

    fn written(store: &CheckpointStore, step: u64) -> PathBuf {
        let fill = |folder: &Path| {
            fs::write(folder.join("weights"), b"1234").unwrap();
            Ok(())
        };
        store.write(&state(step), fill).unwrap()
    }

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path());
        let path = written(&store, 3);
        let read = store.state(&path).unwrap();
        assert_eq!(read, TrainerState { files: BTreeMap::from([("weights".to_owned(), 4)]), ..state(3) });
        assert_eq!(store.newest().unwrap(), Some(path));
    }

    #[test]
    fn the_best_by_a_metric_comes_back_bit_for_bit_and_one_by_the_loss_is_as_it_always_was() {
        let by_loss = BestValidation { step: 1, loss: 0.1 + 0.2, metric: None };
        let text = serde_json::to_string(&by_loss).unwrap();
        assert_eq!(text, r#"{"step":1,"loss":"0.30000000000000004"}"#);
        assert_eq!(serde_json::from_str::<BestValidation>(&text).unwrap(), by_loss);
        let metric = MetricValue { name: "f1".into(), value: 0.7 + 0.1 };
        let by_metric = BestValidation { metric: Some(metric), ..by_loss };
        let text = serde_json::to_string(&by_metric).unwrap();
        assert_eq!(serde_json::from_str::<BestValidation>(&text).unwrap(), by_metric);
        assert_eq!(by_metric.metric_name(), "eval_f1");
    }

    #[test]
    fn what_is_incomplete_is_passed_over_and_litter_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path());
        assert_eq!(store.newest().unwrap(), None);
        written(&store, 1);
        fs::write(written(&store, 2).join("weights"), b"12").unwrap();
        fs::remove_file(written(&store, 3).join(STATE_FILE)).unwrap();
        fs::create_dir(store.folder.join(".unfinished-step-4")).unwrap();
        assert_eq!(store.steps().unwrap(), [1]);
        written(&store, 5);
        assert_eq!(store.steps().unwrap(), [1, 5]);
        assert!(!store.folder.join(".unfinished-step-4").exists());
    }

    #[test]
    fn a_failed_write_leaves_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path());
        assert!(store.write(&state(1), |_| Err(Error::NoParameters)).is_err());
        assert_eq!(store.steps().unwrap(), Vec::<u64>::new());
        written(&store, 1);
    }

    #[test]
    fn rotation_spares_the_newest_and_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path());
        (1..=5).for_each(|step| drop(written(&store, step)));
        store.rotate(3, Some(1)).unwrap();
        assert_eq!(store.steps().unwrap(), [1, 4, 5]);
        store.rotate(1, Some(4)).unwrap();
        assert_eq!(store.steps().unwrap(), [4, 5]);
        store.rotate(1, None).unwrap();
        assert_eq!(store.steps().unwrap(), [5]);
        store.clear().unwrap();
        assert_eq!(store.steps().unwrap(), Vec::<u64>::new());
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
        let (then, mut now) = (state(3), state(0));
        then.check_same_run(Path::new("c"), &now).unwrap();
        now.fingerprints =
            BTreeMap::from([("recipe".to_owned(), "r2".to_owned()), ("base".to_owned(), "b".to_owned())]);
        now.seed = 7;
        let error = then.check_same_run(Path::new("c"), &now).unwrap_err().to_string();
        for part in ["recipe was `r1`, is `r2`", "base was `absent`, is `b`", "the seed was `42`, is `7`"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
