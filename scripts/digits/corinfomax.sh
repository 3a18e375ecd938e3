#!/usr/bin/env bash
# corinfomax on scikit-learn's digits: pretrain, then linear, kNN and report. Runs on a CPU; hyper-parameters ours,
# in solo_minent/recipes/digits/corinfomax.yaml.
#   bash scripts/digits/corinfomax.sh max_epochs=20
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" digits/corinfomax "$@"
