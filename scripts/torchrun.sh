#!/usr/bin/env bash
# Pretrains one recipe under torchrun, on machines without Slurm; the same line on every node, with
# its NODE_RANK. The run folder must lie on a file system that all of them see.
#   GPUS=8 NODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash scripts/torchrun.sh imagenet/twist_multicrop data.root=…
# On one machine it is not needed: scripts/run.sh with devices=8 starts the processes itself.
#   GPUS, NODES            processes a node (1), nodes (1): the run's devices and num_nodes
#   NODE_RANK, MASTER_ADDR, MASTER_PORT    this node (0), the first node (127.0.0.1), its port (29500)
#   TORCHRUN=…             another torchrun
# SIGTERM and SIGUSR1 to this script of any node stop the run on all of them after a step: it saves,
# the script ends with 75, the same command continues. To torchrun itself, as by Ctrl-C: torchrun
# gives the run 30 seconds for it.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "error: recipe is missing. It is a name such as imagenet/mec. Run bash scripts/torchrun.sh imagenet/mec data.root=…" >&2
  exit 2
fi
recipe=$1
shift
default=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/torchrun
[ -x "$default" ] || default=torchrun
gpus=${GPUS:-1}
nodes=${NODES:-1}
child=
came=
stopped=
stop() {
  came=yes
  stopped=$1
  [ "$1" = 75 ] && [ -n "$child" ] || return 0
  # To its processes, which have then all the time they need.
  pkill -USR1 -P "$child" 2>/dev/null || kill "$child" 2>/dev/null || true
}
trap "stop 75" TERM USR1
trap "stop 130" INT

# In the background: bash runs a trap only between commands, or while it waits.
(trap - INT && exec "${TORCHRUN:-$default}" --nnodes="$nodes" --nproc-per-node="$gpus" \
  --node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}" \
  --master-port="${MASTER_PORT:-29500}" \
  -m solo_minent pretrain --recipe "$recipe" devices="$gpus" num_nodes="$nodes" "$@") &
child=$!
while true; do
  came=
  status=0
  wait "$child" || status=$?
  [ -n "$came" ] || break # else the signal ended the wait
done
[ "$status" -ge 0 ] || status=130 # bash 5.2: -1 of what ends while Ctrl-C ends the wait
# torchrun's own status is 1 whatever its processes ended with.
[ "$status" -eq 0 ] || [ -z "$stopped" ] || status=$stopped
exit "$status"
