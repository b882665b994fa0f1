//! placeholder: the models builder replaces this whole file
/// placeholder
pub struct Checkpoint;
/// placeholder
#[derive(Debug)]
pub enum CheckpointError {}
