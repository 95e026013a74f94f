#!/usr/bin/env bash
#SBATCH --job-name=braingen-image
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train the image encoder on the first sessions, on however many GPUs there are, with Slurm or without:
#
#   bash scripts/launch_train.sh 40
#   sbatch --gres=gpu:4 --time=8:00:00 scripts/launch_train.sh 40 --config nsd_multi
#
# The first word is the number of sessions (0: all); further ones are flags of `braingen train image`. Without --config it is nsd_subj01. Data
# (data/NSD) and runs are those of the folder in which it is started. Before its time is up, Slurm signals the job; it saves and queues
# itself again, and goes on with the same bits. See docs/many_subjects.md.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# Slurm runs a copy that lies elsewhere
[ -f "$here/processes.sh" ] || { cd "${SLURM_SUBMIT_DIR:-.}"; here=$([ -f processes.sh ] && echo . || echo scripts); }
source "$here/processes.sh"
train_on_sessions Train.py "$@"
