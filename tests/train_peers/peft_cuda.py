#!/usr/bin/env python3
"""LoRA training steps of transformers + PEFT on an NVIDIA GPU: what `taper bench train --device cuda` is measured against.

    python tests/train_peers/peft_cuda.py train --shape llama3.2-1b --batch 4 --seq 2048 [--compile]
    python tests/train_peers/peft_cuda.py train --shape llama3.1-8b --batch 2 --seq 2048 --nf4 [--checkpointing]
    python tests/train_peers/peft_cuda.py card
    python tests/train_peers/peft_cuda.py train --shape tiny --device cpu --batch 2 --seq 64

Needs torch, transformers, peft and accelerate; bitsandbytes for --nf4, flash-attn for --attention flash_attention_2. No network:
the weights are random, in the published shape. Prints one JSON line on standard output.

train  A step is zero_grad, forward with the model's own loss, backward, and AdamW (fused on a GPU) over a LoRA of rank 16 on
       every linear layer of the blocks, on BATCH x SEQ random tokens without padding. The base is bf16 (or NF4 with coded
       scales), the LoRA too, which is PEFT's fastest way (--adapter-dtype float32 is its default). Speed is of the median step;
       memory is the allocator's peak from the loaded model on, and what the driver says is in use at the end.
card   The rate of torch's product of two 8192 x 8192 bf16 matrices, and of copying 2 GiB.

`flops_per_token` is the least a step needs: 4 N for the N weights of the frozen products with the head (forward, and the backward
to the inputs), 6 for each of the LoRA's, and causal attention's 6 T d_attention a layer. What checkpointing computes twice is not
counted.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Family, hidden, layers, heads, key-value heads, intermediate, vocabulary, tied. The base of the rotation changes no work.
SHAPES = {
    "tiny": ("llama", 64, 2, 4, 2, 128, 256, True),
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, 49152, True),
    "qwen2.5-0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "llama3.2-1b": ("llama", 2048, 16, 32, 8, 8192, 128256, True),
    "llama3.1-8b": ("llama", 4096, 32, 32, 8, 14336, 128256, False),
    "llama3.1-70b": ("llama", 8192, 80, 64, 8, 28672, 128256, False),
}


def main():
    options = arguments()
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU")
    print(json.dumps((train if options.command == "train" else card)(torch, options)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "card"])
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--attention", choices=["sdpa", "flash_attention_2", "eager"], default="sdpa")
    parser.add_argument("--adapter-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--nf4", action="store_true", help="NF4 with coded scales by bitsandbytes")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    return parser.parse_args()


def config_of(options):
    import transformers

    family, hidden, layers, heads, key_value_heads, intermediate, vocabulary, tied = SHAPES[options.shape]
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family]
    return kind(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=max(options.seq, 2048),
        attn_implementation=options.attention,
    )


def base_model(torch, options):
    """The model of the shape on the device, a layer's weights at a time, so that 70B in NF4 never lies anywhere in bf16."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config_of(options), dtype=torch.bfloat16)
    tied = model.config.tie_word_embeddings
    for name, module in list(model.named_modules()):
        if options.nf4 and isinstance(module, torch.nn.Linear) and name != "lm_head":
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nf4_linear(torch, module, options.device))
        elif not (tied and name == "lm_head"):
            fill(torch, module, options.device)
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    if options.nf4:
        model.is_loaded_in_4bit = True  # what PEFT looks at
    return model.to(options.device)


def fill(torch, module, device):
    for key, parameter in list(module.named_parameters(recurse=False)):
        value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if parameter.dim() > 1:
            value.normal_(0.0, 0.02)
        else:
            value.fill_(0.0 if key == "bias" else 1.0)
        setattr(module, key, torch.nn.Parameter(value, requires_grad=False))


def nf4_linear(torch, linear, device):
    import bitsandbytes

    has_bias = linear.bias is not None
    weight = torch.empty(linear.weight.shape, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02)
    quantised = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=has_bias, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
    )
    quantised.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=quantised
    )
    if has_bias:
        quantised.bias = torch.nn.Parameter(torch.zeros(linear.out_features, dtype=torch.bfloat16), requires_grad=False)
    quantised = quantised.to(device)  # quantises
    assert quantised.weight.quant_state is not None, "bitsandbytes did not quantise"
    return quantised


def flops_per_token(options):
    _, hidden, layers, heads, key_value_heads, intermediate, vocabulary, _ = SHAPES[options.shape]
    narrow = hidden // heads * key_value_heads
    linears = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, intermediate)] * 3
    frozen = layers * sum(a * b for a, b in linears) + vocabulary * hidden
    lora = layers * sum(RANK * (a + b) for a, b in linears)
    return 4 * frozen + 6 * lora + 6 * options.seq * hidden * layers


def peft_model(torch, options):
    from peft import LoraConfig, get_peft_model

    model = base_model(torch, options)
    lora = LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=TARGETS)
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, options.adapter_dtype))
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    return model.train()


def train(torch, options):
    on_gpu = options.device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    model = peft_model(torch, options)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=on_gpu)
    run = torch.compile(model) if options.compile else model
    generator = torch.Generator().manual_seed(1)
    seconds, loss = [], None
    for _ in range(options.warmup + options.steps):
        ids = torch.randint(3, model.config.vocab_size, (options.batch, options.seq), generator=generator).to(options.device)
        wait()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[options.warmup :])
    tokens = options.batch * options.seq
    found = {
        "bench": "train",
        "peer": "peft",
        "shape": options.shape,
        "batch": options.batch,
        "seq": options.seq,
        "rank": RANK,
        "attention": options.attention,
        "compile": options.compile,
        "gradient_checkpointing": options.checkpointing,
        "quantize": "nf4" if options.nf4 else None,
        "adapter_dtype": options.adapter_dtype,
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "median_step_seconds": median,
        "tokens_per_second": tokens / median,
        "flops_per_token": flops_per_token(options),
        "first_step_seconds": seconds[0],
        "loss": loss.item(),
    }
    return {**found, **memory(torch, on_gpu), "versions": versions()}


def memory(torch, on_gpu):
    if not on_gpu:
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "device_used_bytes": None}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "device_used_bytes": total - free,
        "device": torch.cuda.get_device_name(),
    }


def versions():
    found = {"python": sys.version.split()[0]}
    for name in ["torch", "transformers", "peft", "bitsandbytes", "flash_attn"]:
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            pass
    return found


def card(torch, options):
    on_gpu = options.device.startswith("cuda")
    n, copied = (8192, 1 << 31) if on_gpu else (512, 1 << 24)  # the CPU's are to try the script
    a, b = (torch.randn(n, n, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty(n, n, device=options.device, dtype=torch.bfloat16)
    source = torch.zeros(copied, device=options.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    product_s = median_seconds(lambda: torch.matmul(a, b, out=product), wait)
    copy_s = median_seconds(lambda: target.copy_(source), wait)
    found = {"bench": "card", "matrix_flops_per_second": 2 * n**3 / product_s, "copy_bytes_per_second": 2 * copied / copy_s}
    return {**found, "device": torch.cuda.get_device_name() if on_gpu else "cpu", "versions": versions()}


def median_seconds(work, wait, rounds=10, each=10):
    """Of one call, from rounds of several, after one round that is not measured."""
    found = []
    for _ in range(rounds + 1):
        wait()
        started = time.perf_counter()
        for _ in range(each):
            work()
        wait()
        found.append((time.perf_counter() - started) / each)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
