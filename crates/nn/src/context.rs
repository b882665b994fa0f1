//! What a forward pass carries besides the activations.

use crate::{KvCache, Result, Routes, SequenceLayout};
use candle_core::Tensor;
use taper_kernels::rng::{CounterRng, mix, stream_of};

/// The key of every random number of one micro-batch: numbers depend on it and on the place where they are used, never
/// on the order of calls (invariant 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step, from 0.
    pub step: u64,
    /// The micro-batch within the step, from 0.
    pub micro_batch: u64,
}

impl RandomKey {
    /// The generator of one place, for example a module's path with the purpose behind it.
    pub fn rng(&self, place: &str) -> CounterRng {
        CounterRng::new(mix(self.seed, mix(self.step, self.micro_batch)), stream_of(place))
    }
}

/// Cosines and sines of one rotary embedding at the batch's positions, each `[T, rotary_dim / 2]` f32.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    /// Cosines, `[T, rotary_dim / 2]`.
    pub cos: Tensor,
    /// Sines, `[T, rotary_dim / 2]`.
    pub sin: Tensor,
}

impl RotaryTables {
    /// The same where `x` lies.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn on_device_of(&self, x: &Tensor) -> Result<Self> {
        Ok(Self {
            cos: crate::to_device(&self.cos, x.device())?,
            sin: crate::to_device(&self.sin, x.device())?,
        })
    }
}

/// What every block of one forward pass shares.
pub struct ForwardContext<'a> {
    layout: &'a SequenceLayout,
    random: Option<RandomKey>,
    caches: Option<Vec<&'a mut KvCache>>,
    rotary: Vec<Option<RotaryTables>>,
    routes: Option<&'a Routes<'a>>,
    #[cfg(feature = "cuda")]
    segments: std::cell::OnceCell<std::sync::Arc<taper_kernels::cuda::attention::PackedSegments>>,
}

impl<'a> ForwardContext<'a> {
    /// A pass without dropout and without a cache.
    pub fn new(layout: &'a SequenceLayout) -> Self {
        Self {
            layout,
            random: None,
            caches: None,
            rotary: Vec::new(),
            routes: None,
            #[cfg(feature = "cuda")]
            segments: std::cell::OnceCell::new(),
        }
    }

    /// A training pass: dropout is on, keyed by `key`.
    pub fn training(layout: &'a SequenceLayout, key: RandomKey) -> Self {
        Self { random: Some(key), ..Self::new(layout) }
    }

    /// A pass that reads and extends one cache per segment.
    pub fn cached(layout: &'a SequenceLayout, caches: Vec<&'a mut KvCache>) -> Self {
        debug_assert_eq!(layout.segments().len(), caches.len());
        Self { caches: Some(caches), ..Self::new(layout) }
    }

    /// The same pass, its rows going through the adapters of `routes`.
    #[must_use]
    pub fn routed(self, routes: Option<&'a Routes<'a>>) -> Self {
        Self { routes, ..self }
    }

    /// Which rows go through which adapters; `None` where all go through those in the modules' own slots.
    pub fn routes(&self) -> Option<&'a Routes<'a>> {
        self.routes
    }

    /// The batch's segments and positions.
    pub fn layout(&self) -> &'a SequenceLayout {
        self.layout
    }

    /// The key of random numbers; `None` outside training.
    pub fn random(&self) -> Option<RandomKey> {
        self.random
    }

    /// The caches of the segments, in their order; `None` when nothing is cached.
    pub fn caches(&mut self) -> Option<&mut [&'a mut KvCache]> {
        self.caches.as_deref_mut()
    }

    /// The batch's segments on a device, made once and shared by the layers.
    #[cfg(feature = "cuda")]
    pub(crate) fn segments_on(
        &self,
        place: &crate::cuda::Place,
        segments: &[taper_kernels::attention::Segment],
    ) -> Result<std::sync::Arc<taper_kernels::cuda::attention::PackedSegments>> {
        if let Some(held) = self.segments.get() {
            return Ok(held.clone());
        }
        let made = taper_kernels::cuda::attention::PackedSegments::new(place, segments)
            .map_err(crate::cuda::failed)?;
        Ok(self.segments.get_or_init(|| std::sync::Arc::new(made)).clone())
    }

    /// Rotary tables number `index` of this batch, made once by `make` and shared by the layers that ask.
    ///
    /// # Errors
    /// What `make` says.
    pub fn rotary(
        &mut self,
        index: usize,
        make: impl FnOnce(&SequenceLayout) -> Result<RotaryTables>,
    ) -> Result<RotaryTables> {
        if self.rotary.len() <= index {
            self.rotary.resize(index + 1, None);
        }
        if let Some(tables) = &self.rotary[index] {
            return Ok(tables.clone());
        }
        let tables = make(self.layout)?;
        self.rotary[index] = Some(tables.clone());
        Ok(tables)
    }
}
