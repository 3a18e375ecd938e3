#!/usr/bin/env bash
# MinEnt on CIFAR-100, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 128 images a step. Recipe: solo_minent/recipes/cifar100/minent.yaml.
# Hyper-parameters: published, LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/cifar100/minent.sh data.root=/data/cifar100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar100/minent "$@"
