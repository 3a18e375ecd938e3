#!/usr/bin/env bash
# From a fresh machine to a trained backbone, a table and a picture, on real images without download.
#   bash scripts/quickstart.sh                     MinEnt on scikit-learn's handwritten digits
#   bash scripts/quickstart.sh --method mec        or twist, corinfomax
# Anything after that is an override: max_epochs=10
set -euo pipefail
cd "$(dirname "$0")/.."

method=minent
if [ "${1:-}" = --method ]; then
  method=${2:-none}
  shift $(($# < 2 ? 1 : 2))
fi
case $method in
  minent | mec | twist | corinfomax) ;;
  *)
    echo "error: method is unknown: $method. The methods are minent, mec, twist, corinfomax. Use --method minent." >&2
    exit 2
    ;;
esac

bash scripts/setup.sh
solo_minent=.venv/bin/solo-minent
"$solo_minent" pretrain --recipe "digits/$method" "$@"
"$solo_minent" report --evaluate --recipe "digits/$method" "$@"
