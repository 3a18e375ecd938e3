#!/usr/bin/env bash
# TWIST on CIFAR-100, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/cifar100/twist.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish ImageNet-1k only), else
# bytedance/TWIST @ 796d36e.
#   bash scripts/cifar100/twist.sh data.root=/data/cifar100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar100/twist "$@"
