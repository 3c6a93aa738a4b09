#!/usr/bin/env bash
# Train under Slurm: one task for each GPU.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS='']" \
        "$(basename "$0") PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
work_dir=$4
shift 4

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# SRUN_ARGS is split at white space on purpose.
# shellcheck disable=SC2086
exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --gres="gpu:$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(cd "$(dirname "$0")" && pwd)/train.py" \
    "$config" --work-dir "$work_dir" --launcher slurm "$@"
