"""The machine a stage runs on."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
import torch

from braingen.config import Config
from braingen.errors import UserError
from braingen.extras import how_to_install, missing


def device_of(config: Config) -> torch.device:
    """The device that ``run.device`` means here."""
    if config.run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device = cuda, but torch sees no GPU here: use --device cpu, or install torch for CUDA (see README).")
    return torch.device(config.run.device)


def precision_of(config: Config) -> str:
    """Accelerate's name for the number format of training: fp16 on a GPU, float32 on a CPU, unless told otherwise."""
    chosen = config.run.mixed_precision
    if chosen == "auto":
        return "fp16" if device_of(config).type == "cuda" else "no"
    return chosen


def end_tracking(accelerator: Accelerator) -> None:
    """Close the trackers. (``Accelerator.end_training`` would part the processes too, and a stage may train several times.)"""
    for tracker in accelerator.trackers:
        tracker.finish()


def _tracker_of(config: Config) -> str | None:
    """The tracker, as far as it is installed; curves are in metrics.jsonl in any case."""
    tracker = config.run.tracker
    if tracker == "tensorboard" and missing("track"):
        print(f"Learning curves go to metrics.jsonl alone, since tensorboard is not installed: {how_to_install('track')}.")
        return None
    return None if tracker == "none" else tracker


def accelerator_of(config: Config, folder: Path, batch_size: int) -> Accelerator:
    """What shares training out over processes and devices, and sends its curves to the tracker.

    Parameters
    ----------
    folder : of the run
    batch_size : per process and pass, which DeepSpeed wants to know

    Raises
    ------
    UserError
        For half precision under DeepSpeed, which would keep the weights themselves in it.
    """
    AcceleratorState._reset_state()  # an earlier stage in this process may have had another number format; process groups stay
    accelerator = Accelerator(
        cpu=device_of(config).type == "cpu", mixed_precision=precision_of(config), log_with=_tracker_of(config), project_dir=folder
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if precision_of(config) != "no":
            raise UserError(f"run.mixed_precision={precision_of(config)} is not possible under DeepSpeed: give --mixed_precision no.")
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batch_size
    return accelerator
