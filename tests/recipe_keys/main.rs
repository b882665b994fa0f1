//! Nothing that a user typed is ignored: each key of a recipe changes something that the program does.
//!
//! The keys are those of the JSON Schema, so that a new one without a case fails. For each, the built binary runs twice, without the
//! key and with a value that is not its default, and what the key is for must come out differently: the trained weights, the steps
//! that were logged, the tokens of an example, an exit code. Two keys change how something is computed and not what comes out; for
//! them the passes through the model are counted.

#[cfg(test)]
mod cases;
#[cfg(test)]
mod counted;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod see;
#[cfg(test)]
mod served;
#[cfg(test)]
mod world;
