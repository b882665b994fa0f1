//! `tests/golden/peft/combine`: what PEFT's `add_weighted_adapter` makes of two adapters.

use crate::support::{batch, furthest, golden, largest, model, tensors};
use candle_core::Tensor;
use taper_peft::{
    AdapterConfig, AdapterWeights, Combination, CombinationType, LoadMode, WeightedAdapter, combine, load,
    load_parts,
};

fn parts(name: &str) -> (AdapterConfig, AdapterWeights) {
    let folder = golden(&format!("peft/combine/{name}"));
    (AdapterConfig::read(&folder).unwrap(), AdapterWeights::read(&folder).unwrap())
}

fn combined(how: &Combination, weights: [f64; 2]) -> taper_peft::Result<(AdapterConfig, AdapterWeights)> {
    let (a, b) = (parts("a"), parts("b"));
    let weighted = |part, weight| -> WeightedAdapter<'_> {
        let (config, weights): &(AdapterConfig, AdapterWeights) = part;
        WeightedAdapter { config, weights, weight }
    };
    combine(&[weighted(&a, weights[0]), weighted(&b, weights[1])], how)
}

fn delta(config: &AdapterConfig, weights: &AdapterWeights) -> Tensor {
    let path = "model.layers.1.self_attn.q_proj";
    let factor = |name: &str| weights.get(&format!("base_model.model.{path}.{name}.weight")).unwrap();
    let product = factor("lora_B").matmul(factor("lora_A")).unwrap();
    (product * config.scale_of(path).unwrap()).unwrap()
}

#[test]
fn combinations_are_pefts() {
    let (batch, expected) = (batch(), tensors(&golden("peft/combine/golden.safetensors")));
    let of = |combination_type| Combination { combination_type, ..Combination::default() };
    let pruned = |combination_type| Combination { density: Some(0.5), ..of(combination_type) };
    for (name, how, weights, rank) in [
        ("linear", of(CombinationType::Linear), [0.7, -0.4], 4),
        ("cat", of(CombinationType::Cat), [0.7, -0.4], 8),
        ("ties", pruned(CombinationType::Ties), [0.7, 0.4], 4),
        ("magnitude_prune", pruned(CombinationType::MagnitudePrune), [0.7, 0.4], 4),
        ("svd", Combination { svd_rank: Some(4), ..of(CombinationType::Svd) }, [0.7, 0.4], 4),
    ] {
        let (config, weights) = combined(&how, weights).unwrap();
        assert_eq!((config.r, config.lora_alpha), (rank, rank as f64), "{name}");
        let wanted = &expected[&format!("{name}.delta.layers.1.self_attn.q_proj")];
        let off = furthest(&delta(&config, &weights), wanted) / largest(wanted);
        assert!(off <= 1e-5, "{name}: the delta is {off} off");
        let mut model = model("models/llama_untied");
        load_parts(&config, weights, &mut *model, LoadMode::Inference).unwrap();
        let off = furthest(&batch.logits(&*model), &batch.unpadded(&expected[&format!("{name}.logits")]));
        assert!(off <= 2e-4, "{name}: logits off by {off}");
    }
}

/// What is dropped at random is another every time, but its mean is the sum; and the vote of one is its own.
#[test]
fn dropping_at_random_keeps_the_mean_and_is_decided_by_the_seed() {
    let whole = combined(
        &Combination { combination_type: CombinationType::Svd, ..Combination::default() },
        [0.7, 0.4],
    );
    let (config, weights) = whole.unwrap();
    let wanted = delta(&config, &weights);
    let dropped = |seed| {
        let how = Combination {
            combination_type: CombinationType::DareLinearSvd,
            density: Some(0.5),
            svd_rank: Some(64),
            seed,
            ..Combination::default()
        };
        let (config, weights) = combined(&how, [0.7, 0.4]).unwrap();
        delta(&config, &weights)
    };
    assert!(furthest(&dropped(1), &dropped(1)) == 0.0 && furthest(&dropped(1), &dropped(2)) > 0.1);
    let exact =
        Combination { combination_type: CombinationType::Svd, svd_rank: Some(8), ..Combination::default() };
    let (config, weights) = combined(&exact, [0.7, 0.4]).unwrap();
    let exact = delta(&config, &weights);
    let rounds = 40;
    let sum = (0..rounds).map(dropped).reduce(|a, b| a.add(&b).unwrap()).unwrap();
    let mean = (sum / f64::from(rounds as u32)).unwrap();
    let rms = |t: &Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    // Each number is 0 or twice itself, so a mean of 40 is a sixth off.
    assert!(rms(&mean.sub(&exact).unwrap()) < 0.25 * rms(&exact));
    assert!(rms(&wanted) > 0.0);
}

#[test]
fn what_cannot_be_combined_is_refused_by_name() {
    let told = |how: Combination| combined(&how, [1.0, 1.0]).unwrap_err().to_string();
    let of = |combination_type| Combination { combination_type, ..Combination::default() };
    assert!(told(of(CombinationType::Ties)).contains("density"));
    assert!(told(Combination { density: Some(0.5), ..of(CombinationType::Cat) }).contains("density"));
    assert!(told(Combination { density: Some(1.5), ..of(CombinationType::Ties) }).contains("density"));
    assert!(told(Combination { svd_rank: Some(3), ..of(CombinationType::Cat) }).contains("svd_rank"));
    let (dora, plain) = ("peft/dora", "peft/lora_patterns");
    let read = |name: &str| {
        let folder = golden(name);
        (AdapterConfig::read(&folder).unwrap(), AdapterWeights::read(&folder).unwrap())
    };
    for (name, key, kind) in
        [(dora, "use_dora", CombinationType::Cat), (plain, "ranks differ", CombinationType::Linear)]
    {
        let (config, weights) = read(name);
        let one = WeightedAdapter { config: &config, weights: &weights, weight: 1.0 };
        let error = combine(&[one, one], &of(kind)).unwrap_err();
        let text = format!("{} {error:?}", taper_diagnostics::Problem::from_error("peft", &error));
        assert!(text.contains(key), "{name}: {text}");
    }
}

#[test]
fn what_an_adapter_has_beyond_pairs_is_refused() {
    let (config, weights) = parts("a");
    let of = |config: &AdapterConfig, tensors: &std::collections::BTreeMap<String, Tensor>| {
        let weights = AdapterWeights::from_tensors(tensors.clone());
        let one = WeightedAdapter { config, weights: &weights, weight: 0.5 };
        combine(&[one], &Combination::default()).map(|_| ()).map_err(|error| error.to_string())
    };
    let whole: std::collections::BTreeMap<_, _> =
        weights.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect();
    of(&config, &whole).unwrap();
    let other_rank = AdapterConfig { r: config.r + 1, ..config.clone() };
    assert!(of(&other_rank, &whole).unwrap_err().contains("the configuration says 5"));
    let with = |name: &str, shape: (usize, usize)| {
        let mut tensors = whole.clone();
        let zeros = Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        tensors.insert(format!("base_model.model.model.{name}"), zeros);
        of(&config, &tensors)
    };
    let told = with("layers.0.self_attn.q_proj.lora_magnitude_vector", (1, 3)).unwrap_err();
    assert!(told.contains("lora_magnitude_vector"), "{told}");
    assert!(with("layers.7.self_attn.q_proj.lora_B.weight", (3, 4)).is_err());
    with("embed_tokens.base_layer.weight", (3, 4)).unwrap();
    let empty = with("layers.7.self_attn.q_proj.lora_A.weight", (4, 0));
    assert!(empty.unwrap_err().contains("lora_B"));
    assert!(of(&config, &std::collections::BTreeMap::new()).unwrap_err().contains("no tensor"));
    let mut hollow = whole.clone();
    for (name, shape) in [("lora_A", (4, 0)), ("lora_B", (0, 4))] {
        let zeros = Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        hollow.insert(format!("base_model.model.model.layers.7.self_attn.q_proj.{name}.weight"), zeros);
    }
    assert!(of(&config, &hollow).unwrap_err().contains("empty"));
}

/// Ranks and scales that differ by layer are worked into the factors: twice an adapter is its delta twice.
#[test]
fn an_adapter_with_patterns_beside_itself_is_twice_its_delta() {
    let folder = golden("peft/lora_patterns");
    let (config, weights) = (AdapterConfig::read(&folder).unwrap(), AdapterWeights::read(&folder).unwrap());
    let half = WeightedAdapter { config: &config, weights: &weights, weight: 0.5 };
    let (combined, factors) = combine(&[half, half], &Combination::default()).unwrap();
    let batch = batch();
    let (mut one, mut two) = (model("models/llama_untied"), model("models/llama_untied"));
    load(&folder, &mut *one, LoadMode::Inference).unwrap();
    load_parts(&combined, factors, &mut *two, LoadMode::Inference).unwrap();
    assert!(furthest(&batch.logits(&*one), &batch.logits(&*two)) < 2e-4);
}
