#!/usr/bin/env bash
# twist on scikit-learn's digits: pretrain, then linear, kNN and report. Runs on a CPU; hyper-parameters ours,
# in solo_minent/recipes/digits/twist.yaml.
#   bash scripts/digits/twist.sh max_epochs=20
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" digits/twist "$@"
