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
# Stage 2 and 3: fine-tune the diffusion model on the trained encoders of a configuration, then draw the test images with it.
#
#   scripts/launch_tune_diffusion.sh                                   # --config nsd_subj01
#   CONFIG=simulated scripts/launch_tune_diffusion.sh --rank 8 router.kl_scale=0
#   sbatch scripts/launch_tune_diffusion.sh image=runs/a/image text=runs/b/text
#
# Everything after the name is handed to both commands. BRAINGEN is the command itself. Start it in the repository's folder.
# Before its time is up, Slurm tells the job; it saves and queues itself again. Killed at any moment, the same line goes on.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
CONFIG=${CONFIG:-nsd_subj01}
BRAINGEN=${BRAINGEN:-braingen}
source scripts/processes.sh

stoppable $BRAINGEN finetune --config "$CONFIG" "$@"
stoppable $BRAINGEN reconstruct --config "$CONFIG" "$@"
