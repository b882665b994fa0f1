//! The adapters that can be asked for, and those of them that are in memory.

use super::adapter::ServedAdapter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use taper_models::CausalLm;

/// Bounds of the pool.
#[derive(Debug, Clone, Copy)]
pub struct AdapterPoolOptions {
    /// Most bytes of adapters in memory, one that is being read aside; those used longest ago go first, and come back when asked for.
    pub max_bytes: usize,
    /// Most adapters that can be asked for.
    pub max_adapters: usize,
}

/// Says of an adapter's folder, each time before it is read, why it must not be used here: for another base, say.
pub type Admission = dyn Fn(&Path) -> Result<(), String> + Send + Sync;

/// What is told of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// The name it is asked for by.
    pub name: String,
    /// The method, for example `LORA`.
    pub peft_type: String,
    /// SHA-256 over its configuration and tensors, as hex.
    pub sha256: String,
    /// The first module that is more than a low-rank delta: with one, the adapter is used at scale 1 and alone.
    pub first_whole: Option<String>,
    /// Bytes it takes in memory.
    pub bytes: usize,
    /// Whether it is there now.
    pub is_resident: bool,
    /// How often it was read from the disk.
    pub loads: u64,
    /// How often it made room for others.
    pub evictions: u64,
    /// Seconds since 1970 when it was added.
    pub created: u64,
}

/// Why an adapter cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// No adapter has this name.
    #[error("no adapter is named `{0}`")]
    Unknown(String),
    /// The name is taken.
    #[error("an adapter is named `{0}` already")]
    Taken(String),
    /// There are as many as may be.
    #[error("there are {0} adapters already, which is the most there may be")]
    TooMany(usize),
    /// All memory for adapters is in use by requests.
    #[error("all memory for adapters is in use, and `{0}` does not fit beside them")]
    Full(String),
    /// It can never be read: it is larger than all memory for adapters.
    #[error("the adapter `{name}` takes {bytes} bytes, adapters may take {max_bytes} in all")]
    TooLarge {
        /// Its name.
        name: String,
        /// What it takes.
        bytes: usize,
        /// What there is.
        max_bytes: usize,
    },
    /// It cannot be used: not found, broken, for another base, changed. The reason names no folder.
    #[error("the adapter `{name}` cannot be used: {reason}")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
}

impl AdapterError {
    /// Clients know adapters by name: where they lie is nobody's business.
    pub(super) fn refused(name: &str, folder: &Path, reason: &str) -> Self {
        Self::Refused { name: name.to_owned(), reason: reason.replace(&folder.display().to_string(), name) }
    }
}

/// The adapters.
pub struct AdapterPool {
    base: Arc<dyn CausalLm>,
    admission: Box<Admission>,
    options: AdapterPoolOptions,
    state: Mutex<State>,
    /// Told when an adapter was read.
    read: Condvar,
    /// Held while one is read, so that one at a time is.
    reading: Mutex<()>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    clock: u64,
}

struct Entry {
    folder: PathBuf,
    info: AdapterInfo,
    resident: Option<Arc<ServedAdapter>>,
    is_reading: bool,
    used: u64,
}

impl AdapterPool {
    pub(crate) fn new(
        base: Arc<dyn CausalLm>,
        options: AdapterPoolOptions,
        admission: Box<Admission>,
    ) -> Self {
        let state = Mutex::default();
        Self { base, admission, options, state, read: Condvar::new(), reading: Mutex::default() }
    }

    /// Make the adapter in `folder` known as `name`, and read it. Blocks while it is read; others are served meanwhile. With
    /// `replace` one of the same name gives way (requests that use it end with it).
    ///
    /// # Errors
    /// When it cannot be used; one that was to give way stays.
    pub fn add(&self, name: &str, folder: &Path, replace: bool) -> Result<AdapterInfo, AdapterError> {
        {
            let state = self.lock();
            let known = state.entries.contains_key(name);
            if known && !replace {
                return Err(AdapterError::Taken(name.to_owned()));
            }
            if !known && state.entries.len() >= self.options.max_adapters {
                return Err(AdapterError::TooMany(self.options.max_adapters));
            }
        }
        let adapter = self.read(name, folder)?;
        let mut state = self.lock();
        if state.entries.contains_key(name) && !replace {
            return Err(AdapterError::Taken(name.to_owned()));
        }
        self.make_room(&mut state, &adapter)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let info = AdapterInfo {
            name: name.to_owned(),
            peft_type: adapter.peft_type().to_owned(),
            sha256: hex(adapter.sha256()),
            first_whole: adapter.first_whole().map(str::to_owned),
            bytes: adapter.bytes(),
            is_resident: true,
            loads: 1,
            evictions: 0,
            created,
        };
        state.clock += 1;
        let entry = Entry {
            folder: folder.to_owned(),
            info: info.clone(),
            resident: Some(Arc::new(adapter)),
            is_reading: false,
            used: state.clock,
        };
        state.entries.insert(name.to_owned(), entry);
        Ok(info)
    }

    /// Forget an adapter; requests that use it end with it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), AdapterError> {
        let removed = self.lock().entries.remove(name);
        // Who waits for it to be read learns that it is gone.
        self.read.notify_all();
        removed.map(drop).ok_or_else(|| AdapterError::Unknown(name.to_owned()))
    }

    /// The adapter, from memory or from the disk; blocks while it is read.
    ///
    /// # Errors
    /// When there is none of this name, or it can no longer be read as what it was.
    pub fn get(&self, name: &str) -> Result<Arc<ServedAdapter>, AdapterError> {
        let mut state = self.lock();
        let folder = loop {
            state.clock += 1;
            let now = state.clock;
            let Some(entry) = state.entries.get_mut(name) else {
                return Err(AdapterError::Unknown(name.to_owned()));
            };
            entry.used = now;
            if let Some(resident) = &entry.resident {
                return Ok(resident.clone());
            }
            if !entry.is_reading {
                entry.is_reading = true;
                break entry.folder.clone();
            }
            state = self.read.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let outcome = self.read(name, &folder);
        let outcome = self.take_in(name, &folder, outcome);
        self.read.notify_all();
        outcome
    }

    /// All adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.lock();
        let told =
            |entry: &Entry| AdapterInfo { is_resident: entry.resident.is_some(), ..entry.info.clone() };
        state.entries.values().map(told).collect()
    }

    /// What is told of one.
    pub fn info(&self, name: &str) -> Option<AdapterInfo> {
        self.list().into_iter().find(|info| info.name == name)
    }

    /// Bytes of adapters in memory.
    pub fn resident_bytes(&self) -> usize {
        self.lock().resident_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &str, folder: &Path) -> Result<ServedAdapter, AdapterError> {
        let _one_at_a_time = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        (self.admission)(folder).map_err(|reason| AdapterError::refused(name, folder, &reason))?;
        let adapter = ServedAdapter::read(name, folder, self.base.as_ref())?;
        if adapter.bytes() > self.options.max_bytes {
            let (bytes, max_bytes) = (adapter.bytes(), self.options.max_bytes);
            return Err(AdapterError::TooLarge { name: name.to_owned(), bytes, max_bytes });
        }
        Ok(adapter)
    }

    /// Take in what was read for an entry that was not in memory.
    fn take_in(
        &self,
        name: &str,
        folder: &Path,
        outcome: Result<ServedAdapter, AdapterError>,
    ) -> Result<Arc<ServedAdapter>, AdapterError> {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name).filter(|entry| entry.folder == folder) else {
            return Err(AdapterError::Unknown(name.to_owned()));
        };
        entry.is_reading = false;
        let adapter = outcome?;
        if hex(adapter.sha256()) != entry.info.sha256 {
            let reason = "its files have changed since it was loaded; unload it and load it again";
            return Err(AdapterError::refused(name, folder, reason));
        }
        self.make_room(&mut state, &adapter)?;
        let adapter = Arc::new(adapter);
        if let Some(entry) = state.entries.get_mut(name) {
            entry.info.loads += 1;
            entry.resident = Some(adapter.clone());
        }
        Ok(adapter)
    }

    /// Let go of adapters that no request uses until `adapter` fits.
    fn make_room(&self, state: &mut State, adapter: &ServedAdapter) -> Result<(), AdapterError> {
        while state.resident_bytes() + adapter.bytes() > self.options.max_bytes {
            let idle = state.entries.values_mut().filter(|entry| {
                entry.resident.as_ref().is_some_and(|resident| Arc::strong_count(resident) == 1)
            });
            match idle.min_by_key(|entry| entry.used) {
                Some(entry) => {
                    entry.resident = None;
                    entry.info.evictions += 1;
                }
                None => return Err(AdapterError::Full(adapter.name().to_owned())),
            }
        }
        Ok(())
    }
}

impl State {
    fn resident_bytes(&self) -> usize {
        self.entries.values().filter_map(|entry| entry.resident.as_ref()).map(|adapter| adapter.bytes()).sum()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
