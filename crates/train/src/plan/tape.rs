//! `nn::tape` without its numbers: which tensors are alive when, in a forward pass and in its backward.
//!
//! A tensor lives as long as a variable names it or a recorded operation keeps it. When a recording ends, what is cheap to make again is let
//! go. The backward makes it again where it is read, and holds gradients from where they are first given to where they are used up.

use super::heap::{Cause, Heap};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(usize);

/// How an operation gives an input its gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    /// Its own gradient, without a copy.
    Pass,
    /// Added in place.
    Add,
    /// Written; in a buffer of its own where there is a gradient already.
    Write,
    /// Made with all others before any is handed over.
    Take,
}

/// What an operation keeps and what its backward makes.
#[derive(Debug, Clone)]
pub(super) struct Op {
    /// For each input whether the backward reads it, and how it is given its gradient.
    pub(super) inputs: Vec<(bool, Gives)>,
    pub(super) keeps_output: bool,
    /// Made again rather than kept.
    pub(super) is_cheap: bool,
    /// Bytes beside all this while the backward runs.
    pub(super) extra: u64,
}

impl Op {
    /// An operation whose backward reads nothing.
    pub(super) fn reading_nothing(gives: &[Gives]) -> Self {
        let inputs = gives.iter().map(|gives| (false, *gives)).collect();
        Self { inputs, keeps_output: false, is_cheap: false, extra: 0 }
    }

    /// An operation whose backward reads all inputs.
    pub(super) fn reading_all(gives: &[Gives]) -> Self {
        let inputs = gives.iter().map(|gives| (true, *gives)).collect();
        Self { inputs, ..Self::reading_nothing(&[]) }
    }
}

#[derive(Debug)]
struct Tensor {
    elements: u64,
    bytes: u64,
    cause: Cause,
    is_variable: bool,
    /// Names and operations that hold the tensor.
    handles: u32,
}

#[derive(Debug)]
struct Node {
    op: Op,
    args: Vec<Id>,
    /// Of the arguments those that are held.
    held: Vec<bool>,
    output: Id,
    output_bytes: u64,
    statistics: u64,
}

/// What was recorded between [`Tape::record`] and [`Tape::recorded`].
#[derive(Debug, Default)]
pub(super) struct Recorded {
    nodes: Vec<Node>,
    tracked: Vec<Id>,
}

/// The tensors of a pass.
#[derive(Debug)]
pub(super) struct Tape<'h> {
    pub(super) heap: &'h mut Heap,
    tensors: Vec<Tensor>,
    recording: Option<Recorded>,
}

/// What an operation takes and gives.
pub(super) struct Made<'a> {
    pub(super) args: &'a [Id],
    /// Elements of the result.
    pub(super) elements: u64,
    /// Bytes of each.
    pub(super) width: u64,
    pub(super) cause: Cause,
    /// Bytes that the forward leaves for the backward.
    pub(super) statistics: u64,
    /// Bytes that the forward needs for a moment.
    pub(super) scratch: u64,
}

/// Gradients on their way down, each with the number of those that share its bytes.
#[derive(Debug, Default)]
struct Gradients {
    of: BTreeMap<Id, usize>,
    shared: Vec<(Cause, u64, u32)>,
}

impl<'h> Tape<'h> {
    pub(super) fn new(heap: &'h mut Heap) -> Self {
        Self { heap, tensors: Vec::new(), recording: None }
    }

    /// A tensor in f32 that no operation made.
    pub(super) fn plain(&mut self, elements: u64, cause: Cause) -> Id {
        self.tensor(elements, 4, cause, false)
    }

    /// A variable that is held elsewhere: its gradient goes to a buffer that is held elsewhere too.
    pub(super) fn parameter(&mut self, elements: u64) -> Id {
        self.tensor(elements, 0, Cause::Parameters, true)
    }

    /// A small tensor of the model, held elsewhere and never differentiated.
    pub(super) fn constant(&mut self, elements: u64) -> Id {
        self.tensor(elements, 0, Cause::Weights, false)
    }

    /// Another name for a tensor.
    pub(super) fn share(&mut self, id: Id) -> Id {
        self.tensors[id.0].handles += 1;
        id
    }

    /// A name is gone.
    pub(super) fn release(&mut self, id: Id) {
        let tensor = &mut self.tensors[id.0];
        tensor.handles -= 1;
        if tensor.handles == 0 {
            self.heap.free(tensor.cause, tensor.bytes);
        }
    }

    /// Whether every tensor is gone.
    pub(super) fn is_empty(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.handles == 0)
    }

    /// Bytes of an element.
    pub(super) fn width(&self, id: Id) -> u64 {
        let tensor = &self.tensors[id.0];
        tensor.bytes / tensor.elements.max(1)
    }

    /// From here on operations on what is tracked are recorded.
    pub(super) fn record(&mut self, leaves: &[Id]) {
        self.recording = Some(Recorded { nodes: Vec::new(), tracked: leaves.to_vec() });
    }

    /// The recording ends.
    pub(super) fn recorded(&mut self) -> Recorded {
        let mut recorded = self.recording.take().unwrap_or_default();
        let cheap: Vec<Id> =
            recorded.nodes.iter().filter(|node| node.op.is_cheap).map(|node| node.output).collect();
        for node in &mut recorded.nodes {
            for (arg, held) in node.args.iter().zip(&mut node.held) {
                if *held && cheap.contains(arg) {
                    *held = false;
                    self.release(*arg);
                }
            }
        }
        recorded
    }

    /// Everything that was recorded is forgotten.
    pub(super) fn forget(&mut self, recorded: Recorded) {
        recorded.nodes.into_iter().for_each(|node| self.let_go(&node));
    }

    pub(super) fn is_tracked(&self, id: Id) -> bool {
        self.recording.as_ref().is_some_and(|recorded| recorded.tracks(self, id))
    }

    /// The result of an operation.
    pub(super) fn apply(&mut self, op: Op, made: &Made<'_>) -> Id {
        let id = self.tensor(made.elements, made.width, made.cause, false);
        self.heap.alloc(Cause::Activations, made.statistics);
        self.heap.pass_by(Cause::Temporaries, made.scratch);
        if !made.args.iter().any(|arg| self.is_tracked(*arg)) {
            self.heap.free(Cause::Activations, made.statistics);
            return id;
        }
        let held: Vec<bool> = op.inputs.iter().map(|(reads, _)| *reads).collect();
        for (arg, _) in made.args.iter().zip(&held).filter(|(_, held)| **held) {
            self.share(*arg);
        }
        if op.keeps_output {
            self.share(id);
        }
        if let Some(recorded) = &mut self.recording {
            recorded.tracked.push(id);
            recorded.nodes.push(Node {
                args: made.args.to_vec(),
                held,
                output: id,
                output_bytes: made.elements * made.width,
                statistics: made.statistics,
                op,
            });
        }
        id
    }

    /// The backward from `output`, whose gradient of `bytes` is used up; bytes of the gradient of `wanted`, which stays.
    pub(super) fn backward(
        &mut self,
        mut recorded: Recorded,
        output: Id,
        (cause, bytes): (Cause, u64),
        wanted: Option<Id>,
    ) -> u64 {
        let mut gradients = Gradients::default();
        gradients.shared.push((cause, bytes, 1));
        gradients.of.insert(output, 0);
        let mut remade: BTreeMap<Id, u64> = BTreeMap::new();
        while let Some(node) = recorded.nodes.pop() {
            let gradient = gradients.of.remove(&node.output);
            if let Some(bytes) = remade.remove(&node.output) {
                self.heap.free(Cause::Temporaries, bytes);
            }
            if let Some(gradient) = gradient {
                for (arg, _) in node.args.iter().zip(&node.op.inputs).filter(|(_, (reads, _))| *reads) {
                    self.make_again(&recorded, *arg, &mut remade);
                }
                self.heap.alloc(Cause::Temporaries, node.op.extra);
                self.give(&recorded, &node, gradient, &mut gradients);
                self.heap.free(Cause::Temporaries, node.op.extra);
                gradients.drop_one(gradient, self.heap);
            }
            self.let_go(&node);
        }
        let wanted = wanted.and_then(|wanted| gradients.of.remove(&wanted));
        for left in gradients.of.values() {
            let (cause, bytes, _) = gradients.shared[*left];
            self.heap.free(cause, bytes);
        }
        wanted.map_or(0, |at| gradients.shared[at].1)
    }

    /// The gradients of a node's inputs, in their order.
    fn give(&mut self, recorded: &Recorded, node: &Node, gradient: usize, to: &mut Gradients) {
        let wanted = |tape: &Self, arg: Id| !tape.tensors[arg.0].is_variable && recorded.tracks(tape, arg);
        let given: Vec<(Id, Gives)> =
            node.args.iter().zip(&node.op.inputs).map(|(arg, (_, gives))| (*arg, *gives)).collect();
        let taken: u64 =
            given.iter().filter(|(_, g)| *g == Gives::Take).map(|(arg, _)| self.gradient(*arg)).sum();
        self.heap.alloc(Cause::Temporaries, taken);
        for (arg, gives) in given {
            let bytes = self.gradient(arg);
            if gives == Gives::Take {
                self.heap.free(Cause::Temporaries, bytes);
            }
            if !wanted(self, arg) {
                continue;
            }
            match (to.of.get(&arg), gives) {
                (None, Gives::Pass) => {
                    to.shared[gradient].2 += 1;
                    to.of.insert(arg, gradient);
                }
                (None, _) => {
                    self.heap.alloc(Cause::Temporaries, bytes);
                    to.shared.push((Cause::Temporaries, bytes, 1));
                    to.of.insert(arg, to.shared.len() - 1);
                }
                (Some(sum), _) => {
                    let sum = *sum;
                    if to.shared[sum].2 > 1 {
                        self.heap.alloc(Cause::Temporaries, bytes);
                        to.shared[sum].2 -= 1;
                        to.shared.push((Cause::Temporaries, bytes, 1));
                        to.of.insert(arg, to.shared.len() - 1);
                    }
                    if matches!(gives, Gives::Write | Gives::Take) {
                        self.heap.pass_by(Cause::Temporaries, bytes);
                    }
                }
            }
        }
    }

    fn gradient(&self, of: Id) -> u64 {
        4 * self.tensors[of.0].elements
    }

    fn make_again(&mut self, recorded: &Recorded, id: Id, remade: &mut BTreeMap<Id, u64>) {
        let Some(node) = recorded.nodes.iter().rfind(|node| node.output == id && node.op.is_cheap) else {
            return;
        };
        if let Entry::Vacant(place) = remade.entry(id) {
            self.heap.alloc(Cause::Temporaries, node.output_bytes);
            place.insert(node.output_bytes);
        }
    }

    fn let_go(&mut self, node: &Node) {
        for (arg, _) in node.args.iter().zip(&node.held).filter(|(_, held)| **held) {
            self.release(*arg);
        }
        if node.op.keeps_output {
            self.release(node.output);
        }
        self.heap.free(Cause::Activations, node.statistics);
    }

    fn tensor(&mut self, elements: u64, width: u64, cause: Cause, is_variable: bool) -> Id {
        let bytes = elements * width;
        self.heap.alloc(cause, bytes);
        self.tensors.push(Tensor { elements, bytes, cause, is_variable, handles: 1 });
        Id(self.tensors.len() - 1)
    }
}

impl Gradients {
    fn drop_one(&mut self, at: usize, heap: &mut Heap) {
        let (cause, bytes, holders) = &mut self.shared[at];
        *holders -= 1;
        if *holders == 0 {
            heap.free(*cause, *bytes);
        }
    }
}

impl Recorded {
    pub(super) fn tracks(&self, tape: &Tape<'_>, id: Id) -> bool {
        tape.tensors[id.0].is_variable || self.tracked.contains(&id)
    }
}
