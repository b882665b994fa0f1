//! A GGUF file under the Hub's names.

use super::{Checkpoint, CheckpointError, Element, Shard, Stored};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use taper_hub::gguf::{GgufError, Header, HubTensor, TensorInfo, hub_tensors, unpermuted_row};
use taper_hub::safetensors::Dtype;
use taper_kernels::MappedFile;
use taper_quant::GgmlType;

impl Checkpoint {
    /// Open a GGUF file. Tensors get the names that the Hub's files have, and the rows of queries and keys their order.
    ///
    /// # Errors
    /// When the file is not sound, or is of an architecture that is not read.
    pub fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let map = MappedFile::open(path)?;
        let fault = |source: GgufError| CheckpointError::Gguf { path: path.into(), source };
        let header = Header::parse(map.bytes()).map_err(fault)?;
        let mut tensors = BTreeMap::new();
        for named in hub_tensors(&header).map_err(fault)? {
            let Some(info) = header.tensors.get(&named.source) else { continue };
            let (name, stored) = placed(named, info);
            tensors.insert(name, stored);
        }
        Ok(Self { shards: vec![Shard { path: path.into(), map: Arc::new(map) }], tensors })
    }
}

fn placed(named: HubTensor, info: &TensorInfo) -> (String, Stored) {
    let element = match info.ggml_type {
        GgmlType::F32 => Element::Plain(Dtype::F32),
        GgmlType::F16 => Element::Plain(Dtype::F16),
        GgmlType::BF16 => Element::Plain(Dtype::BF16),
        blocks => Element::Blocks(blocks),
    };
    let (shape, range) = match named.part {
        None => (info.shape.clone(), info.range.clone()),
        Some(part) => (info.shape[1..].to_vec(), part_of(&info.range, part)),
    };
    (named.name, Stored { shard: 0, element, shape, range, undo: named.undo })
}

/// Part `i` of `n` equal ones.
fn part_of(whole: &Range<usize>, (i, n): (usize, usize)) -> Range<usize> {
    let each = whole.len() / n;
    whole.start + i * each..whole.start + (i + 1) * each
}

/// Rows of queries or keys, which GGUF has with the halves of each head interleaved, in the order of the Hub's files. Rows are whole blocks,
/// so their bytes move and none is decoded.
pub(super) fn rows_in_hub_order(bytes: &[u8], rows: usize, heads: usize) -> Cow<'_, [u8]> {
    let (head_dim, row_bytes) = (rows / heads.max(1), bytes.len() / rows.max(1));
    let mut ordered = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let from = unpermuted_row(heads, head_dim, row) * row_bytes;
        ordered.extend_from_slice(&bytes[from..from + row_bytes]);
    }
    Cow::Owned(ordered)
}
