#!/usr/bin/env python3
"""Ten steps of bitsandbytes' AdamW8bit (its CPU backend) on given gradients, with the state before and after each step.

    python optimizers_8bit.py        # writes optimizers_8bit.safetensors beside this file

Made with bitsandbytes 0.50.2 and torch 2.15.0 on the CPU. 600 elements: two blocks of 256 and a short one. The gradients of the second block are
a thousand times smaller, and some elements never have one.

`params` and the states have 11 rows, the first being the start; row i + 1 is what step i made of row i. The test starts each step from
bitsandbytes' own state, since one code that rounds to the other side changes everything behind it: bitsandbytes' CPU backend rounds a value to
one of 65536 steps before it looks for the nearest code (its CUDA kernel does not, and neither do we).
"""
import os
import bitsandbytes as bnb
import torch
from safetensors.torch import save_file

N, STEPS = 600, 10
torch.set_num_threads(1)
g = torch.Generator().manual_seed(8)
p0 = torch.randn(N, generator=g)
grads = torch.randn(STEPS, N, generator=g) * torch.logspace(-2, 1, STEPS)[torch.randperm(STEPS, generator=g)][:, None]
grads[:, 256:512] *= 1e-3
grads[:, ::37] = 0

p = torch.nn.Parameter(p0.clone())
opt = bnb.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, min_8bit_size=1)
blocks = (N + 255) // 256
rows = {k: [torch.zeros(N if k.startswith("state") else blocks, dtype=torch.uint8 if k.startswith("state") else torch.float32)]
        for k in ("state1", "state2", "absmax1", "absmax2")}
params = [p0]
for step in range(STEPS):
    p.grad = grads[step].clone()
    opt.step()
    params.append(p.detach().clone())
    for k in rows:
        rows[k].append(opt.state[p][k].clone())
tensors = {"params": torch.stack(params), "grads": grads, **{k: torch.stack(v) for k, v in rows.items()}}
save_file(tensors, os.path.join(os.path.dirname(os.path.abspath(__file__)), "optimizers_8bit.safetensors"), metadata={"format": "pt"})
print({k: tuple(v.shape) for k, v in tensors.items()})
