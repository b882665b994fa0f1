#!/usr/bin/env python3
"""What scripts/gpu.sh has to compare: `losses A B TOLERANCE` of two metrics files, `table DIR` of the folder's measurements."""

import json
import sys
from pathlib import Path

# The name in the file names, what is shown, and the goals: speed over the peer's, memory over the peer's, memory in GiB.
CASES = [
    ("smollm2-135m", "SmolLM2-135M bf16 4 x 2048", 2.0, 0.5, None),
    ("qwen2.5-0.5b", "Qwen2.5-0.5B bf16 4 x 2048", 2.0, 0.5, None),
    ("llama3.2-1b", "Llama-3.2-1B bf16 4 x 2048", 2.0, 0.5, None),
    ("llama3.1-8b", "Llama-3.1-8B bf16 4 x 2048", 1.3, 0.6, None),
    ("llama3.1-8b-nf4", "Llama-3.1-8B NF4 2 x 2048", 1.3, None, None),
    ("llama3.1-8b-nf4-checkpointing", "Llama-3.1-8B NF4 1 x 2048, checkpointing", None, None, 7.0),
    ("llama3.1-70b-nf4-checkpointing", "Llama-3.1-70B NF4 1 x 2048, checkpointing", None, None, 48.0),
]
GIB = float(1 << 30)


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "losses":
        losses(*sys.argv[2:4], float(sys.argv[4]))
    elif len(sys.argv) == 3 and sys.argv[1] == "table":
        table(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)


def losses(first, second, tolerance):
    """Fails where a loss of the same step differs by more than the tolerance, as a part of the larger one."""
    a, b = losses_of(first), losses_of(second)
    if not a or a.keys() != b.keys():
        sys.exit(f"{first} and {second} have other steps: {len(a)} and {len(b)} losses")
    worst, where = max((abs(a[at] - b[at]) / max(abs(a[at]), abs(b[at]), 1e-9), at) for at in a)
    # Not a number is never within.
    within = all(abs(a[at] - b[at]) <= tolerance * max(abs(a[at]), abs(b[at])) for at in a)
    print(f"{len(a)} losses, furthest apart by {worst:.1e} of the value ({where[0]} of step {where[1]}); allowed {tolerance:.1e}")
    sys.exit(0 if within else 1)


def losses_of(path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return {(key, row["step"]): row[key] for row in rows for key in ("loss", "eval_loss") if key in row}


def found(path):
    """The last JSON object of a file, or None where a measurement failed or was left out."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def used_gib(path):
    """What nvidia-smi saw in use at most while a measurement ran, less what was in use before."""
    try:
        samples = [float(line) for line in path.read_text().split()]
    except (OSError, ValueError):
        return None
    return (max(samples) - samples[0]) / 1024 if samples else None


def own_gib(result):
    """What the program itself counts at most: taper's in `device`, the peer's is its allocator's."""
    device = result.get("device")
    peak = device.get("peak_bytes") if isinstance(device, dict) else result.get("peak_allocated_bytes")
    return peak / GIB if peak else None


def measured(folder, name):
    result = found(folder / f"{name}.json")
    if not result or not result.get("tokens_per_second"):
        return None
    return {
        "file": name,
        "tokens_per_second": result["tokens_per_second"],
        "own_gib": own_gib(result),
        "smi_gib": used_gib(folder / f"{name}.memory"),
        "flops_per_token": result.get("flops_per_token"),
    }


def row_of(folder, card, case):
    name, label, speed_goal, memory_goal, gib_goal = case
    ours = measured(folder, f"taper-{name}")
    peers = [measured(folder, f"{kind}-{name}") for kind in ("peft", "peft-compiled")]
    peers = [peer for peer in peers if peer]
    best = max(peers, key=lambda peer: peer["tokens_per_second"], default=None)
    row = {"case": label, "taper": ours, "peft": best, "peers": peers, "speed_goal": speed_goal}
    row |= {"memory_goal": memory_goal, "gib_goal": gib_goal, "speed_ratio": None, "memory_ratio": None, "matrix_rate": None}
    if ours and best:
        row["speed_ratio"] = ours["tokens_per_second"] / best["tokens_per_second"]
        # The least that the peer was seen to need, so that neither its speed nor its memory is held against it.
        sparing = min((peer["smi_gib"] for peer in peers if peer["smi_gib"]), default=None)
        if ours["smi_gib"] and sparing:
            row["memory_ratio"] = ours["smi_gib"] / sparing
        if card and best["flops_per_token"]:
            rate = ours["tokens_per_second"] * best["flops_per_token"]
            row["matrix_rate"] = rate / card["matrix_flops_per_second"]
    return row


def table(folder):
    card = found(folder / "card.json")
    result = {"card": card, "rows": [row_of(folder, card, case) for case in CASES]}
    (folder / "table.json").write_text(json.dumps(result, indent=1) + "\n")
    if card:
        rate, copy = card["matrix_flops_per_second"] / 1e12, card["copy_bytes_per_second"] / 1e12
        print(f"{card['device']}: bf16 products at {rate:.0f} TFLOP/s, copies at {copy:.2f} TB/s\n")
    heads = ["case", "taper tok/s", "PEFT tok/s", "ratio", "goal", "of matrix rate", "taper GiB", "PEFT GiB", "ratio", "goal"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in result["rows"]:
        print("| " + " | ".join(cells(row)) + " |")
    print("\nGiB: what nvidia-smi saw at most, less what was in use before. PEFT's speed and memory are of its faster way,")
    print("the ratio of memory is to its more sparing one. `of matrix rate` counts the work that a step needs at least.")


def cells(row):
    def show(value, form):
        return "-" if value is None else format(value, form)

    def of(side, key):
        return row[side] and row[side][key]

    goal = "-"
    if row["gib_goal"]:
        goal = f"< {row['gib_goal']:.0f} GiB"
    elif row["memory_goal"]:
        goal = f"<= {row['memory_goal']}"
    return [
        row["case"],
        show(of("taper", "tokens_per_second"), ".0f"),
        show(of("peft", "tokens_per_second"), ".0f"),
        show(row["speed_ratio"], ".2f"),
        "-" if row["speed_goal"] is None else f">= {row['speed_goal']}",
        show(row["matrix_rate"], ".0%"),
        show(of("taper", "smi_gib"), ".2f"),
        show(of("peft", "smi_gib"), ".2f"),
        show(row["memory_ratio"], ".2f"),
        goal,
    ]


if __name__ == "__main__":
    main()
