#!/usr/bin/env bash
# TWIST on ImageNet-1k, ResNet-50, two views: pretrain, then linear and kNN.
# Written for 8 GPUs x 256 images. Recipe: solo_minent/recipes/imagenet/twist.yaml.
# Hyper-parameters: published, bytedance/TWIST @ 796d36e.
#   bash scripts/imagenet/twist.sh data.root=/data/imagenet
# One GPU, the same global batch where memory allows: devices=1 optimizer.batch_size=2048
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/twist "$@"
