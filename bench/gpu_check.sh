#!/usr/bin/env bash
# What only a machine with a CUDA GPU can show: tests, a full run and its heatmaps, loaders, bench and profile.
#
#     make gpu-check                            # 20 minutes at most
#     make gpu-check ARGS="tests full dali"     # or in two calls of less than ten minutes each
#     make gpu-check ARGS="bench profile"
#     PATIENCE=3 make gpu-check ARGS=bench      # three times the time: a first run also compiles
#
# Every command has a time limit, and none stops the next. The folder OUT (gpu-check) gets a log of each, all that they
# write, and summary.md; OUT.tar.gz is the same without checkpoints. The exit code is 1 where a command failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} out=${OUT:-gpu-check} patience=${PATIENCE:-1} failed=0

parts="tests full dali bench profile"
for part in "$@"; do
    [[ " $parts " == *" $part "* ]] && continue
    echo "gpu-check: part '$part' is unknown: it must be one of $parts" >&2
    exit 2
done
wanted=" ${*:-$parts} "
if ! "$python" -c "import torch; raise SystemExit(not torch.cuda.is_available())" 2>/dev/null; then
    echo "gpu-check: torch finds no CUDA GPU here: run it on a machine that has one" >&2
    exit 2
fi
mkdir -p "$out"

# step PART NAME SECONDS WORDS...: `python WORDS` with a time limit, if the part is wanted; its log is NAME.log.
step() {
    local part=$1 name=$2 limit=$(($3 * patience)) begin=$SECONDS code=0
    shift 3
    [[ $wanted == *" $part "* ]] || return 0
    echo "$name: at most $limit s"
    # In the background, so that Ctrl-C is heard at once: timeout then ends all that it started.
    timeout --kill-after=10 "$limit" "$python" "$@" >"$out/$name.log" 2>&1 </dev/null &
    trap 'kill $!; exit 130' INT TERM
    wait $! || code=$?
    local outcome="failed with exit code $code"
    case $code in
        0) outcome="passed" ;;
        124 | 137) outcome="stopped at its limit" ;;
    esac
    echo "- $name: $outcome, $((SECONDS - begin)) s, $(date +%FT%T): python $*" >>"$out/outcomes.md"
    echo "$name: $outcome, $((SECONDS - begin)) s"
    ((code == 0)) || { failed=1 && tail -n 20 "$out/$name.log"; }
}

bench=(-m bench --device cuda --out "$out")
several=()
"$python" -c "import xdist" 2>/dev/null && several=(-n 4)
step tests tests 240 -m pytest -m gpu --continue-on-collection-errors -p no:cacheprovider "${several[@]}"
step full train 100 train.py full --device cuda --out "$out/model.pt" --run-dir "$out/run-$(date +%Y%m%d-%H%M%S)"
step full heatmaps 50 gradcam.py --device cuda --ckpt "$out/model.pt" --out "$out/gallery.png"
step dali loaders-512 90 "${bench[@]}" --only e2e --batch-size 512
step dali loaders-2048 90 "${bench[@]}" --only e2e --batch-size 2048
step bench bench 400 "${bench[@]}" --batch-size 512
step bench deterministic 100 "${bench[@]}" --batch-size 512 --only compute --deterministic
step profile profile 90 -m bench profile --device cuda --out "$out" --batch-size 512

{
    echo "# GPU check, $(date +%F)" && echo && cat "$out/outcomes.md" && echo
    grep -h '^{"' "$out/train.log" "$out/heatmaps.log" 2>/dev/null || true
    find "$out" -name '*_*.md' -exec sh -c 'echo; cat "$0"' {} \;
} >"$out/summary.md"
tar -C "$(dirname "$out")" -czf "$out.tar.gz" --exclude='*.pt' "$(basename "$out")"
echo "wrote $out and, without checkpoints, $out.tar.gz"
exit $failed
