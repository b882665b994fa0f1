#!/usr/bin/env python3
"""Hold adapters that taper wrote in mlx-lm's layout to mlx-lm.

    TAPER_MLX_OUT=/tmp/mlx cargo test -p taper-export --test mlx -- --ignored write_adapters_for_mlx
    python tests/mlx_roundtrip.py /tmp/mlx

Needs mlx and mlx-lm (versions: tests/golden/mlx/*/golden.json). For each folder: mlx-lm loads it over its base and gives the logits
that taper gave (within 2e-4). Exits with 1 when one of them fails.
"""
import pathlib
import sys

TOLERANCE = 2e-4


def check(folder):
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    expected = mx.load(str(folder / "expected.safetensors"))
    model, config = load_model(pathlib.Path((folder / "base.txt").read_text()))
    ids = expected["input_ids"][None]
    before = model(ids)[0]
    load_adapters(model, str(folder))
    after = model(ids)[0]
    if config["model_type"] == "gemma2":
        # mlx-lm's Gemma 2 has no sliding window: behind it the bases themselves differ.
        inside = config["sliding_window"]
        before, after, expected["logits"] = before[:inside], after[:inside], expected["logits"][:inside]
    off = mx.abs(after - expected["logits"]).max().item()
    moved = mx.abs(after - before).max().item()
    ok = off <= TOLERANCE and moved > 100 * TOLERANCE
    print(f"{'ok  ' if ok else 'FAIL'} {folder.name:14s} logits off by {off:.1e}, moved by {moved:.2f}")
    return ok


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folders = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/expected.safetensors"))
    if not folders:
        sys.exit(f"no adapters under {sys.argv[1]}")
    sys.exit(0 if all([check(folder) for folder in folders]) else 1)


if __name__ == "__main__":
    main()
