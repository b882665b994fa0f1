#!/bin/sh
# In nvcc's place for candle's own CUDA kernels, which our program never calls: PTX files are empty, and the library has functions
# that end the program with their name. Enough for `cargo check` and `cargo clippy`, and to link programs that use our kernels
# alone.
#
# Called as candle-kernels' build does it: `--version`, `--list-gpu-code`, `--ptx --output-directory DIR X.cu`, `-c -o X.o X.cu`,
# `--lib -o libmoe.a X.o...`.
set -eu
out='' folder=. mode=object source='' before=''
for argument in "$@"; do
    case $before in
    -o | --output-file) out=$argument ;;
    -odir | --output-directory) folder=$argument ;;
    esac
    case $argument in
    --version)
        printf 'nvcc: a stand-in that compiles nothing\nCuda compilation tools, release 13.0, V13.0.88\n'
        exit
        ;;
    --list-gpu-code)
        printf 'sm_75\nsm_80\nsm_90\n'
        exit
        ;;
    --ptx | -ptx) mode=ptx ;;
    --lib | -lib) mode=library ;;
    *.cu) source=$argument ;;
    esac
    before=$argument
done

# A library of functions that name themselves and abort. Their names are those that the crate declares; cargo names its folder.
make_library() {
    functions=$(sed -n 's/^ *pub fn \([A-Za-z0-9_]*\)(.*/\1/p' "${CARGO_MANIFEST_DIR:-.}/src/ffi.rs" 2>/dev/null || :)
    {
        cat <<'C'
#include <stdio.h>
#include <stdlib.h>
static void absent(const char *name) {
  fprintf(stderr, "candle's own kernel %s is not in this build\n", name);
  abort();
}
C
        for function in $functions; do
            printf 'void %s(void) { absent("%s"); }\n' "$function" "$function"
        done
    } >"$out.c"
    "${CC:-cc}" -O1 -fPIC -c "$out.c" -o "$out.object"
    rm -f "$out"
    ar rcs "$out" "$out.object"
    rm -f "$out.c" "$out.object"
}

name=${source##*/} && name=${name%.cu}
case $mode in
ptx) : >"${out:-$folder/$name.ptx}" ;;
object) : >"${out:-$folder/$name.o}" ;;
library)
    make_library
    # The objects are empty: a later build with the real compiler must not take one as made.
    for argument in "$@"; do
        case $argument in *.o) rm -f "$argument" ;; esac
    done
    ;;
esac
