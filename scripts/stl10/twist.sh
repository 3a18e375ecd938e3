#!/usr/bin/env bash
# TWIST on STL-10, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/stl10/twist.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# bytedance/TWIST @ 796d36e.
#   bash scripts/stl10/twist.sh data.root=/data/stl10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" stl10/twist "$@"
