#!/usr/bin/env bash
# CorInfoMax on CIFAR-10, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/cifar10/corinfomax.yaml.
# Hyper-parameters: published, serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/cifar10/corinfomax.sh data.root=/data/cifar10
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar10/corinfomax "$@"
