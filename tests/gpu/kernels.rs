//! Kernels by themselves: formats of weights, attention by tensor cores, the optimiser, sums of many rows, and no memory.

use crate::support::{device, distance, values};
use std::sync::OnceLock;
use taper_kernels::adamw::AdamW;
use taper_kernels::cuda::attention::{
    self, CachedPages, GpuCachePage, GpuCachedSegment, PackedSegments, Path, Saved,
};
use taper_kernels::cuda::decode::{self, GpuQuantized};
use taper_kernels::cuda::linear::Converted;
use taper_kernels::cuda::optimizer::{self, FlatTensors};
use taper_kernels::cuda::{Buffer, FloatType, Gpu, GpuError, Slice, SliceMut, elementwise};
use taper_kernels::floats::{self, Floats, FloatsMut};
use taper_kernels::rng::{CounterRng, stream_of};
use taper_quant::{BlockFormat, Bytes, GgmlType, QuantizedTensor};

use FloatType::{BF16, F32};

/// Of one rounding to bf16.
const ROUNDED: f32 = 4e-3;

fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    device()?;
    Some(GPU.get_or_init(|| Gpu::open(0).unwrap()))
}

/// Numbers on a device, f32 or bf16.
struct There(Converted<'static>);

impl There {
    fn new(gpu: &Gpu, values: &[f32], dtype: FloatType) -> Self {
        let wide = Buffer(gpu.upload(values).unwrap());
        if dtype == F32 {
            return Self(Converted::F32(wide, values.len()));
        }
        match Converted::new(gpu, wide.slice(gpu.stream()), dtype).unwrap() {
            Converted::BF16(narrow, len) => Self(Converted::BF16(narrow, len)),
            other => panic!("{other:?} for {dtype:?}"),
        }
    }

    /// Room that nobody has written yet: whoever forgets an element leaves a NaN.
    fn room(gpu: &Gpu, len: usize, dtype: FloatType) -> Self {
        Self::new(gpu, &vec![f32::NAN; len], dtype)
    }

    fn slice(&self, gpu: &Gpu) -> Slice<'_> {
        self.0.slice(gpu)
    }

    fn slice_mut(&mut self, gpu: &Gpu) -> SliceMut<'_> {
        match &mut self.0 {
            Converted::Same(_) => panic!("made by `new`"),
            Converted::F32(buffer, _) => buffer.slice_mut(gpu.stream()),
            Converted::BF16(buffer, _) => buffer.slice_mut(gpu.stream()),
        }
    }

    fn read(&self, gpu: &Gpu) -> Vec<f32> {
        if let Converted::F32(buffer, _) = &self.0 {
            return gpu.download(&buffer.0).unwrap();
        }
        match Converted::new(gpu, self.slice(gpu), F32).unwrap() {
            Converted::F32(wide, _) => gpu.download(&wide.0).unwrap(),
            other => panic!("{other:?} of bf16"),
        }
    }
}

/// Rounded to bf16 on the CPU.
fn rounded(x: &[f32]) -> Vec<f32> {
    let (mut narrow, mut wide) = (floats::buffer(x.len()), vec![0f32; x.len()]);
    floats::round(x, &mut narrow);
    floats::widen(&narrow, &mut wide);
    wide
}

#[track_caller]
fn same(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(wanted).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
            "{what}: element {i} is {a}, not {b}"
        );
    }
}

#[track_caller]
fn near(got: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    let off = distance(got, wanted);
    assert!(off <= tolerance, "{what} is off by {off}, allowed are {tolerance}");
}

fn coded(rows: usize, columns: usize, format: BlockFormat) -> QuantizedTensor {
    QuantizedTensor::quantize(&values("coded", rows * columns), rows, columns, format).unwrap()
}

/// A matrix in each format: of values where there is a coder, else of bytes.
fn matrices() -> Vec<(String, QuantizedTensor)> {
    let mut all = Vec::new();
    for double_quant in [false, true] {
        // Blocks that straddle rows; more than 256 of them, for a second nested one.
        for (rows, columns, block_size) in [(5, 33, 64), (9, 515, 16), (3, 128, 128)] {
            let nf4 = BlockFormat::Nf4 { block_size, double_quant };
            let fp4 = BlockFormat::Fp4 { block_size, double_quant };
            all.extend([nf4, fp4].map(|format| (format!("{format:?}"), coded(rows, columns, format))));
        }
    }
    all.push(("int8".into(), coded(5, 33, BlockFormat::Int8)));
    for ggml_type in GgmlType::ALL {
        let (rows, columns) = (5, 2 * ggml_type.block_len().max(32));
        let made = QuantizedTensor::quantize(
            &values("coded", rows * columns),
            rows,
            columns,
            BlockFormat::Ggml(ggml_type),
        );
        let matrix = made.unwrap_or_else(|_| {
            let len = ggml_type.bytes_of((rows * columns) as u64).unwrap();
            let rng = CounterRng::new(2, stream_of(ggml_type.name()));
            let bytes: Vec<u8> = (0..len).map(|i| rng.u32_at(i) as u8).collect();
            QuantizedTensor::ggml(rows, columns, ggml_type, Bytes::new(bytes)).unwrap()
        });
        all.push((ggml_type.name().into(), matrix));
    }
    all
}

#[test]
fn gpu_every_format_decodes_to_the_bits_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (name, matrix) in matrices() {
        let (rows, columns) = matrix.dims();
        let there = GpuQuantized::upload(gpu, &matrix).unwrap();
        for (first, count) in [(0, rows), (1, rows - 1), (rows - 1, 1), (2, 1), (1, 0)] {
            let mut wanted = vec![0f32; count * columns];
            matrix.decode(first * columns, &mut wanted);
            for (dtype, wanted) in [(F32, wanted.clone()), (BF16, rounded(&wanted))] {
                let mut out = There::room(gpu, count * columns, dtype);
                let len = wanted.len();
                decode::decode(gpu, &there, first, count, &mut out.slice_mut(gpu).part(0..len)).unwrap();
                same(&out.read(gpu)[..len], &wanted, &format!("{name} {dtype:?} from row {first}"));
            }
        }
        let ids = [rows as u32 - 1, 0, 2, 0];
        let mut wanted = vec![0f32; ids.len() * columns];
        for (id, row) in ids.iter().zip(wanted.chunks_mut(columns)) {
            matrix.decode(*id as usize * columns, row);
        }
        let mut out = There::room(gpu, ids.len() * columns, F32);
        decode::gather_rows(gpu, &there, &gpu.upload(&ids).unwrap(), &mut out.slice_mut(gpu)).unwrap();
        same(&out.read(gpu), &wanted, &format!("rows of {name}"));
    }
}

/// y = x W^T + b in f64.
fn product(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    (m, rows, columns): (usize, usize, usize),
) -> Vec<f32> {
    let dot = |i: usize, o: usize| -> f64 {
        let (x, w) = (&x[i * columns..][..columns], &w[o * columns..][..columns]);
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    let one = |i: usize, o: usize| (dot(i, o) + bias.map_or(0.0, |bias| f64::from(bias[o]))) as f32;
    (0..m * rows).map(|at| one(at / rows, at % rows)).collect()
}

#[test]
fn gpu_few_rows_times_coded_weights() {
    use GgmlType::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
    let Some(gpu) = gpu() else { return };
    let nf4 = |double_quant| BlockFormat::Nf4 { block_size: 64, double_quant };
    let mut matrices = vec![coded(5, 33, nf4(true)), coded(9, 2050, nf4(false)), coded(70, 96, nf4(true))];
    matrices.extend([coded(5, 33, BlockFormat::Int8), coded(9, 2050, BlockFormat::Int8)]);
    matrices.extend([Q8_0, Q4_0].map(|t| coded(19, 96, BlockFormat::Ggml(t))));
    matrices.extend([Q8_0, Q4K, Q5K, Q6K].map(|t| coded(9, 2048, BlockFormat::Ggml(t))));
    matrices.extend([Q4K, Q5K, Q6K].map(|t| coded(35, 256, BlockFormat::Ggml(t))));
    for matrix in matrices {
        let (rows, columns) = matrix.dims();
        let (there, mut w) = (GpuQuantized::upload(gpu, &matrix).unwrap(), vec![0f32; rows * columns]);
        assert!(decode::has_thin(&there));
        matrix.decode(0, &mut w);
        let (x, bias) = (values("x", 8 * columns), values("bias", rows));
        let there_bias = There::new(gpu, &bias, F32);
        for (from, to) in [(F32, F32), (BF16, F32), (BF16, BF16)] {
            let x = if from == F32 { x.clone() } else { rounded(&x) };
            let mut alone = vec![0f32; 0];
            for m in 1..=8 {
                let bias = (m % 2 == 0).then_some(bias.as_slice());
                let wanted = product(&x[..m * columns], &w, bias, (m, rows, columns));
                let bias = bias.map(|_| there_bias.slice(gpu));
                let (x, mut y) = (There::new(gpu, &x[..m * columns], from), There::room(gpu, m * rows, to));
                decode::thin(gpu, x.slice(gpu), &there, bias, &mut y.slice_mut(gpu), m).unwrap();
                let (y, what) =
                    (y.read(gpu), format!("{:?} [{rows}, {columns}] {from:?} times {m}", matrix.format()));
                near(&y, &wanted, if to == F32 { 1e-5 } else { ROUNDED }, &what);
                if m == 1 {
                    alone = y[..rows].to_vec();
                } else if m % 2 == 1 {
                    same(&y[..rows], &alone, &what);
                }
            }
        }
    }
}

const LENGTHS: [usize; 4] = [1, 5, 33, 70];
const T: usize = 109;

fn segments() -> Vec<taper_kernels::attention::Segment> {
    let mut next = 0;
    let mut one = |q_len: usize| {
        next += q_len;
        taper_kernels::attention::Segment { q_start: next - q_len, q_len }
    };
    LENGTHS.map(&mut one).to_vec()
}

type Shape = taper_kernels::attention::AttentionShape;

fn shape(
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
) -> Shape {
    Shape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window, soft_cap }
}

/// Output and the three gradients by the CPU's kernels over bf16.
fn on_the_cpu([q, k, v, g]: &[Vec<f32>; 4], shape: &Shape) -> [Vec<f32>; 4] {
    let narrow = |x: &[f32]| {
        let mut narrow = floats::buffer(x.len());
        floats::round(x, &mut narrow);
        narrow
    };
    let (q, k, v, mut out) = (narrow(q), narrow(k), narrow(v), narrow(&vec![0.0; q.len()]));
    let (mut lse, segments) = (vec![0f32; T * shape.heads], segments());
    let (qf, kf, vf) = (Floats::BF16(&q), Floats::BF16(&k), Floats::BF16(&v));
    taper_kernels::attention::attention_forward(
        qf,
        kf,
        vf,
        &segments,
        shape,
        FloatsMut::BF16(&mut out),
        &mut lse,
    );
    let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; k.len()]);
    let saved = Floats::BF16(&out);
    taper_kernels::attention::attention_backward(
        g, qf, kf, vf, saved, &lse, &segments, shape, &mut dq, &mut dk, &mut dv,
    );
    let mut wide = vec![0f32; out.len()];
    floats::widen(&out, &mut wide);
    [wide, dq, dk, dv]
}

fn on_the_gpu(gpu: &Gpu, [q, k, v, g]: &[Vec<f32>; 4], shape: &Shape, path: Path) -> [Vec<f32>; 4] {
    let packed = PackedSegments::new(gpu, &segments()).unwrap();
    let [q, k, v] = [q, k, v].map(|x| There::new(gpu, x, BF16));
    let g = There::new(gpu, g, F32);
    let (mut out, mut lse) =
        (There::room(gpu, g.slice(gpu).len(), BF16), There::room(gpu, T * shape.heads, F32));
    attention::attention_forward(
        gpu,
        q.slice(gpu),
        k.slice(gpu),
        v.slice(gpu),
        &packed,
        shape,
        &mut out.slice_mut(gpu),
        &mut lse.slice_mut(gpu),
        path,
    )
    .unwrap();
    let saved = Saved {
        g: g.slice(gpu),
        q: q.slice(gpu),
        k: k.slice(gpu),
        v: v.slice(gpu),
        out: out.slice(gpu),
        lse: lse.slice(gpu),
    };
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| There::room(gpu, x.slice(gpu).len(), F32));
    let (to_q, to_k, to_v) = (&mut dq.slice_mut(gpu), &mut dk.slice_mut(gpu), &mut dv.slice_mut(gpu));
    attention::attention_backward(gpu, &saved, &packed, shape, to_q, to_k, to_v, path).unwrap();
    [out, dq, dk, dv].map(|x| x.read(gpu))
}

fn check_flash(shapes: &[Shape]) {
    let Some(gpu) = gpu() else { return };
    for shape in shapes {
        let (wide, narrow) = (T * shape.heads * shape.head_dim, T * shape.kv_heads * shape.head_dim);
        let inputs = [("q", wide), ("k", narrow), ("v", narrow), ("g", wide)];
        let mut inputs = inputs.map(|(name, len)| values(name, len));
        // Scores that differ, so that a softmax is more than a mean.
        inputs[0].iter_mut().for_each(|q| *q *= 2.0);
        let wanted = on_the_cpu(&inputs, shape);
        let [best, plain] = [Path::Best, Path::Plain].map(|path| on_the_gpu(gpu, &inputs, shape, path));
        assert_ne!(best, plain, "both went by one path");
        for (i, name) in ["out", "dq", "dk", "dv"].into_iter().enumerate() {
            near(&plain[i], &wanted[i], 1e-2, &format!("plain {name} of {shape:?}"));
            near(&best[i], &wanted[i], 2e-2, &format!("{name} of {shape:?}"));
        }
        let again = on_the_gpu(gpu, &inputs, shape, Path::Best);
        assert!(again == best, "other bits at the second time: {shape:?}");
    }
}

#[test]
fn gpu_flash_attention_of_heads_of_64() {
    check_flash(&[
        shape(64, 4, 2, None, None),
        shape(64, 2, 1, Some(7), None),
        shape(64, 3, 1, Some(40), Some(1.5)),
    ]);
}

#[test]
fn gpu_flash_attention_of_heads_of_96() {
    check_flash(&[shape(96, 2, 2, None, None), shape(96, 2, 1, Some(9), Some(2.0))]);
}

#[test]
fn gpu_flash_attention_of_heads_of_128() {
    check_flash(&[shape(128, 2, 1, None, None), shape(128, 2, 1, Some(33), Some(2.0))]);
}

#[test]
fn gpu_flash_attention_of_heads_of_256() {
    check_flash(&[shape(256, 1, 1, None, Some(2.0)), shape(256, 2, 1, Some(20), None)]);
}

const PAGE: usize = 32;

/// Queries and positions of some sequences.
const CACHED: [(usize, usize); 5] = [(1, 45), (3, 70), (20, 20), (1, 1), (70, 100)];

/// Pages of all sequences one behind the other, those of a sequence backwards: `(first row of each page)` by sequence.
fn page_rows() -> (Vec<Vec<usize>>, usize) {
    let mut next = 0;
    let pages = CACHED.map(|(_, kv_len)| {
        let count = kv_len.div_ceil(PAGE);
        next += count * PAGE;
        (0..count).map(|i| next - (i + 1) * PAGE).collect()
    });
    (pages.to_vec(), next)
}

fn cached_on_the_cpu([q, k, v]: [Floats<'_>; 3], shape: &Shape, out: FloatsMut<'_>) {
    use taper_kernels::attention::{CachePage, CachedSegment, attention_cached};
    let (rows, width) = (page_rows().0, shape.kv_heads * shape.head_dim);
    let part = |first: &usize| {
        let range = first * width..(first + PAGE) * width;
        CachePage { k: k.part(range.clone()), v: v.part(range) }
    };
    let pages: Vec<Vec<CachePage<'_>>> = rows.iter().map(|rows| rows.iter().map(part).collect()).collect();
    let mut q_start = 0;
    let segments: Vec<CachedSegment<'_>> = pages
        .iter()
        .zip(CACHED)
        .map(|(pages, (q_len, kv_len))| {
            q_start += q_len;
            CachedSegment { q_start: q_start - q_len, q_len, pages, page_tokens: PAGE, kv_len }
        })
        .collect();
    attention_cached(q, &segments, shape, out);
}

fn cached_on_the_gpu(
    gpu: &Gpu,
    [q, k, v]: &[Vec<f32>; 3],
    shape: &Shape,
    dtype: FloatType,
    path: Path,
) -> Vec<f32> {
    let [q, k, v] = [q, k, v].map(|x| There::new(gpu, x, dtype));
    let (rows, width) = (page_rows().0, shape.kv_heads * shape.head_dim);
    let part = |first: &usize| {
        let range = first * width..(first + PAGE) * width;
        GpuCachePage { k: k.slice(gpu).part(range.clone()), v: v.slice(gpu).part(range) }
    };
    let pages: Vec<Vec<GpuCachePage<'_>>> = rows.iter().map(|rows| rows.iter().map(part).collect()).collect();
    let mut q_start = 0;
    let segments: Vec<GpuCachedSegment<'_>> = pages
        .iter()
        .zip(CACHED)
        .map(|(pages, (q_len, kv_len))| {
            q_start += q_len;
            GpuCachedSegment { q_start: q_start - q_len, q_len, pages, kv_len }
        })
        .collect();
    let pages = CachedPages::new(gpu, &segments, PAGE, dtype, shape, path).unwrap();
    let mut out = There::room(gpu, q.slice(gpu).len(), dtype);
    attention::attention_cached(gpu, q.slice(gpu), &pages, shape, &mut out.slice_mut(gpu)).unwrap();
    out.read(gpu)
}

#[test]
fn gpu_attention_over_caches() {
    let Some(gpu) = gpu() else { return };
    let queries: usize = CACHED.iter().map(|(q_len, _)| q_len).sum();
    for shape in [
        shape(64, 2, 1, None, None),
        shape(64, 4, 2, Some(18), Some(1.5)),
        shape(96, 1, 1, Some(40), None),
        shape(128, 2, 1, None, Some(2.0)),
        shape(256, 1, 1, Some(33), None),
        shape(20, 2, 1, Some(33), None),
    ] {
        let kv = page_rows().1 * shape.kv_heads * shape.head_dim;
        let inputs = [("q", queries * shape.heads * shape.head_dim), ("k", kv), ("v", kv)]
            .map(|(name, len)| values(name, len));
        let [q, k, v] = &inputs;
        let mut wanted = vec![0f32; q.len()];
        cached_on_the_cpu([q, k, v].map(|x| Floats::F32(x)), &shape, FloatsMut::F32(&mut wanted));
        let got = cached_on_the_gpu(gpu, &inputs, &shape, F32, Path::Best);
        near(&got, &wanted, 2e-5, &format!("cached f32 {shape:?}"));
        let inputs = inputs.map(|x| rounded(&x));
        let [q, k, v] = &inputs;
        cached_on_the_cpu([q, k, v].map(|x| Floats::F32(x)), &shape, FloatsMut::F32(&mut wanted));
        for path in [Path::Plain, Path::Best] {
            let got = cached_on_the_gpu(gpu, &inputs, &shape, BF16, path);
            near(&got, &wanted, 1e-2, &format!("cached bf16 {path:?} {shape:?}"));
        }
    }
}

#[test]
fn gpu_adamw_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let lens = [1, 63, 4097, 64, 9001];
    let tensors = FlatTensors::new(gpu, &lens).unwrap();
    let settings = |i: usize| AdamW {
        lr: 1e-2 * (i + 1) as f64,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1 * i as f64,
        step: 3,
        grad_scale: 0.7,
    };
    let settings: Vec<AdamW> = (0..lens.len()).map(settings).collect();
    let flat = |name: &str| values(name, tensors.len());
    let (grads, first) = (flat("grads"), flat("first"));
    let second: Vec<f32> = flat("second").iter().map(|v| v * v).collect();
    let params: Vec<Vec<f32>> = lens.map(|len| values(&format!("param {len}"), len)).to_vec();
    let there: Vec<There> = params.iter().map(|param| There::new(gpu, param, F32)).collect();
    let there_grads = There::new(gpu, &grads, F32);
    let (mut there_first, mut there_second) = (There::new(gpu, &first, F32), There::new(gpu, &second, F32));
    let slices: Vec<Slice<'_>> = there.iter().map(|param| param.slice(gpu)).collect();
    let moments = (&mut there_first.slice_mut(gpu), &mut there_second.slice_mut(gpu));
    optimizer::adamw_step(gpu, &tensors, &slices, there_grads.slice(gpu), moments, &settings).unwrap();
    let (got_first, got_second) = (there_first.read(gpu), there_second.read(gpu));
    let mut between = vec![true; tensors.len()];
    for (i, mut param) in params.into_iter().enumerate() {
        let range = tensors.range(i);
        between[range.clone()].fill(false);
        let (mut m, mut v) = (first[range.clone()].to_vec(), second[range.clone()].to_vec());
        taper_kernels::adamw::adamw_step(&mut param, &grads[range.clone()], &mut m, &mut v, &settings[i]);
        near(&there[i].read(gpu), &param, 1e-6, &format!("parameter {i}"));
        near(&got_first[range.clone()], &m, 1e-6, &format!("first moment {i}"));
        near(&got_second[range], &v, 1e-6, &format!("second moment {i}"));
    }
    // What lies between tensors is nobody's.
    for at in (0..tensors.len()).filter(|at| between[*at]) {
        assert_eq!((got_first[at], got_second[at]), (first[at], second[at]));
    }
}

#[test]
fn gpu_sum_of_squares() {
    let Some(gpu) = gpu() else { return };
    for n in [1, 255, 16 * 1024, 16 * 1024 + 1, 50_001] {
        let x = values("x", n);
        let wanted: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let got = optimizer::sum_of_squares(gpu, There::new(gpu, &x, F32).slice(gpu)).unwrap();
        assert!((got - wanted).abs() <= 1e-6 * wanted, "{n}: {got} against {wanted}");
    }
}

#[test]
fn gpu_rows_are_added_to_a_table_and_summed() {
    let Some(gpu) = gpu() else { return };
    for width in [1, 70, 300] {
        let ids: Vec<u32> = (0..50).map(|t| (t * t * 7 + t) % 11).collect();
        let (g, table) = (values("g", ids.len() * width), values("table", 13 * width));
        let mut there = There::new(gpu, &table, F32);
        let from = There::new(gpu, &g, F32);
        elementwise::scatter_add(gpu, from.slice(gpu), &ids, &mut there.slice_mut(gpu), width).unwrap();
        let mut wanted = table.clone();
        taper_kernels::embedding::scatter_add(&g, &ids, &mut wanted, width);
        near(&there.read(gpu), &wanted, 1e-6, "table");
    }
    for (rows, width) in [(1, 1), (255, 300), (256, 65), (257, 65), (70_001, 3)] {
        let (x, before) = (values("x", rows * width), values("before", width));
        for accumulate in [false, true] {
            let mut sum = There::new(gpu, &before, F32);
            let from = There::new(gpu, &x, F32);
            elementwise::sum_rows(gpu, from.slice(gpu), &mut sum.slice_mut(gpu), accumulate).unwrap();
            let column = |c: usize| -> f64 { x[c..].iter().step_by(width).map(|x| f64::from(*x)).sum() };
            let add = |c: usize| if accumulate { f64::from(before[c]) } else { 0.0 };
            let wanted: Vec<f32> = (0..width).map(|c| (column(c) + add(c)) as f32).collect();
            near(&sum.read(gpu), &wanted, 2e-5, &format!("sum of {rows} rows of {width}"));
        }
    }
}

#[test]
fn gpu_no_memory_is_an_error_and_nothing_else() {
    let Some(gpu) = gpu() else { return };
    let bytes = 1usize << 40;
    for _ in 0..2 {
        let error = Buffer::<f32>::new(gpu.stream(), bytes / 4).err();
        assert_eq!(error, Some(GpuError::OutOfMemory { bytes }));
        let error: Box<dyn std::error::Error> = Box::new(candle_core::Error::wrap(error.unwrap()));
        assert!(taper_nn::bytes_asked_of_full_device(error.as_ref()).is_some());
        let x = values("x", 1000);
        let there = There::new(gpu, &x, F32);
        let mut twice = There::room(gpu, 1000, F32);
        elementwise::add(gpu, there.slice(gpu), there.slice(gpu), &mut twice.slice_mut(gpu)).unwrap();
        assert_eq!(twice.read(gpu), x.iter().map(|x| x + x).collect::<Vec<_>>());
    }
}
