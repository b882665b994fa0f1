//! Small Llamas that were really trained, against numbers computed in f64 by another implementation.

use crate::support::{greedy_cached, logits};
use serde_json::Value;
use taper_hub::ModelFiles;
use taper_models::{LoadOptions, load};
use taper_nn::{SequenceLayout, ops, to_vec_f32};
use taper_testkit::{read_json, real_data_or_skip};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn trained_checkpoints_reproduce_their_golden_numbers() {
    for name in ["stories260K-hf", "babyllama-tok105-hf"] {
        let Some(root) = real_data_or_skip(name).map(|real| real.join("models").join(name)) else { continue };
        let model = load(&ModelFiles::of_folder(&root).unwrap(), LoadOptions::default()).unwrap();
        let golden = read_json(&root.join("golden.json"));
        let (mut nll_error, mut logit_error) = (0.0f64, 0.0f64);
        for case in golden["cases"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let logits = logits(model.as_ref(), &ids, &SequenceLayout::single(ids.len()));
            let last = to_vec_f32(&logits.narrow(0, ids.len() - 1, 1).unwrap()).unwrap();
            let top = case.get("last_top10").or(case.get("last_top5")).unwrap();
            for pair in top.as_array().unwrap() {
                let (id, logit) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
                logit_error = logit_error.max((f64::from(last[id]) - logit).abs());
            }
            if ids.len() < 2 {
                continue;
            }
            let predicting = logits.narrow(0, 0, ids.len() - 1).unwrap().contiguous().unwrap();
            let losses = ops::cross_entropy(&predicting, &ids[1..]).unwrap();
            let mean = losses.sum().unwrap() / losses.losses().unwrap().len() as f64;
            nll_error = nll_error.max((mean - case["mean_nll"].as_f64().unwrap()).abs());
            if let Some(expected) = case.get("token_nll") {
                for (given, expected) in losses.losses().unwrap().iter().zip(numbers(expected)) {
                    nll_error = nll_error.max((f64::from(*given) - expected).abs());
                }
            }
        }
        eprintln!("{name}: logits {logit_error:.1e}, negative log-likelihoods {nll_error:.1e}");
        assert!(logit_error < 2e-4, "{name} logits: {logit_error:e}");
        assert!(nll_error < 2e-4, "{name} nll: {nll_error:e}");

        let text = ids(&golden["greedy_from_bos"]["ids"]);
        assert_eq!(
            greedy_cached(model.as_ref(), &[text[..1].to_vec()], text.len() - 1),
            [text],
            "{name} greedy"
        );
    }
}
