#!/usr/bin/env bash
# TWIST on ImageNet-100, ResNet-18, two views: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/imagenet100/twist.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# bytedance/TWIST @ 796d36e.
#   bash scripts/imagenet100/twist.sh data.root=/data/imagenet100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet100/twist "$@"
