#!/usr/bin/env bash
# TWIST on ImageNet-1k, ViT-B/16, 2 + 10 crops: pretrain, then linear and kNN.
# Written for 4 nodes of 8 GPUs x 32 images. Recipe: solo_minent/recipes/imagenet/twist_vit_b.yaml.
# Hyper-parameters: published, bytedance/TWIST @ 796d36e.
#   sbatch --nodes=4 scripts/slurm/pretrain.sbatch imagenet/twist_vit_b data.root=/data/imagenet
# One machine, the same global batch where memory allows:
#   bash scripts/imagenet/twist_vit_b.sh data.root=/data/imagenet num_nodes=1 optimizer.batch_size=128
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" imagenet/twist_vit_b "$@"
