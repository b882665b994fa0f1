//! Causal attention over the segments of a batch, with or without a cache.

use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply, is_tracked};
use crate::{ForwardContext, PAGE_TOKENS, Result, SequenceLayout};
use candle_core::{Device, Tensor, bail};
use std::sync::OnceLock;
use taper_kernels::{attention as kernel, floats};

pub use kernel::AttentionShape;

/// `softmax(q k^T * scale) v` per head, each token seeing itself and what stands before it in its segment.
///
/// q `[T, N D]`, k and v `[T, K D]` (already rotated) -> `[T, N D]` in the type of q. With caches in `ctx`, the new keys and values are appended
/// to the cache of block `layer`, and the queries see the whole of it; such a pass is not differentiable.
///
/// # Errors
/// When the shapes do not fit, or a cached pass is asked for a gradient.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    shape: &AttentionShape,
    ctx: &mut ForwardContext<'_>,
) -> Result<Tensor> {
    check(q, k, v, shape, ctx.layout())?;
    if ctx.caches().is_some() {
        return cached(q, k, v, layer, shape, ctx);
    }
    let segments = kernel_segments(ctx.layout());
    apply(Attention { segments, shape: *shape, lse: OnceLock::new() }, &[q, k, v])
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape, layout: &SequenceLayout) -> Result<()> {
    let t = layout.tokens();
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    if q.dims() != [t, queries] || k.dims() != [t, keys] || v.dims() != [t, keys] {
        bail!(
            "attention of {} heads over {} with heads of {} wants [{t}, {queries}] and [{t}, {keys}], got {:?}, {:?}, {:?}",
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            q.dims(),
            k.dims(),
            v.dims()
        )
    }
    Ok(())
}

fn kernel_segments(layout: &SequenceLayout) -> Vec<kernel::Segment> {
    layout.segments().iter().map(|s| kernel::Segment { q_start: s.start, q_len: s.len() }).collect()
}

fn cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    shape: &AttentionShape,
    ctx: &mut ForwardContext<'_>,
) -> Result<Tensor> {
    if [q, k, v].into_iter().any(is_tracked) {
        bail!("a cached pass has no gradient, yet one of its inputs is trained")
    }
    let layout = ctx.layout();
    let Some(caches) = ctx.caches() else { bail!("no cache") };
    let width = shape.kv_heads * shape.head_dim;
    let (q_lent, k_lent, v_lent) = (Lent::new(q), Lent::new(k), Lent::new(v));
    let (q_s, k_s, v_s) = (q_lent.floats()?, k_lent.floats()?, v_lent.floats()?);
    for (cache, segment) in caches.iter_mut().zip(layout.segments()) {
        let rows = segment.start * width..segment.end * width;
        cache.append(layer, k_s.part(rows.clone()), v_s.part(rows), width)?;
    }
    let pages: Vec<_> = caches.iter().map(|cache| (cache.tokens(layer), cache.views(layer))).collect();
    let queries: Vec<kernel::CachedSegment<'_>> = layout
        .segments()
        .iter()
        .zip(&pages)
        .map(|(segment, (kv_len, pages))| kernel::CachedSegment {
            q_start: segment.start,
            q_len: segment.len(),
            pages,
            page_tokens: PAGE_TOKENS,
            kv_len: *kv_len,
        })
        .collect();
    filled(q.dtype(), q.shape(), |out| {
        kernel::attention_cached(q_s, &queries, shape, out);
        Ok(())
    })
}

struct Attention {
    segments: Vec<kernel::Segment>,
    shape: AttentionShape,
    /// log-sum-exp of each row's scores, `[T, N]`, from the forward.
    lse: OnceLock<Tensor>,
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [q, k, v] = inputs else { bail!("takes queries, keys and values") };
        let (q_lent, k_lent, v_lent) = (Lent::new(q), Lent::new(k), Lent::new(v));
        let (q_s, k_s, v_s) = (q_lent.floats()?, k_lent.floats()?, v_lent.floats()?);
        let mut lse = floats::buffer(q_s.len() / self.shape.head_dim);
        let out = filled(q.dtype(), q.shape(), |out| {
            kernel::attention_forward(q_s, k_s, v_s, &self.segments, &self.shape, out, &mut lse);
            Ok(())
        })?;
        let lse = Tensor::from_vec(lse, (q_s.len() / self.shape.head_dim,), &Device::Cpu)?;
        self.lse.get_or_init(|| lse);
        Ok(out)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let Some(lse) = self.lse.get() else { bail!("backward before forward") };
        let (q, k, v) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let (q, k, v, out) = (Lent::new(q), Lent::new(k), Lent::new(v), Lent::new(saved.output()?));
        let (q, k, v, out) = (q.floats()?, k.floats()?, v.floats()?, out.floats()?);
        let (g, lse) = (Lent::new(g), Lent::new(lse));
        let lse = lse.f32()?;
        let (mut dq, mut dk, mut dv) =
            (floats::buffer(q.len()), floats::buffer(k.len()), floats::buffer(v.len()));
        let (segments, shape) = (&self.segments, &self.shape);
        kernel::attention_backward(g.f32()?, q, k, v, out, lse, segments, shape, &mut dq, &mut dk, &mut dv);
        to.take(0, dq)?;
        to.take(1, dk)?;
        to.take(2, dv)
    }
}
