#!/usr/bin/env bash
# Our GGUF files in llama.cpp: logits, greedy text, token ids and types of tensors, held against our own.
#
#   tests/llama_cpp/run.sh BUILD SOURCE [RECIPE]
#
# BUILD is a build folder of llama.cpp with static libraries (cmake -B BUILD -DBUILD_SHARED_LIBS=OFF; targets llama and llama-quantize),
# SOURCE its source tree. Needs a C++ compiler with OpenMP. Tables go to standard error; the exit status is 0 when all agree.
#
# Without a recipe the models are the golden fixtures (llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, olmo2, granite shapes, random
# weights, a trained tokenizer): merged files, bases with adapters, tokenizers, and the types that llama-quantize gives.
#
# With PYTHON set to one that has torch and transformers, the converter of SOURCE is a reference too (tensors byte by byte, metadata by key).
# TAPER_REAL_DATA names the folder of real tokenizers, where there is one.
#
# With a recipe whose training has ended, `taper export RECIPE --format gguf` makes its file in q8_0 and in f16, and llama.cpp's greedy
# continuation of a text is printed for each, to be held beside `taper generate`. TAPER names the program (`cargo run --quiet --` where it
# is not set), RUN the run's folder (`runs` where it is not set: every run's).
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,20p' "$0"; exit 2; fi
build=$(realpath "$1"); source=$(realpath "$2"); here=$(dirname "$(realpath "$0")")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

g++ -O2 -std=c++17 -I "$source/include" -I "$source/ggml/include" "$here/probe.cpp" -o "$work/probe" \
    "$build/src/libllama.a" "$build/ggml/src/libggml.a" "$build/ggml/src/libggml-cpu.a" "$build/ggml/src/libggml-base.a" \
    -fopenmp -lpthread -ldl -lm
if [ -n "${PYTHON:-}" ]; then export PYTHON TAPER_LLAMA_CONVERT="$source/convert_hf_to_gguf.py"; fi
export TAPER_LLAMA_PROBE="$work/probe" TAPER_LLAMA_QUANTIZE="$build/bin/llama-quantize"

cd "$here/../.."
if [ $# -eq 2 ]; then
    exec cargo test --workspace --test llama_cpp -- --ignored --nocapture --test-threads 1
fi

recipe=$3
taper=${TAPER:-cargo run --quiet --}
for type in q8_0 f16; do
    touch "$work/before"
    $taper export "$recipe" --format gguf --gguf-type "$type"
    find "${RUN:-runs}" -name '*.gguf' -newer "$work/before" | sort | while read -r file; do
        ids=$(echo 'text Once upon a time' | "$work/probe" "$file" | cut -d' ' -f2-)
        echo "$file ($type): ids $ids, then $(printf 'greedy 24 %s\n' "$ids" | "$work/probe" "$file")"
    done
done
