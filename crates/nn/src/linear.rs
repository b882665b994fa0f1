//! A linear layer with a slot for an adapter.

use crate::ops;
use crate::{ForwardContext, Parameter, ParameterKind, Result, Weight};
use candle_core::{DType, Device, Tensor, Var};
use std::sync::Arc;

/// What an adapter does to a linear layer.
pub trait LinearAdapter: Send + Sync + std::fmt::Debug {
    /// `[T, in] -> [T, out]` in the base's [`Linear::output_dtype`], the base's output included.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn forward(&self, x: &Tensor, base: &Linear, ctx: &ForwardContext<'_>) -> Result<Tensor>;

    /// The weight with the adapter merged into it, f32 `[out, in]`.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn merged_weight(&self, base: &Linear) -> Result<Tensor>;

    /// The bias that goes with it, f32 `[out]`; that of the base where the adapter leaves it alone.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn merged_bias(&self, base: &Linear) -> Result<Option<Tensor>> {
        Ok(base.bias())
    }

    /// Whether a head that shares the embedding's table still does with this: it is the same change on both.
    fn follows_embedding(&self) -> bool {
        false
    }

    /// The adapter as a delta `s (x A^T) B^T + s b` on the base's output, where that is all it does.
    fn low_rank(&self) -> Option<LowRankDelta<'_>> {
        None
    }
}

/// What makes a low-rank delta.
#[derive(Debug, Clone, Copy)]
pub struct LowRankDelta<'a> {
    /// A `[r, in]`.
    pub a: &'a Tensor,
    /// B `[out, r]`.
    pub b: &'a Tensor,
    /// b `[out]`, where there is one.
    pub bias: Option<&'a Tensor>,
    /// s.
    pub scale: f64,
}

/// `y = x W^T + b`, or what the adapter makes of it.
#[derive(Debug, Clone)]
pub struct Linear {
    path: String,
    weight: Weight,
    bias: Option<Tensor>,
    trainable_bias: Option<Var>,
    adapter: Option<Arc<dyn LinearAdapter>>,
    tied: bool,
    is_head: bool,
    place: Option<usize>,
    /// Where the layer is computed, if not where its weight lies.
    device: Option<Device>,
}

impl Linear {
    /// A layer named as in the checkpoint (without `.weight`), with a bias `[out]` in f32.
    pub fn new(path: impl Into<String>, weight: Weight, bias: Option<Tensor>) -> Self {
        Self {
            path: path.into(),
            weight,
            bias,
            trainable_bias: None,
            adapter: None,
            tied: false,
            is_head: false,
            place: None,
            device: None,
        }
    }

    /// A head over an embedding's table.
    pub fn tied(path: impl Into<String>, weight: Weight) -> Self {
        Self { tied: true, ..Self::new(path, weight, None) }.as_head()
    }

    /// The same as an output head: logits are f32 whatever the type of the input.
    pub fn as_head(self) -> Self {
        Self { is_head: true, ..self }
    }

    /// A layer in this one's place, with a weight and a bias `[out]` of its own and without an adapter.
    #[must_use]
    pub fn rebuilt(&self, weight: Weight, bias: Option<Tensor>) -> Self {
        let device = self.device.clone();
        Self {
            is_head: self.is_head,
            place: self.place,
            device,
            ..Self::new(self.path.clone(), weight, bias)
        }
    }

    /// Which of a model's layers this is to the routes of a pass ([`crate::number_modules`]); `None` for one that is not routed.
    pub(crate) fn place(&self) -> Option<usize> {
        self.place
    }

    pub(crate) fn set_place(&mut self, place: Option<usize>) {
        self.place = place;
    }

    /// Whether weight and bias are the very ones of `other`, adapters aside.
    pub(crate) fn shares_base_with(&self, other: &Self) -> bool {
        let bias = |linear: &Self| linear.bias().map(|bias| bias.id());
        let frozen = self.trainable_bias.is_none() && other.trainable_bias.is_none();
        frozen && bias(self) == bias(other) && self.weight.is_same(&other.weight)
    }

    /// The type of the output for an input `x`: that of x, but f32 for a head.
    pub fn output_dtype(&self, x: &Tensor) -> DType {
        if self.is_head { DType::F32 } else { x.dtype() }
    }

    /// The path in the checkpoint, without `.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the weight is the embedding's table.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// `in`.
    pub fn in_features(&self) -> usize {
        self.weight.dims().1
    }

    /// `out`.
    pub fn out_features(&self) -> usize {
        self.weight.dims().0
    }

    /// The base weight, `[out, in]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Put another weight of the same shape in place.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn set_weight(&mut self, weight: Weight) -> Result<()> {
        if weight.dims() != self.weight.dims() {
            candle_core::bail!(
                "`{}` has a weight of {:?}, not {:?}",
                self.path,
                self.weight.dims(),
                weight.dims()
            )
        }
        self.weight = weight;
        Ok(())
    }

    /// Where the layer is computed: what is put on it lies there. Its weight may have been left on the host ([`crate::move_to`]).
    pub fn device(&self) -> Device {
        self.device.clone().unwrap_or_else(|| self.weight.device())
    }

    /// Put the same weight, which lies on `device` or is copied there when it is used, in place, and the bias beside it.
    pub(crate) fn place_on(&mut self, weight: Weight, device: &Device) -> Result<()> {
        self.weight = weight;
        self.device = Some(device.clone());
        self.bias = self.bias.as_ref().map(|bias| crate::to_device(bias, device)).transpose()?;
        Ok(())
    }

    /// The bias, f32 `[out]`, outside any graph.
    pub fn bias(&self) -> Option<Tensor> {
        self.trainable_bias.as_ref().map(Var::as_detached_tensor).or_else(|| self.bias.clone())
    }

    /// Give the layer an adapter, or take it away.
    pub fn set_adapter(&mut self, adapter: Option<Arc<dyn LinearAdapter>>) {
        self.adapter = adapter;
    }

    /// The adapter in the slot.
    pub fn adapter(&self) -> Option<&Arc<dyn LinearAdapter>> {
        self.adapter.as_ref()
    }

    /// Train the weight itself (PEFT's `modules_to_save`, or full training). The head of a tied model is trained
    /// through the embedding.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_trainable(&mut self) -> Result<Vec<Parameter>> {
        let name = format!("{}.weight", self.path);
        self.weight = self.weight.to_device(&self.device())?;
        let mut made =
            vec![Parameter { name, kind: ParameterKind::Weight, var: self.weight.make_trainable()? }];
        made.extend(self.make_bias_trainable()?);
        Ok(made)
    }

    /// Train the bias, when there is one.
    ///
    /// # Errors
    /// What the conversion says.
    pub fn make_bias_trainable(&mut self) -> Result<Option<Parameter>> {
        let Some(bias) = self.bias() else { return Ok(None) };
        if self.trainable_bias.is_none() {
            self.trainable_bias = Some(Var::from_tensor(&bias)?);
        }
        let name = format!("{}.bias", self.path);
        Ok(self.trainable_bias.clone().map(|var| Parameter { name, kind: ParameterKind::Bias, var }))
    }

    /// The layer with its adapter: `[T, in] -> [T, out]`, in [`Self::output_dtype`]. Where the pass has routes, each of its rows with the
    /// adapters of its route.
    ///
    /// # Errors
    /// What the arithmetic says, with the layer's path.
    pub fn forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        match ctx.routes() {
            Some(routes) => routes.forward(self, x, ctx),
            None => self.own_forward(x, ctx),
        }
        .map_err(|e| e.context(format!("in `{}`", self.path)))
    }

    /// The layer with the adapter in its own slot, whatever the routes.
    pub(crate) fn own_forward(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        match &self.adapter {
            None => self.base_forward(x),
            Some(adapter) => adapter.forward(x, self, ctx),
        }
    }

    /// The layer without its adapter: `[T, in] -> [T, out]`, in [`Self::output_dtype`].
    ///
    /// # Errors
    /// What the arithmetic says.
    pub fn base_forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::linear(x, &self.weight, self.frozen_bias(), self.output_dtype(x))?;
        self.add_trainable_bias(y)
    }

    /// The bias that a fused op may add itself: one that is not trained.
    pub fn frozen_bias(&self) -> Option<&Tensor> {
        if self.trainable_bias.is_some() { None } else { self.bias.as_ref() }
    }

    /// Add the trained bias, when there is one, to the output `[T, out]`.
    ///
    /// # Errors
    /// What the arithmetic says.
    pub fn add_trainable_bias(&self, y: Tensor) -> Result<Tensor> {
        match &self.trainable_bias {
            Some(bias) => ops::add_bias(&y, bias.as_tensor()),
            None => Ok(y),
        }
    }
}
