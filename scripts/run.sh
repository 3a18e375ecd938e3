#!/usr/bin/env bash
# Pretrains one recipe, then evaluates its frozen backbone: linear and kNN.
#   bash scripts/run.sh cifar10/minent data.root=/data max_epochs=10
# On digits and CIFAR, report does both for the untrained backbone and raw pixels as well, and draws
# the run's course. On larger images raw pixels are too many features for that.
#   EVALUATE="linear report"     other commands than these
#   SOLO_MINENT=…                another solo-minent command
# Started again after an interruption it continues. SIGTERM, SIGUSR1 and Ctrl-C stop it: pretraining
# saves first, and what has stopped is not evaluated (exit status 75, after Ctrl-C 130).
#   --resume-from PATH           of pretrain, see solo-minent pretrain --help
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "error: recipe is missing. It is a name such as cifar10/minent. Run bash scripts/run.sh cifar10/minent data.root=…" >&2
  exit 2
fi
recipe=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
default=$here/.venv/bin/solo-minent
[ -x "$default" ] || default=solo-minent
solo_minent=${SOLO_MINENT:-$default}
case $recipe in
  digits/* | cifar10/* | cifar100/*) evaluate=report ;;
  *) evaluate="linear knn" ;;
esac

resume=()
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --resume-from)
      resume=("${@:1:2}")
      shift $(($# < 2 ? 1 : 2))
      ;;
    --resume-from=*)
      resume=("$1")
      shift
      ;;
    *)
      overrides+=("$1")
      shift
      ;;
  esac
done

child=
pass() { # a signal to this script alone; from a terminal Ctrl-C reaches the command as well
  came=yes
  [ "$1" = INT ] || [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
for signal in TERM USR1 INT; do
  # shellcheck disable=SC2064
  trap "pass $signal" "$signal"
done
run() { # in the background: bash runs a trap only between commands, or while it waits
  (trap - INT && exec "$@") &
  child=$!
  local status
  while true; do
    came=
    status=0
    wait "$child" || status=$?
    [ -n "$came" ] || break # else the signal ended the wait
  done
  [ "$status" -ge 0 ] || status=130 # bash 5.2: -1 of what ends while Ctrl-C ends the wait
  child=
  return "$status"
}

run "$solo_minent" pretrain --recipe "$recipe" ${resume[@]+"${resume[@]}"} ${overrides[@]+"${overrides[@]}"}
for command in ${EVALUATE-$evaluate}; do
  options=()
  [ "$command" != report ] || options=(--evaluate)
  run "$solo_minent" "$command" --recipe "$recipe" ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"}
done
