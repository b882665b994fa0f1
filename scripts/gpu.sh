#!/usr/bin/env bash
# The whole check of the feature `cuda` on a machine with a GPU, in under ten minutes, from programs that were built elsewhere.
#
#   scripts/gpu.sh [--taper PROGRAM] [--tests PROGRAM] [--out DIR] [--quick]
#
#   --taper  taper, built with `--release --features cuda` [target/release/taper]
#   --tests  the test program of tests/gpu [none: its tests are left out, and how to build it is told]
#   --out    where logs, measurements and the table are kept [target/gpu-check]
#   --quick  programs, tests and correctness alone, with little data: what the emulator can do too (CUDA_LAZY_PATH names it)
#
# Each step has a limit of time, a log DIR/STEP.log and a line PASS, FAIL or SKIP; what the time does not suffice for is SKIP. The
# exit status is 1 where a step failed. Reads CUDA_LAZY_PATH (the folder of cuBLAS and cuRAND; looked for, or installed by pip,
# where it is not set), PYTHON [python3], TOLERANCE [0.03, between the losses of GPU and CPU], SECONDS_AT_MOST [570].
set -uo pipefail
root=$(realpath "$(dirname "$(realpath "$0")")/..")
taper=$root/target/release/taper tests='' out=$root/target/gpu-check quick=0
while [ $# -gt 0 ]; do
    case $1 in
    --taper) taper=$2 && shift ;;
    --tests) tests=$2 && shift ;;
    --out) out=$2 && shift ;;
    --quick) quick=1 ;;
    -h | --help)
        sed -n '2,/^set -u/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit
        ;;
    *)
        echo "unknown option $1 (see --help)" >&2
        exit 2
        ;;
    esac
    shift
done
[ -x "$taper" ] || { echo "no program at $taper: build it (docs/gpu.md), or name it by --taper" >&2 && exit 2; }
taper=$(realpath "$taper") && mkdir -p "$out" && out=$(realpath "$out")
[ -z "$tests" ] || tests=$(realpath "$tests")
rm -rf "$out"/*.log "$out"/*.out "$out"/*.json "$out"/*.memory "$out"/run-*
python=${PYTHON:-python3} tolerance=${TOLERANCE:-0.03} at_most=${SECONDS_AT_MOST:-570} failed=0
cd "$root"

tell() {
    printf '%-4s  %-34s %s\n' "$1" "$2" "$3" | tee -a "$out/summary.txt"
    [ "$1" != FAIL ] || failed=1
}
left() { echo $((at_most - SECONDS)); }

# step NAME LIMIT COMMAND...: 0 where it passed. Standard output is kept apart in NAME.out.
step() {
    local name=$1 limit=$2 start=$SECONDS status late=FAIL
    shift 2
    [ "$limit" -le "$(left)" ] || { limit=$(left) && late=SKIP; }
    [ "$limit" -gt 5 ] || { tell SKIP "$name" "no time left" && return 1; }
    timeout -k 5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.log" </dev/null
    status=$?
    [ "$status" != 0 ] && sed 's/^/    /' <(tail -n 4 "$out/$name.log")
    case $status in
    0) tell PASS "$name" "$((SECONDS - start)) s" ;;
    124 | 137) tell "$late" "$name" "stopped after $limit s; see $name.log" ;;
    *) tell FAIL "$name" "exit $status; see $name.log" ;;
    esac
    return "$status"
}

card_facts() {
    if ! command -v nvidia-smi >/dev/null; then
        tell SKIP card "no nvidia-smi"
        return
    fi
    step card-facts 20 nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,memory.free --format=csv &&
        sed 's/^/    /' "$out/card-facts.out"
}

# The folders that may have cuBLAS, one a line.
library_folders() {
    ls -d /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda-13*/targets/*/lib 2>/dev/null
    "$python" -c 'import nvidia.cu13 as m; print("\n".join(p + "/lib" for p in m.__path__))' 2>/dev/null
    echo "$out/libraries/nvidia/cu13/lib"
    dirname "$(ldconfig -p 2>/dev/null | sed -n 's/.*libcublas\.so\.13 .*=> //p' | head -n 1)"
}

find_libraries() {
    local folder
    while read -r folder; do
        if [ -e "$folder/libcublas.so.13" ] && [ -e "$folder/libcurand.so.10" ]; then
            export CUDA_LAZY_PATH=$folder
            return
        fi
    done < <(library_folders)
    return 1
}

libraries() {
    if [ -n "${CUDA_LAZY_PATH:-}" ]; then
        CUDA_LAZY_PATH=$(realpath "$CUDA_LAZY_PATH") && export CUDA_LAZY_PATH
        tell PASS libraries "given: $CUDA_LAZY_PATH"
    elif find_libraries; then
        tell PASS libraries "found: $CUDA_LAZY_PATH"
    elif step install-libraries 120 "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$out/libraries" \
        nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 && find_libraries; then
        tell PASS libraries "installed: $CUDA_LAZY_PATH"
    else
        tell FAIL libraries "no cuBLAS 13 here, and pip could not fetch it (no network?): name its folder in CUDA_LAZY_PATH"
    fi
}

programs() {
    step version 20 "$taper" --version && sed 's/^/    /' "$out/version.out"
    local size=$(($(stat -c %s "$taper") / 1000000))
    [ "$quick" = 1 ] || [ "$size" -le 60 ] || tell FAIL size "$size MB; at most 60 (strip it)"
    if "$taper" --help | grep -q '^  doctor '; then step doctor 30 "$taper" doctor; fi
}

gpu_tests() {
    if [ -z "$tests" ]; then
        tell SKIP tests "no --tests; build with: cargo test --release --features cuda --test gpu --no-run"
        return
    fi
    step tests 180 "$tests" gpu_
    grep -h '^test result' "$out/tests.out" | sed 's/^/    /'
    if grep -qi 'skip' "$out/tests.out" "$out/tests.log"; then
        tell FAIL tests-skipped "tests left themselves out; see tests.log"
    fi
}

# A recipe of the quickstart's data: 40 steps of 16 notes, or 3 of 2.
write_recipe() {
    local steps=40 batch=16 rows=640 every=5
    [ "$quick" = 0 ] || { steps=3 batch=2 rows=6 every=1; }
    head -n "$rows" datasets/clinical-deid/train.jsonl >"$out/train.jsonl"
    head -n "$batch" datasets/clinical-deid/valid.jsonl >"$out/valid.jsonl"
    sed -e '/^\[\[eval\]\]/,$d' -e '/^test = /d' -e "s|\.\./models|$root/models|" \
        -e "s|^train = .*|train = \"$out/train.jsonl\"|" -e "s|^valid = .*|valid = \"$out/valid.jsonl\"|" \
        -e "s|^num_train_epochs.*|max_steps = $steps\nlogging_steps = $every|" -e "s|^batch_size = 16|batch_size = $batch|" \
        recipes/quickstart.toml >"$out/recipe.toml"
}

correctness() {
    write_recipe
    step train-cpu 120 "$taper" train "$out/recipe.toml" --device cpu --out "$out/run-cpu"
    step train-gpu 120 "$taper" train "$out/recipe.toml" --device cuda --out "$out/run-gpu" || return
    step losses 20 "$python" scripts/gpu/report.py losses "$out/run-cpu/metrics.jsonl" "$out/run-gpu/metrics.jsonl" "$tolerance"
    sed 's/^/    /' "$out/losses.out"
    step train-gpu-again 120 "$taper" train "$out/recipe.toml" --device cuda --out "$out/run-again" &&
        step same-bits 20 cmp "$out/run-gpu/adapter/adapter_model.safetensors" "$out/run-again/adapter/adapter_model.safetensors"
}

# measure NAME LIMIT COMMAND...: a step whose last line is JSON, with the card's memory in use while it ran, in MiB.
measure() {
    local name=$1 sampler='' status
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -i 0 --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/$name.memory" 2>/dev/null &
        sampler=$!
        sleep 0.5
    fi
    step "$@"
    status=$?
    [ -z "$sampler" ] || { kill "$sampler" && wait "$sampler" 2>/dev/null; }
    [ "$status" != 0 ] || mv "$out/$name.out" "$out/$name.json"
}

# The cases of the table: name, shape, batch, flags of taper, flags of the peer (`-`: not measured there).
cases() {
    cat <<'CASES'
smollm2-135m|smollm2-135m|4||
qwen2.5-0.5b|qwen2.5-0.5b|4||
llama3.2-1b|llama3.2-1b|4||
llama3.1-8b|llama3.1-8b|4||
llama3.1-8b-nf4|llama3.1-8b|2|--quantize nf4 --double-quant|--nf4
llama3.1-8b-nf4-checkpointing|llama3.1-8b|1|--quantize nf4 --double-quant --checkpointing|-
llama3.1-70b-nf4-checkpointing|llama3.1-70b|1|--quantize nf4 --double-quant --checkpointing|-
CASES
}

bench_taper() {
    local name shape batch ours theirs flags
    while IFS='|' read -r name shape batch ours theirs; do
        read -ra flags <<<"$ours"
        if ! "$taper" bench train --help | tr -s '\n ' '  ' | grep -qF "$shape"; then
            tell SKIP "taper-$name" "this taper has no shape $shape"
            continue
        fi
        measure "taper-$name" 60 "$taper" bench train --device cuda --shape "$shape" --batch "$batch" --seq 2048 --steps 8 \
            "${flags[@]}"
    done < <(cases)
}

# bench_peer PREFIX [FLAG]
bench_peer() {
    local name shape batch ours theirs flags
    while IFS='|' read -r name shape batch ours theirs; do
        [ "$theirs" != - ] || continue
        read -ra flags <<<"$theirs ${2:-}"
        measure "$1-$name" 75 "$python" tests/train_peers/peft_cuda.py train --shape "$shape" --batch "$batch" --seq 2048 \
            --steps 8 "${flags[@]}"
    done < <(cases)
}

speed() {
    bench_taper
    if "$python" -c 'import torch, transformers, peft, accelerate; assert torch.cuda.is_available()' 2>/dev/null; then
        measure card 60 "$python" tests/train_peers/peft_cuda.py card
        bench_peer peft
        bench_peer peft-compiled --compile
    else
        tell SKIP peer "torch with a GPU, transformers, peft and accelerate are not all importable by $python"
    fi
    "$python" scripts/gpu/report.py table "$out" | tee "$out/table.md"
}

profile() {
    if ! command -v nsys >/dev/null; then
        tell SKIP profile "no nsys"
        return
    fi
    step profile 60 nsys profile --force-overwrite true --stats true --trace cuda,cublas --output "$out/profile" \
        "$taper" bench train --device cuda --shape llama3.2-1b --batch 4 --seq 2048 --steps 3
}

: >"$out/summary.txt"
card_facts
libraries
programs
gpu_tests
correctness
if [ "$quick" = 0 ]; then
    speed
    profile
fi
echo "$SECONDS s; $(grep -c ^PASS "$out/summary.txt") passed, $(grep -c ^FAIL "$out/summary.txt") failed," \
    "$(grep -c ^SKIP "$out/summary.txt") left out; all in $out"
exit "$failed"
