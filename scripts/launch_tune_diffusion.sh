#!/usr/bin/env bash
# Stage 2 and 3: fine-tune the diffusion model on the trained encoders of a configuration, then draw the test images with it.
#
#   scripts/launch_tune_diffusion.sh                                   # configs/nsd_subj01.yaml
#   CONFIG=configs/simulated.yaml scripts/launch_tune_diffusion.sh --rank 8 router.kl_scale=0
#   sbatch scripts/launch_tune_diffusion.sh image=runs/a/image text=runs/b/text
#
# Everything after the name is handed to both commands. BRAINGEN is the command itself. Killed at any moment, the same line goes on.
#SBATCH --job-name=braingen-tune
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail
CONFIG=${CONFIG:-configs/nsd_subj01.yaml}
BRAINGEN=${BRAINGEN:-braingen}

$BRAINGEN finetune --config "$CONFIG" "$@"
$BRAINGEN reconstruct --config "$CONFIG" "$@"
