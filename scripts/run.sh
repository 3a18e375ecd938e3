#!/usr/bin/env bash
# Pretrains one recipe, then evaluates its frozen backbone: linear and kNN.
#   bash scripts/run.sh cifar10/minent data.root=/data max_epochs=10
# On digits and CIFAR, report does both for the untrained backbone and raw pixels as well, and draws
# the run's course. On larger images raw pixels are too many features for that.
#   EVALUATE="linear report"     other commands than these
#   SOLO_MINENT=…                another solo-minent command
# Started again after an interruption it continues.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "error: recipe is missing. It is a name such as cifar10/minent. Run bash scripts/run.sh cifar10/minent data.root=…" >&2
  exit 2
fi
recipe=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
default=$here/.venv/bin/solo-minent
[ -x "$default" ] || default=solo-minent
solo_minent=${SOLO_MINENT:-$default}
case $recipe in
  digits/* | cifar10/* | cifar100/*) evaluate=report ;;
  *) evaluate="linear knn" ;;
esac

"$solo_minent" pretrain --recipe "$recipe" "$@"
for command in ${EVALUATE-$evaluate}; do
  options=()
  [ "$command" != report ] || options=(--evaluate)
  "$solo_minent" "$command" --recipe "$recipe" ${options[@]+"${options[@]}"} "$@"
done
