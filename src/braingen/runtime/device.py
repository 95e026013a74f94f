"""Device, number format and trackers of a stage."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
import torch

from braingen.config import Config
from braingen.runtime.errors import UserError
from braingen.runtime.extras import how_to_install, missing
from braingen.runtime.run_folder import Run, flat
from braingen.runtime.untrusted import one_line


def device_of(config: Config) -> torch.device:
    """Resolve ``run.device`` on this machine."""
    if config.run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "run.device = cuda, but torch sees no GPU here: use --device cpu, or install torch for"
            " CUDA (see README)."
        )
    return torch.device(config.run.device)


def precision_of(config: Config) -> str:
    """Accelerate's name of the training precision: fp16 on a GPU, float32 on a CPU by default."""
    chosen = config.run.mixed_precision
    if chosen == "auto":
        return "fp16" if device_of(config).type == "cuda" else "no"
    return chosen


def end_tracking(accelerator: Accelerator) -> None:
    """Close the trackers.

    ``Accelerator.end_training`` would also end the process group, but a stage may train repeatedly.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def _tracker_of(config: Config) -> str | None:
    """Return the tracker if it is installed; metrics.jsonl has the curves in any case."""
    tracker = config.run.tracker
    if tracker == "wandb":
        check_wandb()
    if tracker == "tensorboard" and missing("track"):
        _note_without_tensorboard()
        return None
    return None if tracker == "none" else tracker


@cache
def _note_without_tensorboard() -> None:
    """Print once what is missing: a command may train many times, for instance by folds."""
    print(
        "Learning curves go to metrics.jsonl alone, since tensorboard is not installed:"
        f" {how_to_install('track')}."
    )


def check_wandb() -> None:
    """Refuse W&B where it cannot work, before any computation.

    Raises
    ------
    UserError
        When the package or a key is missing.
    """
    if find_spec("wandb") is None:
        raise UserError(
            "run.tracker=wandb needs the package wandb, which is not installed: pip install wandb,"
            " or leave the tracker out (--tracker tensorboard)."
        )
    if os.environ.get("WANDB_MODE", "").lower() in (
        "offline",
        "dryrun",
        "disabled",
    ) or os.environ.get("WANDB_API_KEY"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host)
    except (OSError, NetrcParseError, RuntimeError):  # missing, damaged, or no home folder
        known = None
    if known is None:
        raise UserError(
            f"run.tracker=wandb needs a key for {host}: type `wandb login` once, set WANDB_API_KEY,"
            " or keep the curves on this machine with WANDB_MODE=offline."
        )


def start_tracking(accelerator: Accelerator, config: Config, run: Run) -> None:
    """Open the trackers; a W&B run has the settings, the name and the folder of the run.

    Raises
    ------
    UserError
        When W&B refuses.
    """
    if config.run.tracker != "wandb":
        accelerator.init_trackers("braingen", config=None)
        return
    about = {
        "wandb": {"name": f"{run.folder.parent.name}/{run.folder.name}", "dir": str(run.folder)}
    }
    try:
        accelerator.init_trackers("braingen", config=flat(run.config), init_kwargs=about)
    except Exception as error:  # W&B's own, of many kinds
        raise UserError(
            f"W&B could not be started ({type(error).__name__}: {one_line(error, 200)}): check"
            " your key and connection, set WANDB_MODE=offline, or choose --tracker tensorboard."
        ) from error


def accelerator_of(config: Config, folder: Path, batch_size: int) -> Accelerator:
    """Create the Accelerator of a training run.

    Parameters
    ----------
    folder : Path
        Of the run.
    batch_size : int
        Per process and forward pass, which DeepSpeed needs to know.

    Raises
    ------
    UserError
        When the tracker cannot work, and for half precision under DeepSpeed, which would store the
        weights themselves in it.
    """
    # an earlier stage may have set another number format; process groups are kept
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device_of(config).type == "cpu",
        mixed_precision=precision_of(config),
        log_with=_tracker_of(config),
        project_dir=folder,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if precision_of(config) != "no":
            raise UserError(
                f"run.mixed_precision={precision_of(config)} is not possible under DeepSpeed: give"
                " --mixed_precision no."
            )
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
            batch_size
        )
    return accelerator
