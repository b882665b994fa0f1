//! The header of a safetensors file and the index of shards.

use taper_hub::ShardIndex;
use taper_hub::safetensors::{Header, SafetensorsError};

/// The longest body that is made for a header which wants one, in bytes.
const LONGEST_BODY: u64 = 1 << 16;

/// `bytes` as a whole file. Text is tried besides as an index, and as a header for which the length in front and the
/// tensors' bytes behind are made to fit.
///
/// # Panics
/// When a promise is broken: ranges that do not cover the file, shards with a folder in their names.
pub fn safetensors(bytes: &[u8]) -> bool {
    let mut accepted = header(bytes).is_ok();
    let Ok(text) = std::str::from_utf8(bytes) else { return accepted };
    if let Ok(index) = ShardIndex::parse(text) {
        accepted = true;
        assert!(!index.shards().is_empty());
        for shard in index.shards() {
            let path = std::path::Path::new(shard);
            assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(shard));
        }
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(bytes);
    // Each refusal names an end further back, or the same one, so that a few rounds find the file that is meant.
    for _ in 0..4 {
        match header(&file) {
            Err(SafetensorsError::CutOff { end, .. }) if end <= file.len() as u64 + LONGEST_BODY => {
                file.resize(end as usize, 0);
            }
            other => return accepted || other.is_ok(),
        }
    }
    accepted
}

fn header(file: &[u8]) -> Result<(), SafetensorsError> {
    let header = Header::parse(file)?;
    let mut ranges = Vec::new();
    for (name, tensor) in &header.tensors {
        let bytes = tensor.shape.iter().try_fold(tensor.dtype.bytes(), |n, &dim| n.checked_mul(dim));
        assert_eq!(bytes, Some(tensor.range.len()), "`{name}` is not as long as its shape");
        assert!(file.get(tensor.range.clone()).is_some(), "`{name}` lies outside the file");
        ranges.push((tensor.range.start, tensor.range.end));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "gaps or overlaps: {ranges:?}");
    assert!(ranges.last().is_none_or(|last| last.1 == file.len()), "bytes at the end belong to nothing");
    Ok(())
}
