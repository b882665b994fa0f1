#!/usr/bin/env python3
"""Hold adapters written by taper to Python PEFT.

    TAPER_PEFT_OUT=/tmp/adapters cargo test -p taper-peft --test it -- --ignored write_adapters_for_python
    python tests/peft_roundtrip.py /tmp/adapters

Needs torch, transformers, peft and safetensors (versions: tests/golden/versions.json). For each adapter folder: PEFT loads it
over its base without a missing or unexpected key, gives the logits that taper gave (within 1e-4), and saves the same tensors.
Exits with 1 when one of them fails.
"""
import os
import sys
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # the bases are folders: nothing is looked up
TOLERANCE = 1e-4


def check(folder):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base_folder = open(os.path.join(folder, "base.txt")).read()
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = expected["input_ids"][None]
    with torch.no_grad():
        before = base(input_ids=ids).logits[0]
        with warnings.catch_warnings():
            # PEFT tells of missing adapter keys by a warning
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            model = PeftModel.from_pretrained(base, folder).eval()
        after = model(input_ids=ids).logits[0]
    off = (after - expected["logits"]).abs().max().item()
    moved = (after - before).abs().max().item()
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        ours, theirs = (load_file(os.path.join(d, "adapter_model.safetensors")) for d in (folder, again))
    # PEFT writes the base's own table beside an adapted embedding or head.
    theirs = {k: v for k, v in theirs.items() if not k.endswith(".base_layer.weight")}
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    ok = off <= TOLERANCE and moved > 100 * TOLERANCE and same
    print(f"{'ok  ' if ok else 'FAIL'} {os.path.basename(folder):12s} logits off by {off:.1e}, moved by {moved:.2f}, saved again {'equal' if same else 'DIFFERENT'}")
    return ok


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    folders = sorted(os.path.join(root, d) for d in os.listdir(root) if os.path.exists(os.path.join(root, d, "expected.safetensors")))
    if not folders:
        sys.exit(f"no adapters under {root}")
    results = [check(folder) for folder in folders]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
