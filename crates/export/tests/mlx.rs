//! Ours to mlx-lm's layout to ours: the same logits.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use candle_core::Tensor;
use taper_export::{Error, write_mlx_adapter};
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions, forward_logits, load};
use taper_nn::{ForwardContext, SequenceLayout};
use taper_peft::{Adapter, LoadMode};
use taper_testkit::{golden, largest_difference, read_json, read_safetensors};

fn base_of(case: &str) -> Box<dyn CausalLm> {
    let info = read_json(&golden("peft").join(case).join("golden.json"));
    let files = ModelFiles::of_folder(&golden(info["base"].as_str().unwrap())).unwrap();
    load(&files, LoadOptions::default()).unwrap()
}

fn adapter(case: &str, model: &mut dyn CausalLm) -> Adapter {
    taper_peft::load(&golden("peft").join(case), model, LoadMode::Inference).unwrap()
}

fn ids() -> Vec<u32> {
    (3..40).map(|i| i * 7 % 90).collect()
}

fn logits(model: &dyn CausalLm) -> Tensor {
    let ids = ids();
    let layout = SequenceLayout::single(ids.len());
    forward_logits(model, &ids, &mut ForwardContext::new(&layout)).unwrap()
}

#[test]
fn what_is_written_is_read_back_with_the_same_logits() {
    // Folding a quotient of scales rounds B once; without one, nothing is rounded.
    for (case, tolerance) in [
        ("lora_all", 0.0),
        ("lora_default", 0.0),
        ("rslora", 0.0),
        ("lora_layers", 0.0),
        ("lora_exclude", 0.0),
        ("lora_qwen3", 0.0),
        ("lora_gemma2", 0.0),
        ("lora_phi3", 0.0),
        ("lora_tied", 0.0),
        ("lora_patterns", 2e-4),
        ("dora", 0.0),
        ("dora_rslora_qv", 0.0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let written = folder.path().join("mlx");
        let mut model = base_of(case);
        let base = logits(model.as_ref());
        let ours = adapter(case, model.as_mut());
        let expected = logits(model.as_ref());
        write_mlx_adapter(&ours, &written).unwrap();

        let mut again = base_of(case);
        let read = taper_peft::load(&written, again.as_mut(), LoadMode::Inference).unwrap();
        let given = logits(again.as_ref());
        let off = largest_difference(&given, &expected);
        println!("{case}: logits off by {off:e}, moved by {:e}", largest_difference(&expected, &base));
        assert!(off <= tolerance, "{case}: off by {off}");
        assert!(largest_difference(&given, &base) > 1.0, "{case}: the adapter does nothing");
        assert_eq!(read.layers.len(), ours.layers.len(), "{case}");
    }
}

#[test]
fn the_files_are_those_that_mlx_lm_loads() {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("mlx");
    let mut model = base_of("lora_patterns");
    let ours = adapter("lora_patterns", model.as_mut());
    write_mlx_adapter(&ours, &written).unwrap();
    let config = read_json(&written.join("adapter_config.json"));
    assert_eq!((config["fine_tune_type"].as_str(), config["num_layers"].as_i64()), (Some("lora"), Some(-1)));
    let keys: Vec<&str> =
        config["lora_parameters"]["keys"].as_array().unwrap().iter().filter_map(|k| k.as_str()).collect();
    assert!(keys.contains(&"self_attn.q_proj") && keys.contains(&"mlp.down_proj"), "{keys:?}");
    let scale = config["lora_parameters"]["scale"].as_f64().unwrap();
    // As mlx-lm computes it: scale * (x a) b, against s B A of each layer.
    let tensors = read_safetensors(&written.join("adapters.safetensors"));
    let weights = ours.weights();
    for layer in &ours.layers {
        let theirs = tensors[&format!("{}.lora_a", layer.path)]
            .matmul(&tensors[&format!("{}.lora_b", layer.path)])
            .unwrap();
        let own = |part: &str| {
            weights.get(&format!("{}{}.{part}.weight", taper_peft::PREFIX, layer.path)).unwrap().clone()
        };
        let delta = (own("lora_B").matmul(&own("lora_A")).unwrap().t().unwrap() * layer.scale).unwrap();
        let off = largest_difference(&(theirs * scale).unwrap(), &delta);
        assert!(off < 1e-5, "{}: off by {off}", layer.path);
    }
    assert_eq!(tensors.len(), 2 * ours.layers.len());
    // It holds every tensor to the one rank of the configuration.
    let rank = config["lora_parameters"]["rank"].as_u64().unwrap() as usize;
    assert!(tensors.iter().all(|(name, t)| t.dims()[usize::from(name.ends_with("lora_a"))] == rank));
    assert!(ours.layers.iter().any(|layer| layer.rank < rank));
}

/// Files for `tests/mlx_roundtrip.py`, which holds them to mlx-lm.
#[test]
#[ignore = "writes to $TAPER_MLX_OUT for tests/mlx_roundtrip.py"]
fn write_adapters_for_mlx() {
    let out =
        std::path::PathBuf::from(std::env::var_os("TAPER_MLX_OUT").expect("set TAPER_MLX_OUT to a folder"));
    for case in [
        "lora_all",
        "lora_default",
        "rslora",
        "lora_patterns",
        "lora_layers",
        "lora_qwen3",
        "lora_tied",
        "lora_gemma2",
        "dora",
        "dora_rslora_qv",
    ] {
        let mut model = base_of(case);
        let ours = adapter(case, model.as_mut());
        let folder = write_mlx_adapter(&ours, &out.join(case)).unwrap();
        let ids = Tensor::from_iter(ids().into_iter().map(i64::from), &candle_core::Device::Cpu).unwrap();
        let expected =
            std::collections::HashMap::from([("input_ids", ids), ("logits", logits(model.as_ref()))]);
        candle_core::safetensors::save(&expected, folder.join("expected.safetensors")).unwrap();
        let info = read_json(&golden("peft").join(case).join("golden.json"));
        let base = fs_err::canonicalize(golden(info["base"].as_str().unwrap())).unwrap();
        fs_err::write(folder.join("base.txt"), base.to_str().unwrap()).unwrap();
    }
}

#[test]
fn what_mlx_cannot_say_is_refused_and_nothing_is_written() {
    for (case, tensor) in [("lora_modules_to_save", "lm_head.weight"), ("lora_train_bias_all", ".bias")] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = base_of(case);
        let ours = adapter(case, model.as_mut());
        let error = write_mlx_adapter(&ours, &folder.path().join("mlx")).unwrap_err();
        assert!(
            matches!(&error, Error::NotInMlx { tensor: given, .. } if given.ends_with(tensor)),
            "{case}: {error}"
        );
        assert!(!folder.path().join("mlx").exists());
    }
}
