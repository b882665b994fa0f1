//! `taper bench generate`: greedy decoding of random weights or of a file.

use super::random::{random_example, random_model};
use crate::cli::{BenchGenerateArgs, BenchModelArgs};
use crate::device;
use crate::fault::OrFault;
use crate::memory::peak_bytes;
use crate::workspace::model_section;
use serde_json::json;
use std::path::Path;
use std::time::Instant;
use taper_hub::{HubOptions, ModelSource};
use taper_models::{CausalLm, LoadOptions};
use taper_nn::{ForwardContext, KvCache, SequenceLayout};

pub(super) fn generate(args: &BenchGenerateArgs) -> anyhow::Result<serde_json::Value> {
    let &BenchGenerateArgs { model: ref args, model_file: ref file, batch, prompt, tokens } = args;
    let model = match file {
        Some(path) => model_of_file(args, path)?,
        None => random_model(args)?.0,
    };
    let vocabulary = model.config().vocab_size as u64;
    let mut caches: Vec<KvCache> = (0..batch).map(|_| KvCache::new(model.num_blocks())).collect();
    let prompts: Vec<u32> =
        (0..batch as u64).flat_map(|row| random_example(prompt, vocabulary, row).input_ids).collect();
    let started = Instant::now();
    pass(model.as_ref(), &prompts, &mut caches, prompt, 0)?;
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for step in 0..tokens {
        // Random weights: which token is likeliest does not matter, only what it costs to find out.
        let ids: Vec<u32> = (0..batch).map(|row| ((step + row) as u64 % vocabulary) as u32).collect();
        pass(model.as_ref(), &ids, &mut caches, 1, prompt + step)?;
    }
    let decode = started.elapsed().as_secs_f64();
    Ok(json!({
        "bench": "generate", "shape": file.is_none().then_some(&args.shape), "model": file, "dtype": args.dtype, "quantize": args.quantize.quantize,
        "double_quant": args.quantize.double_quant, "batch": batch, "prompt": prompt, "tokens": tokens,
        "threads": taper_kernels::threads::thread_count(),
        "prefill_tokens_per_second": (batch * prompt) as f64 / prefill,
        "decode_tokens_per_second": (batch * tokens) as f64 / decode,
        "peak_bytes": peak_bytes(), "device": device::figures(&device::open_choice(args.device)?),
    }))
}

/// The model of a folder or a GGUF file, held as the flags say.
fn model_of_file(args: &BenchModelArgs, path: &Path) -> anyhow::Result<Box<dyn CausalLm>> {
    let section = model_section(&args.quantize, &path.to_string_lossy(), &args.dtype)?;
    let offline = HubOptions { offline: true, ..HubOptions::from_env() };
    let files = ModelSource::of_section(&section, Path::new("")).or_fault()?.resolve(&offline).or_fault()?;
    let mut model = taper_models::load(&files, LoadOptions::from(&section)).or_fault()?;
    device::place(model.as_mut(), &device::open_choice(args.device)?, None)?;
    Ok(model)
}

/// New tokens of every sequence, and the logits behind the last one of each.
fn pass(
    model: &dyn CausalLm,
    ids: &[u32],
    caches: &mut [KvCache],
    new: usize,
    past: usize,
) -> anyhow::Result<()> {
    let layout = SequenceLayout::continued(&vec![(new, past); caches.len()]);
    let mut ctx = ForwardContext::cached(&layout, caches.iter_mut().collect());
    let hidden = taper_models::forward_hidden(model, ids, &mut ctx)?;
    let last: Vec<u32> = layout.segments().iter().map(|s| s.end as u32 - 1).collect();
    let logits = model.lm_head(&taper_nn::ops::take_rows(&hidden, &last)?, &ctx)?;
    // As who samples from them does; a device is waited for so.
    std::hint::black_box(taper_nn::to_vec_f32(&logits)?);
    Ok(())
}
