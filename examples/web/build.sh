#!/usr/bin/env bash
# A static site that classifies pictures in the browser, from a file that `export.py --maps` wrote:
#     bash examples/web/build.sh model.onnx site && python3 -m http.server --directory site
# Needs npm and a network once, for onnxruntime-web (MIT; 14 MB of the site); the site itself needs none.
set -euo pipefail
fail() { echo "build.sh: $1" >&2; exit 2; }
[ $# = 2 ] || fail "it takes two names: the model, and the folder to write"
[ -f "$1" ] || fail "$1: no such model: \`python export.py --out model.onnx --maps\` writes one"
command -v npm >/dev/null || fail "there is no npm: install Node.js"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --pack-destination "$folder" onnxruntime-web@1.30.0 >/dev/null || fail "npm cannot fetch onnxruntime-web"
mkdir -p "$2" || fail "$2 cannot be written"
tar xzf "$folder"/*.tgz -C "$2" --strip-components=2 \
    package/dist/ort.wasm.bundle.min.mjs package/dist/ort-wasm-simd-threaded.wasm
cp "$(dirname "$0")"/{index.html,classify.js} "$2"/
cp "$1" "$2"/model.onnx
