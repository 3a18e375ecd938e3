#!/usr/bin/env bash
# minent on scikit-learn's digits: pretrain, then linear, kNN and report. Runs on a CPU; hyper-parameters ours,
# in solo_minent/recipes/digits/minent.yaml.
#   bash scripts/digits/minent.sh max_epochs=20
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" digits/minent "$@"
