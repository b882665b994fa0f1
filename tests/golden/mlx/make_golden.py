#!/usr/bin/env python3
"""Adapters as mlx-lm makes, saves and loads them, with its logits: `python tests/golden/mlx/make_golden.py`.

Needs mlx and mlx-lm (versions and seed: golden.json of each case). The base is tests/golden/models/llama_untied. Modules are made by
mlx-lm's `linear_to_lora_layers`, given random values, saved as its trainer saves them, and loaded again by `load_adapters`.
"""
import json
import pathlib
from importlib.metadata import version

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

HERE = pathlib.Path(__file__).resolve().parent
BASE = "models/llama_untied"
SEED = 7
IDS = [(3 + 7 * i) % 90 for i in range(24)]
CASES = {
    # The last block alone: `num_layers` counts from the end.
    "lora": dict(fine_tune_type="lora", num_layers=1, rank=4, scale=10.0, keys=["self_attn.q_proj", "self_attn.v_proj"]),
    "lora_keys": dict(fine_tune_type="lora", num_layers=-1, rank=2, scale=2.5, keys=["self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"]),
    "dora": dict(fine_tune_type="dora", num_layers=-1, rank=2, scale=3.0, keys=["self_attn.q_proj", "mlp.up_proj"]),
}


def base():
    return load_model(HERE.parent / BASE)[0]


def logits(model):
    return model(mx.array([IDS]))[0].astype(mx.float32)


def make(name, case):
    mx.random.seed(SEED)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    parameters = {"rank": case["rank"], "scale": case["scale"], "dropout": 0.0, "keys": case["keys"]}
    model = base()
    before = logits(model)
    model.freeze()
    linear_to_lora_layers(model, case["num_layers"], parameters, use_dora=case["fine_tune_type"] == "dora")
    noise = lambda x: x + 0.1 * mx.random.normal(x.shape)
    model.update(tree_map(noise, model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    config = {"fine_tune_type": case["fine_tune_type"], "num_layers": case["num_layers"], "lora_parameters": parameters,
              "model": BASE, "iters": 0, "seed": SEED, "train": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=4, sort_keys=True))
    again = base()
    load_adapters(again, str(folder))
    after = logits(again)
    mx.save_safetensors(str(folder / "golden.safetensors"), {"input_ids": mx.array(IDS, dtype=mx.int32), "logits": after})
    (folder / "golden.json").write_text(json.dumps({
        "base": BASE, "seed": SEED, "mlx": version("mlx"), "mlx_lm": version("mlx-lm"),
        "logits_moved_by": mx.abs(after - before).max().item(),
        "reloaded_vs_made_logits": mx.abs(after - logits(model)).max().item(),
    }, indent=1) + "\n")


for name, case in CASES.items():
    make(name, case)
