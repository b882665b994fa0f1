//! candle's graph without its numbers: which tensors are alive when, in a forward pass and in its backward.
//!
//! A tensor lives as long as a variable names it or an operation that is differentiated took it. candle's backward walks the operations
//! in one order ([`Tape::backward`] walks in the same), makes the gradient of each argument, a tensor of zeros for an argument that has
//! none yet, and the sum of the two in a third.

use super::heap::{Cause, Heap};
use std::collections::BTreeMap;

/// A tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(usize);

/// What an operation's backward makes.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// An operation of our own: the gradients of the arguments that are marked, and `extra` bytes beside them until it returns.
    Own { gives: Vec<bool>, extra: u64 },
    /// candle's sum: the gradient itself goes to both arguments.
    Add,
    /// candle's view of a vector as many rows: its gradient is summed over them.
    Broadcast,
}

#[derive(Debug)]
struct Node {
    elements: u64,
    storage: usize,
    /// Arguments and operation, when there is something to differentiate.
    made_by: Option<(Op, Vec<Id>)>,
    /// Bytes that the operation keeps from its forward.
    statistics: u64,
    is_variable: bool,
    /// Names and operations that hold the tensor.
    handles: u32,
}

#[derive(Debug)]
struct Storage {
    bytes: u64,
    cause: Cause,
    tensors: u32,
}

/// Gradients by tensor, as candle's store holds them.
#[derive(Debug, Default)]
pub(super) struct Gradients(BTreeMap<Id, (Cause, u64)>);

/// The tensors of a pass.
#[derive(Debug)]
pub(super) struct Tape<'h> {
    pub(super) heap: &'h mut Heap,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
}

/// What an operation takes and gives.
pub(super) struct Made<'a> {
    pub(super) args: &'a [Id],
    /// Elements of the result, f32.
    pub(super) elements: u64,
    pub(super) cause: Cause,
    /// Bytes that the forward leaves for the backward.
    pub(super) statistics: u64,
    /// Bytes that the forward needs for a moment.
    pub(super) scratch: u64,
}

impl<'h> Tape<'h> {
    pub(super) fn new(heap: &'h mut Heap) -> Self {
        Self { heap, nodes: Vec::new(), storages: Vec::new() }
    }

    /// A tensor outside any graph.
    pub(super) fn plain(&mut self, elements: u64, cause: Cause) -> Id {
        let storage = self.storage(4 * elements, cause);
        self.node(elements, storage, false)
    }

    /// A variable that is held elsewhere: its gradient counts, it does not.
    pub(super) fn parameter(&mut self, elements: u64) -> Id {
        let storage = self.storage(0, Cause::Parameters);
        self.node(elements, storage, true)
    }

    /// A copy of a tensor that the backward gives a gradient to.
    pub(super) fn leaf(&mut self, of: Id) -> Id {
        let elements = self.nodes[of.0].elements;
        let storage = self.storage(4 * elements, Cause::Activations);
        self.node(elements, storage, true)
    }

    /// The same memory outside the graph.
    pub(super) fn detach(&mut self, of: Id) -> Id {
        let (elements, storage) = (self.nodes[of.0].elements, self.nodes[of.0].storage);
        self.storages[storage].tensors += 1;
        self.node(elements, storage, false)
    }

    /// Another name for a tensor.
    pub(super) fn share(&mut self, id: Id) -> Id {
        self.nodes[id.0].handles += 1;
        id
    }

    /// A name is gone.
    pub(super) fn release(&mut self, id: Id) {
        let mut gone = vec![id];
        while let Some(id) = gone.pop() {
            let node = &mut self.nodes[id.0];
            node.handles -= 1;
            if node.handles > 0 {
                continue;
            }
            let (storage, statistics) = (node.storage, std::mem::take(&mut node.statistics));
            gone.extend(node.made_by.take().into_iter().flat_map(|(_, args)| args));
            self.heap.free(Cause::Activations, statistics);
            let storage = &mut self.storages[storage];
            storage.tensors -= 1;
            if storage.tensors == 0 {
                self.heap.free(storage.cause, storage.bytes);
            }
        }
    }

    /// Whether every tensor is gone.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.iter().all(|node| node.handles == 0)
    }

    pub(super) fn is_tracked(&self, id: Id) -> bool {
        let node = &self.nodes[id.0];
        node.is_variable || node.made_by.is_some()
    }

    /// The result of an operation; it keeps its arguments when one of them is differentiated.
    pub(super) fn apply(&mut self, op: Op, made: &Made<'_>) -> Id {
        let storage = match op {
            Op::Broadcast => self.storage(0, made.cause),
            _ => self.storage(4 * made.elements, made.cause),
        };
        let id = self.node(made.elements, storage, false);
        self.heap.alloc(Cause::Activations, made.statistics);
        self.heap.pass_by(Cause::Temporaries, made.scratch);
        if made.args.iter().any(|arg| self.is_tracked(*arg)) {
            made.args.iter().for_each(|arg| self.nodes[arg.0].handles += 1);
            self.nodes[id.0].made_by = Some((op, made.args.to_vec()));
            self.nodes[id.0].statistics = made.statistics;
        } else {
            self.heap.free(Cause::Activations, made.statistics);
        }
        id
    }

    /// The gradients that are left when `output` has been differentiated from a gradient that is held elsewhere.
    pub(super) fn backward(&mut self, output: Id) -> Gradients {
        let mut gradients = Gradients::default();
        self.accumulate(&mut gradients, output);
        for id in self.sorted(output) {
            if self.nodes[id.0].is_variable {
                continue;
            }
            let Some((cause, bytes)) = gradients.0.remove(&id) else { continue };
            let Some((op, args)) = self.nodes[id.0].made_by.clone() else { continue };
            match op {
                Op::Own { gives, extra } => {
                    let asked: Vec<Id> =
                        args.iter().zip(gives).filter(|(_, gives)| *gives).map(|(arg, _)| *arg).collect();
                    asked.iter().for_each(|arg| self.alloc_gradient(*arg));
                    self.heap.pass_by(Cause::Temporaries, extra);
                    for arg in asked {
                        self.accumulate(&mut gradients, arg);
                        self.free_gradient(arg);
                    }
                }
                Op::Add => args.iter().for_each(|arg| self.accumulate(&mut gradients, *arg)),
                Op::Broadcast => {
                    self.alloc_gradient(args[0]);
                    self.accumulate(&mut gradients, args[0]);
                    self.free_gradient(args[0]);
                }
            }
            self.heap.free(cause, bytes);
        }
        gradients
    }

    /// The store is dropped but for the gradient of `kept`, whose bytes are given.
    pub(super) fn drop_gradients(&mut self, gradients: Gradients, kept: Option<Id>) -> u64 {
        let mut left = 0;
        for (id, (cause, bytes)) in gradients.0 {
            if kept == Some(id) {
                left = bytes;
            } else {
                self.heap.free(cause, bytes);
            }
        }
        left
    }

    /// Zeros where there is no gradient yet, then the sum in a tensor of its own.
    fn accumulate(&mut self, gradients: &mut Gradients, of: Id) {
        if gradients.0.insert(of, self.gradient(of)).is_none() {
            self.alloc_gradient(of);
        }
        self.alloc_gradient(of);
        self.free_gradient(of);
    }

    fn gradient(&self, of: Id) -> (Cause, u64) {
        let node = &self.nodes[of.0];
        let of_logits = self.storages[node.storage].cause == Cause::Logits;
        (if of_logits { Cause::Logits } else { Cause::Temporaries }, 4 * node.elements)
    }

    fn alloc_gradient(&mut self, of: Id) {
        let (cause, bytes) = self.gradient(of);
        self.heap.alloc(cause, bytes);
    }

    fn free_gradient(&mut self, of: Id) {
        let (cause, bytes) = self.gradient(of);
        self.heap.free(cause, bytes);
    }

    /// What leads to `output` and is differentiated, each tensor before its arguments: candle's `sorted_nodes`.
    fn sorted(&self, output: Id) -> Vec<Id> {
        let (mut seen, mut order) = (vec![false; self.nodes.len()], Vec::new());
        // A tensor is put behind its arguments, which are walked from the first to the last.
        let mut open = vec![(output, 0)];
        seen[output.0] = true;
        while let Some((id, next)) = open.pop() {
            let args = self.nodes[id.0].made_by.as_ref().map_or(&[][..], |(_, args)| args);
            match args.get(next) {
                Some(arg) => {
                    open.push((id, next + 1));
                    if !std::mem::replace(&mut seen[arg.0], true) {
                        open.push((*arg, 0));
                    }
                }
                None if self.is_tracked(id) => order.push(id),
                None => {}
            }
        }
        order.reverse();
        order
    }

    fn storage(&mut self, bytes: u64, cause: Cause) -> usize {
        self.heap.alloc(cause, bytes);
        self.storages.push(Storage { bytes, cause, tensors: 1 });
        self.storages.len() - 1
    }

    fn node(&mut self, elements: u64, storage: usize, is_variable: bool) -> Id {
        self.nodes.push(Node { elements, storage, made_by: None, statistics: 0, is_variable, handles: 1 });
        Id(self.nodes.len() - 1)
    }
}
