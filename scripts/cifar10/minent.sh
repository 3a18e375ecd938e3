#!/usr/bin/env bash
# minent on CIFAR-10: pretrain, then linear, kNN and report. Recipe: solo_minent/recipes/cifar10/minent.yaml,
# hyper-parameters published by its authors; written for one GPU.
#   bash scripts/cifar10/minent.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/minent "$@"
