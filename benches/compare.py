"""taper against PyTorch with PEFT, in turns on one machine: tokens a second, peak memory and their ratios as a table.

    python compare.py --taper ../target/release/taper --peft .venv/bin/python [--only smollm2] [--rounds 3] [--compile]

Both sides run one after the other, round by round, so that what disturbs the machine disturbs both; a side's figure is its median over the
rounds, and PyTorch's is that of its best setting (f32 or bf16, and compiled where --compile is given).
"""
import argparse, json, pathlib, statistics, subprocess

TRAIN = [("15M", 4, 256), ("smollm2-135m", 4, 256), ("qwen2.5-0.5b", 1, 512)]
HERE = pathlib.Path(__file__).parent


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def cases(a):
    """(name, taper's command, PyTorch's commands, the key of taper's speed)"""
    for shape, batch, seq in TRAIN:
        sizes = ["--batch", batch, "--seq", seq, "--steps", 3]
        settings = [["--dtype", "bf16"], ["--dtype", "f32"]] + ([["--dtype", "bf16", "--compile"]] if a.compile else [])
        peft = [["train", shape, *sizes, *setting] for setting in settings]
        for name, extra in [("bf16", []), ("nf4", ["--quantize", "nf4"])][: 2 if shape == "smollm2-135m" else 1]:
            taper = ["bench", "train", "--shape", shape, "--dtype", "bf16", *sizes, *extra]
            yield f"train {shape} {batch} x {seq}, {name}", taper, peft, "tokens_per_second"
    for batch in (1, 8):
        taper = ["bench", "generate", "--shape", "smollm2-135m", "--dtype", "bf16", "--prompt", 16, "--tokens", 64, "--batch", batch]
        peft = [["generate", "smollm2-135m", "--batch", batch, "--dtype", dtype] for dtype in ("bf16", "f32")]
        yield f"decode smollm2-135m, batch {batch}", taper, peft, "decode_tokens_per_second"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--taper", default=HERE.parent / "target/release/taper")
    p.add_argument("--peft", default="python3", help="a Python with torch, transformers and peft")
    p.add_argument("--only", default="")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--compile", action="store_true")
    a = p.parse_args()
    print("| case | taper, tokens/s | PEFT, tokens/s (best of) | speed | taper, MB | PEFT, MB | memory |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, taper, settings, key in cases(a):
        if a.only not in name:
            continue
        ours, theirs = [], {str(setting): [] for setting in settings}
        for _ in range(a.rounds):
            ours.append(run([a.taper, *taper]))
            for setting in settings:
                theirs[str(setting)].append(run([a.peft, HERE / "peer.py", *setting]))
        median = lambda runs, what: statistics.median(r[what] for r in runs)  # noqa: E731
        best = max(theirs.values(), key=lambda runs: median(runs, "tokens_per_second"))
        speed, other = median(ours, key), median(best, "tokens_per_second")
        memory, held = median(ours, "peak_bytes") / 1e6, median(best, "peak_bytes") / 1e6
        print(f"| {name} | {speed:,.0f} | {other:,.0f} | {speed / other:.2f} | {memory:,.0f} | {held:,.0f} | {memory / held:.2f} |", flush=True)


if __name__ == "__main__":
    main()
