#!/usr/bin/env bash
# MinEnt on ImageNet-1k, ResNet-50: pretrain, then linear and kNN.
# Written for 8 GPUs x 128 images. Recipe: solo_minent/recipes/imagenet/minent.yaml.
# Hyper-parameters: ours where the recipe says so (its authors publish smaller data sets only),
# else LiShuo1001/MinEnt @ d17ed2f.
#   bash scripts/imagenet/minent.sh data.root=/data/imagenet
# One GPU, the same global batch where memory allows: devices=1 optimizer.batch_size=1024
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/minent "$@"
