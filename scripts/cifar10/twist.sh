#!/usr/bin/env bash
# twist on CIFAR-10: pretrain, then linear, kNN and report. Recipe: solo_minent/recipes/cifar10/twist.yaml,
# hyper-parameters ours (its authors publish ImageNet only); written for one GPU.
#   bash scripts/cifar10/twist.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/twist "$@"
