#!/usr/bin/env bash
# Train on several GPUs: one process for each, on one machine or on several.
#
# Several machines: run the same line on each of them, with NNODES, MASTER_ADDR (the first machine)
# and PORT the same everywhere, and NODE_RANK counting from 0.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500]" \
        "$(basename "$0") CONFIG GPUS_PER_MACHINE [arguments of train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2

exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(cd "$(dirname "$0")" && pwd)/train.py" "$config" --launcher pytorch "$@"
