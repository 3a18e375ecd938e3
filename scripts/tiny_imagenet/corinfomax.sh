#!/usr/bin/env bash
# CorInfoMax on Tiny-ImageNet, ResNet-50: pretrain, then linear and kNN.
# Written for one GPU, 1024 images a step. Recipe: solo_minent/recipes/tiny_imagenet/corinfomax.yaml.
# Hyper-parameters: published, serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/tiny_imagenet/corinfomax.sh data.root=/data/tiny_imagenet
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" tiny_imagenet/corinfomax "$@"
