//! GGUF files, and the texts that are made from one.

use super::config::sound_config;
use super::tokenizer::load_and_use;
use crate::GgufFile;
use serde_json::{Map, Value};
use taper_diagnostics::TextSource;
use taper_hub::gguf::{Companions, Header, hub_tensors, read_companions};
use taper_models::ModelConfig;
use taper_quant::GgmlType;
use taper_text::TokenizerFiles;

/// The longest tensor that is made for a described file, in bytes.
const LONGEST_TENSOR: usize = 1 << 16;

/// `bytes` as a whole file or, when they are a JSON object, as the description of one: `keys` with their values, and
/// `tensors` as lists of name, number of the type, and sizes, their bytes all 0.
///
/// # Panics
/// When a promise is broken: ranges outside the file, that overlap or are not as long as type and shape make them;
/// texts that are not JSON; what the readers of a configuration and a tokenizer promise.
pub fn gguf(bytes: &[u8]) -> bool {
    let described = serde_json::from_slice(bytes).ok().and_then(|object| built(&object));
    let file = described.as_deref().unwrap_or(bytes);
    let Ok(header) = Header::parse(file) else { return false };
    check_ranges(&header, file.len());
    if let Ok(tensors) = hub_tensors(&header) {
        assert!(tensors.iter().all(|tensor| header.tensors.contains_key(&tensor.source)));
    }
    let folder = tempfile::tempdir().expect("a folder for the file");
    let path = folder.path().join("model.gguf");
    fs_err::write(&path, file).expect("a file that can be written");
    if let Ok(texts) = read_companions(&path) {
        check_texts(texts);
    }
    true
}

fn check_ranges(header: &Header, file_len: usize) {
    let mut ranges = Vec::new();
    for (name, tensor) in &header.tensors {
        let elements = tensor.shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let bytes = elements.and_then(|n| tensor.ggml_type.bytes_of(n));
        assert_eq!(bytes, Some(tensor.range.len() as u64), "`{name}` is not as long as its shape");
        assert!(tensor.range.end <= file_len, "`{name}` lies outside the file");
        ranges.push((tensor.range.start, tensor.range.end));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors overlap: {ranges:?}");
}

fn check_texts(texts: Companions) {
    serde_json::from_str::<Map<String, Value>>(&texts.config).expect("the configuration is an object");
    if let Ok(config) = ModelConfig::parse(&texts.config) {
        sound_config(&config);
    }
    let made = |name: &str, text: Option<String>| text.map(|text| TextSource::made(name, text));
    let files = TokenizerFiles {
        tokenizer: made("tokenizer.json", texts.tokenizer),
        tokenizer_config: made("tokenizer_config.json", texts.tokenizer_config),
        generation_config: made("generation_config.json", texts.generation_config),
        ..TokenizerFiles::default()
    };
    load_and_use(&files);
}

/// The file that is described.
fn built(object: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut file = GgufFile::new();
    for (key, value) in object.get("keys")?.as_object()? {
        file = with_key(file, key, value);
    }
    for tensor in object.get("tensors").and_then(Value::as_array).into_iter().flatten() {
        let name = tensor.get(0)?.as_str()?;
        let type_id = u32::try_from(tensor.get(1)?.as_u64()?).ok()?;
        let sizes: Vec<usize> = tensor
            .get(2)?
            .as_array()?
            .iter()
            .map(|size| Some(size.as_u64()? as usize))
            .collect::<Option<_>>()?;
        let elements = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let bytes = elements.and_then(|n| GgmlType::from_id(type_id)?.bytes_of(n)).unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(LONGEST_TENSOR).min(LONGEST_TENSOR);
        file = file.tensor(name, type_id, &sizes, &vec![0; bytes]);
    }
    Some(file.bytes())
}

/// Whole numbers are of 32 bits where they fit, lists are of what their first entry is.
fn with_key(file: GgufFile, key: &str, value: &Value) -> GgufFile {
    const U64: u32 = 10;
    const I64: u32 = 11;
    match value {
        Value::Bool(flag) => file.flag(key, *flag),
        Value::String(text) => file.text(key, text),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(n), _) => match u32::try_from(n) {
                Ok(n) => file.u32(key, n),
                Err(_) => file.value(key, U64, &n.to_le_bytes()),
            },
            (None, Some(n)) => file.value(key, I64, &n.to_le_bytes()),
            (None, None) => file.f32(key, number.as_f64().unwrap_or(0.0) as f32),
        },
        Value::Array(items) => match items.first() {
            Some(Value::String(_)) => {
                let texts: Vec<&str> = items.iter().map(|item| item.as_str().unwrap_or_default()).collect();
                file.texts(key, &texts)
            }
            Some(Value::Bool(_)) => {
                let flags: Vec<bool> = items.iter().map(|item| item.as_bool().unwrap_or_default()).collect();
                file.flags(key, &flags)
            }
            Some(Value::Number(number)) if number.is_f64() => {
                let numbers = items.iter().map(|item| item.as_f64().unwrap_or_default() as f32);
                file.f32s(key, &numbers.collect::<Vec<_>>())
            }
            _ => {
                let numbers = items.iter().map(|item| item.as_i64().unwrap_or_default() as i32);
                file.i32s(key, &numbers.collect::<Vec<_>>())
            }
        },
        Value::Null | Value::Object(_) => file,
    }
}
