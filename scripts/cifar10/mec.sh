#!/usr/bin/env bash
# MEC on CIFAR-10, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/cifar10/mec.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# xinliu20/MEC @ 35045dc.
#   bash scripts/cifar10/mec.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/mec "$@"
