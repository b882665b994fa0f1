"""One measurement of PyTorch with transformers and PEFT on the CPU, as a line of JSON: the peer of `taper bench`.

    python peer.py train SHAPE --dtype bf16 --batch 4 --seq 256 [--compile] [--checkpointing] [--quantize nf4]
    python peer.py generate SHAPE --dtype bf16 --batch 8

Training: rank 16 on all linear layers, AdamW, labels = ids, no padding; a step is zero_grad, forward, backward, optimiser. Weights are random
in the published shape. Decoding: greedy, 16 tokens of prompt; the time of the prompt is taken off.
"""
import argparse, json, os, resource, statistics, time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch  # noqa: E402  (the wait policy is read when it loads)

# hidden, layers, heads, key/value heads, MLP width, vocabulary, Qwen2's biases
SHAPES = {
    "15M": (288, 6, 6, 6, 768, 4096, False),
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152, False),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True),
}


def model_of(shape, dtype, quantize):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    hidden, layers, heads, kv_heads, mlp, vocabulary, is_qwen = SHAPES[shape]
    config, kind = (Qwen2Config, Qwen2ForCausalLM) if is_qwen else (LlamaConfig, LlamaForCausalLM)
    torch.manual_seed(0)
    model = kind(config(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                        intermediate_size=mlp, vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True))
    model = model.to(dtype)
    if quantize:
        import bitsandbytes as bnb

        linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
        for name, old in linears:
            new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=old.bias is not None,
                                    compute_dtype=torch.bfloat16, quant_type=quantize)
            new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type=quantize, module=new)
            if old.bias is not None:
                new.bias = torch.nn.Parameter(old.bias.data, requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new.to("cpu"))
        model.is_loaded_in_4bit = True
    return model


def train(a, dtype):
    import peft

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules=layers)
    model = peft.get_peft_model(model_of(a.shape, dtype, a.quantize), config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    if a.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    run = torch.compile(model) if a.compile else model
    seconds = []
    for step in range(a.steps + 2):
        ids = torch.randint(3, SHAPES[a.shape][5], (a.batch, a.seq))
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        run(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        if step >= 2:
            seconds.append(time.perf_counter() - started)
    return a.batch * a.seq, seconds


def generate(a, dtype):
    model = model_of(a.shape, dtype, a.quantize).eval()
    ids = torch.randint(3, SHAPES[a.shape][5], (a.batch, 16))

    def timed(n):
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n, min_new_tokens=n,
                           eos_token_id=None, pad_token_id=0)
        return time.perf_counter() - started

    timed(4)
    prompt = min(timed(1) for _ in range(3))
    return 64 * a.batch, [timed(65) - prompt for _ in range(a.steps)]


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["train", "generate"])
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    p.add_argument("--quantize", choices=["nf4", "fp4"])
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--compile", action="store_true")
    p.add_argument("--checkpointing", action="store_true")
    a = p.parse_args()
    if a.what == "generate" and (a.quantize or a.compile or a.checkpointing):
        p.error("--quantize, --compile and --checkpointing are measured in training")
    torch.set_num_threads(a.threads)
    work, seconds = {"train": train, "generate": generate}[a.what](a, torch.float32 if a.dtype == "f32" else torch.bfloat16)
    print(json.dumps({"tokens_per_second": work / statistics.median(seconds),
                      "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
