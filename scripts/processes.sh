# Read by the launch scripts: a Python script in as many processes as there are GPUs, or any command, stopped in good order and queued
# again. Everything is read and written in the folder in which a script is started.
#
#   PROCESSES           processes on each machine; without it one per GPU that is visible, or one where there is none
#   ACCELERATE_CONFIG   file for `accelerate launch`, for FSDP or DeepSpeed, or the name of one that ships (fsdp); without it DDP
#   PYTHON              the interpreter; without it that of the active environment, of .venv here or in the checkout, or python3
#   BRAINGEN_SET        settings for every command, such as 'backbone.path=/models/sdxl run.tracker=none'

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        for folder in .venv "$SCRIPTS/../.venv"; do
            if [ -x "$folder/bin/python" ]; then
                PYTHON=$folder/bin/python
                break
            fi
        done
    fi
fi
if [ -n "${ACCELERATE_CONFIG:-}" ] && [ ! -f "$ACCELERATE_CONFIG" ]; then
    ACCELERATE_CONFIG=$("$PYTHON" -c 'from braingen.config.shipped import FOLDER; print(FOLDER)')/accelerate/${ACCELERATE_CONFIG%.yaml}.yaml
fi

count_gpus() {
    nvidia-smi --list-gpus 2>/dev/null | grep -c . || true
}

# train_on_sessions SCRIPT NUM_SESSIONS FLAG...
train_on_sessions() {
    local script=$1
    shift
    if [ $# -lt 1 ] || ! [[ $1 =~ ^[0-9]+$ ]]; then
        echo "usage: $(basename "$0") <num_sessions> [flags], for instance: $(basename "$0") 40 --model_name A --subj 1" >&2
        return 2
    fi
    launch "$SCRIPTS/$script" --num_sessions "$@"
}

# launch SCRIPT FLAG...
launch() {
    local gpus machines=${SLURM_NNODES:-1} processes port host command
    gpus=${SLURM_GPUS_ON_NODE:-$(count_gpus)}
    processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
    if [ "$machines" -gt 1 ]; then
        # every machine starts its own processes; they meet at the first one, at a port that follows from the job's number
        host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        port=$((20000 + SLURM_JOB_ID % 20000))
        command=(srun --ntasks="$machines" --ntasks-per-node=1 "$PYTHON" -m torch.distributed.run --nnodes "$machines" --nproc-per-node
            "$processes" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$host:$port" "$@")
    elif [ -n "${ACCELERATE_CONFIG:-}" ]; then
        command=("$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" --num_processes "$processes" "$@")
    elif [ "$processes" -gt 1 ]; then
        command=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$processes" "$@")
    else
        command=("$PYTHON" "$@")
    fi
    stoppable "${command[@]}"
}

# stoppable COMMAND WORD...
stoppable() {
    local child stopped=0 code=0
    "$@" &
    child=$!
    # the batch shell is told by the scheduler (or by kill); what it started saves and ends
    trap 'stopped=1; kill -TERM "$child" 2>/dev/null || true' TERM USR1 INT
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    trap - TERM USR1 INT
    if [ "$stopped" = 1 ] || [ "$code" = 75 ]; then
        echo "Stopped; what was done is saved." >&2
        if [ -n "${SLURM_JOB_ID:-}" ] && [ "${REQUEUE:-yes}" = yes ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        return 75
    fi
    return "$code"
}
