#!/usr/bin/env bash
# CorInfoMax on CIFAR-100, ResNet-18: pretrain, then linear, kNN and report.
# Written for one GPU, 512 images a step. Recipe: solo_minent/recipes/cifar100/corinfomax.yaml.
# Hyper-parameters: published, serdarozsoy/corinfomax-ssl @ c0b917e.
#   bash scripts/cifar100/corinfomax.sh data.root=/data/cifar100
set -euo pipefail
exec bash "$(dirname "$0")/../run.sh" cifar100/corinfomax "$@"
