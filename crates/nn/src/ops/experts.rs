//! Sending each token to a few of many experts.
//!
//! The choice itself is not differentiable; its weights are, with respect to the router's logits. Only rows that were routed to an expert
//! reach it, and everything is summed by rising expert, so a result does not depend on threads.

use crate::Result;
use crate::storage::{Lent, f32_slice, filled, filled_like, with_f32};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};
use std::borrow::Cow;
use std::sync::Arc;
use taper_kernels::gemm::WeightView;
use taper_kernels::{embedding, routing as kernel};

/// Which k of E experts each of T tokens goes to.
#[derive(Debug, Clone)]
pub struct Routing {
    k: usize,
    /// The experts of each token, rising, `[T, k]`.
    chosen: Arc<[u32]>,
    /// For each expert the places (token * k + slot) that are its own, rising.
    places: Vec<Vec<u32>>,
}

impl Routing {
    /// Each token to the k experts with the largest logits `[T, E]`.
    ///
    /// # Errors
    /// When k is not within 1 to E.
    pub fn top_k(logits: &Tensor, k: usize) -> Result<Self> {
        let (t, experts) = logits.dims2()?;
        if !(1..=experts).contains(&k) {
            bail!("{k} of {experts} experts a token")
        }
        let mut chosen = vec![0u32; t * k];
        with_f32(&logits.contiguous()?, |logits| kernel::top_k(logits, experts, k, &mut chosen))?;
        let mut places = vec![Vec::new(); experts];
        for (place, expert) in chosen.iter().enumerate() {
            places[*expert as usize].push(place as u32);
        }
        Ok(Self { k, chosen: chosen.into(), places })
    }

    /// The tokens of an expert, rising.
    pub fn tokens_of(&self, expert: usize) -> Vec<u32> {
        self.places[expert].iter().map(|place| place / self.k as u32).collect()
    }
}

/// The weights `[T, k]` of the chosen experts: softmax over all logits `[T, E]`, divided by the sum of the chosen where `normalised`.
///
/// # Errors
/// When the logits are not those of the routing.
pub fn routing_weights(logits: &Tensor, routing: &Routing, normalised: bool) -> Result<Tensor> {
    let (t, experts) = logits.dims2()?;
    if t * routing.k != routing.chosen.len() || experts != routing.places.len() {
        bail!("logits of [{t}, {experts}] for a routing of {} places", routing.chosen.len())
    }
    let (k, chosen) = (routing.k, routing.chosen.clone());
    logits.contiguous()?.apply_op1(Weights { k, chosen, normalised })
}

struct Weights {
    k: usize,
    chosen: Arc<[u32]>,
    normalised: bool,
}

impl CustomOp1 for Weights {
    fn name(&self) -> &'static str {
        "routing-weights"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (t, experts) = layout.shape().dims2()?;
        let logits = f32_slice(logits, layout)?;
        let weights = filled(t * self.k, |weights| {
            kernel::weights_forward(logits, experts, &self.chosen, self.k, self.normalised, weights);
            Ok(())
        })?;
        Ok((weights, Shape::from((t, self.k))))
    }

    fn bwd(&self, logits: &Tensor, _weights: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (experts, g) = (logits.dims2()?.1, g.contiguous()?);
        let (g_lent, logits_lent) = (Lent::new(&g), Lent::new(logits));
        let (g_s, logits_s) = (g_lent.f32()?, logits_lent.f32()?);
        let dlogits = filled_like(logits, |dlogits| {
            kernel::weights_backward(g_s, logits_s, experts, &self.chosen, self.k, self.normalised, dlogits);
            Ok(())
        })?;
        Ok(Some(dlogits))
    }
}

/// Rows `tokens` of x `[T, H]`, none of them twice -> `[n, H]`.
///
/// # Errors
/// When a row is not below T.
pub fn rows(x: &Tensor, tokens: Vec<u32>) -> Result<Tensor> {
    let t = x.dims2()?.0;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= t) {
        bail!("row {token} of {t}")
    }
    x.contiguous()?.apply_op1(Rows { tokens })
}

struct Rows {
    tokens: Vec<u32>,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, h) = (f32_slice(x, layout)?, layout.shape().dims2()?.1);
        let y = filled(self.tokens.len() * h, |y| {
            embedding::gather(WeightView::F32(x), h, &self.tokens, y);
            Ok(())
        })?;
        Ok((y, Shape::from((self.tokens.len(), h))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (h, g) = (x.dims2()?.1, g.contiguous()?);
        let lent = Lent::new(&g);
        let g_s = lent.f32()?;
        let dx = filled_like(x, |dx| {
            embedding::scatter_add(g_s, &self.tokens, dx, h);
            Ok(())
        })?;
        Ok(Some(dx))
    }
}

/// `[T, H]`: each token's sum of what its experts gave times their weights `[T, k]`. Parts: experts, each once, and `[n, H]` for the n tokens
/// that [`Routing::tokens_of`] says.
///
/// Parts that lead to nothing trained are kept out of the graph, which would otherwise make gradients for them.
///
/// # Errors
/// When the parts are not those of the routing.
pub fn mix_experts(parts: Vec<(usize, Tensor)>, weights: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (t, k) = weights.dims2()?;
    let Some(width) = parts.first().map(|(_, part)| part.dims2()).transpose()?.map(|(_, width)| width) else {
        bail!("no expert's part to mix")
    };
    let (tracked, constant): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, part)| part.track_op());
    let mut places = Vec::with_capacity(t * k);
    for (expert, part) in tracked.iter().chain(&constant) {
        let own = &routing.places[*expert];
        if part.dims() != [own.len(), width] {
            bail!("expert {expert} gave {:?} for {} tokens of width {width}", part.dims(), own.len())
        }
        places.extend_from_slice(own);
    }
    if places.len() != t * k || k != routing.k {
        bail!("{} parts for {t} tokens of {k} experts", places.len())
    }
    let mut rows = vec![0u32; places.len()];
    for (row, place) in places.iter().enumerate() {
        rows[*place as usize] = row as u32;
    }
    let mut constants = Vec::new();
    for (_, part) in &constant {
        with_f32(&part.contiguous()?, |values| constants.extend_from_slice(values))?;
    }
    let mix = Mix { k, width, places, rows, constants };
    let weights = weights.contiguous()?;
    if tracked.is_empty() {
        return weights.apply_op1(mix);
    }
    let tracked: Vec<Tensor> = tracked.into_iter().map(|(_, part)| part).collect();
    Tensor::cat(&tracked, 0)?.contiguous()?.apply_op2(&weights, mix)
}

struct Mix {
    k: usize,
    width: usize,
    /// For each row of the parts its place.
    places: Vec<u32>,
    /// For each place the row of its part.
    rows: Vec<u32>,
    /// The last rows of the parts, those that nothing trained came before.
    constants: Vec<f32>,
}

impl Mix {
    fn all_parts<'a>(&'a self, tracked: &'a [f32]) -> Cow<'a, [f32]> {
        match (tracked.is_empty(), self.constants.is_empty()) {
            (true, _) => (&self.constants).into(),
            (_, true) => tracked.into(),
            _ => [tracked, &self.constants[..]].concat().into(),
        }
    }

    fn forward(&self, tracked: &[f32], weights: &[f32]) -> Result<(CpuStorage, Shape)> {
        let t = weights.len() / self.k;
        let parts = self.all_parts(tracked);
        let out = filled(t * self.width, |out| {
            kernel::mix_forward(&parts, weights, &self.rows, self.k, self.width, out);
            Ok(())
        })?;
        Ok((out, Shape::from((t, self.width))))
    }

    fn backward_weights(&self, tracked: &[f32], weights: &Tensor, g: &[f32]) -> Result<Option<Tensor>> {
        if !weights.track_op() {
            return Ok(None);
        }
        let parts = self.all_parts(tracked);
        let dweights = filled_like(weights, |dweights| {
            kernel::mix_backward_weights(g, &parts, &self.rows, self.k, self.width, dweights);
            Ok(())
        })?;
        Ok(Some(dweights))
    }
}

impl CustomOp1 for Mix {
    fn name(&self) -> &'static str {
        "mix-experts"
    }

    fn cpu_fwd(&self, weights: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[], f32_slice(weights, layout)?)
    }

    fn bwd(&self, weights: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        self.backward_weights(&[], weights, Lent::new(&g).f32()?)
    }
}

impl CustomOp2 for Mix {
    fn name(&self) -> &'static str {
        "mix-experts"
    }

    fn cpu_fwd(
        &self,
        parts: &CpuStorage,
        parts_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(f32_slice(parts, parts_layout)?, f32_slice(weights, weights_layout)?)
    }

    fn bwd(
        &self,
        parts: &Tensor,
        weights: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (g_lent, parts_lent, weights_lent) = (Lent::new(&g), Lent::new(parts), Lent::new(weights));
        let (g_s, weights_s) = (g_lent.f32()?, weights_lent.f32()?);
        let dparts = filled_like(parts, |dparts| {
            kernel::mix_backward_parts(g_s, weights_s, &self.places, self.k, self.width, dparts);
            Ok(())
        })?;
        Ok((Some(dparts), self.backward_weights(parts_lent.f32()?, weights, g_s)?))
    }
}
