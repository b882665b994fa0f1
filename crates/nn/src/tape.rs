//! Recording what was computed, and differentiating it.
//!
//! candle's own graph makes a zeroed buffer and a sum for every argument of every operation, keeps every activation alive until the whole
//! backward is over, and differentiates frozen weights; so our operations do not join it. While [`record`] runs, each of them notes itself on
//! a tape if something that is differentiated came before it, and keeps of its inputs and output only what its backward reads. Outputs that
//! are cheap to make again from what is kept (norms, gated activations) are let go when the recording ends and made again in the backward,
//! bit for bit. The backward walks the tape once, adds gradients in place, and lets go of each operation as it passes.
//!
//! An operation of candle's own on a recorded tensor would cut the gradient in silence, as candle's fused operations do. Models use those in
//! [`crate::ops`] only, and training refuses a gradient that does not reach its block's input or its parameters.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::Place;
use crate::storage::{Lent, update};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Shape, Tensor, TensorId, bail};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::SliceMut;
use taper_kernels::floats;
use taper_kernels::reduce::axpy;

/// A gradient: f32, contiguous, shared until somebody adds to it.
pub type Gradient = Rc<Tensor>;

/// One operation as it was applied: its settings and what its forward left for the backward.
pub(crate) trait Op: 'static {
    /// For messages.
    fn name(&self) -> &'static str;

    /// The output. Called again for an op that [`Self::is_cheap`], with the same inputs.
    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor>;

    /// Gives `to` the gradients of the inputs that it wants, from `g`, that of the output.
    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()>;

    /// [`Self::forward`] on the device that an input lies on; `None` sends it through the host.
    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, _place: &Place, _inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// [`Self::backward`] on the device that the gradient lies on; `false` sends it through the host.
    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        _place: &Place,
        _saved: &Saved<'_>,
        _g: &Gradient,
        _to: &mut Receiver<'_>,
    ) -> Result<bool> {
        Ok(false)
    }

    /// Whether the backward reads input `index`.
    fn keeps_input(&self, _index: usize) -> bool {
        true
    }

    /// Whether the backward reads the output.
    fn keeps_output(&self) -> bool {
        false
    }

    /// Whether the output is made again rather than kept.
    fn is_cheap(&self) -> bool {
        false
    }
}

/// Where the gradients of variables go.
pub trait ParameterGradients {
    /// The sum that the gradient of variable `id`, of this shape, is added to: f32, contiguous, where the variable lies; `None` for one that
    /// nobody trains.
    fn sum(&mut self, id: TensorId, shape: &Shape) -> Option<&Tensor>;

    /// Told of a gradient, of this shape, that was made for a variable that nobody trains.
    fn stray(&mut self, shape: &Shape);
}

/// The operations of a stretch of computation, in their order.
#[derive(Default)]
pub struct Tape {
    nodes: Vec<Node>,
    tracked: HashSet<TensorId>,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.op.name())).finish()
    }
}

struct Node {
    op: Box<dyn Op>,
    inputs: Vec<Value>,
    output: Value,
}

/// A tensor as an operation saw it.
struct Value {
    id: TensorId,
    shape: Shape,
    kind: Kind,
    /// Kept for the backward.
    tensor: Option<Tensor>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Constant,
    /// A leaf, or what came of one.
    Tracked,
    Variable,
}

thread_local! {
    static RECORDING: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Stops the recording, whatever ends it.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(None);
    }
}

/// Runs `body`, and records what it computes from `leaves` and from variables.
///
/// # Errors
/// What `body` says, and when this thread records already.
pub fn record<R>(leaves: &[&Tensor], body: impl FnOnce() -> Result<R>) -> Result<(R, Tape)> {
    if RECORDING.with_borrow(Option::is_some) {
        bail!("this thread records already")
    }
    let tracked = leaves.iter().map(|leaf| leaf.id()).collect();
    RECORDING.set(Some(Tape { nodes: Vec::new(), tracked }));
    let guard = Recording;
    let result = body()?;
    let mut tape = RECORDING.take().unwrap_or_default();
    drop(guard);
    tape.let_go_of_what_is_cheap();
    Ok((result, tape))
}

/// Whether a gradient would reach `tensor` in the recording of this thread; never outside one.
pub fn is_tracked(tensor: &Tensor) -> bool {
    RECORDING.with_borrow(|tape| tape.as_ref().is_some_and(|tape| tape.kind_of(tensor) != Kind::Constant))
}

/// The output of `op`, noted on the tape of this thread if there is one and something tracked goes in.
pub(crate) fn apply(op: impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let output = computed(&op, inputs)?;
    RECORDING.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.note(Box::new(op), inputs, &output);
        }
    });
    Ok(output)
}

/// The output of `op`, where its inputs lie.
fn computed(op: &dyn Op, inputs: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(output) = crate::cuda::forward(op, inputs)? {
        return Ok(output);
    }
    op.forward(inputs)
}

fn differentiated(op: &dyn Op, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
    #[cfg(feature = "cuda")]
    if crate::cuda::backward(op, saved, g, to)? {
        return Ok(());
    }
    op.backward(saved, g, to)
}

impl Tape {
    /// Whether a gradient of `tensor` reaches a leaf or a variable.
    pub fn tracks(&self, tensor: &Tensor) -> bool {
        self.kind_of(tensor) != Kind::Constant
    }

    /// Whether the values of `tensor` are kept for the backward, so that they must not change.
    pub fn keeps(&self, tensor: &Tensor) -> bool {
        let mut values = self.nodes.iter().flat_map(|node| node.inputs.iter().chain([&node.output]));
        values.any(|value| value.id == tensor.id() && value.tensor.is_some())
    }

    fn kind_of(&self, tensor: &Tensor) -> Kind {
        if tensor.is_variable() {
            Kind::Variable
        } else if self.tracked.contains(&tensor.id()) {
            Kind::Tracked
        } else {
            Kind::Constant
        }
    }

    fn note(&mut self, op: Box<dyn Op>, inputs: &[&Tensor], output: &Tensor) {
        let kinds: Vec<Kind> = inputs.iter().map(|input| self.kind_of(input)).collect();
        if kinds.iter().all(|kind| *kind == Kind::Constant) {
            return;
        }
        let value = |tensor: &Tensor, kind, is_kept: bool| Value {
            id: tensor.id(),
            shape: tensor.shape().clone(),
            kind,
            tensor: is_kept.then(|| tensor.clone()),
        };
        let inputs = inputs.iter().zip(kinds).enumerate();
        let inputs = inputs.map(|(i, (input, kind))| value(input, kind, op.keeps_input(i))).collect();
        let output = value(output, Kind::Tracked, op.keeps_output());
        self.tracked.insert(output.id);
        self.nodes.push(Node { op, inputs, output });
    }

    fn let_go_of_what_is_cheap(&mut self) {
        let cheap: HashSet<TensorId> =
            self.nodes.iter().filter(|node| node.op.is_cheap()).map(|node| node.output.id).collect();
        for input in self.nodes.iter_mut().flat_map(|node| &mut node.inputs) {
            if cheap.contains(&input.id) {
                input.tensor = None;
            }
        }
    }

    /// Bytes of activations that are kept for the backward, each tensor once.
    pub fn kept_bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let values = self.nodes.iter().flat_map(|node| node.inputs.iter().chain([&node.output]));
        values
            .filter(|value| value.kind != Kind::Variable)
            .filter_map(|value| value.tensor.as_ref())
            .filter(|tensor| seen.insert(tensor.id()))
            .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
            .sum()
    }

    /// The gradients of `leaves`, given that of `output`; those of variables go to `parameters`. A leaf that no gradient reached has none.
    ///
    /// # Errors
    /// What the arithmetic says, with the operation.
    pub fn backward<const N: usize>(
        mut self,
        output: &Tensor,
        gradient: Gradient,
        leaves: [&Tensor; N],
        parameters: &mut dyn ParameterGradients,
    ) -> Result<[Option<Gradient>; N]> {
        if output.dims() != gradient.dims() {
            bail!("a gradient of {:?} for a tensor of {:?}", gradient.dims(), output.dims())
        }
        let mut gradients = HashMap::new();
        match self.kind_of(output) {
            Kind::Variable => give_to_variable(output.id(), output.shape(), &gradient, parameters)?,
            _ => drop(gradients.insert(output.id(), gradient)),
        }
        let mut remade = HashMap::new();
        while let Some(node) = self.nodes.pop() {
            let gradient = gradients.remove(&node.output.id);
            remade.remove(&node.output.id);
            let Some(gradient) = gradient else { continue };
            let tensors = self.inputs_of(&node, &mut remade).map_err(|e| e.context(node.op.name()))?;
            let saved = Saved { node: &node, inputs: tensors, output: node.output.tensor.clone() };
            let mut to = Receiver {
                inputs: &node.inputs,
                gradients: &mut gradients,
                parameters,
                #[cfg(feature = "cuda")]
                through_host: None,
            };
            differentiated(node.op.as_ref(), &saved, &gradient, &mut to)
                .map_err(|e| e.context(node.op.name()))?;
        }
        Ok(leaves.map(|leaf| gradients.remove(&leaf.id())))
    }

    /// What the backward of `node` reads: kept, or made again.
    fn inputs_of(&self, node: &Node, remade: &mut HashMap<TensorId, Tensor>) -> Result<Vec<Option<Tensor>>> {
        let wanted = node.inputs.iter().enumerate();
        wanted
            .map(|(i, value)| match &value.tensor {
                Some(tensor) => Ok(Some(tensor.clone())),
                None if node.op.keeps_input(i) => self.make_again(value.id, remade).map(Some),
                None => Ok(None),
            })
            .collect()
    }

    fn make_again(&self, id: TensorId, remade: &mut HashMap<TensorId, Tensor>) -> Result<Tensor> {
        if let Some(tensor) = remade.get(&id) {
            return Ok(tensor.clone());
        }
        let Some(node) = self.nodes.iter().rfind(|node| node.output.id == id) else {
            bail!("a tensor of the backward is neither kept nor made again")
        };
        let inputs = self.inputs_of(node, remade)?;
        let inputs: Option<Vec<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let Some(inputs) = inputs else { bail!("{} is to be made again without its inputs", node.op.name()) };
        let tensor = computed(node.op.as_ref(), &inputs)?;
        remade.insert(id, tensor.clone());
        Ok(tensor)
    }
}

/// What an operation kept.
pub(crate) struct Saved<'a> {
    node: &'a Node,
    inputs: Vec<Option<Tensor>>,
    output: Option<Tensor>,
}

impl Saved<'_> {
    /// Input `index`, of those that are kept.
    pub(crate) fn input(&self, index: usize) -> Result<&Tensor> {
        match self.inputs.get(index) {
            Some(Some(tensor)) => Ok(tensor),
            _ => bail!("input {index} of {} was not kept", self.node.op.name()),
        }
    }

    /// The output, where it is kept.
    pub(crate) fn output(&self) -> Result<&Tensor> {
        match &self.output {
            Some(tensor) => Ok(tensor),
            None => bail!("the output of {} was not kept", self.node.op.name()),
        }
    }

    /// How many inputs there are.
    pub(crate) fn count(&self) -> usize {
        self.inputs.len()
    }

    /// The shape of input `index`, kept or not.
    pub(crate) fn shape(&self, index: usize) -> &Shape {
        &self.node.inputs[index].shape
    }

    /// The same with every tensor as `map` moves it.
    #[cfg(feature = "cuda")]
    pub(crate) fn each(&self, map: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Saved<'_>> {
        let mapped = |tensor: &Option<Tensor>| tensor.as_ref().map(&map).transpose();
        let inputs = self.inputs.iter().map(mapped).collect::<Result<_>>()?;
        Ok(Saved { node: self.node, inputs, output: mapped(&self.output)? })
    }
}

/// Takes the gradients of an operation's inputs.
pub(crate) struct Receiver<'a> {
    inputs: &'a [Value],
    gradients: &'a mut HashMap<TensorId, Gradient>,
    parameters: &'a mut dyn ParameterGradients,
    /// The device that gradients are copied to, where they are made on the host for want of a kernel.
    #[cfg(feature = "cuda")]
    through_host: Option<Place>,
}

impl Receiver<'_> {
    /// Whether input `index` leads to something that is differentiated.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.inputs[index].kind != Kind::Constant
    }

    /// Hands on a gradient as it is, without a copy where nothing is there yet.
    pub(crate) fn pass(&mut self, index: usize, gradient: &Gradient) -> Result<()> {
        let value = &self.inputs[index];
        #[cfg(feature = "cuda")]
        let uploaded = match &self.through_host {
            Some(place) if self.wants(index) => Some(Gradient::new(place.upload(gradient)?)),
            _ => None,
        };
        #[cfg(feature = "cuda")]
        let gradient = uploaded.as_ref().unwrap_or(gradient);
        match value.kind {
            Kind::Constant => Ok(()),
            Kind::Variable => give_to_variable(value.id, &value.shape, gradient, self.parameters),
            Kind::Tracked => match self.gradients.get_mut(&value.id) {
                None => {
                    self.gradients.insert(value.id, gradient.clone());
                    Ok(())
                }
                Some(sum) => {
                    make_own(sum)?;
                    add_tensor(gradient, sum)
                }
            },
        }
    }

    /// Lets `fill` write the gradient of input `index`, or add to what is there when its second argument says so. Not called for an input that
    /// wants none.
    pub(crate) fn add(
        &mut self,
        index: usize,
        fill: impl FnOnce(&mut [f32], bool) -> Result<()>,
    ) -> Result<()> {
        let value = &self.inputs[index];
        #[cfg(feature = "cuda")]
        if self.through_host.is_some() && self.wants(index) {
            let mut buffer = floats::buffer(value.shape.elem_count());
            fill(&mut buffer, false)?;
            return self.take(index, buffer);
        }
        match value.kind {
            Kind::Constant => Ok(()),
            Kind::Variable => match self.parameters.sum(value.id, &value.shape) {
                Some(sum) => fill_in_place(sum, |sum| fill(sum, true)),
                None => {
                    // Made all the same: `fill` may make other gradients on the way.
                    self.parameters.stray(&value.shape);
                    fill(&mut floats::buffer(value.shape.elem_count()), false)
                }
            },
            Kind::Tracked => match self.gradients.get_mut(&value.id) {
                Some(sum) => {
                    make_own(sum)?;
                    fill_in_place(sum, |sum| fill(sum, true))
                }
                None => {
                    let mut buffer = floats::buffer(value.shape.elem_count());
                    fill(&mut buffer, false)?;
                    let gradient = Tensor::from_vec(buffer, &value.shape, &Device::Cpu)?;
                    self.gradients.insert(value.id, Rc::new(gradient));
                    Ok(())
                }
            },
        }
    }

    /// [`Self::add`] on a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn add_on(
        &mut self,
        place: &Place,
        index: usize,
        fill: impl FnOnce(&mut SliceMut<'_>, bool) -> Result<()>,
    ) -> Result<()> {
        let value = &self.inputs[index];
        match value.kind {
            Kind::Constant => Ok(()),
            Kind::Variable => match self.parameters.sum(value.id, &value.shape) {
                Some(sum) => crate::cuda::update(place, sum, |sum| fill(sum, true)),
                None => {
                    self.parameters.stray(&value.shape);
                    place.filled(DType::F32, &value.shape, |buffer| fill(buffer, false)).map(drop)
                }
            },
            Kind::Tracked => match self.gradients.get_mut(&value.id) {
                Some(sum) => {
                    make_own(sum)?;
                    crate::cuda::update(place, sum, |sum| fill(sum, true))
                }
                None => {
                    let gradient = place.filled(DType::F32, &value.shape, |buffer| fill(buffer, false))?;
                    self.gradients.insert(value.id, Rc::new(gradient));
                    Ok(())
                }
            },
        }
    }

    /// [`Self::write`] on a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn write_on(
        &mut self,
        place: &Place,
        index: usize,
        fill: impl FnOnce(&mut SliceMut<'_>) -> Result<()>,
    ) -> Result<()> {
        if !self.wants(index) {
            return Ok(());
        }
        let gradient = place.filled(DType::F32, &self.inputs[index].shape, fill)?;
        self.pass(index, &Rc::new(gradient))
    }

    /// The same for gradients that are made on the host and belong on `place`.
    #[cfg(feature = "cuda")]
    pub(crate) fn through_host(&mut self, place: Place) -> Receiver<'_> {
        Receiver {
            inputs: self.inputs,
            gradients: self.gradients,
            parameters: self.parameters,
            through_host: Some(place),
        }
    }

    /// Takes over a gradient of input `index` that is made already.
    pub(crate) fn take(&mut self, index: usize, values: Vec<f32>) -> Result<()> {
        if !self.wants(index) {
            return Ok(());
        }
        let gradient = Tensor::from_vec(values, &self.inputs[index].shape, &Device::Cpu)?;
        self.pass(index, &Rc::new(gradient))
    }

    /// As [`Self::add`] for a `fill` that can only write: it is given the place itself, or a buffer of its own that is added.
    pub(crate) fn write(&mut self, index: usize, fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        self.add(index, |sum, accumulate| {
            if !accumulate {
                return fill(sum);
            }
            let mut buffer = floats::buffer(sum.len());
            fill(&mut buffer)?;
            axpy(1.0, &buffer, sum);
            Ok(())
        })
    }
}

fn give_to_variable(
    id: TensorId,
    shape: &Shape,
    gradient: &Gradient,
    parameters: &mut dyn ParameterGradients,
) -> Result<()> {
    match parameters.sum(id, shape) {
        Some(sum) => add_tensor(gradient, sum),
        None => {
            parameters.stray(shape);
            Ok(())
        }
    }
}

/// `sum += gradient`, where they lie.
fn add_tensor(gradient: &Tensor, sum: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(place) = Place::on(sum.device()) {
        return crate::cuda::add_to(&place, gradient, sum);
    }
    fill_in_place(sum, |sum| {
        axpy(1.0, Lent::new(gradient).f32()?, sum);
        Ok(())
    })
}

/// Makes a sum that others hold one of its own.
fn make_own(sum: &mut Gradient) -> Result<()> {
    if Rc::get_mut(sum).is_none() {
        *sum = Rc::new(sum.copy()?);
    }
    Ok(())
}

fn fill_in_place(sum: &Tensor, fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    update(sum, |sum| result = fill(sum))?;
    result
}

/// The gradients of all variables that get one, for whoever compares them.
#[derive(Debug)]
pub struct CollectedGradients {
    sums: Vec<(TensorId, Tensor)>,
    device: Device,
}

impl Default for CollectedGradients {
    fn default() -> Self {
        Self::on(&Device::Cpu)
    }
}

impl CollectedGradients {
    /// For variables that lie on a device.
    pub fn on(device: &Device) -> Self {
        Self { sums: Vec::new(), device: device.clone() }
    }

    /// The gradient of a variable, when it got one.
    ///
    /// # Errors
    /// What candle says.
    pub fn get(&self, variable: &Tensor) -> Result<Option<Tensor>> {
        let found = self.sums.iter().find(|(id, _)| *id == variable.id());
        found.map(|(_, sum)| sum.copy()).transpose()
    }

    /// How many variables got one.
    pub fn count(&self) -> usize {
        self.sums.len()
    }
}

impl ParameterGradients for CollectedGradients {
    fn sum(&mut self, id: TensorId, shape: &Shape) -> Option<&Tensor> {
        let at = match self.sums.iter().position(|(own, _)| *own == id) {
            Some(at) => at,
            None => {
                self.sums.push((id, crate::storage::zeros(shape, &self.device).ok()?));
                self.sums.len() - 1
            }
        };
        Some(&self.sums[at].1)
    }

    fn stray(&mut self, _shape: &Shape) {}
}
