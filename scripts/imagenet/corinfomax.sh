#!/usr/bin/env bash
# CorInfoMax on ImageNet-1k, ResNet-50: pretrain, then linear and kNN.
# Written for 8 GPUs x 192 images. Recipe: solo_minent/recipes/imagenet/corinfomax.yaml.
# Hyper-parameters: published, serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/imagenet/corinfomax.sh data.root=/data/imagenet
# One GPU, the same global batch where memory allows: devices=1 optimizer.batch_size=1536
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/corinfomax "$@"
