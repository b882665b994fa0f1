//! Random LoRA adapters for a model, as PEFT writes them: something to serve when only speed and memory are looked at.
//!
//! ```text
//! cargo run --example random_adapters -- MODEL OUT [COUNT] [RANK]
//! ```
//!
//! MODEL is a folder or a GGUF file. OUT gets COUNT folders (8 if not given), `adapter-00` and so on, each with an adapter of rank RANK (16) on
//! all linear layers. A and B are both random, so every adapter changes what the model says, and each in its own way. What it then says is noise.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use taper_hub::{HubOptions, ModelSource};
use taper_models::LoadOptions;
use taper_peft::{AdapterSection, InitLoraWeights};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, out, count, rank) = match &args[..] {
        [model, out] => (model, out, 8, 16),
        [model, out, count] => (model, out, number(count)?, 16),
        [model, out, count, rank] => (model, out, number(count)?, number(rank)?),
        _ => bail!("usage: random_adapters MODEL OUT [COUNT] [RANK]"),
    };
    let files =
        ModelSource::parse(model)?.resolve(&HubOptions { offline: true, ..HubOptions::from_env() })?;
    // The shapes are all that is wanted of the weights.
    let mut model = taper_models::load_on_disk(&files, LoadOptions::default())?;
    let section = AdapterSection {
        r: rank,
        lora_alpha: rank as f64,
        init_lora_weights: InitLoraWeights::Random,
        ..AdapterSection::default()
    };
    let config = section.to_config(&args[0]);
    let model_type = model.config().model_type.name();
    for seed in 0..count {
        let folder = Path::new(out).join(format!("adapter-{seed:02}"));
        fs_err::create_dir_all(&folder)?;
        let adapter = taper_peft::attach(model.as_mut(), &config, model_type, seed as u64)?;
        adapter.save(&folder)?;
        let parameters = adapter.trainable_count();
        adapter.detach(model.as_mut())?;
        writeln!(std::io::stderr().lock(), "{}: {parameters} parameters", folder.display())?;
    }
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    match text.parse().with_context(|| format!("`{text}` is no number"))? {
        0 => bail!("0 is too few"),
        number => Ok(number),
    }
}
