#!/usr/bin/env bash
# MinEnt on CIFAR-10, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 128 images a step. Recipe: solo_minent/recipes/cifar10/minent.yaml.
# Hyper-parameters: published, LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/cifar10/minent.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/minent "$@"
