#!/usr/bin/env bash
# MEC on Tiny-ImageNet, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/tiny_imagenet/mec.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# xinliu20/MEC @ 35045dc.
#   bash scripts/tiny_imagenet/mec.sh data.root=/data/tiny_imagenet
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" tiny_imagenet/mec "$@"
