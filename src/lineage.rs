//! What a result stands on: hashes of the recipe, the data, the base and what was trained, beside the results as `eval/lock.json`.

use crate::candidates::adapter_fingerprint;
use crate::card::public_name;
use crate::fault::{OrFault, user_error};
use crate::session::Session;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taper_diagnostics::write_bytes_atomically;
use taper_hub::{Fingerprint, HashCache, ModelFiles};
use taper_recipe::Recipe;

/// The file, in a run's folder.
pub(crate) const LOCK_FILE: &str = "eval/lock.json";
/// The version of its form.
const SCHEMA: u32 = 1;
/// Sections whose change makes no result another one: what is asked of it, what is said of it, what else is done with it.
const WITHOUT_EFFECT: [&str; 8] =
    ["name", "description", "extends", "gate", "report", "cost", "serve", "smoke"];

/// What a result stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lock {
    schema: u32,
    /// The version that made it.
    pub(crate) taper: String,
    /// Of every section of the recipe that results depend on, its hash.
    pub(crate) recipe: BTreeMap<String, String>,
    /// Of every file that the recipe names, its hash, by the file's name.
    pub(crate) files: BTreeMap<String, String>,
    /// The base: its name and the hash of its files.
    pub(crate) base: (String, String),
    /// Hash of what was trained.
    pub(crate) trained: Option<String>,
    /// Of every file of the results, its hash.
    pub(crate) results: BTreeMap<String, String>,
}

impl Lock {
    /// What the results that were just written stand on.
    pub(crate) fn of(session: &Session, written: &[&Path]) -> anyhow::Result<Self> {
        let recipe = &session.run.recipe;
        let hashes = HashCache::from_env();
        let results = written.iter().map(|path| {
            let name = path.strip_prefix(&session.folder).unwrap_or(path).to_string_lossy().into_owned();
            Ok((name, Fingerprint::of_file(path).or_fault()?.as_str().to_owned()))
        });
        let base = session.base.files.fingerprint_with(hashes.as_ref()).or_fault()?;
        Ok(Self {
            schema: SCHEMA,
            taper: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: hashes_of_recipe(recipe)?,
            files: hashes_of_files(recipe)?,
            base: (public_name(&session.base.source), base.as_str().to_owned()),
            trained: trained(&session.folder, session.trains_all_weights())?,
            results: results.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Write it into the run's folder.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let text = format!("{:#}\n", serde_json::to_value(self)?);
        Ok(write_bytes_atomically(&folder.join(LOCK_FILE), text.as_bytes())?)
    }

    /// Read the one of a run.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(LOCK_FILE);
        let broken = |reason: String| {
            user_error(
                format!("`{}` is no record of an evaluation: {reason}", path.display()),
                "evaluate again with `taper eval` or `taper run`, which write it",
            )
        };
        let bytes = fs_err::read(&path).map_err(|error| broken(error.to_string()))?;
        let lock: Self = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if lock.schema == SCHEMA { Ok(lock) } else { Err(broken(format!("its version is {}", lock.schema))) }
    }

    /// For people: what and its hash.
    pub(crate) fn told(&self) -> Vec<(String, String)> {
        let mut told = vec![(format!("base {}", self.base.0), self.base.1.clone())];
        told.extend(self.trained.iter().map(|hash| ("trained".to_owned(), hash.clone())));
        told.extend(self.files.iter().map(|(name, hash)| (name.clone(), hash.clone())));
        let recipe = Fingerprint::of_bytes(json!(self.recipe).to_string().as_bytes());
        told.push(("recipe".to_owned(), recipe.as_str().to_owned()));
        told.push(("taper".to_owned(), self.taper.clone()));
        told
    }
}

/// A hash of what a run trained; `None` where it is not there.
pub(crate) fn trained(folder: &Path, is_full: bool) -> anyhow::Result<Option<String>> {
    let folder = folder.join(if is_full { "merged" } else { "adapter" });
    if !folder.is_dir() {
        return Ok(None);
    }
    let hash = match is_full {
        true => {
            let files = ModelFiles::of_folder(&folder).or_fault()?;
            files.fingerprint_with(HashCache::from_env().as_ref()).or_fault()?
        }
        false => adapter_fingerprint(&folder)?,
    };
    Ok(Some(hash.as_str().to_owned()))
}

/// Of each section that results depend on, a hash. Paths count by their last part: what the files hold is hashed by itself.
pub(crate) fn hashes_of_recipe(recipe: &Recipe) -> anyhow::Result<BTreeMap<String, String>> {
    let Value::Object(sections) = serde_json::to_value(recipe)? else { return Ok(BTreeMap::new()) };
    let counted = sections.into_iter().filter(|(name, _)| !WITHOUT_EFFECT.contains(&name.as_str()));
    let hashed = counted.map(|(name, mut value)| {
        bare_paths(&mut value);
        // Whether work is kept changes no result.
        if let (true, Value::Object(table)) = (name == "data", &mut value) {
            table.shift_remove("cache");
        }
        (name, Fingerprint::of_bytes(value.to_string().as_bytes()).as_str().to_owned())
    });
    Ok(hashed.collect())
}

fn bare_paths(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('/') || text.contains('\\') => {
            let last = text.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default().to_owned();
            *text = last;
        }
        Value::Array(items) => items.iter_mut().for_each(bare_paths),
        Value::Object(table) => table.values_mut().for_each(bare_paths),
        _ => {}
    }
}

/// Of every file that the recipe names, its hash.
pub(crate) fn hashes_of_files(recipe: &Recipe) -> anyhow::Result<BTreeMap<String, String>> {
    let data = &recipe.data;
    let lists = [&data.train, &data.valid, &data.test].into_iter();
    let lists = lists.chain(recipe.eval.iter().flat_map(|eval| [&eval.data, &eval.few_shot_data]));
    let mut paths: Vec<&PathBuf> = lists.flat_map(|list| list.paths()).collect();
    paths.extend(&recipe.model.chat_template);
    paths.extend(recipe.eval.iter().filter_map(|eval| eval.schema.as_ref()));
    let mut hashes = BTreeMap::new();
    for path in paths {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let hash = Fingerprint::of_file(path).or_fault()?.as_str().to_owned();
        // Files of one name in several folders are told apart by their order in the recipe, which no checkout changes.
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let is_free = |key: &String| hashes.get(key).is_none_or(|known| *known == hash);
        let key = std::iter::once(name.clone()).chain(numbered).find(is_free);
        hashes.insert(key.unwrap_or(name), hash);
    }
    Ok(hashes)
}
