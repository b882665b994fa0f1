#!/usr/bin/env bash
# A toolkit to build the feature `cuda` with, from PyPI's wheels of CUDA 13.0: no GPU, no driver and no installed CUDA needed.
#
#   environment=$(scripts/cuda-toolkit.sh) && eval "$environment" && cargo build --release --features cuda
#   scripts/cuda-toolkit.sh [OPTIONS] [DIR]      DIR is where it is kept [default: $CUDA_TOOLKIT_DIR, else target/cuda-toolkit]
#
#   --own-kernels  our kernels are compiled, candle's are not: eight minutes less, for development and tests (no program of ours
#                  calls candle's). Links; such a call would end the program with the kernel's name
#   --check-only   nothing is compiled or downloaded: enough for `cargo check` and `cargo clippy`
#   --fat          candle's kernels for 8.0, 9.0 and, as PTX, all that is later, in place of one architecture (ours always run
#                  from 8.0 on): for releases
#   --libs         cuBLAS, cuRAND and NVRTC too (0.6 GB to download): to run where there is a driver and no CUDA
#
# Standard output has `export` lines alone, messages go to standard error; a second call finds what the first installed. What is
# built is linked lazily: it starts anywhere and opens the libraries at the first call (scripts/cuda/lazy.c). --fat wants a target
# folder of its own, as cargo does not see its difference; the other options can take turns in one.
#
# Needs x86-64 Linux, gcc, g++, ar and, to install, Python's pip. Reads PIP ["python3 -m pip"], CC [gcc], NVCC_CCBIN [g++],
# CUDA_COMPUTE_CAP [90; 80 with --fat], CUDAFORGE_THREADS [all].
set -euo pipefail

say() { printf 'cuda-toolkit: %s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 2
}

libs=0 fat=0 kernels=all dir=
for argument in "$@"; do
    case $argument in
    --own-kernels) kernels=own ;;
    --check-only) kernels=none ;;
    --fat) fat=1 ;;
    --libs) libs=1 ;;
    -h | --help)
        sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit
        ;;
    -*) die "unknown option $argument (see --help)" ;;
    *) [ -z "$dir" ] && dir=$argument || die "one folder at most" ;;
    esac
done
[ "$fat" = 0 ] || [ "$kernels" = all ] || die "--fat is about candle's kernels, which --own-kernels and --check-only leave out"
[ "$(uname -sm)" = "Linux x86_64" ] || die "this is $(uname -sm), not x86-64 Linux"
parts=$(dirname "$(realpath "$0")")/cuda
dir=${dir:-${CUDA_TOOLKIT_DIR:-target/cuda-toolkit}}
mkdir -p "$dir" && dir=$(realpath "$dir")
home=$dir/nvidia/cu13
cc=${CC:-gcc}
read -ra pip <<<"${PIP:-python3 -m pip}"

# The version of each is that of CUDA 13.0; later ones want a later driver.
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85)
library_packages=(nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88)
[ "$libs" = 0 ] || packages+=("${library_packages[@]}")
wanted="5 ${packages[*]}"

# print_environment HOME NVCC TAPER_NVCC CAPABILITY
print_environment() {
    printf 'export CUDA_HOME=%q CUDA_PATH=%q NVCC=%q TAPER_NVCC=%q\n' "$1" "$1" "$2" "$3"
    printf 'export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=%q\n' "$4"
    printf 'export NVCC_CCBIN=%q\n' "${NVCC_CCBIN:-$(command -v g++ || echo g++)}"
    printf 'export CUDAFORGE_THREADS=%q\n' "${CUDAFORGE_THREADS:-$(nproc)}"
    printf 'export PATH=%q:"$PATH"\n' "$1/bin"
}

install_wheels() {
    for tool in "$cc" ar python3; do command -v "$tool" >/dev/null || die "$tool is not installed"; done
    "${pip[@]}" --version >/dev/null 2>&1 || die "pip does not run as '${pip[*]}': install it, or name one in PIP"
    say "installing ${packages[*]}"
    if ! PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "${pip[@]}" install --quiet --no-deps --no-compile \
        --only-binary=:all: --no-warn-script-location --target "$scratch/site" "${packages[@]}" >"$scratch/pip.log" 2>&1; then
        tail -n 15 "$scratch/pip.log" >&2
        die "pip could not install the wheels above: is the package index reachable, is there 1 GB of disk?"
    fi
    [ -x "$scratch/site/nvidia/cu13/bin/nvcc" ] || die "the wheels came without nvidia/cu13/bin/nvcc: their layout has changed"
    rm -f "$scratch"/site/nvidia/cu13/lib/libnvvm.so.4 # 63 MB that nvcc does not use
    rm -rf "$dir/nvidia" "$dir/.stamp" "$dir/.link"
    mv "$scratch/site/nvidia" "$dir/nvidia"
    ln -sfn lib "$home/lib64" # where nvcc and build scripts look
    "$home/bin/nvcc" --version >/dev/null || die "$home/bin/nvcc does not run on this machine"
    printf '%s\n' "$wanted" >"$dir/.stamp"
}

# trampolines NAME LIBRARY CODE PATTERN: libNAME.a, whose functions open LIBRARY, or return CODE where it is not there.
trampolines() {
    grep -v '^#' "$parts/functions.txt" | grep -E "$4" | awk '{printf "F(%d, %s)\n", NR - 1, $1}' >"$scratch/$1.inc"
    "$cc" -O2 -fPIC -c -DLIBRARY="\"$2\"" -DABSENT="$3" -DFUNCTIONS="\"$scratch/$1.inc\"" "$parts/lazy.c" -o "$scratch/$1.o"
    ar rcs "$home/lib/stubs/lib$1.a" "$scratch/$1.o"
}

# What programs are linked with, and the wrappers of nvcc.
install_parts() {
    rm -rf "$home/lib/stubs"
    mkdir -p "$home/lib/stubs"
    trampolines cuda libcuda.so.1 34 '^cu[A-Z]'                # CUDA_ERROR_STUB_LIBRARY
    trampolines cublas libcublas.so.13 1 '^cublas([A-KM-Z]|L[^t])' # CUBLAS_STATUS_NOT_INITIALIZED
    trampolines cublasLt libcublasLt.so.13 1 '^cublasLt'
    trampolines curand libcurand.so.10 203 '^curand' # CURAND_STATUS_INITIALIZATION_FAILED
    trampolines nvrtc libnvrtc.so.13 11 '^nvrtc'     # NVRTC_ERROR_INTERNAL_ERROR
    rm -f "$home/lib/libcudart.so"
    ln -sfn libcudart_static.a "$home/lib/libcudart.a" # it opens the driver lazily by itself
    install -m 755 "$parts/small-nvcc.sh" "$home/bin/nvcc-small"
    install -m 755 "$parts/stand-in-nvcc.sh" "$home/bin/nvcc-stand-in"
    printf '%s\n' "$parts_wanted" >"$dir/.link"
}

if [ "$kernels" = none ]; then
    mkdir -p "$dir/check/bin" "$dir/check/include" "$dir/check/lib64"
    install -m 755 "$parts/stand-in-nvcc.sh" "$dir/check/bin/nvcc"
    say "a stand-in nvcc, for cargo check and cargo clippy alone"
    print_environment "$dir/check" "$dir/check/bin/nvcc" check 75
    exit
fi

scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
exec 9>"$dir/.lock" && flock 9
parts_wanted=$(cat "$parts"/* | sha256sum | cut -c1-16)
have=$(cat "$dir/.stamp" 2>/dev/null || :)
# With the libraries installed, a call that does not ask for them is content.
if [[ $have != "$wanted"* ]] || ! "$home/bin/nvcc" --version >/dev/null 2>&1; then
    scratch=$(mktemp -d "$dir/.new.XXXXXX")
    install_wheels
fi
if [ "$(cat "$dir/.link" 2>/dev/null || :)" != "$parts_wanted" ]; then
    scratch=${scratch:-$(mktemp -d "$dir/.new.XXXXXX")}
    install_parts
fi
say "CUDA $("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p') in $home"
if [ "$kernels" = own ]; then
    # No real build asks for 7.5: so what the stand-in made is never taken for candle's kernels.
    print_environment "$home" "$home/bin/nvcc-stand-in" "$home/bin/nvcc" 75
elif [ "$fat" = 1 ]; then
    print_environment "$home" "$home/bin/nvcc-small" "$home/bin/nvcc" "${CUDA_COMPUTE_CAP:-80}"
    printf 'export NVCC_ARCHS=%q\n' "${NVCC_ARCHS:-80 90a}"
else
    print_environment "$home" "$home/bin/nvcc-small" "$home/bin/nvcc" "${CUDA_COMPUTE_CAP:-90}"
fi
