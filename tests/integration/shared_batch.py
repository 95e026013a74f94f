"""A training step whose batch is shared by two processes: what each of them runs, and the same
batch in one.

Processes leave without ``Accelerator.end_training``, as stages do: once it has parted them, the
wrapped model is the last to hold their group, and letting go of it may wait for a thread of gloo
that waits for Python's lock.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file
import torch
from torch import Tensor

from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.encoders import losses
from braingen.encoders.prior.diffusion_prior import PriorDraws
from braingen.training import diffusion as finetune
from braingen.training import diffusion_data, diffusion_step
from braingen.training.encoder import Whole, step
from braingen.training.encoder_setup import EncoderParts, setup
from braingen.types import VoxelBatch


def generator(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + rank)


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def step_in_two(words: list[str], folder: str, progress: float) -> int:
    """One of the two processes."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    parts = setup(load_config(*parse_overrides(words)), "image", rank, 2)
    model = accelerator.prepare(Whole(parts.embedding_decoder)).train()
    result = model(step, parts.batches.batch(0, 0), parts, progress, generator(rank))
    accelerator.backward(result.total)
    save_file(gradients_of(parts.embedding_decoder), Path(folder) / f"{rank}.safetensors")
    accelerator.wait_for_everyone()
    return 0


def step_in_one(words: list[str], progress: float, monkeypatch) -> dict[str, Tensor]:
    """The same in this process: the two batches as one, with the draws that the two make."""
    config = load_config(*parse_overrides(words))
    halves = [setup(config, "image", rank, 2) for rank in range(2)]
    parts: EncoderParts = halves[0]
    batch = tuple(
        VoxelBatch(
            torch.cat([one.voxels_BV, other.voxels_BV]),
            torch.cat([one.image_B, other.image_B]),
            one.subject,
        )
        for one, other in zip(*(half.batches.batch(0, 0) for half in halves))
    )
    generators, draw_mix, prior = (
        [generator(rank) for rank in range(2)],
        losses.draw_mix,
        parts.embedding_decoder.prior,
    )
    draw = prior.draw

    def mixed(count: int, _: torch.Generator) -> losses.MixDraws:
        return losses.join_mixes([draw_mix(count // 2, each) for each in generators])

    def drawn(count: int, _: torch.Generator) -> PriorDraws:
        # a process has its share of every subject in turn; here every subject has the shares of
        # both in turn
        per_process = [draw(count // 2, each) for each in generators]
        subjects = len(batch)
        return PriorDraws(
            *(
                torch.stack([x.unflatten(0, (subjects, -1)) for x in pair], 1).flatten(0, 2)
                for pair in zip(*per_process)
            )
        )

    monkeypatch.setattr(losses, "draw_mix", mixed)
    monkeypatch.setattr(prior, "draw", drawn)
    step(parts.embedding_decoder.train(), batch, parts, progress, generators[0]).total.backward()
    return gradients_of(parts.embedding_decoder)


def tune_in_two(words: list[str], folder: str) -> int:
    """One of two processes that take a step of fine-tuning: its gradients, after they were
    averaged.
    """
    accelerator = Accelerator(cpu=True)
    config, rank = load_config(*parse_overrides(words)), accelerator.process_index
    parts = finetune.setup(config)
    model = accelerator.prepare(parts.model).train()
    rows = diffusion_data.StepRows(
        len(parts.data.train.rows), config.finetune.train_batch_size, 0, rank, 2
    ).of(0)
    accelerator.backward(diffusion_step.step(model, rows, parts, config, generator(rank)).total)
    save_file(gradients_of(parts.model), Path(folder) / f"{rank}.safetensors")
    accelerator.wait_for_everyone()
    return 0


def tune_in_one(words: list[str]) -> dict[str, Tensor]:
    """The same in this process: one process's rows and draws after the other's, and the mean of
    both.
    """
    config = load_config(*parse_overrides(words))
    parts = finetune.setup(config)
    parts.model.train()
    for rank in range(2):
        rows = diffusion_data.StepRows(
            len(parts.data.train.rows), config.finetune.train_batch_size, 0, rank, 2
        ).of(0)
        (
            diffusion_step.step(parts.model, rows, parts, config, generator(rank)).total / 2
        ).backward()
    return gradients_of(parts.model)
