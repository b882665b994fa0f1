"""What the models of `models.py` compute, in numpy and written out: the numbers that the server's are held against."""
import json
from functools import cached_property, lru_cache

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from models import ALPHA, RANK


class Reference:
    """A base and its adapters. Adapters are given as a tuple of (name, scale)."""

    def __init__(self, folder):
        self.folder = folder
        self.config = json.loads((folder / "base" / "config.json").read_text())
        self.weights = load_file(folder / "base" / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
        self.stop_ids = {self.tokenizer.token_to_id(token) for token in ["<|im_end|>", "<|endoftext|>"]}

    @cached_property
    def chat_template(self):
        import jinja2

        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        return environment.from_string((self.folder / "base" / "chat_template.jinja").read_text())

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def chat_ids(self, messages, tools=None):
        return self.encode(self.chat_template.render(messages=messages, tools=tools, add_generation_prompt=True))

    @lru_cache(maxsize=None)
    def _merged(self, adapters):
        """The weights with the deltas of adapters: W + scale * alpha / r * B A."""
        weights = dict(self.weights)
        for name, scale in adapters:
            tensors = load_file(self.folder / "adapters" / name / "adapter_model.safetensors")
            for key in tensors:
                if key.endswith(".lora_A.weight"):
                    layer = key.removesuffix(".lora_A.weight")
                    delta = tensors[f"{layer}.lora_B.weight"] @ tensors[key] * (scale * ALPHA / RANK)
                    target = layer.removeprefix("base_model.model.") + ".weight"
                    weights[target] = weights[target] + delta
        return weights

    def logprobs(self, ids, adapters=()):
        """The log-probabilities of every next token at every place: [T, V]."""
        config, weights = self.config, self._merged(adapters)
        heads, kv, size = (config[key] for key in ["num_attention_heads", "num_key_value_heads", "head_dim"])
        turns = np.arange(len(ids))[:, None] / config["rope_theta"] ** (np.arange(0, size, 2) / size)
        cos, sin = (np.concatenate([f(turns)] * 2, 1)[:, None].astype("f4") for f in (np.cos, np.sin))  # [T, 1, D]
        rotate = lambda x: x * cos + np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin
        future = np.triu(np.full((len(ids), len(ids)), -np.inf, "f4"), 1)

        def norm(x, name):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

        x = weights["model.embed_tokens.weight"][ids]
        for layer in range(config["num_hidden_layers"]):
            of = f"model.layers.{layer}."
            linear = lambda x, name: x @ weights[f"{of}{name}.weight"].T
            h = norm(x, of + "input_layernorm.weight")
            q, k, v = (linear(h, f"self_attn.{name}_proj").reshape(len(ids), -1, size) for name in "qkv")
            k, v = (np.repeat(part, heads // kv, 1) for part in (rotate(k), v))
            scores = np.einsum("tnd,snd->nts", rotate(q), k) / size**0.5 + future
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("nts,snd->tnd", scores / scores.sum(-1, keepdims=True), v)
            x = x + linear(mixed.reshape(len(ids), -1), "self_attn.o_proj")
            h = norm(x, of + "post_attention_layernorm.weight")
            gate = linear(h, "mlp.gate_proj")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, "mlp.up_proj"), "mlp.down_proj")
        logits = norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T
        logits = logits.astype("f8")
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def greedy(self, ids, tokens, adapters=(), frequency=0.0, presence=0.0):
        """The ids that are likeliest behind a prompt, up to a stop token, which is not among them.

        OpenAI's penalties: what was written (not the prompt) loses `frequency` for each time, and `presence` once.
        """
        written = []
        for _ in range(tokens):
            row = self.logprobs(ids + written, adapters)[-1]
            for i in set(written):
                row[i] -= frequency * written.count(i) + presence
            best = int(row.argmax())
            if best in self.stop_ids:
                break
            written.append(best)
        return written

    def score(self, context, continuation, adapters=()):
        """The log-probability of ids behind others, and whether they are the likeliest."""
        table = self.logprobs(context + continuation, adapters)[len(context) - 1 : -1]
        return sum(row[i] for row, i in zip(table, continuation)), bool((table.argmax(-1) == continuation).all())
