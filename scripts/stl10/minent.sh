#!/usr/bin/env bash
# MinEnt on STL-10, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 128 images a step. Recipe: solo_minent/recipes/stl10/minent.yaml.
# Hyper-parameters: published, LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/stl10/minent.sh data.root=/data/stl10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" stl10/minent "$@"
