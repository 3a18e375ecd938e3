#!/usr/bin/env bash
# TWIST on ImageNet-1k, DeiT-S/16, 2 + 6 crops: pretrain, then linear and kNN.
# Written for 2 nodes of 8 GPUs x 64 images. Recipe: solo_minent/recipes/imagenet/twist_deit_s.yaml.
# Hyper-parameters: published, bytedance/TWIST @ 796d36e.
#   sbatch --nodes=2 scripts/slurm/pretrain.sbatch imagenet/twist_deit_s data.root=/data/imagenet
# One machine, the same global batch where memory allows:
#   bash scripts/imagenet/twist_deit_s.sh data.root=/data/imagenet num_nodes=1 optimizer.batch_size=128
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/twist_deit_s "$@"
