#!/usr/bin/env bash
# Pretrains one recipe under torchrun, on machines without Slurm; the same line on every node, with
# its NODE_RANK. The run folder must lie on a file system that all of them see.
#   GPUS=8 NODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash scripts/torchrun.sh imagenet/twist_multicrop data.root=…
# On one machine it is not needed: scripts/run.sh with devices=8 starts the processes itself.
#   GPUS, NODES            processes a node (1), nodes (1): the run's devices and num_nodes
#   NODE_RANK, MASTER_ADDR, MASTER_PORT    this node (0), the first node (127.0.0.1), its port (29500)
#   TORCHRUN=…             another torchrun
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
exec "${TORCHRUN:-$default}" --nnodes="$nodes" --nproc-per-node="$gpus" \
  --node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}" \
  --master-port="${MASTER_PORT:-29500}" \
  -m solo_minent pretrain --recipe "$recipe" devices="$gpus" num_nodes="$nodes" "$@"
