#!/usr/bin/env bash
# Real clients against `taper serve`: openai-python, Ollama's, curl, lm-evaluation-harness.
#
#   tests/clients/run.sh [TAPER] [-- PYTEST'S ARGUMENTS]
#
# TAPER is the program (target/release/taper, built first, where none is named). VENV names a virtual environment to use, made and
# filled where there is none (target/clients-venv where it is not set). Needs python 3.11 or later and curl; no network once the
# environment is filled. What is found wrong goes to standard output; the exit status is 0 when nothing is.
set -euo pipefail
here=$(dirname "$(realpath "$0")"); root=$(realpath "$here/../..")

taper=
if [ $# -gt 0 ] && [ "$1" != -- ]; then taper=$(realpath "$1"); shift; fi
if [ "${1:-}" = -- ]; then shift; fi
command -v curl >/dev/null || { echo "curl is needed" >&2; exit 2; }
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python 3.11 or later is needed: name one with PYTHON" >&2; exit 2; }

if [ -z "$taper" ]; then
    (cd "$root" && cargo build --release --locked)
    taper=${CARGO_TARGET_DIR:-$root/target}/release/taper
fi

venv=$(realpath -m "${VENV:-$root/target/clients-venv}")
wanted=$(sha256sum <"$here/requirements.txt")
if [ "$(cat "$venv/requirements.sha256" 2>/dev/null)" != "$wanted" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --requirement "$here/requirements.txt"
    echo "$wanted" >"$venv/requirements.sha256"
fi

cd "$here"
export TAPER=$taper PYTHONPYCACHEPREFIX=$venv/pycache
exec "$venv/bin/python" -m pytest -p no:cacheprovider --durations=5 "$@"
