#!/usr/bin/env bash
# Builds an emulated CUDA device: a driver, cuBLAS and cuRAND that run our kernels on the CPU, for machines without a GPU.
#
#   scripts/cuda-emulator.sh [--test] [--keep-going] [DIR]
#   CUDA_LAZY_PATH=$(scripts/cuda-emulator.sh) cargo test --features cuda --test gpu
#
#   --test        runs the emulator's own test too
#   --keep-going  names a source that does not compile and goes on without its kernels; the exit status is 1 then
#
# Needs g++ on x86-64 only. The folder (default target/cuda-emulator, of the repository) is printed on stdout, all else on stderr;
# what has not changed is not built again. TAPER_EMULATOR_ORDER=forward|reverse|shuffle is the order in which threads run,
# TAPER_EMULATOR_MEMORY the device's memory in bytes.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

out=target/cuda-emulator test=0 keep_going=0 failed=0
for argument in "$@"; do
    case $argument in
    --test) test=1 ;;
    --keep-going) keep_going=1 ;;
    -*) echo "cuda-emulator: unknown option $argument" >&2 && exit 2 ;;
    *) out=$argument ;;
    esac
done
sources=crates/kernels/cuda
flags=(-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -DTAPER_EMULATOR -I "$sources" -w)
headers=("$sources"/*.cuh "$sources"/emulator/*.h scripts/cuda-emulator.sh)
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
    local source=$1 unit=$2 text kernels
    text=$(g++ -std=c++17 -E -P -DTAPER_EMULATOR -DTAPER_LIST_KERNELS -I "$sources" -x c++ "$source") || return 1
    kernels=$(grep -oE 'TAPER_KERNEL void [A-Za-z0-9_]+' <<<"$text" | sed 's/.* //' | sort -u) || return 1
    {
        printf '#include "common.cuh"\nnamespace {\n#include "%s"\n' "$(basename "$source")"
        for kernel in $kernels; do
            printf 'emulator::Register register_%s("%s", &emulator::Launcher<&%s>::run);\n' "$kernel" "$kernel" "$kernel"
        done
        printf '}\n'
    } >"$unit"
}

kernels_of() { # kernels_of SOURCE OBJECT
    echo "cuda-emulator: $1" >&2
    kernel_unit "$1" "${2%.o}.cpp" && g++ "${flags[@]}" -c "${2%.o}.cpp" -o "$2"
}

# A library takes its place in one step: a program that has the old one open keeps it.
link() { # link LIBRARY OBJECT...
    local library=$out/$1 listing="$out/objects/$1.list"
    shift
    if newer "$library" "$@" || [ "$(cat "$listing" 2>/dev/null)" != "$*" ]; then
        g++ -shared -Wl,-soname,"$(basename "$library")" -o "$library.new" "$@" -ldl
        mv "$library.new" "$library"
        echo "$*" >"$listing"
    fi
}

objects=()
for source in "$sources"/*.cu; do
    object="$out/objects/$(basename "$source" .cu).o"
    if newer "$object" "$source" "${headers[@]}" && ! kernels_of "$source" "$object"; then
        echo "cuda-emulator: $source does not compile" >&2
        rm -f "$object"
        [ "$keep_going" = 1 ] || exit 1
        failed=1
        continue
    fi
    objects+=("$object")
done
for name in fibers driver cublas curand; do
    object="$out/objects/emulator-$name.o"
    if newer "$object" "$sources/emulator/$name.cpp" "${headers[@]}"; then
        g++ "${flags[@]}" -O3 -c "$sources/emulator/$name.cpp" -o "$object"
    fi
done
link libcuda.so.1 "${objects[@]}" "$out/objects/emulator-fibers.o" "$out/objects/emulator-driver.o"
link libcublas.so.13 "$out/objects/emulator-cublas.o"
link libcurand.so.10 "$out/objects/emulator-curand.o"

if [ "$test" = 1 ]; then
    program="$out/objects/self_test"
    if newer "$program" "$sources/emulator/self_test.cpp" "$out/objects/emulator-fibers.o" "${headers[@]}"; then
        g++ "${flags[@]}" "$sources/emulator/self_test.cpp" "$out/objects/emulator-fibers.o" -o "$program" -ldl
    fi
    "$program" "$(realpath "$out")" >&2
fi
cd "$out"
pwd
exit "$failed"
