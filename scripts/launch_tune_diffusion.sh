#!/usr/bin/env bash
#SBATCH --job-name=braingen-tune
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Stage 2 and 3: fine-tune the diffusion model on the trained encoders of a configuration, then reconstruct the test images with it:
#
#   bash scripts/launch_tune_diffusion.sh
#   bash scripts/launch_tune_diffusion.sh --model_name_image A --model_name_text B --rank 8 router.kl_scale=0
#   sbatch scripts/launch_tune_diffusion.sh --config nsd_multi
#
# Flags are handed to both commands. Without --config it is nsd_subj01. Data (data/NSD) and runs are those of the folder in which it is
# started. Before its time is up, Slurm signals the job; it saves and queues itself again. Killed at any moment, the same line goes on.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# Slurm runs a copy that lies elsewhere
[ -f "$here/processes.sh" ] || { cd "${SLURM_SUBMIT_DIR:-.}"; here=$([ -f processes.sh ] && echo . || echo scripts); }
source "$here/processes.sh"

stoppable "$PYTHON" "$SCRIPTS/Finetune_diffusion.py" "$@"
stoppable "$PYTHON" "$SCRIPTS/Recon_inference.py" "$@"
