//! An adapter's folder, in anybody's layout.

use super::adapter_config::model;
use candle_core::{Device, Tensor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use taper_peft::{
    AdapterFile, AdapterWeights, CONFIG_FILE, HeadLayout, LoadMode, WEIGHTS_FILE, inspect, load_for,
};

/// The most values that are made for a described folder.
const MOST_VALUES: usize = 1 << 16;
/// Between configuration and weights.
const SEPARATOR: &[u8] = b"\n=====\n";

/// `bytes` as a folder: a configuration, a line of `=====`, and the bytes of the weights' file. Or, when they are a JSON object, its
/// description: `config`, `mlx` (whether the file has mlx-lm's name) and `tensors` with their shapes, whose values count up from 1.
///
/// # Panics
/// When a promise is broken: scales or norms that are no numbers, an adapter that is put on a model and cannot be taken off.
pub fn adapter(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder for the adapter");
    if fill(folder.path(), bytes).is_none() {
        return false;
    }
    if let Ok(file) = AdapterFile::read(folder.path()) {
        let count = file.into_weights(Some(HeadLayout::Halves)).map(|w| w.iter().count());
        assert!(count.is_ok_and(|n| n > 0), "tensors are lost");
    }
    let mut model = model();
    let heads = Some(HeadLayout::Interleaved { query: 2, key: 1 });
    if let Ok(adapter) = load_for(folder.path(), model.as_mut(), LoadMode::Inference, heads) {
        assert!(adapter.layers.iter().all(|layer| layer.rank > 0 && layer.scale.is_finite()));
        adapter.detach(model.as_mut()).expect("the base is restored");
    }
    let Ok(seen) = inspect(folder.path()) else { return false };
    for module in &seen.modules {
        assert!(module.scale.is_none_or(f64::is_finite), "`{}` has no scale", module.path);
        assert!(module.norm.is_none_or(|norm| norm >= 0.0), "`{}` has no norm", module.path);
    }
    assert_eq!(seen.consumers.len(), 7);
    true
}

/// Write the folder; `None` when there is nothing to write.
fn fill(folder: &Path, bytes: &[u8]) -> Option<()> {
    let (config, file, weights) = match serde_json::from_slice::<Map<String, Value>>(bytes) {
        Ok(described) => {
            let mlx = described.get("mlx").and_then(Value::as_bool).unwrap_or(false);
            let name = if mlx { "adapters.safetensors" } else { WEIGHTS_FILE };
            (described.get("config")?.to_string().into_bytes(), name, built(described.get("tensors")?)?)
        }
        Err(_) => {
            let at = bytes.windows(SEPARATOR.len()).position(|window| window == SEPARATOR)?;
            (bytes[..at].to_vec(), WEIGHTS_FILE, bytes[at + SEPARATOR.len()..].to_vec())
        }
    };
    fs_err::write(folder.join(CONFIG_FILE), config).expect("a file that can be written");
    fs_err::write(folder.join(file), weights).expect("a file that can be written");
    Some(())
}

fn built(tensors: &Value) -> Option<Vec<u8>> {
    let mut left = MOST_VALUES;
    let mut all = BTreeMap::new();
    for (name, shape) in tensors.as_object()? {
        let shape: Vec<usize> = shape
            .as_array()?
            .iter()
            .map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
            .collect::<Option<_>>()?;
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))?;
        left = left.checked_sub(count)?;
        let values: Vec<f32> = (1..=count).map(|i| i as f32).collect();
        all.insert(name.clone(), Tensor::from_vec(values, shape, &Device::Cpu).ok()?);
    }
    AdapterWeights::from_tensors(all).to_bytes().ok()
}
