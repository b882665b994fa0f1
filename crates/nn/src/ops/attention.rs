//! Causal attention over the segments of a batch, with or without a cache.

use crate::storage::{Lent, f32_slice, filled, filled_like};
use crate::{ForwardContext, Result, SequenceLayout};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};
use std::sync::OnceLock;
use taper_kernels::attention as kernel;

pub use kernel::AttentionShape;

/// `softmax(q k^T * scale) v` per head, each token seeing itself and what stands before it in its segment.
///
/// q `[T, N D]`, k and v `[T, K D]` (already rotated) -> `[T, N D]`. With caches in `ctx`, the new keys and values are appended
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
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    if ctx.caches().is_some() {
        return cached(&q, &k, &v, layer, shape, ctx);
    }
    let segments = kernel_segments(ctx.layout());
    q.apply_op3(&k, &v, Attention { segments, shape: *shape, lse: OnceLock::new() })
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
    if q.track_op() || k.track_op() || v.track_op() {
        bail!("a cached pass has no gradient, yet one of its inputs is trained")
    }
    let layout = ctx.layout();
    let Some(caches) = ctx.caches() else { bail!("no cache") };
    let width = shape.kv_heads * shape.head_dim;
    let (q_lent, k_lent, v_lent) = (Lent::new(q), Lent::new(k), Lent::new(v));
    let (q_s, k_s, v_s) = (q_lent.f32()?, k_lent.f32()?, v_lent.f32()?);
    let mut queries = Vec::with_capacity(caches.len());
    for (cache, segment) in caches.iter_mut().zip(layout.segments()) {
        let rows = segment.start * width..segment.end * width;
        let layer_cache = cache.layer_mut(layer);
        layer_cache.append(&k_s[rows.clone()], &v_s[rows]);
        queries.push(kernel::CachedSegment {
            q_start: segment.start,
            q_len: segment.len(),
            kv_len: layer_cache.keys.len() / width,
            k: &layer_cache.keys,
            v: &layer_cache.values,
        });
    }
    filled_like(q, |out| {
        kernel::attention_cached(q_s, &queries, shape, out);
        Ok(())
    })
}

struct Attention {
    segments: Vec<kernel::Segment>,
    shape: AttentionShape,
    /// log-sum-exp of each row's scores, `[T, N]`, from the forward.
    lse: OnceLock<Vec<f32>>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (f32_slice(q, q_layout)?, f32_slice(k, k_layout)?, f32_slice(v, v_layout)?);
        let mut lse = vec![0f32; q.len() / self.shape.head_dim];
        let out = filled(q.len(), |out| {
            kernel::attention_forward(q, k, v, &self.segments, &self.shape, out, &mut lse);
            Ok(())
        })?;
        self.lse.get_or_init(|| lse);
        Ok((out, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(lse) = self.lse.get() else { bail!("backward before forward") };
        let g = g.contiguous()?;
        let (q_l, k_l, v_l, o_l, g_l) =
            (Lent::new(q), Lent::new(k), Lent::new(v), Lent::new(out), Lent::new(&g));
        let zeros = |like: &Tensor| vec![0f32; like.elem_count()];
        let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
        kernel::attention_backward(
            g_l.f32()?,
            q_l.f32()?,
            k_l.f32()?,
            v_l.f32()?,
            o_l.f32()?,
            lse,
            &self.segments,
            &self.shape,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
