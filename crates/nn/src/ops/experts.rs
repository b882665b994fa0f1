//! Sending each token to a few of many experts.
//!
//! The choice itself is not differentiable; its weights are, with respect to the router's logits. Only rows that were routed to an expert
//! reach it, and everything is summed by rising expert, so a result does not depend on threads.

use crate::Result;
use crate::storage::{Lent, filled_f32, with_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
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
        with_f32(logits, |logits| kernel::top_k(logits, experts, k, &mut chosen))?;
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
    apply(Weights { k, chosen, normalised }, &[logits])
}

struct Weights {
    k: usize,
    chosen: Arc<[u32]>,
    normalised: bool,
}

impl Op for Weights {
    fn name(&self) -> &'static str {
        "routing-weights"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (t, experts) = inputs[0].dims2()?;
        let logits = Lent::new(inputs[0]);
        let logits = logits.f32()?;
        filled_f32((t, self.k), |weights| {
            kernel::weights_forward(logits, experts, &self.chosen, self.k, self.normalised, weights);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let experts = saved.shape(0).dims2()?.1;
        let (g, logits) = (Lent::new(g), Lent::new(saved.input(0)?));
        let (g, logits) = (g.f32()?, logits.f32()?);
        to.write(0, |dlogits| {
            dlogits.fill(0.0);
            kernel::weights_backward(g, logits, experts, &self.chosen, self.k, self.normalised, dlogits);
            Ok(())
        })
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
    apply(Rows { tokens }, &[x])
}

struct Rows {
    tokens: Vec<u32>,
}

impl Op for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let h = inputs[0].dims2()?.1;
        let x = Lent::new(inputs[0]);
        let x = x.f32()?;
        filled_f32((self.tokens.len(), h), |y| {
            embedding::gather(WeightView::F32(x), h, &self.tokens, y);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let h = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(0, |dx, accumulate| {
            if !accumulate {
                dx.fill(0.0);
            }
            embedding::scatter_add(g, &self.tokens, dx, h);
            Ok(())
        })
    }
}

/// `[T, H]`: each token's sum of what its experts gave times their weights `[T, k]`. Parts: experts, each once, and `[n, H]` for the n tokens
/// that [`Routing::tokens_of`] says.
///
/// # Errors
/// When the parts are not those of the routing.
pub fn mix_experts(parts: &[(usize, Tensor)], weights: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (t, k) = weights.dims2()?;
    let Some(width) = parts.first().map(|(_, part)| part.dims2()).transpose()?.map(|(_, width)| width) else {
        bail!("no expert's part to mix")
    };
    let mut places = Vec::with_capacity(t * k);
    for (expert, part) in parts {
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
    let inputs: Vec<&Tensor> = [weights].into_iter().chain(parts.iter().map(|(_, part)| part)).collect();
    apply(Mix { k, width, places, rows }, &inputs)
}

/// Inputs: the weights, then the parts.
struct Mix {
    k: usize,
    width: usize,
    /// For each row of the parts its place.
    places: Vec<u32>,
    /// For each place the row of its part.
    rows: Vec<u32>,
}

impl Mix {
    /// The parts one below the other.
    fn joined<'t>(&self, parts: impl Iterator<Item = Result<&'t Tensor>>) -> Result<Vec<f32>> {
        let mut joined = Vec::with_capacity(self.places.len() * self.width);
        for part in parts {
            with_f32(part?, |values| joined.extend_from_slice(values))?;
        }
        Ok(joined)
    }
}

impl Op for Mix {
    fn name(&self) -> &'static str {
        "mix-experts"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [weights, parts @ ..] = inputs else { bail!("takes weights and parts") };
        let parts = self.joined(parts.iter().map(|part| Ok(*part)))?;
        let t = weights.dims2()?.0;
        let weights = Lent::new(weights);
        let weights = weights.f32()?;
        filled_f32((t, self.width), |out| {
            kernel::mix_forward(&parts, weights, &self.rows, self.k, self.width, out);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (g, weights) = (Lent::new(g), Lent::new(saved.input(0)?));
        let (g, weights) = (g.f32()?, weights.f32()?);
        let count = saved.count();
        if to.wants(0) {
            let parts = self.joined((1..count).map(|index| saved.input(index)))?;
            to.write(0, |dweights| {
                kernel::mix_backward_weights(g, &parts, &self.rows, self.k, self.width, dweights);
                Ok(())
            })?;
        }
        let mut first = 0;
        for index in 1..count {
            let rows = saved.shape(index).dims2()?.0;
            let places = &self.places[first..first + rows];
            to.write(index, |dpart| {
                kernel::mix_backward_parts(g, weights, places, self.k, self.width, dpart);
                Ok(())
            })?;
            first += rows;
        }
        Ok(())
    }
}
