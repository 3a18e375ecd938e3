#!/usr/bin/env bash
# Trains the models of the zoo on CIFAR-10 and adds them: pretrain, kNN, linear, zoo add.
#   bash scripts/zoo/train_cifar10.sh                           installs, downloads CIFAR-10, trains
#   bash scripts/zoo/train_cifar10.sh data.root=/data/cifar10   further overrides follow
# One call works for MINUTES, saves and exits with 75; the same call goes on from there, on another
# machine if OUT goes with it. Exit status 0: every model is in the zoo.
# On a GPU: the recipes' ResNet-18, device loader, bf16, torch.compile where there is a compiler. On a
# CPU: the narrow ResNet-10 and heads of scripts/cifar10/cpu.sh, all images, device loader, bf16, and
# names that say so. Shipped as float16; where that costs more than 0.1 point of kNN, zoo add refuses.
#   METHODS="minent mec twist corinfomax"   EPOCHS=1000 (CPU: 8)   MINUTES=8.5 (0: until it is done)
#   OUT=runs   ZOO=zoo   DEVICE=cuda|cpu   COMPILE=true|false   SEED=0 (others: results only)
#   SOLO_MINENT=another solo-minent command
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
began=$(date +%s)
methods=${METHODS:-minent mec twist corinfomax}
minutes=${MINUTES:-8.5}
out=${OUT:-$here/runs}
zoo=${ZOO:-$here/zoo}
seed=${SEED:-0}
evaluation=180 # seconds that kNN, linear and zoo add of one model may take

for method in $methods; do
  case $method in
    minent | mec | twist | corinfomax) ;;
    *)
      echo "error: method is unknown: $method. METHODS is some of minent, mec, twist, corinfomax. Run METHODS=minent bash scripts/zoo/train_cifar10.sh." >&2
      exit 2
      ;;
  esac
done
if ! [[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ && ${EPOCHS:-1} =~ ^[1-9][0-9]*$ && $seed =~ ^[0-9]+$ ]]; then
  echo "error: MINUTES, EPOCHS or SEED is no number: MINUTES=$minutes EPOCHS=${EPOCHS:-} SEED=$seed. Minutes of the clock, epochs and a seed are taken. Run MINUTES=8.5 EPOCHS=1000 bash scripts/zoo/train_cifar10.sh." >&2
  exit 2
fi
limit=$(awk "BEGIN { print int($minutes * 60) }")

if [ -z "${SOLO_MINENT:-}" ] && [ ! -x "$here/.venv/bin/solo-minent" ]; then
  bash "$here/scripts/setup.sh"
fi
solo_minent=${SOLO_MINENT:-$here/.venv/bin/solo-minent}

device=${DEVICE:-cpu}
if [ -z "${DEVICE:-}" ] && command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
  device=cuda
fi
compile=${COMPILE:-}
if [ -z "$compile" ]; then
  compile=false
  if command -v cc gcc clang >/dev/null; then compile=true; fi
fi

data=()
if ! [[ " $* " == *" data.root="* ]]; then
  data=("data.root=$here/datasets/cifar10")
  "$solo_minent" prepare cifar10 --root "$here/datasets/cifar10"
fi

left() { # seconds until this call must end
  if [ "$limit" -eq 0 ]; then
    echo 1000000
  else
    echo $((began + limit - $(date +%s)))
  fi
}
later() {
  echo "time is up: $1. The same command goes on from here." >&2
  exit 75
}

for method in $methods; do
  folder=$out/cifar10/$method/zoo-$seed
  if [ -e "$folder/in_zoo" ]; then
    continue
  fi
  if [ "$device" = cuda ]; then
    name=$method-resnet18-cifar10
    words=(--recipe "cifar10/$method" "max_epochs=${EPOCHS:-1000}" data.format=device
      precision=bf16-mixed "compile=$compile" evaluation.knn_every=100 checkpoint.every_minutes=2)
  else
    name=$method-resnet10-cifar10-cpu
    line=$(SOLO_MINENT=echo EVALUATE='' bash "$here/scripts/cifar10/cpu.sh" "$method")
    read -r -a words <<<"${line#pretrain }"
    words+=("max_epochs=${EPOCHS:-8}" data.train_images=null data.format=device data.num_workers=0
      precision=bf16-mixed evaluation.knn_every=4)
  fi
  words+=("folder=$folder" "seed=$seed" ${data[@]+"${data[@]}"} "$@")
  ship=--float16
  [ "$seed" -eq 0 ] || ship=--results-only

  mkdir -p "$folder"
  seconds=$(left)
  [ "$seconds" -gt 20 ] || later "$method has not been trained"
  since=$(date +%s)
  status=0
  timeout --foreground --preserve-status --signal=TERM --kill-after=60 "$seconds" \
    "$solo_minent" pretrain "${words[@]}" || status=$?
  spent=$(cat "$folder/seconds" 2>/dev/null || echo 0)
  echo $((spent + $(date +%s) - since)) >"$folder/seconds"
  case $status in
    0) ;;
    75 | 143) later "$method is being trained, $(cat "$folder/seconds") seconds so far" ;; # 143: not yet begun
    *) exit "$status" ;;
  esac

  [ "$(left)" -gt "$evaluation" ] || later "$method is trained and not evaluated"
  "$solo_minent" knn "$folder" ${data[@]+"${data[@]}"} "$@"
  "$solo_minent" linear "$folder" ${data[@]+"${data[@]}"} "$@"
  hours=$(awk "BEGIN { printf \"%.3f\", $(cat "$folder/seconds") / 3600 }")
  "$solo_minent" zoo add "$folder" --id "$name" --zoo "$zoo" --hours "$hours" "$ship" \
    ${data[@]+"${data[@]}"} "$@"
  touch "$folder/in_zoo"
done
echo "in the zoo: $methods"
