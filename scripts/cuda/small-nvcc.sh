#!/usr/bin/env bash
# nvcc with the GPU code of objects compressed to a quarter (PTX files stay text). With NVCC_ARCHS="80 90a" an object has code for
# each of these and PTX for the first, in place of the one architecture it was asked for. Lies beside nvcc.
set -euo pipefail
object=0
for argument in "$@"; do [ "$argument" != -c ] || object=1; done
read -ra architectures <<<"${NVCC_ARCHS:-}"
arguments=()
for argument in "$@"; do
    if [ "$object" = 1 ] && [ "${#architectures[@]}" -gt 0 ] && [[ $argument == -gencode=* ]]; then
        for one in "${architectures[@]}"; do arguments+=("-gencode=arch=compute_$one,code=sm_$one"); done
        arguments+=("-gencode=arch=compute_${architectures[0]},code=compute_${architectures[0]}")
    else
        arguments+=("$argument")
    fi
done
[ "$object" = 0 ] || arguments+=(--compress-mode=size)
exec "$(dirname "$(realpath "$0")")/nvcc" "${arguments[@]}"
