#!/usr/bin/env bash
# TWIST on ImageNet-1k, ResNet-50, 2 + 12 crops, self-labelling stage: pretrain, then linear and kNN.
# Written for 2 nodes of 8 GPUs x 128 images. Recipe: solo_minent/recipes/imagenet/twist_multicrop.yaml.
# Hyper-parameters: published, bytedance/TWIST @ 796d36e.
#   sbatch --nodes=2 scripts/slurm/pretrain.sbatch imagenet/twist_multicrop data.root=/data/imagenet
# One machine, the same global batch where memory allows:
#   bash scripts/imagenet/twist_multicrop.sh data.root=/data/imagenet num_nodes=1 optimizer.batch_size=256
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/twist_multicrop "$@"
