//! Keys and values of the tokens that a sequence has already seen.

/// The cache of one sequence, a [`LayerCache`] for every block.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one block, `[L, K * D]` each, row-major f32, keys already rotated.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    /// Rotated keys.
    pub keys: Vec<f32>,
    /// Values.
    pub values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for a model of `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { layers: vec![LayerCache::default(); blocks] }
    }

    /// The cache of block `index`.
    ///
    /// # Panics
    /// When the model has more blocks than the cache was made for: a fault of the caller.
    pub fn layer_mut(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|l| 4 * (l.keys.capacity() + l.values.capacity())).sum()
    }

    /// Forget all tokens behind the first `tokens` (`width` = K * D of this model).
    pub fn truncate(&mut self, tokens: usize, width: usize) {
        for layer in &mut self.layers {
            layer.keys.truncate(tokens * width);
            layer.values.truncate(tokens * width);
        }
    }
}

impl LayerCache {
    /// Append the rows of new tokens.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }
}
