#!/usr/bin/env bash
# MEC on STL-10, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/stl10/mec.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# xinliu20/MEC @ 35045dc.
#   bash scripts/stl10/mec.sh data.root=/data/stl10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" stl10/mec "$@"
