//! Different adapters on the rows of one batch: each row goes through the layers as its own adapters leave them, and the product with the
//! weight that they share is computed once.
//!
//! An adapter is put on a copy of the model (which shares its weights), and what it changed there is kept by the layers' places. A layer with
//! a low-rank delta alone gives its factors; any other (DoRA, a bias, a weight trained along) is kept whole and computes its rows itself.

use crate::storage::{Lent, filled};
use crate::{
    ForwardContext, Linear, ModuleMut, Result, RmsNorm, VisitModules, Weight, to_device, to_vec_f32,
};
use candle_core::{DType, Device, Tensor, bail};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;
use taper_kernels::floats::{self, Floats, FloatsMut};
use taper_kernels::linear as kernel;
use taper_kernels::low_rank::{Factors, Group, add_low_rank};

/// Number the linear layers of a model by their order, so that copies of it have the same numbers. Experts get none: their rows are not
/// those of the batch.
///
/// # Errors
/// What the visit says.
pub fn number_modules(model: &mut dyn VisitModules) -> Result<()> {
    let mut next = 0;
    model.visit_modules(&mut |module| {
        if let ModuleMut::Linear(linear) = module {
            let routed = !linear.path().contains(".experts.");
            linear.set_place(routed.then_some(next));
            next += 1;
        }
        Ok(())
    })
}

/// What an adapter makes of a model's modules.
#[derive(Debug)]
pub struct AdaptedModules {
    linears: Vec<Option<AdaptedLinear>>,
    embedding: bool,
    /// The first module that cannot be routed.
    unrouted: Option<String>,
}

#[derive(Debug)]
enum AdaptedLinear {
    LowRank(HeldFactors),
    Whole(Linear),
}

/// Factors as the products want them: A `[r, in]`, B transposed `[r, out]`.
#[derive(Debug)]
struct HeldFactors {
    a: HeldFloats,
    b: HeldFloats,
    bias: Option<Vec<f32>>,
    rank: usize,
    scale: f64,
    /// A, B transposed and the bias on a device that rows came from.
    #[cfg(feature = "cuda")]
    on_device: std::sync::OnceLock<FactorsOnDevice>,
}

#[cfg(feature = "cuda")]
#[derive(Debug)]
struct FactorsOnDevice {
    a: Tensor,
    b: Tensor,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum HeldFloats {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
}

impl HeldFloats {
    /// In `dtype`, to which training rounds factors where activations are bf16.
    fn new(values: Vec<f32>, dtype: DType) -> Self {
        if dtype != DType::BF16 {
            return Self::F32(values);
        }
        let mut narrow = floats::buffer(values.len());
        floats::round(&values, &mut narrow);
        Self::BF16(narrow)
    }

    fn view(&self) -> Floats<'_> {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::BF16(values) => Floats::BF16(values),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val::<[f32]>(values),
            Self::BF16(values) => size_of_val::<[bf16]>(values),
        }
    }
}

impl HeldFactors {
    fn of(linear: &Linear, dtype: DType) -> Result<Option<Self>> {
        let Some(delta) = linear.adapter().and_then(|adapter| adapter.low_rank()) else { return Ok(None) };
        Ok(Some(Self {
            a: HeldFloats::new(to_vec_f32(delta.a)?, dtype),
            b: HeldFloats::new(to_vec_f32(&to_device(delta.b, &Device::Cpu)?.t()?)?, dtype),
            bias: delta.bias.map(to_vec_f32).transpose()?,
            rank: delta.a.dims2()?.0,
            scale: delta.scale,
            #[cfg(feature = "cuda")]
            on_device: std::sync::OnceLock::new(),
        }))
    }
}

/// Linear layers and norms in the order of the visit, and the tables of embeddings.
type Visited = (Vec<Linear>, Vec<RmsNorm>, Vec<crate::Embedding>);

fn modules_of(model: &mut dyn VisitModules) -> Result<Visited> {
    let mut all: Visited = (Vec::new(), Vec::new(), Vec::new());
    model.visit_modules(&mut |module| {
        match module {
            ModuleMut::Linear(linear) => all.0.push(linear.clone()),
            ModuleMut::RmsNorm(norm) => all.1.push(norm.clone()),
            ModuleMut::Embedding(table) => all.2.push(table.clone()),
        }
        Ok(())
    })?;
    Ok(all)
}

impl AdaptedModules {
    /// What differs in `adapted`, a copy of the numbered model `base` with an adapter on it. Factors are held in the type of the activations.
    ///
    /// # Errors
    /// When the two are not of one model, and what the conversions say.
    pub fn of(
        base: &mut dyn VisitModules,
        adapted: &mut dyn VisitModules,
        activations: DType,
    ) -> Result<Self> {
        let (base, adapted) = (modules_of(base)?, modules_of(adapted)?);
        if (base.0.len(), base.1.len(), base.2.len()) != (adapted.0.len(), adapted.1.len(), adapted.2.len()) {
            bail!("an adapter that adds or removes modules")
        }
        let mut found = Self { linears: Vec::new(), embedding: false, unrouted: None };
        for (base, adapted) in base.0.iter().zip(&adapted.0) {
            let linear = found.linear(base, adapted, activations)?;
            found.linears.push(linear);
        }
        for (base, adapted) in base.1.iter().zip(&adapted.1) {
            if base.weight().id() != adapted.weight().id() {
                found.cannot_route(adapted.path());
            }
        }
        found.embedding =
            base.2.iter().zip(&adapted.2).any(|(base, adapted)| {
                adapted.adapter().is_some() || !base.weight().is_same(adapted.weight())
            });
        Ok(found)
    }

    fn linear(&mut self, base: &Linear, adapted: &Linear, dtype: DType) -> Result<Option<AdaptedLinear>> {
        let shares = adapted.shares_base_with(base);
        if shares && adapted.adapter().is_none() {
            return Ok(None);
        }
        if base.place().is_none() {
            self.cannot_route(adapted.path());
            return Ok(None);
        }
        if shares && let Some(factors) = HeldFactors::of(adapted, dtype)? {
            return Ok(Some(AdaptedLinear::LowRank(factors)));
        }
        Ok(Some(AdaptedLinear::Whole(adapted.clone())))
    }

    fn cannot_route(&mut self, path: &str) {
        self.unrouted.get_or_insert_with(|| path.to_owned());
    }

    /// The first module whose rows cannot share a pass with others (a norm, an expert); with one, the adapter's rows need a pass of their own
    /// over the copy.
    pub fn unrouted(&self) -> Option<&str> {
        self.unrouted.as_deref()
    }

    /// Whether ids are looked up otherwise: then the copy looks them up.
    pub fn has_embedding(&self) -> bool {
        self.embedding
    }

    /// The first module that is more than a low-rank delta; without one, the adapter can be scaled, and summed with others.
    pub fn first_whole(&self) -> Option<&str> {
        if let Some(path) = self.unrouted() {
            return Some(path);
        }
        let whole = self.linears.iter().flatten().find_map(|adapted| match adapted {
            AdaptedLinear::Whole(linear) => Some(linear.path()),
            AdaptedLinear::LowRank(_) => None,
        });
        whole.or(self.embedding.then_some("the embedding"))
    }

    /// Bytes that it holds beside the base's.
    pub fn bytes(&self) -> usize {
        let of = |adapted: &AdaptedLinear| match adapted {
            AdaptedLinear::LowRank(factors) => {
                factors.a.bytes() + factors.b.bytes() + factors.bias.as_ref().map_or(0, |bias| 4 * bias.len())
            }
            AdaptedLinear::Whole(linear) => match linear.weight() {
                Weight::Frozen(weight) => weight.bytes(),
                Weight::Trainable(var) => 4 * var.elem_count(),
            },
        };
        self.linears.iter().flatten().map(of).sum()
    }
}

/// An adapter of a route, with a factor on its delta.
#[derive(Debug, Clone)]
pub struct RoutePart {
    /// What it makes of the modules.
    pub modules: Arc<AdaptedModules>,
    /// 1 leaves it as it was trained.
    pub scale: f64,
}

/// Rows of a pass and the adapters that they go through; several are summed.
#[derive(Debug, Clone)]
pub struct Route<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// None is the base.
    pub parts: &'a [RoutePart],
}

/// The routes of all rows of a pass.
#[derive(Debug, Clone, Default)]
pub struct Routes<'a> {
    routes: Vec<Route<'a>>,
}

impl<'a> Routes<'a> {
    /// Rows that are in no route go through the base.
    pub fn new(routes: Vec<Route<'a>>) -> Self {
        Self { routes: routes.into_iter().filter(|route| !route.rows.is_empty()).collect() }
    }

    /// The rows of each route.
    pub fn iter(&self) -> impl Iterator<Item = &Route<'a>> {
        self.routes.iter()
    }

    pub(crate) fn forward(&self, base: &Linear, x: &Tensor, ctx: &ForwardContext<'_>) -> Result<Tensor> {
        let Some(place) = base.place() else { return base.own_forward(x, ctx) };
        let (mut deltas, mut wholes) = (Vec::new(), Vec::new());
        for route in &self.routes {
            for part in route.parts {
                match part.modules.linears.get(place).and_then(Option::as_ref) {
                    None => {}
                    Some(AdaptedLinear::LowRank(factors)) => {
                        deltas.push((route.rows.clone(), factors, factors.scale * part.scale));
                    }
                    Some(AdaptedLinear::Whole(linear)) => wholes.push((route.rows.clone(), linear)),
                }
            }
        }
        let t = x.dims2()?.0;
        let whole_rows: usize = wholes.iter().map(|(rows, _)| rows.len()).sum();
        if whole_rows == t
            && let [(_, linear)] = wholes.as_slice()
        {
            return linear.own_forward(x, ctx);
        }
        if deltas.is_empty() && wholes.is_empty() {
            return base.own_forward(x, ctx);
        }
        let y = with_deltas(base, x, &deltas)?;
        if wholes.is_empty() { Ok(y) } else { replace_rows(&y, x, &wholes, ctx) }
    }
}

/// The base's output with the deltas of some rows added, rounded once.
fn with_deltas(base: &Linear, x: &Tensor, deltas: &[(Range<usize>, &HeldFactors, f64)]) -> Result<Tensor> {
    let Weight::Frozen(weight) = base.weight() else { bail!("routes over a weight that is trained") };
    let ((n_out, n_in), (t, width)) = (weight.dims(), x.dims2()?);
    if width != n_in {
        bail!("expected an input of [T, {n_in}], got [{t}, {width}]")
    }
    #[cfg(feature = "cuda")]
    if let Some(place) = crate::cuda::Place::of(&[x]) {
        return with_deltas_on(&place, base, x, deltas);
    }
    let groups: Vec<Group<'_>> = deltas
        .iter()
        .map(|(rows, held, scale)| {
            let (a, b) = (held.a.view(), held.b.view());
            let factors = Factors { a, b, rank: held.rank, scale: *scale as f32 };
            Group { rows: rows.clone(), factors }
        })
        .collect();
    let (lent, bias) = (Lent::new(x), base.bias());
    let (x, bias) = (lent.floats()?, bias.as_ref().map(Lent::new));
    let bias = bias.as_ref().map(Lent::f32).transpose()?;
    let sum = |y: &mut [f32]| -> Result<()> {
        weight.with_view(|w| kernel::forward(x, w, bias, FloatsMut::F32(&mut *y), t, n_in, n_out))?;
        add_low_rank(x, &groups, y, n_in, n_out);
        for (rows, held, scale) in deltas {
            let Some(bias) = &held.bias else { continue };
            for row in y[rows.start * n_out..rows.end * n_out].chunks_exact_mut(n_out) {
                for (y, bias) in row.iter_mut().zip(bias) {
                    *y += *scale as f32 * bias;
                }
            }
        }
        Ok(())
    };
    filled(base.output_dtype(lent.tensor()), (t, n_out), |y| match y {
        FloatsMut::F32(y) => sum(y),
        FloatsMut::BF16(y) => {
            let mut wide = floats::buffer(y.len());
            sum(&mut wide)?;
            floats::round(&wide, y);
            Ok(())
        }
    })
}

#[cfg(feature = "cuda")]
impl HeldFactors {
    fn on(&self, place: &crate::cuda::Place) -> Result<&FactorsOnDevice> {
        if let Some(held) = self.on_device.get() {
            return Ok(held);
        }
        let upload = |values: Floats<'_>| {
            let tensor = match values {
                Floats::F32(values) => Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?,
                Floats::BF16(values) => Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?,
            };
            place.upload(&tensor)
        };
        let bias = self.bias.as_deref().map(|bias| upload(Floats::F32(bias))).transpose()?;
        let held = FactorsOnDevice { a: upload(self.a.view())?, b: upload(self.b.view())?, bias };
        Ok(self.on_device.get_or_init(|| held))
    }
}

/// [`with_deltas`] on a device, where each delta is added to what is already rounded.
#[cfg(feature = "cuda")]
fn with_deltas_on(
    place: &crate::cuda::Place,
    base: &Linear,
    x: &Tensor,
    deltas: &[(Range<usize>, &HeldFactors, f64)],
) -> Result<Tensor> {
    use crate::cuda::{GpuLent, failed, update};
    use taper_kernels::cuda::gemm::{Matrix, Target, matmul};
    use taper_kernels::cuda::linear::Converted;
    let (n_in, n_out) = (base.in_features(), base.out_features());
    let y = base.base_forward(x)?;
    let lent = GpuLent::new(place, x);
    let x = lent.slice()?;
    for (rows, held, scale) in deltas {
        let factors = held.on(place)?;
        let (a, b) = (GpuLent::new(place, &factors.a), GpuLent::new(place, &factors.b));
        let part = x.part(rows.start * n_in..rows.end * n_in);
        let hidden = place.filled(DType::F32, (rows.len(), held.rank), |hidden| {
            let mut target = Target { values: hidden.reborrow(), stride: held.rank, accumulate: false };
            let a = Matrix::transpose_of(a.slice()?, n_in);
            matmul(place, &mut target, Matrix::rows(part, n_in), a, (rows.len(), held.rank, n_in), 1.0)
                .map_err(failed)
        })?;
        let hidden = GpuLent::new(place, &hidden);
        let hidden = Converted::new(place, hidden.f32()?, x.dtype()).map_err(failed)?;
        update(place, &y, |y| {
            let mut own = y.part(rows.start * n_out..rows.end * n_out);
            let mut target = Target { values: own.reborrow(), stride: n_out, accumulate: true };
            let (left, right) =
                (Matrix::rows(hidden.slice(place), held.rank), Matrix::rows(b.slice()?, n_out));
            matmul(place, &mut target, left, right, (rows.len(), n_out, held.rank), *scale as f32)
                .map_err(failed)?;
            let Some(bias) = &factors.bias else { return Ok(()) };
            let scaled = crate::ops::scale(bias, *scale)?;
            let scaled = GpuLent::new(place, &scaled);
            taper_kernels::cuda::elementwise::add_bias_in_place(place, &mut own, scaled.f32()?)
                .map_err(failed)
        })?;
    }
    Ok(y)
}

/// [`replace_rows`] on a device, in y itself, which is new.
#[cfg(feature = "cuda")]
fn replace_rows_on(
    place: &crate::cuda::Place,
    y: &Tensor,
    x: &Tensor,
    wholes: &[(Range<usize>, &Linear)],
    ctx: &ForwardContext<'_>,
) -> Result<Tensor> {
    let mut next = 0;
    for (rows, linear) in wholes {
        if rows.start < next {
            bail!("two adapters with a layer of their own on the same rows")
        }
        copy_rows(place, &linear.own_forward(&x.narrow(0, rows.start, rows.len())?, ctx)?, y, rows.start)?;
        next = rows.end;
    }
    Ok(y.clone())
}

/// Rows `[n, W]` to those of y from `first` on.
#[cfg(feature = "cuda")]
fn copy_rows(place: &crate::cuda::Place, rows: &Tensor, y: &Tensor, first: usize) -> Result<()> {
    let at = first * y.dims2()?.1;
    let lent = crate::cuda::GpuLent::new(place, rows);
    let rows = lent.slice()?;
    crate::cuda::update(place, y, |y| {
        taper_kernels::cuda::elementwise::scale(place, rows, 1.0, &mut y.part(at..at + rows.len()))
            .map_err(crate::cuda::failed)
    })
}

/// Some `[n, W]`, all f32, one below the other, outside any graph.
///
/// # Errors
/// When their widths differ.
pub fn stack_rows(parts: &[Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(place) = crate::cuda::Place::of(&parts.iter().collect::<Vec<_>>()) {
        let Some(first) = parts.first() else { bail!("nothing to stack") };
        let (width, mut next) = (first.dims2()?.1, 0);
        let rows = parts.iter().map(|part| part.dims()[0]).sum::<usize>();
        let all = place.zeros((rows, width))?;
        for part in parts {
            let (count, of) = part.dims2()?;
            if of != width {
                bail!("rows of {of} below rows of {width}")
            }
            copy_rows(&place, &place.upload(part)?, &all, next)?;
            next += count;
        }
        return Ok(all);
    }
    Tensor::cat(parts, 0)?.contiguous()
}

/// y with some rows computed by layers of their own.
fn replace_rows(
    y: &Tensor,
    x: &Tensor,
    wholes: &[(Range<usize>, &Linear)],
    ctx: &ForwardContext<'_>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(place) = crate::cuda::Place::of(&[y]) {
        return replace_rows_on(&place, y, x, wholes, ctx);
    }
    let mut parts = Vec::new();
    let mut next = 0;
    for (rows, linear) in wholes {
        if rows.start < next {
            bail!("two adapters with a layer of their own on the same rows")
        }
        if rows.start > next {
            parts.push(y.narrow(0, next, rows.start - next)?);
        }
        parts.push(linear.own_forward(&x.narrow(0, rows.start, rows.len())?.contiguous()?, ctx)?);
        next = rows.end;
    }
    let t = y.dims()[0];
    if next < t {
        parts.push(y.narrow(0, next, t - next)?);
    }
    Tensor::cat(&parts, 0)?.contiguous()
}
