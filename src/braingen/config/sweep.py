"""Settings of sweeps: runs that differ in some settings, side by side in one table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from braingen.config.effect import Needs
from braingen.config.values import NotNegative, Positive, Section

ON_SLURM = Needs("cluster", "slurm")
BY_SUBMITIT = Needs("cluster", "slurm", "local")


class SweepConfig(Section):
    """Runs over settings (docs/sweep.md)."""

    over: str = ""
    """Settings and their values, separated by blanks: encoder.hidden_dim=256|512
    training.max_lr=1e-4|3e-4; for optuna also ranges, training.max_lr=1e-5:1e-3:log.
    """
    method: Literal["grid", "optuna"] = "grid"
    """Every combination, or those that Optuna proposes (extra: sweep)."""
    n_trials: Annotated[Positive, Needs("method", "optuna")] = 20
    """Combinations that Optuna tries in all; a higher number continues a sweep."""
    commands: Annotated[tuple[str, ...], Field(min_length=1)] = ("train image",)
    """Commands of every combination, in this order."""
    objective: str = ""
    """What combinations are compared by, FOLDER.NAME of the summary of a training, such as
    image.best_validation_cosine; empty for that of the last training. Always of held-out training
    images, never of test images.
    """
    direction: Literal["auto", "maximize", "minimize"] = "auto"
    """Whether more is better of it; auto knows those that trainings write."""
    jobs: Positive = 1
    """Combinations at once."""
    cluster: Literal["none", "local", "slurm"] = "none"
    """Where they run: processes of this command (none), Slurm through submitit (extra: slurm), or
    submitit's processes on this machine (local), to try the same way without Slurm.
    """
    partition: Annotated[str, ON_SLURM] = ""
    """Slurm partition; empty for the cluster's default."""
    minutes: Annotated[Positive, BY_SUBMITIT] = 1440
    """Time limit of a job; one that reaches it is submitted again and continues."""
    gpus: Annotated[NotNegative, ON_SLURM] = 1
    """GPUs of a job."""
    cpus: Annotated[Positive, ON_SLURM] = 8
    """Processors of a job."""
    memory_gb: Annotated[Positive, ON_SLURM] = 64
    """Memory of a job in GB."""
