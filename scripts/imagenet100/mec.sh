#!/usr/bin/env bash
# MEC on ImageNet-100, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/imagenet100/mec.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# xinliu20/MEC @ 35045dc.
#   bash scripts/imagenet100/mec.sh data.root=/data/imagenet100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet100/mec "$@"
