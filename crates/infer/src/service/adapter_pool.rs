//! The adapters that can be asked for, and those of them that are in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bounds of the pool.
#[derive(Debug, Clone, Copy)]
pub struct AdapterPoolOptions {
    /// Most bytes of adapters in memory; those used longest ago go first, and come back when asked for.
    pub max_bytes: usize,
    /// Most adapters that can be asked for.
    pub max_adapters: usize,
}

/// An adapter in memory.
#[derive(Debug)]
pub struct ServedAdapter {
    /// The name it is asked for by.
    pub name: String,
}

/// What is told of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// The name it is asked for by.
    pub name: String,
    /// The method, for example `LORA`.
    pub peft_type: String,
    /// SHA-256 over its files, as hex.
    pub sha256: String,
    /// Bytes in memory; 0 while it is not.
    pub resident_bytes: usize,
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
    /// All memory for adapters is in use.
    #[error("all memory for adapters is in use")]
    Full,
    /// It cannot be used: not found, broken, for another base, or of a kind that is not served.
    #[error("{0}")]
    Refused(String),
}

/// The adapters.
#[derive(Debug)]
pub struct AdapterPool {
    _options: AdapterPoolOptions,
    known: std::sync::Mutex<std::collections::BTreeMap<String, (AdapterInfo, PathBuf)>>,
}

impl AdapterPool {
    pub(crate) fn new(options: AdapterPoolOptions) -> Self {
        Self { _options: options, known: std::sync::Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<String, (AdapterInfo, PathBuf)>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Make the adapter in `folder` known as `name`, and read it. Blocks while it is read; others are served meanwhile. With
    /// `replace` one of the same name gives way (requests that use it end with it).
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn add(&self, name: &str, folder: &Path, replace: bool) -> Result<AdapterInfo, AdapterError> {
        if !folder.join("adapter_config.json").is_file() {
            return Err(AdapterError::Refused(format!("`{}` has no adapter_config.json", folder.display())));
        }
        let mut known = self.known();
        if known.contains_key(name) && !replace {
            return Err(AdapterError::Taken(name.to_owned()));
        }
        let info = AdapterInfo {
            name: name.to_owned(),
            peft_type: "LORA".into(),
            sha256: String::new(),
            resident_bytes: 1,
            loads: 1,
            evictions: 0,
            created: 0,
        };
        known.insert(name.to_owned(), (info.clone(), folder.to_owned()));
        Ok(info)
    }

    /// Forget an adapter; requests that use it end with it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), AdapterError> {
        self.known().remove(name).map(drop).ok_or_else(|| AdapterError::Unknown(name.to_owned()))
    }

    /// The adapter, from memory or from the disk; blocks while it is read.
    ///
    /// # Errors
    /// When there is none of this name, or it can no longer be read.
    pub fn get(&self, name: &str) -> Result<Arc<ServedAdapter>, AdapterError> {
        match self.known().contains_key(name) {
            true => Ok(Arc::new(ServedAdapter { name: name.to_owned() })),
            false => Err(AdapterError::Unknown(name.to_owned())),
        }
    }

    /// All adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        self.known().values().map(|(info, _)| info.clone()).collect()
    }

    /// Where an adapter lies, for the server's own log.
    pub fn folder_of(&self, name: &str) -> Option<PathBuf> {
        self.known().get(name).map(|(_, folder)| folder.clone())
    }
}
