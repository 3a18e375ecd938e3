#!/usr/bin/env bash
# Pretrains one recipe, then evaluates it against raw pixels and the untrained backbone (linear, kNN,
# few labels) and draws its course.
#   bash scripts/run.sh cifar10/minent data.root=/data max_epochs=10
# Started again after an interruption it continues. SOLO_MINENT names another solo-minent command.
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

"$solo_minent" pretrain --recipe "$recipe" "$@"
"$solo_minent" report --recipe "$recipe" "$@"
