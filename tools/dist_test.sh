#!/usr/bin/env bash
# Test on several GPUs; for several machines see dist_train.sh.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500]" \
        "$(basename "$0") CONFIG CHECKPOINT GPUS_PER_MACHINE [arguments of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(cd "$(dirname "$0")" && pwd)/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
