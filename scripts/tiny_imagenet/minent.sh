#!/usr/bin/env bash
# MinEnt on Tiny-ImageNet, ResNet-18: pretrain, then linear and kNN.
# Written for one GPU, 128 images a step. Recipe: solo_minent/recipes/tiny_imagenet/minent.yaml.
# Hyper-parameters: published, LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/tiny_imagenet/minent.sh data.root=/data/tiny_imagenet
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" tiny_imagenet/minent "$@"
