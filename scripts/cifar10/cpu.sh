#!/usr/bin/env bash
# A short CIFAR-10 run that learns on a CPU: 5,000 training images, narrow ResNet-10 and heads, 12
# epochs, batch 128; objective and augmentation are those of the full recipe. Values here are ours.
#   bash scripts/cifar10/cpu.sh minent data.root=/data/cifar10        (or mec, twist, corinfomax)
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "error: method is missing. It is minent, mec, twist or corinfomax. Run bash scripts/cifar10/cpu.sh minent data.root=…" >&2
  exit 2
fi
method=$1
shift
case $method in # an argument of torchvision's ResNets
  mec | corinfomax) set -- '~backbone.kwargs.zero_init_residual' "$@" ;;
esac
case $method in # in 468 steps a slower teacher would stay where it started; a quarter of the batch
  mec) set -- method_kwargs.base_momentum=0.99 "$@" ;;
  corinfomax) set -- optimizer.lr=0.125 "$@" ;;
esac
exec bash "$(dirname "$0")/../run.sh" "cifar10/$method" name=cpu max_epochs=12 \
  data.train_images=5000 data.num_workers=1 evaluation.knn_every=3 evaluation.linear.max_epochs=100 \
  backbone.name=timm:resnet10t backbone.stem=small \
  backbone.kwargs.layers=[1,1,1,1] backbone.kwargs.channels=[32,64,128,256] \
  method_kwargs.hidden_dim=256 \
  optimizer.batch_size=128 scheduler.warmup_epochs=1 scheduler.warmup_steps=null "$@"
