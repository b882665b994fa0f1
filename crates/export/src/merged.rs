//! A whole model in the Hub's layout.

use crate::error::doing;
use crate::folder::NewFolder;
use crate::shards::{Entry, ShardWriter};
use crate::{Error, MergedDtype, Result};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use taper_diagnostics::TextSource;
use taper_hub::ModelFiles;
use taper_models::CausalLm;
use taper_nn::{Linear, ModuleMut, Weight};

/// Bytes of tensors in a file, at most: what transformers takes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The longest text that is read; a tokenizer.json of 262k entries takes 34 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// What goes along unchanged from the base, where it is there.
const COMPANIONS: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
];

/// How a model is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeOptions {
    /// The type of the weights.
    pub dtype: MergedDtype,
    /// A chat template that takes the place of the base's.
    pub chat_template: Option<PathBuf>,
    /// Ids that end an answer in the chat format of the training. Those that the base's `generation_config.json` does not name are
    /// added to its `eos_token_id`: an engine that does not stop there writes on as the user.
    pub stop_ids: Vec<u32>,
    /// Bytes of tensors in a file, at most; a larger model is sharded.
    pub max_shard_bytes: u64,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            dtype: MergedDtype::Auto,
            chat_template: None,
            stop_ids: Vec::new(),
            max_shard_bytes: MAX_SHARD_BYTES,
        }
    }
}

/// A model that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenModel {
    /// The folder.
    pub folder: PathBuf,
    /// The files in it, sorted by name.
    pub files: Vec<String>,
    /// The type of the weights.
    pub dtype: DType,
    /// Bytes of the weights.
    pub weight_bytes: u64,
}

/// Write the model with what is attached to it into `folder`: each adapter merged into its weight (`W + s B A`, summed in f32 and
/// then rounded once), trained biases, norms and embeddings in place of the base's. After full training this is the model itself.
///
/// One matrix is made, converted a piece at a time, and written before the next. Over a model that was loaded with
/// [`taper_models::load_on_disk`] no more than that is in memory: the adapter, and the largest matrix as it is read, in f32 and merged.
///
/// `base` gives `config.json` (written in the layout it has, with the new type, and without the quantisation of a base that was decoded), the tokenizer's files and the licence. The folder
/// appears as a whole, and takes the place of one that was there. A head that shares the embedding's table is left out, as in the base;
/// if it has an adapter of its own it is written, and `tie_word_embeddings` becomes false.
///
/// # Errors
/// When a weight is not finite in the asked type, `config.json` cannot be read, or the disk fails.
pub fn write_merged(
    model: &mut dyn CausalLm,
    base: &ModelFiles,
    folder: &Path,
    options: &MergeOptions,
) -> Result<WrittenModel> {
    let mut config = read_object(&base.config)?;
    let generation = stopping_at(&options.stop_ids, base.generation_config.as_ref(), &config)?;
    let dtype = match options.dtype.dtype() {
        Some(dtype) => dtype,
        None => dtype_of(&config, base.config.path())?,
    };
    let new = NewFolder::new(folder)?;
    let (entries, tied) = plan(model)?;
    let mut writer = ShardWriter::new(new.path(), entries, dtype, options.max_shard_bytes);
    each_tensor(model, |name, tensor| writer.push(&name, &tensor()?))?;
    let (_, weight_bytes) = writer.finish()?;

    set_dtype(&mut config, dtype);
    // What is written is dense, whatever the base was.
    config.shift_remove("quantization_config");
    // Without the key, the architecture decides: Gemma's ties.
    if model.config().tie_word_embeddings != tied {
        config.insert("tie_word_embeddings".into(), Value::Bool(tied));
    }
    let text = format!("{:#}\n", Value::Object(config));
    write(&new.path().join("config.json"), text.as_bytes())?;
    copy_companions(base, options, new.path())?;
    if let Some(generation) = generation {
        let text = format!("{:#}\n", Value::Object(generation));
        write(&new.path().join("generation_config.json"), text.as_bytes())?;
    }
    let files = names(new.path())?;
    let folder = new.place()?;
    Ok(WrittenModel { folder, files, dtype, weight_bytes })
}

/// The tensors to write, in the order of the visit, and whether a tied head was left out.
fn plan(model: &mut dyn CausalLm) -> Result<(Vec<Entry>, bool)> {
    let mut entries = Vec::new();
    let mut tied = false;
    let mut homeless = None;
    let mut add = |path: &str, suffix: &str, shape: &[usize]| {
        entries.push(Entry { name: format!("{path}.{suffix}"), shape: shape.to_vec() });
    };
    model
        .visit_modules(&mut |module| {
            match module {
                ModuleMut::Linear(m) if shares_its_weight(m) => tied = true,
                ModuleMut::Linear(m) => {
                    add(m.path(), "weight", &[m.out_features(), m.in_features()]);
                    if let Some(bias) = merged_bias(m)? {
                        add(m.path(), "bias", bias.dims());
                        if m.bias().is_none() {
                            homeless.get_or_insert_with(|| m.path().to_owned());
                        }
                    }
                }
                ModuleMut::Embedding(m) => {
                    let (rows, columns) = m.weight().dims();
                    add(m.path(), "weight", &[rows, columns]);
                }
                ModuleMut::RmsNorm(m) => add(m.path(), "weight", m.weight().dims()),
            }
            Ok(())
        })
        .map_err(doing("list the model's tensors"))?;
    match homeless {
        Some(path) => Err(Error::BiasWithoutPlace { path }),
        None => Ok((entries, tied)),
    }
}

/// A head over the embedding's table that nothing was added to but what was added there.
fn shares_its_weight(linear: &Linear) -> bool {
    linear.is_tied() && linear.adapter().is_none_or(|adapter| adapter.follows_embedding())
}

fn merged_bias(linear: &Linear) -> taper_nn::Result<Option<Tensor>> {
    match linear.adapter() {
        Some(adapter) => adapter.merged_bias(linear),
        None => Ok(linear.bias()),
    }
}

/// Show each tensor of the plan, made when it is asked for.
fn each_tensor(
    model: &mut dyn CausalLm,
    mut take: impl FnMut(String, &dyn Fn() -> Result<Tensor>) -> Result<()>,
) -> Result<()> {
    // The visit speaks candle's errors; ours waits outside.
    let mut failed = None;
    let visited =
        model.visit_modules(&mut |module| {
            let outcome =
                match module {
                    ModuleMut::Linear(m) if shares_its_weight(m) => Ok(()),
                    ModuleMut::Linear(m) => take(format!("{}.weight", m.path()), &|| linear_weight(m))
                        .and_then(|()| match merged_bias(m).map_err(doing("merge a bias"))? {
                            Some(bias) => take(format!("{}.bias", m.path()), &|| Ok(bias.clone())),
                            None => Ok(()),
                        }),
                    ModuleMut::Embedding(m) => take(format!("{}.weight", m.path()), &|| {
                        match m.adapter() {
                            Some(adapter) => adapter.merged_weight(m),
                            None => stored(m.weight()),
                        }
                        .map_err(doing("read an embedding"))
                    }),
                    ModuleMut::RmsNorm(m) => take(format!("{}.weight", m.path()), &|| Ok(m.weight())),
                };
            outcome.or_else(|error| {
                failed = Some(error);
                candle_core::bail!("stopped")
            })
        });
    match (failed, visited) {
        (Some(error), _) => Err(error),
        (None, visited) => visited.map_err(doing("read the model's tensors")),
    }
}

fn linear_weight(linear: &Linear) -> Result<Tensor> {
    match linear.adapter() {
        Some(adapter) => adapter.merged_weight(linear).map_err(doing("merge an adapter into its weight")),
        None => stored(linear.weight()).map_err(doing("read a weight")),
    }
}

/// The weight in the type it is held in, so that what nothing was done to keeps its bits; decoded where it is quantised.
fn stored(weight: &Weight) -> taper_nn::Result<Tensor> {
    match weight {
        Weight::Frozen(weight) => weight.to_dense(),
        Weight::Trainable(_) => weight.to_f32(),
    }
}

/// `generation_config.json` with these ids among those that end a text, where the base's does not have them; the model's own
/// configuration stands for one that is not there, as in transformers.
fn stopping_at(
    stop_ids: &[u32],
    generation: Option<&TextSource>,
    config: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>> {
    let mut generation = match generation {
        Some(source) => read_object(source)?,
        None => {
            Map::from_iter(config.get("eos_token_id").map(|ids| ("eos_token_id".to_owned(), ids.clone())))
        }
    };
    let mut ids: Vec<Value> = match generation.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.clone(),
        Some(one) => vec![one.clone()],
    };
    let known = ids.len();
    for id in stop_ids {
        if !ids.iter().any(|known| known.as_u64() == Some(u64::from(*id))) {
            ids.push(Value::from(*id));
        }
    }
    if ids.len() == known {
        return Ok(None);
    }
    generation.insert("eos_token_id".into(), Value::Array(ids));
    Ok(Some(generation))
}

fn read_object(source: &TextSource) -> Result<Map<String, Value>> {
    let text = read(source)?;
    let bad = |reason: String| Error::Config { path: source.path().into(), reason };
    match serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))? {
        Value::Object(config) => Ok(config),
        _ => Err(bad("it is not an object".into())),
    }
}

/// The type that a model's configuration says its weights have.
///
/// # Errors
/// When the configuration cannot be read, or says another type than f32, bf16 or f16.
pub fn declared_dtype(files: &ModelFiles) -> Result<DType> {
    dtype_of(&read_object(&files.config)?, files.config.path())
}

/// transformers 5 writes `dtype`, earlier ones `torch_dtype`; without either, f32.
fn dtype_of(config: &Map<String, Value>, path: &Path) -> Result<DType> {
    let declared =
        ["dtype", "torch_dtype"].into_iter().filter_map(|key| config.get(key)).find(|v| !v.is_null());
    let Some(declared) = declared else { return Ok(DType::F32) };
    let Some(name) = declared.as_str() else {
        return Err(Error::Config { path: path.into(), reason: format!("`dtype` is `{declared}`") });
    };
    match name.trim_start_matches("torch.") {
        "float32" => Ok(DType::F32),
        "bfloat16" => Ok(DType::BF16),
        "float16" => Ok(DType::F16),
        other => Err(Error::Dtype { given: other.into() }),
    }
}

/// Under the key that the file has.
fn set_dtype(config: &mut Map<String, Value>, dtype: DType) {
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    let key = if config.contains_key("torch_dtype") && !config.contains_key("dtype") {
        "torch_dtype"
    } else {
        "dtype"
    };
    config.insert(key.into(), name.into());
    if config.contains_key("torch_dtype") {
        config.insert("torch_dtype".into(), name.into());
    }
}

fn copy_companions(base: &ModelFiles, options: &MergeOptions, folder: &Path) -> Result<()> {
    for name in COMPANIONS {
        let to = folder.join(name);
        if name == "chat_template.jinja" && options.chat_template.is_some() {
            continue;
        }
        // What lies beside a GGUF file is not its own; what was made from it is written.
        if base.gguf.is_some() {
            if let Some(source) = base.companion(name) {
                write(&to, &read(source)?)?;
            }
            continue;
        }
        let from = base.root.join(name);
        if from.is_file() {
            copy(&from, &to)?;
        }
    }
    match &options.chat_template {
        Some(template) => copy(template, &folder.join("chat_template.jinja")),
        None => Ok(()),
    }
}

fn read(source: &TextSource) -> Result<Vec<u8>> {
    source.read(MAX_TEXT_BYTES).map_err(|error| Error::Read { path: source.path().into(), source: error })
}

/// The content, not the permissions: a cache's files may be read-only.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = fs_err::File::open(from).map_err(|source| Error::Read { path: from.into(), source })?;
    let named = |source| Error::Write { path: to.into(), source };
    let mut target = fs_err::File::create(to).map_err(named)?;
    std::io::copy(&mut source, &mut target).map_err(named)?;
    Ok(())
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs_err::write(path, bytes).map_err(|source| Error::Write { path: path.into(), source })
}

pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let read = |source| Error::Read { path: folder.into(), source };
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(read)? {
        names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn an_answer_ends_where_it_was_trained_to() {
        let made = |text: &str| TextSource::made("generation_config.json", text);
        let config = object(&json!({ "eos_token_id": 0 }));
        let with =
            |stop: &[u32], text: Option<&str>| stopping_at(stop, text.map(made).as_ref(), &config).unwrap();
        assert_eq!(with(&[2], Some(r#"{"eos_token_id": 2, "top_p": 0.9}"#)), None);
        assert_eq!(with(&[], None), None);
        let added = with(&[0, 2], Some(r#"{"eos_token_id": 0, "top_p": 0.9}"#)).unwrap();
        assert_eq!(Value::Object(added), json!({ "eos_token_id": [0, 2], "top_p": 0.9 }));
        let alone = with(&[2], Some("{}")).unwrap();
        assert_eq!(alone["eos_token_id"], json!([2]));
        assert_eq!(with(&[0], None), None);
        assert_eq!(with(&[0, 2], None).unwrap()["eos_token_id"], json!([0, 2]));
        assert!(stopping_at(&[2], Some(&made("[]")), &config).is_err());
    }

    #[test]
    fn the_type_is_read_and_written_under_the_key_that_the_file_has() {
        let path = Path::new("config.json");
        for (key, other) in [("dtype", "torch_dtype"), ("torch_dtype", "dtype")] {
            let mut config = object(&json!({ "a": 1, key: "bfloat16", "z": 2 }));
            assert_eq!(dtype_of(&config, path).unwrap(), DType::BF16);
            set_dtype(&mut config, DType::F16);
            assert_eq!(config[key], "float16");
            assert!(!config.contains_key(other));
            assert_eq!(config.keys().collect::<Vec<_>>(), ["a", key, "z"]);
        }
        let mut none = object(&json!({ "a": 1 }));
        assert_eq!(dtype_of(&none, path).unwrap(), DType::F32);
        set_dtype(&mut none, DType::F32);
        assert_eq!(none["dtype"], "float32");
        let odd = object(&json!({ "dtype": "float8_e4m3fn" }));
        assert!(dtype_of(&odd, path).unwrap_err().to_string().contains("float8_e4m3fn"));
    }
}
