#!/usr/bin/env bash
# What there is to measure on one GPU, in one command that ends before nine minutes are over: losses
# and heads against their plain formulas (heads in bfloat16 too), how they and kNN grow, training
# steps of the CIFAR-10 recipes against solo-learn's methods, their phases, and the training loop
# with the `device` loader against the bare backbone. Prints the goals; csv files in OUT, each as
# soon as its part is done. Started again it goes on from those that are there. The machine should do
# nothing else.
#   bash scripts/bench_gpu.sh                            # steps on random pixels of CIFAR-10's size
#   bash scripts/bench_gpu.sh data.root=/data/cifar10    # on CIFAR-10; other overrides follow
# then, from OUT as zoo/results/gpu: python scripts/performance.py puts it into README.md.
# OUT=DIR (zoo/results/gpu)   PAIRS=5   LIMIT=530 (seconds)   ONLY=loss,growth,step
# SOLO_MINENT=another solo-minent command   DEVICE=cpu TINY=1: a dry run without a GPU
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "${SOLO_MINENT:-}" ]; then
  solo_minent=("$SOLO_MINENT")
elif [ -x "$here/.venv/bin/solo-minent" ]; then
  solo_minent=("$here/.venv/bin/solo-minent")
elif command -v solo-minent >/dev/null; then
  solo_minent=(solo-minent)
else # on a machine that was lent, with the packages but not this one installed
  export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
  solo_minent=("${PYTHON:-python3}" -m solo_minent)
fi
out=${OUT:-$here/zoo/results/gpu}
limit=${LIMIT:-530}
status=0
timeout --signal=INT --kill-after=5 "$limit" "${solo_minent[@]}" bench all --out "$out" \
  --device "${DEVICE:-cuda}" --pairs "${PAIRS:-5}" --only "${ONLY:-loss,growth,step}" \
  ${TINY:+--tiny} "$@" || status=$?
if [ "$status" -eq 137 ] && [ "$SECONDS" -ge "${limit%.*}" ]; then
  status=124 # it did not stop by itself and was killed
fi
if [ "$status" -eq 124 ]; then
  echo "error: time is up: LIMIT=$limit seconds. What was measured by then is in $out. Run the same command again, or ask for less: ONLY=step PAIRS=3" >&2
fi
exit "$status"
