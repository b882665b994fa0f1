#!/usr/bin/env python3
"""A LoRA in torchtune's native names and row order, and the same as torchtune converts it to PEFT.

    pip install --no-deps --target /tmp/tune torchtune
    TORCHTUNE=/tmp/tune python tests/golden/torchtune/make_golden.py

Needs torch and safetensors; of torchtune only `models/convert_weights.py` is run, which imports nothing else of it (its version and the
seed: golden.json). Shapes are those of tests/golden/models/llama_untied.
"""
import importlib.util
import json
import os
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
TUNE = pathlib.Path(os.environ["TORCHTUNE"])
BASE, SEED, R = "models/llama_untied", 11, 2

spec = importlib.util.spec_from_file_location("convert_weights", TUNE / "torchtune/models/convert_weights.py")
convert = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert)

config = json.loads((HERE.parent / BASE / "config.json").read_text())
heads, kv, dim, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"))
inner = config["intermediate_size"]
modules = {"attn.q_proj": (dim, heads * head_dim), "attn.k_proj": (dim, kv * head_dim), "attn.v_proj": (dim, kv * head_dim),
           "attn.output_proj": (heads * head_dim, dim), "mlp.w1": (dim, inner), "mlp.w2": (inner, dim), "mlp.w3": (dim, inner)}
torch.manual_seed(SEED)
native = {}
for layer in range(config["num_hidden_layers"]):
    for module, (n_in, n_out) in modules.items():
        native[f"layers.{layer}.{module}.lora_a.weight"] = torch.randn(R, n_in) * 0.2
        native[f"layers.{layer}.{module}.lora_b.weight"] = torch.randn(n_out, R) * 0.2
peft = convert.tune_to_peft_adapter_weights(dict(native), num_heads=heads, num_kv_heads=kv, dim=dim, head_dim=head_dim)
save_file(native, HERE / "adapter_model.safetensors", metadata={"format": "pt"})
save_file({k: v.contiguous() for k, v in peft.items()}, HERE / "peft.safetensors", metadata={"format": "pt"})
adapter = {"r": R, "lora_alpha": 2 * R, "target_modules": ["q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"]}
(HERE / "adapter_config.json").write_text(json.dumps(adapter))
version = next(TUNE.glob("torchtune-*.dist-info")).name.removeprefix("torchtune-").removesuffix(".dist-info")
(HERE / "golden.json").write_text(json.dumps({"base": BASE, "seed": SEED, "torchtune": version, "torch": torch.__version__}, indent=1) + "\n")
