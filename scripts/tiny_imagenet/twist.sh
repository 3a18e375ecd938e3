#!/usr/bin/env bash
# TWIST on Tiny-ImageNet, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/tiny_imagenet/twist.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# bytedance/TWIST @ 796d36e.
#   bash scripts/tiny_imagenet/twist.sh data.root=/data/tiny_imagenet
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" tiny_imagenet/twist "$@"
