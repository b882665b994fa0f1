//! [`crate::attention`] on a device.
//!
//! Queries, keys and values in bf16 with heads of 64, 96, 128 or 256 columns go through tensor cores (`cuda/flash.cu`); everything else
//! goes through plain kernels (`cuda/attention.cu`), which take heads of up to 256 columns. The gradients of the first are those of `g`
//! rounded to bf16.

use super::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, launch};
use crate::attention::{AttentionShape, Segment};
use cudarc::driver::{CudaSlice, DevicePtr};
use half::bf16;
use std::marker::PhantomData;

/// Rows that a block of the tensor-core kernels owns.
const TILE_ROWS: usize = 64;
const FLASH_THREADS: (u32, u32, u32) = (128, 1, 1);
/// Rows that a block of the plain kernels has, a warp each.
const PLAIN_ROWS: usize = 4;
const PLAIN_THREADS: (u32, u32, u32) = (128, 1, 1);
/// Threads that share one query over a cache.
const CACHED_THREADS: (u32, u32, u32) = (256, 1, 1);
/// Rows of [`row_blocks`], a warp each.
const ROWS_OF_A_BLOCK: usize = 8;
/// New queries of a sequence from which on its cache is read by tiles: with fewer most of a tile's rows would be empty.
const MANY_QUERIES: usize = 16;
/// The widest head of the plain kernels.
const MAX_HEAD_DIM: usize = 256;

/// Which kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Tensor cores where they can be had.
    Best,
    /// The plain kernels, which the others are tested against.
    Plain,
}

/// The segments of a packed batch on the device: made once, used by all layers.
#[derive(Debug)]
pub struct PackedSegments {
    /// For each token the first row of its segment and the row after its last; then for each tile its segment's first row and length, and
    /// the place of its own first row.
    table: CudaSlice<i32>,
    tokens: usize,
    tiles: usize,
}

impl PackedSegments {
    /// The segments are the rows 0..T in order.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a segment does not start where the last one ended, or there are 2^31 rows.
    pub fn new(gpu: &Gpu, segments: &[Segment]) -> Result<Self, GpuError> {
        let (mut table, mut tokens) = (Vec::new(), 0);
        for (i, segment) in segments.iter().enumerate() {
            assert_eq!(segment.q_start, tokens, "segment {i} starts at the wrong row");
            tokens += segment.q_len;
            let bounds = [int(segment.q_start), int(tokens)];
            table.extend(std::iter::repeat_n(bounds, segment.q_len).flatten());
        }
        let cut = |s: &Segment| {
            let (start, len) = (s.q_start, s.q_len);
            (0..len).step_by(TILE_ROWS).map(move |first| [int(start), int(len), int(first)])
        };
        let mut tiles: Vec<[i32; 3]> = segments.iter().flat_map(cut).collect();
        // Late queries see more keys, and long tasks should start first.
        tiles.sort_by_key(|[_, _, first]| std::cmp::Reverse(*first));
        table.extend(tiles.iter().flatten());
        Ok(Self { table: gpu.upload(&table)?, tokens, tiles: tiles.len() })
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The addresses of the bounds of rows and of the tiles.
    fn ptrs(&self, gpu: &Gpu) -> (u64, u64) {
        let (ptr, _guard) = self.table.device_ptr(gpu.stream());
        (ptr, ptr + (2 * self.tokens * size_of::<i32>()) as u64)
    }
}

/// Keys and values of some positions of a sequence that follow each other, `[P, K*D]` each.
#[derive(Debug, Clone, Copy)]
pub struct GpuCachePage<'a> {
    /// Keys.
    pub k: Slice<'a>,
    /// Values.
    pub v: Slice<'a>,
}

/// New queries of one sequence against its cache, as [`crate::attention::CachedSegment`].
#[derive(Debug, Clone, Copy)]
pub struct GpuCachedSegment<'a> {
    /// First row of the queries.
    pub q_start: usize,
    /// Number of queries: they are the last `q_len` of the `kv_len` positions.
    pub q_len: usize,
    /// The cache: page i holds positions i P to (i + 1) P.
    pub pages: &'a [GpuCachePage<'a>],
    /// Positions of the cache in use, the new ones included.
    pub kv_len: usize,
}

/// The pages of one layer of some caches on the device, and the queries that look at them.
#[derive(Debug)]
pub struct CachedPages<'a> {
    /// Addresses of keys, of values; then 4 numbers for each query that goes by the plain kernel, then 4 for each tile.
    table: CudaSlice<u64>,
    pages: usize,
    plain: usize,
    tiles: usize,
    page_tokens: usize,
    tokens: usize,
    dtype: FloatType,
    owner: PhantomData<&'a [u8]>,
}

impl<'a> CachedPages<'a> {
    /// Pages of `page_tokens` positions each, of one layer of this shape and of activations of type `dtype`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When a length does not fit, the queries are not the rows 0..T in order, or a sequence has more queries than positions.
    pub fn new(
        gpu: &Gpu,
        segments: &[GpuCachedSegment<'a>],
        page_tokens: usize,
        dtype: FloatType,
        shape: &AttentionShape,
        path: Path,
    ) -> Result<Self, GpuError> {
        check_shape(shape);
        let (mut keys, mut values, mut rows, mut tiles) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut tokens = 0;
        for segment in segments {
            assert_eq!(segment.q_start, tokens, "queries start at the wrong row");
            check_pages(segment, page_tokens, dtype, shape);
            tokens += segment.q_len;
            let (first_page, offset) = (keys.len(), segment.kv_len - segment.q_len);
            keys.extend(segment.pages.iter().map(|page| page.k.ptr()));
            values.extend(segment.pages.iter().map(|page| page.v.ptr()));
            let aligned = keys[first_page..].iter().chain(&values[first_page..]).all(|ptr| ptr % 16 == 0);
            if path == Path::Best && segment.q_len >= MANY_QUERIES && aligned && has_flash(dtype, shape) {
                for first in (0..segment.q_len).step_by(TILE_ROWS) {
                    let count = TILE_ROWS.min(segment.q_len - first);
                    tiles.extend(two_words([segment.q_start + first, count, offset + first, first_page]));
                }
            } else {
                let row = |i| two_words([segment.q_start + i, offset + i + 1, first_page, 0]);
                rows.extend((0..segment.q_len).flat_map(row));
            }
        }
        let pages = keys.len();
        let (plain, tiles_len) = (rows.len() / 2, tiles.len() / 2);
        let table = [keys, values, rows, tiles].concat();
        let owner = PhantomData;
        Ok(Self {
            table: gpu.upload(&table)?,
            pages,
            plain,
            tiles: tiles_len,
            page_tokens,
            tokens,
            dtype,
            owner,
        })
    }
}

/// [`crate::attention::attention_forward`].
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// When a length does not fit, the types differ, or a head is wider than 256.
#[expect(clippy::too_many_arguments, reason = "plain slices")]
pub fn attention_forward(
    gpu: &Gpu,
    q: Slice<'_>,
    k: Slice<'_>,
    v: Slice<'_>,
    segments: &PackedSegments,
    shape: &AttentionShape,
    out: &mut SliceMut<'_>,
    lse: &mut SliceMut<'_>,
    path: Path,
) -> Result<(), GpuError> {
    check_packed((q, k, v), segments, shape);
    assert_eq!((out.len(), out.dtype()), (q.len(), q.dtype()), "out for q");
    check_f32(&lse.as_slice(), segments.tokens * shape.heads, "lse");
    if segments.tokens == 0 {
        return Ok(());
    }
    let n = Numbers::of(shape);
    let (rows, tiles) = segments.ptrs(gpu);
    let (q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr) = (q.ptr(), k.ptr(), v.ptr(), out.ptr(), lse.ptr());
    if takes_flash(path, q.dtype(), shape, &[q_ptr, k_ptr, v_ptr, out_ptr]) {
        let name = format!("flash_forward_{}", shape.head_dim);
        let grid = (segments.tiles as u32, shape.heads as u32, 1);
        launch!(
            gpu,
            Flash,
            &name,
            grid,
            FLASH_THREADS,
            forward_shared(shape.head_dim),
            [
                &q_ptr, &k_ptr, &v_ptr, &tiles, &out_ptr, &lse_ptr, &n.heads, &n.kv, &n.window, &n.scale,
                &n.cap
            ]
        );
        return Ok(());
    }
    let name = format!("attention_forward_{}", q.dtype().name());
    let (t, grid) = (segments.tokens as i64, plain_grid(segments, shape.heads));
    launch!(
        gpu,
        Attention,
        &name,
        grid,
        PLAIN_THREADS,
        0,
        [
            &q_ptr, &k_ptr, &v_ptr, &rows, &out_ptr, &lse_ptr, &t, &n.heads, &n.kv, &n.d, &n.window,
            &n.scale, &n.cap
        ]
    );
    Ok(())
}

/// What the backward pass reads: g `[T, N*D]` f32, the inputs, the outputs in the type of q, and lse `[T, N]`.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// d/d(out).
    pub g: Slice<'a>,
    /// Queries `[T, N*D]`.
    pub q: Slice<'a>,
    /// Keys `[T, K*D]`.
    pub k: Slice<'a>,
    /// Values `[T, K*D]`.
    pub v: Slice<'a>,
    /// What the forward pass wrote, `[T, N*D]`.
    pub out: Slice<'a>,
    /// The log of each softmax's denominator, `[T, N]`.
    pub lse: Slice<'a>,
}

/// [`crate::attention::attention_backward`]: dq `[T, N*D]`, dk and dv `[T, K*D]`, f32, all overwritten.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// When a length does not fit, the types differ, or a head is wider than 256.
#[expect(clippy::too_many_arguments, reason = "plain slices")]
pub fn attention_backward(
    gpu: &Gpu,
    saved: &Saved<'_>,
    segments: &PackedSegments,
    shape: &AttentionShape,
    dq: &mut SliceMut<'_>,
    dk: &mut SliceMut<'_>,
    dv: &mut SliceMut<'_>,
    path: Path,
) -> Result<(), GpuError> {
    let Saved { g, q, k, v, out, lse } = *saved;
    check_packed((q, k, v), segments, shape);
    assert_eq!((out.len(), out.dtype()), (q.len(), q.dtype()), "out for q");
    check_f32(&lse, segments.tokens * shape.heads, "lse");
    for (name, of, like) in
        [("g", &g, q), ("dq", &dq.as_slice(), q), ("dk", &dk.as_slice(), k), ("dv", &dv.as_slice(), k)]
    {
        check_f32(of, like.len(), name);
    }
    if segments.tokens == 0 {
        return Ok(());
    }
    let mut delta = Buffer::<f32>::new(gpu.stream(), segments.tokens * shape.heads)?;
    let delta = delta.slice_mut(gpu.stream());
    let to = [dq.ptr(), dk.ptr(), dv.ptr()];
    let read = [q.ptr(), k.ptr(), v.ptr(), g.ptr(), out.ptr()];
    if takes_flash(path, q.dtype(), shape, &[&read[..], &to].concat()) {
        return flash_backward(gpu, saved, &delta, segments, shape, to);
    }
    plain_backward(gpu, saved, &delta, segments, shape, to)
}

fn plain_backward(
    gpu: &Gpu,
    saved: &Saved<'_>,
    delta: &SliceMut<'_>,
    segments: &PackedSegments,
    shape: &AttentionShape,
    [dq, dk, dv]: [u64; 3],
) -> Result<(), GpuError> {
    let (n, t) = (Numbers::of(shape), segments.tokens as i64);
    let (type_name, heads_rows) = (saved.q.dtype().name(), segments.tokens * shape.heads);
    let (g, q, k, v) = (saved.g.ptr(), saved.q.ptr(), saved.k.ptr(), saved.v.ptr());
    let (out, lse, delta) = (saved.out.ptr(), saved.lse.ptr(), delta.ptr());
    let (rows, _) = segments.ptrs(gpu);
    let name = format!("attention_delta_{type_name}");
    let count = heads_rows as i64;
    launch!(
        gpu,
        Attention,
        &name,
        row_blocks(heads_rows),
        row_threads(),
        0,
        [&g, &out, &delta, &count, &n.d]
    );
    let name = format!("attention_backward_q_{type_name}");
    launch!(
        gpu,
        Attention,
        &name,
        plain_grid(segments, shape.heads),
        PLAIN_THREADS,
        0,
        [&g, &q, &k, &v, &lse, &delta, &rows, &dq, &t, &n.heads, &n.kv, &n.d, &n.window, &n.scale, &n.cap]
    );
    let name = format!("attention_backward_kv_{type_name}");
    launch!(
        gpu,
        Attention,
        &name,
        plain_grid(segments, shape.kv_heads),
        PLAIN_THREADS,
        0,
        [
            &g, &q, &k, &v, &lse, &delta, &rows, &dk, &dv, &t, &n.heads, &n.kv, &n.d, &n.window, &n.scale,
            &n.cap
        ]
    );
    Ok(())
}

fn flash_backward(
    gpu: &Gpu,
    saved: &Saved<'_>,
    delta: &SliceMut<'_>,
    segments: &PackedSegments,
    shape: &AttentionShape,
    [dq, dk, dv]: [u64; 3],
) -> Result<(), GpuError> {
    let n = Numbers::of(shape);
    let heads_rows = segments.tokens * shape.heads;
    let mut rounded = Buffer::<bf16>::new(gpu.stream(), saved.g.len())?;
    let rounded = rounded.slice_mut(gpu.stream());
    let (wide, g, q, k, v) = (saved.g.ptr(), rounded.ptr(), saved.q.ptr(), saved.k.ptr(), saved.v.ptr());
    let (out, lse, delta) = (saved.out.ptr(), saved.lse.ptr(), delta.ptr());
    let (_, tiles) = segments.ptrs(gpu);
    let count = heads_rows as i64;
    launch!(
        gpu,
        Flash,
        "flash_prepare",
        row_blocks(heads_rows),
        row_threads(),
        0,
        [&wide, &out, &g, &delta, &count, &n.d]
    );
    let (d, shared) = (shape.head_dim, backward_shared(shape.head_dim));
    let name = format!("flash_backward_kv_{d}");
    // At this width a lane has no registers for dk and dv: some blocks make the one, some the other.
    let halves = if d > 128 { 2 } else { 1 };
    launch!(
        gpu,
        Flash,
        &name,
        (segments.tiles as u32, shape.kv_heads as u32, halves),
        FLASH_THREADS,
        shared,
        [&g, &q, &k, &v, &lse, &delta, &tiles, &dk, &dv, &n.heads, &n.kv, &n.window, &n.scale, &n.cap]
    );
    let name = format!("flash_backward_q_{d}");
    launch!(
        gpu,
        Flash,
        &name,
        (segments.tiles as u32, shape.heads as u32, 1),
        FLASH_THREADS,
        shared,
        [&g, &q, &k, &v, &lse, &delta, &tiles, &dq, &n.heads, &n.kv, &n.window, &n.scale, &n.cap]
    );
    Ok(())
}

/// [`crate::attention::attention_cached`]: out `[T, N*D]` for new queries q `[T, N*D]`; the shape is that of `pages`.
///
/// # Errors
/// What the driver says.
///
/// # Panics
/// When a length does not fit, the types differ, or q or out is not where the kernels can read 16 bytes at a time.
pub fn attention_cached(
    gpu: &Gpu,
    q: Slice<'_>,
    pages: &CachedPages<'_>,
    shape: &AttentionShape,
    out: &mut SliceMut<'_>,
) -> Result<(), GpuError> {
    let len = pages.tokens * shape.heads * shape.head_dim;
    assert_eq!((q.len(), out.len()), (len, len), "lengths of q and out");
    assert_eq!((q.dtype(), out.dtype()), (pages.dtype, pages.dtype), "types of q and out over such a cache");
    let (n, per_page) = (Numbers::of(shape), int(pages.page_tokens));
    let (q_ptr, out_ptr) = (q.ptr(), out.ptr());
    let (k_pages, _guard) = pages.table.device_ptr(gpu.stream());
    let word = size_of::<u64>();
    let v_pages = k_pages + (pages.pages * word) as u64;
    let rows = v_pages + (pages.pages * word) as u64;
    let tiles = rows + (pages.plain * 2 * word) as u64;
    if pages.plain > 0 {
        let name = format!("attention_cached_{}", q.dtype().name());
        launch!(
            gpu,
            Attention,
            &name,
            (pages.plain as u32, shape.heads as u32, 1),
            CACHED_THREADS,
            0,
            [
                &q_ptr, &k_pages, &v_pages, &rows, &out_ptr, &per_page, &n.heads, &n.kv, &n.d, &n.window,
                &n.scale, &n.cap
            ]
        );
    }
    if pages.tiles > 0 {
        assert!(
            q_ptr % 16 == 0 && out_ptr % 16 == 0 && has_flash(q.dtype(), shape),
            "q and out for tensor cores"
        );
        let name = format!("flash_cached_{}", shape.head_dim);
        let grid = (pages.tiles as u32, shape.heads as u32, 1);
        launch!(
            gpu,
            Flash,
            &name,
            grid,
            FLASH_THREADS,
            forward_shared(shape.head_dim),
            [
                &q_ptr, &k_pages, &v_pages, &tiles, &out_ptr, &per_page, &n.heads, &n.kv, &n.window,
                &n.scale, &n.cap
            ]
        );
    }
    Ok(())
}

/// A shape as kernels take it: no window is the widest, no cap is 0.
struct Numbers {
    heads: i32,
    kv: i32,
    d: i32,
    window: i32,
    scale: f32,
    cap: f32,
}

impl Numbers {
    fn of(shape: &AttentionShape) -> Self {
        Self {
            heads: int(shape.heads),
            kv: int(shape.kv_heads),
            d: int(shape.head_dim),
            window: shape.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(i32::MAX),
            scale: shape.scale,
            cap: shape.soft_cap.unwrap_or(0.0),
        }
    }
}

/// Bytes of shared memory, as `FlashSizes` in `cuda/flash.cuh` has them.
fn forward_shared(d: usize) -> u32 {
    let step = if d > 128 { 32 } else { 64 };
    (2 * d * (TILE_ROWS + 4 * step)) as u32
}

fn backward_shared(d: usize) -> u32 {
    let step = match d {
        ..=64 => 64,
        65..=128 => 32,
        _ => 16,
    };
    (2 * d * (2 * TILE_ROWS + 4 * step) + 16 * step) as u32
}

/// Whether there are tensor-core kernels for such heads.
fn has_flash(dtype: FloatType, shape: &AttentionShape) -> bool {
    dtype == FloatType::BF16 && matches!(shape.head_dim, 64 | 96 | 128 | 256)
}

/// They read and write 16 bytes at a time.
fn takes_flash(path: Path, dtype: FloatType, shape: &AttentionShape, ptrs: &[u64]) -> bool {
    path == Path::Best && has_flash(dtype, shape) && ptrs.iter().all(|ptr| ptr % 16 == 0)
}

fn plain_grid(segments: &PackedSegments, heads: usize) -> (u32, u32, u32) {
    (segments.tokens.div_ceil(PLAIN_ROWS) as u32, heads as u32, 1)
}

/// The grid for a warp to each of so many rows.
fn row_blocks(rows: usize) -> (u32, u32, u32) {
    (rows.div_ceil(ROWS_OF_A_BLOCK) as u32, 1, 1)
}

fn row_threads() -> (u32, u32, u32) {
    (32 * ROWS_OF_A_BLOCK as u32, 1, 1)
}

fn int(x: usize) -> i32 {
    i32::try_from(x).unwrap_or_else(|_| panic!("{x} is too many for the kernels of attention"))
}

/// Four numbers as kernels read them: each half a word, the lower half first.
fn two_words(numbers: [usize; 4]) -> [u64; 2] {
    let [a, b, c, d] = numbers.map(|x| u64::from(int(x) as u32));
    [a | b << 32, c | d << 32]
}

fn check_f32(x: &Slice<'_>, len: usize, name: &str) {
    assert_eq!((x.len(), x.dtype()), (len, FloatType::F32), "{name}");
}

fn check_shape(shape: &AttentionShape) {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = *shape;
    assert!(
        kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads) && (1..=MAX_HEAD_DIM).contains(&head_dim),
        "{heads} query heads over {kv_heads} key/value heads of width {head_dim}"
    );
    assert!(window != Some(0), "a window of 0 keys");
}

fn check_packed(
    (q, k, v): (Slice<'_>, Slice<'_>, Slice<'_>),
    segments: &PackedSegments,
    shape: &AttentionShape,
) {
    check_shape(shape);
    let (t, kv_width) = (segments.tokens, shape.kv_heads * shape.head_dim);
    let want = (t * shape.heads * shape.head_dim, t * kv_width, t * kv_width);
    assert_eq!((q.len(), k.len(), v.len()), want, "lengths of q, k, v for segments of T={t}");
    assert_eq!((k.dtype(), v.dtype()), (q.dtype(), q.dtype()), "types of k and v beside q");
    assert!(q.dtype() != FloatType::F16, "activations are f32 or bf16");
}

fn check_pages(segment: &GpuCachedSegment<'_>, page_tokens: usize, dtype: FloatType, shape: &AttentionShape) {
    let GpuCachedSegment { q_len, kv_len, pages, .. } = *segment;
    assert!(q_len <= kv_len, "{q_len} queries in a sequence of {kv_len}");
    let width = shape.kv_heads * shape.head_dim;
    let (whole, used) = (page_tokens * width, kv_len * width);
    let held = pages.iter().enumerate().all(|(i, page)| {
        let needed = used.saturating_sub(i * whole).min(whole);
        [page.k, page.v].iter().all(|rows| rows.len() >= needed && rows.dtype() == dtype)
    });
    assert!(held && pages.len() * whole >= used, "a cache of {} pages for {kv_len} keys", pages.len());
    assert!(dtype != FloatType::F16, "activations are f32 or bf16");
}
