#!/usr/bin/env bash
# Builds an emulated CUDA device: a driver, cuBLAS and cuRAND that run our kernels on the CPU, for machines without a GPU.
#
#   CUDA_LAZY_PATH=$(scripts/cuda-emulator.sh) cargo test --features cuda --test gpu
#
# Needs g++ only. The folder (default target/cuda-emulator) is printed on stdout, all else on stderr; what has not changed is not built again.
# TAPER_EMULATOR_ORDER=forward|reverse|shuffle is the order in which threads run, TAPER_EMULATOR_MEMORY the device's memory in bytes.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-target/cuda-emulator}
sources=crates/kernels/cuda
flags=(-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -DTAPER_EMULATOR -I "$sources" -w)
mkdir -p "$out/objects"

newer() { # newer TARGET SOURCE...: whether TARGET must be built
    local target=$1 source
    shift
    [ -e "$target" ] || return 0
    for source in "$@"; do [ "$source" -nt "$target" ] && return 0; done
    return 1
}

# A source with all its kernels and a list of them, by which the driver finds them.
kernel_unit() {
    local source=$1 unit=$2 kernels
    kernels=$(g++ -std=c++17 -E -P -DTAPER_EMULATOR -DTAPER_LIST_KERNELS -I "$sources" -x c++ "$source" |
        grep -oE 'TAPER_KERNEL void [A-Za-z0-9_]+' | sed 's/.* //' | sort -u)
    {
        printf '#include "common.cuh"\nnamespace {\n#include "%s"\n' "$(basename "$source")"
        for kernel in $kernels; do
            printf 'emulator::Register register_%s("%s", &emulator::Launcher<&%s>::run);\n' "$kernel" "$kernel" "$kernel"
        done
        printf '}\n'
    } > "$unit"
}

headers=("$sources"/*.cuh "$sources"/emulator/*.h "$0")
objects=()
for source in "$sources"/*.cu; do
    name=$(basename "$source" .cu)
    object="$out/objects/$name.o"
    objects+=("$object")
    if newer "$object" "$source" "${headers[@]}"; then
        echo "cuda-emulator: $source" >&2
        kernel_unit "$source" "$out/objects/$name.cpp"
        g++ "${flags[@]}" -c "$out/objects/$name.cpp" -o "$object"
    fi
done
for name in fibers driver cublas curand; do
    object="$out/objects/emulator-$name.o"
    if newer "$object" "$sources/emulator/$name.cpp" "${headers[@]}"; then
        g++ "${flags[@]}" -O3 -c "$sources/emulator/$name.cpp" -o "$object"
    fi
done
g++ -shared -Wl,-soname,libcuda.so.1 -o "$out/libcuda.so.1" "${objects[@]}" "$out/objects/emulator-fibers.o" "$out/objects/emulator-driver.o"
g++ -shared -Wl,-soname,libcublas.so.13 -o "$out/libcublas.so.13" "$out/objects/emulator-cublas.o" -ldl
g++ -shared -Wl,-soname,libcurand.so.10 -o "$out/libcurand.so.10" "$out/objects/emulator-curand.o"
cd "$out"
pwd
