#!/usr/bin/env bash
# mec on CIFAR-10: pretrain, then linear, kNN and report. Recipe: solo_minent/recipes/cifar10/mec.yaml,
# hyper-parameters ours (its authors publish ImageNet only); written for one GPU.
#   bash scripts/cifar10/mec.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/mec "$@"
