#!/usr/bin/env bash
# CorInfoMax on ImageNet-100, ResNet-50: pretrain, then linear and kNN.
# Written for 8 GPUs x 128 images. Recipe: solo_minent/recipes/imagenet100/corinfomax_r50.yaml.
# Hyper-parameters: published, serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/imagenet100/corinfomax_r50.sh data.root=/data/imagenet100
# One GPU, the same global batch where memory allows: devices=1 optimizer.batch_size=1024
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet100/corinfomax_r50 "$@"
