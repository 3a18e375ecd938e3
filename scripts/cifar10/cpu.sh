#!/usr/bin/env bash
# A short CIFAR-10 run that learns on a CPU: 5,000 training images, a narrow ResNet-10, 20 epochs,
# batch 128; objective, heads and augmentation are those of the full recipe. Values here are ours.
#   bash scripts/cifar10/cpu.sh minent data.root=/data/cifar10        (or mec, twist, corinfomax)
set -euo pipefail
method=${1:?"error: method is missing. It is minent, mec, twist or corinfomax. Run bash scripts/cifar10/cpu.sh minent data.root=…"}
shift
exec bash "$(dirname "$0")/../run.sh" "cifar10/$method" name=cpu max_epochs=20 \
  data.train_images=5000 data.num_workers=1 evaluation.linear.max_epochs=100 \
  backbone.name=timm:resnet10t backbone.stem=small \
  '~backbone.kwargs' '+backbone.kwargs={layers: [1,1,1,1], channels: [32,64,128,256]}' \
  optimizer.batch_size=128 scheduler.warmup_epochs=1 scheduler.warmup_steps=null "$@"
