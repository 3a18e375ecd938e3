#!/usr/bin/env bash
# The loaders side by side: CIFAR-10 from PIL workers and from the device; a folder of photographs at
# 112 and 224 px from PIL workers and from DALI; solo-learn's own where they can make the recipe's
# views. Tables on the terminal, csv files in OUT.
#   bash scripts/bench_loaders.sh /data/cifar10 /data/imagenette
# ROUNDS rounds of SECONDS_EACH for every loader, and for every operation left out; the machine should
# do nothing else. On one with a GPU:
#   bash scripts/bench_loaders.sh /data/cifar10 /data/imagenette dali.device=gpu data.num_workers=16
#   OUT=DIR (zoo/results)   SECONDS_EACH=6   ROUNDS=5   SOLO_MINENT=another solo-minent command
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "error: folders are missing. They are CIFAR-10's and one with train/<class>/<image>. Run bash scripts/bench_loaders.sh CIFAR10 PHOTOGRAPHS" >&2
  exit 2
fi
cifar=$1
photos=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
default=$here/.venv/bin/solo-minent
[ -x "$default" ] || default=solo-minent
solo_minent=${SOLO_MINENT:-$default}
out=${OUT:-$here/zoo/results}

bench() {
  local name=$1
  shift
  "$solo_minent" bench loader --seconds "${SECONDS_EACH:-6}" --rounds "${ROUNDS:-5}" \
    --csv "$out/loaders-$name.csv" data.num_workers=2 "$@"
}
for method in minent corinfomax; do
  bench "cifar10-$method" --recipe "cifar10/$method" \
    data.root="$cifar" optimizer.batch_size=256 "$@"
done
for size in 112 224; do
  bench "photographs-$size" --recipe imagenet100/corinfomax \
    data.dataset=custom data.root="$photos" data.image_size="$size" optimizer.batch_size=64 "$@"
done
