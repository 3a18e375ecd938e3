#!/usr/bin/env bash
# MEC on ImageNet-1k, ResNet-50: pretrain, then linear and kNN.
# Written for 8 GPUs x 128 images. Recipe: solo_minent/recipes/imagenet/mec.yaml.
# Hyper-parameters: published, xinliu20/MEC @ 35045dc.
#   bash scripts/imagenet/mec.sh data.root=/data/imagenet
# One GPU, the same global batch where memory allows: devices=1 optimizer.batch_size=1024
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/mec "$@"
