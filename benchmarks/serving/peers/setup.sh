#!/usr/bin/env bash
# Makes an environment for each peer of the serving benchmark, at pinned versions.
#   benchmarks/serving/peers/setup.sh [DIR [PEER...]]
#   DIR    where; a folder per peer. Default: benchmarks/serving/peers/.venv (ignored by git)
#   PEER   litserve, mlserver, ray or bentoml. Default: all four
#   PYTHON, TORCH_INDEX: as for `make setup`
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

python=${PYTHON:-python3}
dir=${1:-$here/.venv}
peers=("${@:2}")
[ ${#peers[@]} -gt 0 ] || peers=(litserve mlserver ray bentoml)
index=()
if [ -n "${TORCH_INDEX:-}" ]; then index=(--extra-index-url "$TORCH_INDEX"); fi
for peer in "${peers[@]}"; do
    if [ ! -f "$here/$peer.txt" ]; then
        echo "setup.sh: PEER: expected one of litserve, mlserver, ray, bentoml, got '$peer'" >&2
        exit 2
    fi
done
mkdir -p "$dir"
for peer in "${peers[@]}"; do
    wanted=$here/$peer.txt
    if cmp -s "$wanted" "$dir/$peer/ready"; then echo "$peer: ready"; continue; fi
    echo "$peer: installing into $dir/$peer (torch first, then the rest)"
    rm -f "$dir/$peer/ready"
    [ -x "$dir/$peer/bin/python" ] || "$python" -m venv "$dir/$peer"
    pip=("$dir/$peer/bin/python" -m pip --disable-pip-version-check --quiet)
    # torch alone and exactly: any other version that a dependency might pick brings its own CUDA along.
    "${pip[@]}" install "${index[@]}" torch==2.13.0
    "${pip[@]}" install "${index[@]}" torch==2.13.0 -r "$wanted"
    cp "$wanted" "$dir/$peer/ready"
done
