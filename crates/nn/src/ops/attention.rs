//! Causal attention over the segments of a batch, with or without a cache.

#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Kept, Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply, is_tracked};
use crate::{ForwardContext, PAGE_TOKENS, Result, SequenceLayout};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Tensor, bail};
use std::sync::OnceLock;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::attention as device;
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
    #[cfg(feature = "cuda")]
    let on_device = match Place::of(&[q]) {
        Some(place) => Some(ctx.segments_on(&place, &segments)?),
        None => None,
    };
    let op = Attention {
        segments,
        shape: *shape,
        lse: OnceLock::new(),
        #[cfg(feature = "cuda")]
        on_device,
    };
    apply(op, &[q, k, v])
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
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::of(&[q]) {
        for (cache, segment) in caches.iter_mut().zip(layout.segments()) {
            cache.append_on(&place, layer, [k, v], segment.clone(), width)?;
        }
        return cached_on(&place, q, layer, shape, caches, layout);
    }
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

#[cfg(feature = "cuda")]
fn cached_on(
    place: &Place,
    q: &Tensor,
    layer: usize,
    shape: &AttentionShape,
    caches: &[&mut crate::KvCache],
    layout: &SequenceLayout,
) -> Result<Tensor> {
    let lents: Vec<Vec<[GpuLent<'_>; 2]>> =
        caches.iter().map(|cache| cache.lent_on(place, layer)).collect::<Result<_>>()?;
    let mut pages = Vec::with_capacity(lents.len());
    for lents in &lents {
        let mut of_one = Vec::with_capacity(lents.len());
        for [k, v] in lents {
            of_one.push(device::GpuCachePage { k: k.slice()?, v: v.slice()? });
        }
        pages.push(of_one);
    }
    let segments: Vec<_> = layout
        .segments()
        .iter()
        .zip(caches.iter().zip(&pages))
        .map(|(segment, (cache, pages))| device::GpuCachedSegment {
            q_start: segment.start,
            q_len: segment.len(),
            pages,
            kv_len: cache.tokens(layer),
        })
        .collect();
    let lent = GpuLent::new(place, q);
    let values = lent.slice()?;
    let path = device::Path::Best;
    let pages = device::CachedPages::new(place, &segments, PAGE_TOKENS, values.dtype(), shape, path);
    let pages = pages.map_err(failed)?;
    place.filled(q.dtype(), q.shape(), |out| {
        device::attention_cached(place, values, &pages, shape, out).map_err(failed)
    })
}

struct Attention {
    segments: Vec<kernel::Segment>,
    shape: AttentionShape,
    /// log-sum-exp of each row's scores, `[T, N]`, from the forward.
    lse: OnceLock<Kept>,
    #[cfg(feature = "cuda")]
    on_device: Option<std::sync::Arc<device::PackedSegments>>,
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
        self.lse.get_or_init(|| Kept::Host(lse));
        Ok(out)
    }

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let ([q, k, v], Some(segments)) = (inputs, &self.on_device) else { return Ok(None) };
        let (q_lent, k, v) = (GpuLent::new(place, q), GpuLent::new(place, k), GpuLent::new(place, v));
        let (q_s, k, v) = (q_lent.slice()?, k.slice()?, v.slice()?);
        let (path, mut out) = (device::Path::Best, None);
        let lse = place.filled(DType::F32, q_s.len() / self.shape.head_dim, |lse| {
            let fill = |out: &mut SliceMut<'_>| {
                device::attention_forward(place, q_s, k, v, segments, &self.shape, out, lse, path)
                    .map_err(failed)
            };
            out = Some(place.filled(q.dtype(), q.shape(), fill)?);
            Ok(())
        })?;
        self.lse.get_or_init(|| Kept::Device(lse));
        Ok(out)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let (Some(lse), Some(segments)) = (self.lse.get().and_then(Kept::device), &self.on_device) else {
            return Ok(false);
        };
        let (q, k, v) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let lent = [g.as_ref(), q, k, v, saved.output()?, lse].map(|tensor| GpuLent::new(place, tensor));
        let [g, q_s, k_s, v_s, out, lse] = &lent;
        let (g, q_s, k_s, v_s) = (g.f32()?, q_s.slice()?, k_s.slice()?, v_s.slice()?);
        let read = device::Saved { g, q: q_s, k: k_s, v: v_s, out: out.slice()?, lse: lse.f32()? };
        let (mut dk, mut dv) = (None, None);
        let dq = place.filled(DType::F32, q.shape(), |dq| {
            dk = Some(place.filled(DType::F32, k.shape(), |dk| {
                let fill = |dv: &mut SliceMut<'_>| {
                    let path = device::Path::Best;
                    device::attention_backward(place, &read, segments, &self.shape, dq, dk, dv, path)
                        .map_err(failed)
                };
                dv = Some(place.filled(DType::F32, v.shape(), fill)?);
                Ok(())
            })?);
            Ok(())
        })?;
        for (index, gradient) in [Some(dq), dk, dv].into_iter().flatten().enumerate() {
            to.pass(index, &Gradient::new(gradient))?;
        }
        Ok(true)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let Some(lse) = self.lse.get() else { bail!("backward before forward") };
        let (q, k, v) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let (q, k, v, out) = (Lent::new(q), Lent::new(k), Lent::new(v), Lent::new(saved.output()?));
        let (q, k, v, out) = (q.floats()?, k.floats()?, v.floats()?, out.floats()?);
        let (g, lse) = (Lent::new(g), lse.host()?);
        let (mut dq, mut dk, mut dv) =
            (floats::buffer(q.len()), floats::buffer(k.len()), floats::buffer(v.len()));
        let (segments, shape) = (&self.segments, &self.shape);
        kernel::attention_backward(g.f32()?, q, k, v, out, lse, segments, shape, &mut dq, &mut dk, &mut dv);
        to.take(0, dq)?;
        to.take(1, dk)?;
        to.take(2, dv)
    }
}
