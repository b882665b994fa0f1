//! Scores of answers: pure functions of what was expected and what was written.
//!
//! Each gives a value for one item, so that two candidates can be compared item by item. Where the value of a corpus is not the mean of
//! these (BLEU, chrF, F1 by class, perplexity, fields) the items give counts, which are summed, weighted where a bootstrap asks for it, and
//! scored together. Each has a signature: the version of its computation and every option. Numbers with different signatures must not be
//! compared.

pub mod bleu;
pub mod choice;
pub mod chrf;
pub mod classification;
pub mod contains;
pub mod exact;
pub mod extraction;
pub mod json_fields;
pub mod loss;
pub mod numeric;
mod porter;
pub mod rouge;
pub mod squad;
mod words;
