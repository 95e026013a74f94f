"""Train the low-level path: predict VAE latents from voxels.

N images, B batch, C latent channels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from braingen.config import Config
from braingen.data.batches import RepeatBatches, TrainBatches
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.sealed_runs import refuse_test_set
from braingen.data.trials import group_repeats
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.encoders.parameters import weight_decay_groups
from braingen.pretrained.sdxl import own_size, pixels_per_latent, refuse_side
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import accelerator_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.paths import LATENT_ENCODER, low_level_folder
from braingen.runtime.run_folder import Run
from braingen.runtime.seeds import hash_seed
from braingen.targets.tables import Targets
from braingen.training.checkpoints import SHARDED, Stateful
from braingen.training.encoder import SAVE_SECONDS
from braingen.training.encoder_setup import splits_of
from braingen.training.schedules import one_cycle
from braingen.training.steps import StepLosses
from braingen.training.trainer import TrainingTask, run_task
from braingen.types import Trials, VoxelBatch


class LowLevelParts(NamedTuple):
    """Everything the training needs."""

    encoder: LatentEncoder
    batches: TrainBatches
    held_out: list[tuple[Trials, Betas]]
    """Presentations of held-out training images, per subject."""
    latents: np.ndarray
    """Scaled latents by image id, memory-mapped."""


def refuse_other_ways(config: Config) -> None:
    """Refuse ways of training that the low-level path has not."""
    wanted = config.training
    for name, usual in (("trained", "all"), ("init_from", None)):
        if (value := getattr(wanted, name)) != usual:
            raise UserError(
                f"training.{name} = {value} is not possible for the low-level path, which is"
                " trained as a whole from fresh weights: leave it out."
            )
    if wanted.checkpoint == "folds":
        raise UserError(
            "training.checkpoint = folds is not possible for the low-level path, whose epoch is"
            " chosen on held-out images: use training.checkpoint=held_out."
        )


def setup(config: Config, rank: int = 0, world: int = 1) -> LowLevelParts:
    """Check the data, compute the latents, build the model.

    Parameters
    ----------
    rank, world : int, optional
        This process and the number of processes.
    """
    refuse_side(
        config.low_level.resolution, pixels_per_latent(config.backbone.path), "low_level.resolution"
    )
    layout = Layout.of(config.data.root)
    check_before_training(layout, config.data.subjects, config.data.num_sessions, captions=False)
    splits = splits_of(config)
    betas = {kept.subject: Betas.of(layout, kept.subject) for kept, _ in splits}
    images = np.unique(
        np.concatenate([part.table["image"].to_numpy() for pair in splits for part in pair])
    )
    trained_on = np.unique(np.concatenate([kept.table["image"].to_numpy() for kept, _ in splits]))
    side = config.low_level.resolution or own_size(config.backbone.path)
    latents = Targets(config).latents(images, side)
    set_seed(config.run.seed)
    encoder = LatentEncoder(
        {subject: each.voxels for subject, each in betas.items()},
        latents.shape[1],
        latents.shape[2],
        **config.low_level.model_dump(exclude={"resolution", "num_epochs"}),
    )
    encoder.set_scale(latents, trained_on)
    return LowLevelParts(
        encoder,
        TrainBatches(
            [(kept, betas[kept.subject]) for kept, _ in splits],
            config.training.batch_size,
            config.run.seed,
            rank,
            world,
        ),
        [(held, betas[held.subject]) for _, held in splits],
        latents,
    )


def latents_of(parts: LowLevelParts, image_B: Tensor) -> Tensor:
    """Standardised latents of images, on the device of the model."""
    rows = torch.from_numpy(parts.latents[image_B.numpy()].astype(np.float32))
    return parts.encoder.standardised(rows.to(parts.encoder.device))


@torch.no_grad()
def explained(parts: LowLevelParts) -> float:
    """Share of the latents' variance around the training mean that is predicted, over held-out
    images, their presentations averaged.
    """
    encoder = parts.encoder.eval()
    error, total = 0.0, 0.0
    for trials, betas in parts.held_out:
        for batch in RepeatBatches(group_repeats(trials), betas, trials.subject, 64):
            voxels_BRV = batch.voxels_BRV.to(encoder.device)
            predicted = encoder.latents(voxels_BRV, trials.subject, batch.present_BR)
            truth = latents_of(parts, batch.image_B)
            error += (encoder.standardised(predicted) - truth).square().sum().item()
            total += truth.square().sum().item()
    encoder.train()
    return 1 - error / total


class LowLevelTask(TrainingTask):
    """Training of the low-level path, an epoch being a pass over the trials."""

    title = "training low_level"
    monitor = "validation/explained"

    def __init__(
        self,
        config: Config,
        parts: LowLevelParts,
        run: Run,
        accelerator: Accelerator,
        workers: Workers,
    ) -> None:
        wanted = config.training
        self.epochs, self.accumulation = (
            config.low_level.num_epochs,
            wanted.gradient_accumulation_steps,
        )
        self.max_norm = wanted.max_grad_norm
        self.advice = (
            f"Lower training.max_lr (now {wanted.max_lr:g}), compute in float32"
            " (--mixed_precision no), or look at the responses with `braingen doctor`."
        )
        self.config, self.data, self.run, self.workers = config, parts, run, workers
        optimizer = torch.optim.AdamW(
            weight_decay_groups(parts.encoder, wanted.weight_decay), lr=wanted.max_lr, fused=True
        )
        updates = -(-parts.batches.steps // self.accumulation)
        schedule = one_cycle(optimizer, wanted.max_lr, self.epochs, updates)
        super().__init__(LowLevelPass(parts.encoder), optimizer, schedule, accelerator)

    def passes(self, epoch: int) -> int:
        """As many as there are batches."""
        return self.data.batches.steps

    def begin(self, epoch: int) -> None:
        """Dropout of an epoch depends on its number alone, and on the process."""
        rank = self.accelerator.process_index
        torch.manual_seed(hash_seed(self.config.run.seed, f"low-level dropout of {rank}", epoch))

    def batches(self, epoch: int, first: int) -> Iterator[tuple[VoxelBatch, ...]]:
        """One record per subject each."""
        return iter(self.data.batches.epoch(epoch, first))

    def losses(self, batch: tuple[VoxelBatch, ...], epoch: int, number: int) -> StepLosses:
        """Squared error of the standardised latents."""
        truth = torch.cat([latents_of(self.data, part.image_B) for part in batch])
        return StepLosses.of({"mse": mse_loss(self.model(batch).float(), truth)})

    def clipped(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.model.parameters()

    def parts(self) -> Mapping[str, Stateful]:
        """Model, optimizer and schedule."""
        if self.accelerator.distributed_type in SHARDED:
            raise UserError(
                "The low-level path is small and is not sharded: train it without FSDP and"
                " DeepSpeed."
            )
        return {
            "encoder": self.data.encoder,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def is_validated(self, epochs: int) -> bool:
        """Every ``training.validate_every`` epochs."""
        return epochs % self.config.training.validate_every == 0

    def validate(self) -> dict[str, float]:
        """Share of the variance that is explained."""
        return {self.monitor: round(explained(self.data), 6)}

    def save_best(self) -> None:
        """Write the weights."""
        if self.workers.main:
            with self.run.replace(LATENT_ENCODER) as temporary:
                self.data.encoder.save_pretrained(temporary)

    def labels(self, epochs: int) -> dict[str, int]:
        """The epoch."""
        return {"epoch": epochs}

    def standing(self, best: float) -> str:
        """The share explained."""
        return f", held-out variance explained {best:.3f}"

    def finish(self, best: float) -> dict[str, Any]:
        """The share explained."""
        return {"best_validation_explained": best}


class LowLevelPass(nn.Module):
    """The model with one call per step, over the batches of all subjects, as DDP needs it."""

    def __init__(self, encoder: LatentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: tuple[VoxelBatch, ...]) -> Tensor:
        """Standardised latents of all subjects' trials."""
        device = self.encoder.device
        return torch.cat([self.encoder(part.voxels_BV.to(device), part.subject) for part in batch])


def train_low_level(config: Config) -> Path:
    """Train; continues where an interrupted run stopped. Under ``accelerate launch`` in several
    processes.

    Returns
    -------
    Path
        The run folder, with the best checkpoint in ``latent_encoder/``.
    """
    refuse_test_set(config, "train")
    check_backbone(config)
    refuse_other_ways(config)
    settings = config.model_dump(mode="json", include={"data", "backbone", "low_level", "training"})
    settings["seed"] = config.run.seed
    folder = low_level_folder(config)
    workers = Workers(config)
    with shared_run(workers, folder, settings, {"run": config.run.seed}) as run:
        if not complete(workers, run, lambda: [folder / LATENT_ENCODER]):
            accelerator = accelerator_of(config, folder, config.training.batch_size)
            place = accelerator.process_index, accelerator.num_processes
            parts = workers.main_first(lambda: setup(config, *place))
            task = LowLevelTask(config, parts, run, accelerator, workers)
            run_task(task, config, run, workers, SAVE_SECONDS)
    return folder
