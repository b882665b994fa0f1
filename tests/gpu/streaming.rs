//! A base that does not fit on the device: its linear layers on the host, copied when they are used; and activations that wait there.

use crate::support::{attach, bits, device, model, pass, stir};
use candle_core::DType;
use taper_models::LoadOptions;
use taper_train::PassOptions;

const ADAPTER: &str = r#"{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}"#;

#[test]
fn gpu_layers_that_are_left_on_the_host_give_the_same_bits() {
    let Some(gpu) = device() else { return };
    let options = LoadOptions { dtype: Some(DType::BF16), quantize: None };
    let trained = |max_memory: Option<u64>| {
        let mut base = model("llama_untied", options, &candle_core::Device::Cpu);
        taper_nn::move_to(base.as_mut(), gpu, max_memory).unwrap();
        let adapter = attach(base.as_mut(), ADAPTER);
        stir(&adapter.parameters);
        assert!(adapter.parameters.iter().all(|p| p.var.device().is_cuda()));
        let found = pass(base.as_ref(), &adapter.parameters, &PassOptions::default());
        (found, bits(&adapter.parameters))
    };
    assert_eq!(trained(Some(0)), trained(None));
}

#[test]
fn gpu_activations_that_wait_on_the_host_give_the_same_bits() {
    let Some(gpu) = device() else { return };
    let options = LoadOptions { dtype: Some(DType::F32), quantize: None };
    let mut base = model("llama_untied", options, gpu);
    let adapter = attach(base.as_mut(), ADAPTER);
    stir(&adapter.parameters);
    let checkpointed = PassOptions { gradient_checkpointing: true, ..PassOptions::default() };
    let offloaded = PassOptions { activation_offloading: true, ..checkpointed };
    let of = |options: &PassOptions| pass(base.as_ref(), &adapter.parameters, options);
    assert_eq!(of(&offloaded), of(&checkpointed));
}
