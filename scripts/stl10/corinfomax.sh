#!/usr/bin/env bash
# CorInfoMax on STL-10, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/stl10/corinfomax.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish the other data sets), else
# serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/stl10/corinfomax.sh data.root=/data/stl10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" stl10/corinfomax "$@"
