#!/usr/bin/env bash
# MinEnt on ImageNet-100, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 128 images a step. Recipe: solo_minent/recipes/imagenet100/minent.yaml.
# Hyper-parameters: published, LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/imagenet100/minent.sh data.root=/data/imagenet100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet100/minent "$@"
