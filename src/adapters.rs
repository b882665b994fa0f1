//! Adapters from the disk onto a model, whoever wrote them, one or several.

use crate::cli::WeightedFolder;
use crate::fault::OrFault;
use crate::output::say;
use std::path::Path;
use taper_models::CausalLm;
use taper_peft::{
    Adapter, AdapterConfig, AdapterWeights, Combination, HeadLayout, LoadMode, WeightedAdapter,
};

/// Put the adapter in `folder` on a model for inference, whoever wrote it.
pub(crate) fn load_adapter(folder: &Path, model: &mut dyn CausalLm) -> anyhow::Result<Adapter> {
    let heads = taper_infer::head_layout(model.config());
    taper_peft::load_for(folder, model, LoadMode::Inference, heads).or_fault()
}

/// Put adapters on a model for inference. Several are one: their deltas side by side, each times its weight.
pub(crate) fn put_on(adapters: &[WeightedFolder], model: &mut dyn CausalLm) -> anyhow::Result<()> {
    let loaded = match adapters {
        [] => return Ok(()),
        [one] if one.weight == 1.0 => load_adapter(&one.folder, model)?,
        several => {
            let (config, weights) =
                combined(several, taper_infer::head_layout(model.config()), &Combination::default())?;
            taper_peft::load_parts(&config, weights, model, LoadMode::Inference).or_fault()?
        }
    };
    let count: usize = loaded.weights().iter().map(|(_, tensor)| tensor.elem_count()).sum();
    let names: Vec<String> = adapters.iter().map(named_with_weight).collect();
    say(&format!("adapter {}: {count} parameters", names.join(" + ")));
    Ok(())
}

pub(crate) fn named_with_weight(adapter: &WeightedFolder) -> String {
    match adapter.weight {
        1.0 => adapter.folder.display().to_string(),
        weight => format!("{weight} x {}", adapter.folder.display()),
    }
}

/// One adapter of several.
pub(crate) fn combined(
    adapters: &[WeightedFolder],
    heads: Option<HeadLayout>,
    how: &Combination,
) -> anyhow::Result<(AdapterConfig, AdapterWeights)> {
    let read = |adapter: &WeightedFolder| taper_peft::read_parts(&adapter.folder, heads).or_fault();
    let parts = adapters.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let weighted: Vec<WeightedAdapter<'_>> = parts
        .iter()
        .zip(adapters)
        .map(|((config, weights), adapter)| WeightedAdapter { config, weights, weight: adapter.weight })
        .collect();
    taper_peft::combine(&weighted, how).or_fault()
}
