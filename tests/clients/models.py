"""The models that are served: the shipped base with a chat template that takes tools, and adapters with random weights.

The base is written in f32, so that what it computes can be held against `reference.py` closely, and its context is made longer,
so that a text can be long enough to be broken off. Tools have a place in the template alone: the base never saw any.
"""
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "tiny-base"
TEMPLATE = ROOT / "tests" / "golden" / "chat" / "templates" / "chatml_tools.jinja"
CONTEXT = 8192
RANK, ALPHA = 4, 8
# name: (seed, standard deviation of B, adapted layers)
ADAPTERS = {
    "red": (1, 0.3, ["q_proj", "v_proj"]),
    "blue": (2, 0.2, ["q_proj", "k_proj", "o_proj", "down_proj"]),
    "green": (3, 0.3, ["v_proj", "up_proj"]),
}


def make(folder):
    """Write `base`, and `adapters/NAME` for each adapter; gives the folder."""
    folder = Path(folder)
    config = make_base(folder / "base")
    for name in ADAPTERS:
        make_adapter(folder / "adapters" / name, config, *ADAPTERS[name])
    return folder


def make_base(folder):
    folder.mkdir(parents=True)
    config = json.loads((BASE / "config.json").read_text())
    config.update(max_position_embeddings=CONTEXT, torch_dtype="float32")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copyfile(BASE / name, folder / name)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    save_file(read_bf16(BASE / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
    return config


def read_bf16(path):
    """The tensors of a file in bf16, which numpy has no type for, as f32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
        start, end = entry["data_offsets"]
        halves = np.frombuffer(data[8 + length + start : 8 + length + end], "<u2")
        tensors[name] = (halves.astype("<u4") << 16).view("<f4").reshape(entry["shape"])
    return tensors


def make_adapter(folder, config, seed, spread, targets):
    """A LoRA as PEFT saves one."""
    folder.mkdir(parents=True)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = (config[key] * config["head_dim"] for key in ["num_attention_heads", "num_key_value_heads"])
    sizes = {  # in, out
        "q_proj": (hidden, heads), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (heads, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            into, out = sizes[target]
            name = f"base_model.model.model.layers.{layer}.{block}.{target}"
            tensors[f"{name}.lora_A.weight"] = (random.standard_normal((RANK, into)) / into**0.5).astype("<f4")
            tensors[f"{name}.lora_B.weight"] = (random.standard_normal((out, RANK)) * spread).astype("<f4")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": RANK, "lora_alpha": ALPHA,
        "lora_dropout": 0.0, "bias": "none", "target_modules": targets, "fan_in_fan_out": False, "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=2))
