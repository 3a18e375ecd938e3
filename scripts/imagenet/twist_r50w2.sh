#!/usr/bin/env bash
# TWIST on ImageNet-1k, ResNet-50w2, 2 + 12 crops, self-labelling stage: pretrain, then linear and kNN.
# Written for 4 nodes of 8 GPUs x 60 images. Recipe: solo_minent/recipes/imagenet/twist_r50w2.yaml.
# Hyper-parameters: published, bytedance/TWIST @ 796d36e.
#   sbatch --nodes=4 scripts/slurm/pretrain.sbatch imagenet/twist_r50w2 data.root=/data/imagenet
# One machine, the same global batch where memory allows:
#   bash scripts/imagenet/twist_r50w2.sh data.root=/data/imagenet num_nodes=1 optimizer.batch_size=240
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/twist_r50w2 "$@"
