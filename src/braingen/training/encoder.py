"""Stage 1: train an encoder to predict CLIP embeddings, of images or of their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import logging
import math
from pathlib import Path
import shutil
from typing import Any, NamedTuple, cast

from accelerate import Accelerator
import numpy as np
from safetensors.torch import save
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from braingen.config import Config
from braingen.config.names import fields_of
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.sealed_runs import refuse_test_set
from braingen.data.trials import group_repeats
from braingen.encoders import losses
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.gather import gather_rows
from braingen.encoders.linear_readout import (
    OutputWeights,
    all_weights,
    best_weights,
    choose_weights,
    grid_key,
)
from braingen.encoders.parameters import trained_share, weight_decay_groups
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.device import accelerator_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.files import replaced_file
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.runtime.run_folder import Run
from braingen.runtime.seeds import hash_seed
from braingen.training.calibration import calibrate
from braingen.training.checkpoints import SHARDED, Stateful
from braingen.training.encoder_setup import (
    SPACE,
    EncoderParts,
    TrialFold,
    earlier_folder,
    setup,
    splits_of,
)
from braingen.training.schedules import one_cycle
from braingen.training.steps import StepLosses
from braingen.training.trainer import TrainingTask, run_task
from braingen.types import VoxelBatch

logger = logging.getLogger(__name__)

FEW_IMAGES, FOLDS = 30, 5
"""Held-out images below which the epoch is better chosen by cross-validation, and its folds."""
SAVE_SECONDS = 5.0
"""States are saved after an epoch when this much time has passed since the last."""
MIXCO_TEMPERATURE = 0.006
"""Times temp_coeff (published implementation)."""
SOFT_CLIP_TEMPERATURES = (0.004, 0.0075)
"""From and to, times temp_coeff (published implementation)."""


class Whole(torch.nn.Module):
    """An embedding decoder seen from outside by a single call, whatever is done with it.

    Wrappers for several processes look at one forward pass per step; encoder (once per subject) and
    prior would be several.
    """

    def __init__(self, embedding_decoder: EmbeddingDecoder) -> None:
        super().__init__()
        self.embedding_decoder = embedding_decoder

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something with the embedding decoder."""
        return work(self.embedding_decoder, *arguments)


def step(
    embedding_decoder: EmbeddingDecoder,
    batch: tuple[VoxelBatch, ...],
    parts: EncoderParts,
    progress: float,
    generator: torch.Generator,
) -> StepLosses:
    """One step's losses: contrastive (MixCo, then SoftCLIP), squared error, prior, cosine, load
    balancing.

    With several processes the contrastive losses are those of the global batch, in every process;
    the others are means over the process's own trials, whose mean over processes, which DDP takes,
    is that of the global batch.

    While trials are mixed, so are the targets of the prior and of the squared error; the
    contrastive loss takes unmixed targets with mixed labels.

    Parameters
    ----------
    batch : tuple[VoxelBatch, ...]
        One record per subject.
    progress : float
        Share of the training that is done, 0 to 1.
    generator : torch.Generator
        Of MixCo, the prior's noise and what it drops.
    """
    weights = parts.loss
    mixing = progress < weights.mixup_pct
    device = parts.targets_ND.device
    encoded, truths, mixes = [], [], []
    for part in batch:
        voxels_BV = part.voxels_BV.to(device)
        if mixing:
            mixes.append(losses.draw_mix(len(voxels_BV), generator))
            voxels_BV = losses.mix(voxels_BV, mixes[-1])
        encoded.append(embedding_decoder(voxels_BV, part.subject))
        truths.append(parts.targets_ND[parts.row_of_image[part.image_B.numpy()]])
    backbone_BTD, clip_BTD = (
        torch.cat([getattr(each, name) for each in encoded])
        for name in ("backbone_BTD", "clip_BTD")
    )
    truth_BTD = torch.cat(truths)
    mixed = losses.join_mixes(mixes) if mixing else None
    aim_BTD = losses.mix(truth_BTD, mixed) if mixed is not None else truth_BTD

    def contrastive(output_BTD: Tensor) -> Tensor:
        rows, wanted = losses.unit_rows(output_BTD), losses.unit_rows(truth_BTD)
        if mixed is not None:
            return losses.mixco_nce(
                rows, wanted, MIXCO_TEMPERATURE * weights.temp_coeff, mixed, gather=gather_rows
            )
        first, last = (temperature * weights.temp_coeff for temperature in SOFT_CLIP_TEMPERATURES)
        done = (progress - weights.mixup_pct) / max(1e-9, 1 - weights.mixup_pct)
        return losses.soft_clip(
            rows,
            wanted,
            last + (first - last) * (1 + math.cos(math.pi * done)) / 2,
            gather=gather_rows,
        )

    terms = {"clip": weights.clip_scale * contrastive(clip_BTD)}
    terms["balance"] = (
        weights.balance_scale * torch.stack([each.balance_loss for each in encoded]).mean()
    )
    if weights.mse_scale:
        terms["mse"] = weights.mse_scale * mse_loss(backbone_BTD.float(), aim_BTD)
    if weights.deep_supervision_weight:
        levels_BLTD = torch.cat([each.level_backbone_BLTD for each in encoded]).float()
        terms["levels"] = weights.deep_supervision_weight * mse_loss(
            levels_BLTD, aim_BTD[:, None].expand_as(levels_BLTD)
        )
    if embedding_decoder.prior is not None:
        predicted = embedding_decoder.prior(backbone_BTD, aim_BTD, generator)
        terms["prior"] = weights.prior_scale * predicted.loss
        flat = predicted.prediction_BTD.flatten(1).float()
        terms["cosine"] = weights.cos_scale * (
            1 - cosine_similarity(flat, aim_BTD.flatten(1)).mean()
        )
        if weights.prior_clip_scale:
            terms["prior_clip"] = weights.prior_clip_scale * contrastive(predicted.prediction_BTD)
    return StepLosses.of(terms)


@torch.no_grad()
def validate(embedding_decoder: EmbeddingDecoder, parts: EncoderParts) -> dict[str, float]:
    """Look at the held-out training images, their presentations averaged.

    With ridge regression beside encoder and prior, how much of them is used is chosen here, and
    set.

    Returns
    -------
    cosine
        Mean cosine of the embedding (after the prior, by one call) and the target, around the
        training mean.
    retrieval
        Share of images whose own target is the nearest to the projected output, among all held-out
        images.
    """
    embedding_decoder.eval()
    linear = embedding_decoder.linear
    if linear is not None:
        linear.choose(OutputWeights())
    ridge, backbone, clip, truth = [], [], [], []
    for trials, betas in parts.held_out:
        for batch in RepeatBatches(group_repeats(trials), betas, trials.subject, 64):
            count, repeats = batch.present_BR.shape
            flat_BV = batch.voxels_BRV.flatten(0, 1).to(parts.targets_ND.device)
            each = embedding_decoder(flat_BV, trials.subject)
            present = batch.present_BR.to(each.clip_BTD.device)
            backbone.append(
                average_repeats(each.backbone_BTD.unflatten(0, (count, repeats)), present)
            )
            clip.append(average_repeats(each.clip_BTD.unflatten(0, (count, repeats)), present))
            truth.append(parts.targets_ND[parts.row_of_image[batch.image_B.numpy()]])
            if linear is not None:
                with linear.without_held_out():
                    single = linear(flat_BV, trials.subject)
                ridge.append(average_repeats(single.unflatten(0, (count, repeats)), present))
    truth_NTD, backbone_NTD, clip_NTD = torch.cat(truth), torch.cat(backbone), torch.cat(clip)
    truth_NF = truth_NTD.flatten(1)
    grid: dict[str, float] = {}
    prior = None if embedding_decoder.prior is None else embedding_decoder.prior.predict
    if linear is not None:
        ridge_NTD = torch.cat(ridge)
        weights, grid = choose_weights(ridge_NTD, backbone_NTD, truth_NTD, prior)
        if parts.weights is not None:
            weights = parts.weights
        linear.choose(weights)
        cosine = grid[grid_key(weights)]
        grid |= {f"validation/{name}_weight": value for name, value in weights._asdict().items()}
        clip_NTD = ridge_NTD.lerp(clip_NTD, weights.encoder)
    else:
        embedding = backbone_NTD if prior is None else prior(backbone_NTD)
        cosine = cosine_similarity(embedding.flatten(1), truth_NF).mean().item()
    nearest = (losses.unit_rows(clip_NTD) @ normalize(truth_NF, dim=1).T).argmax(1)
    found = (nearest == torch.arange(len(truth_NF), device=nearest.device)).float().mean()
    embedding_decoder.train()
    return {
        "validation/cosine": round(cosine, 6),
        "validation/retrieval": round(found.item(), 6),
        **grid,
    }


def optimizer_of(embedding_decoder: EmbeddingDecoder, config: Config) -> torch.optim.AdamW:
    """AdamW over all but the idle parameters; weight decay on linear maps only (published: on norm
    gains too, by a misspelt name).
    """
    return torch.optim.AdamW(
        weight_decay_groups(embedding_decoder, config.training.weight_decay),
        lr=config.training.max_lr,
        fused=True,
    )


def schedule_of(
    optimizer: torch.optim.Optimizer, config: Config, updates_per_epoch: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """:func:`one_cycle` with the settings of `training`."""
    return one_cycle(
        optimizer, config.training.max_lr, config.training.num_epochs, updates_per_epoch
    )


def train(config: Config, modality: str) -> Path:
    """Train the image or the text encoder; continues where an interrupted run stopped. Under
    ``accelerate launch`` in several processes.

    Parameters
    ----------
    modality : str
        'image' or 'text'.

    Returns
    -------
    Path
        The run folder, with the best checkpoint in ``embedding_decoder/``.
    """
    refuse_test_set(config, "train")
    check_backbone(config)
    settings = config.model_dump(
        mode="json",
        include={"data", "backbone", "encoder", "prior", f"loss_{modality}", "training"},
    )
    if config.data.synthetic_share > 0:
        settings |= config.model_dump(mode="json", include={"encoding"})
    settings["seed"] = config.run.seed
    if (
        config.training.init_from is not None
    ):  # what it starts from must not change under a run that is continued
        settings["started_from"] = fingerprint_of_files(
            earlier_folder(config, modality) / EMBEDDING_DECODER
        )
    folder = run_folder(config, modality)
    workers = Workers(config)
    # older runs list the settings of all encoders, whichever was chosen
    others = [
        f"encoder.{name}"
        for name in fields_of("encoder")
        if name not in type(config.encoder).model_fields
    ]
    with shared_run(workers, folder, settings, {"run": config.run.seed}, may_change=others) as run:
        if not complete(workers, run, lambda: [folder / EMBEDDING_DECODER]):
            accelerator = accelerator_of(config, folder, config.training.batch_size)
            chosen = (
                epoch_by_folds(config, modality, folder, settings, workers)
                if by_folds(config)
                else None
            )
            fit(
                config,
                parts_of(config, modality, accelerator, workers),
                run,
                accelerator,
                workers,
                chosen,
            )
    return folder


def parts_of(
    config: Config,
    modality: str,
    accelerator: Accelerator,
    workers: Workers,
    fold: TrialFold | None = None,
) -> EncoderParts:
    """What a training works with, set up by the main process first, which fills the caches."""
    place = accelerator.process_index, accelerator.num_processes
    return workers.main_first(lambda: setup(config, modality, *place, fold))


def by_folds(config: Config) -> bool:
    """Whether the epoch is chosen by cross-validation; too few held-out images without it are
    warned of.
    """
    if config.training.checkpoint == "folds":
        return True
    held = [trials.table["image"].to_numpy() for _, trials in splits_of(config)]
    count = len(np.unique(np.concatenate(held)))
    if config.training.checkpoint == "auto":
        return count < FEW_IMAGES
    if count < FEW_IMAGES:
        logger.warning(
            "The epoch is chosen on %d held-out images, which is little to choose by;"
            " training.checkpoint=folds chooses it by cross-validation over the training images.",
            count,
        )
    return False


class FoldChoice(NamedTuple):
    """What a cross-validation chose."""

    epoch: int
    weights: OutputWeights | None
    """Of encoder and prior; None without a linear read-out."""


def epoch_by_folds(
    config: Config, modality: str, folder: Path, settings: dict[str, Any], workers: Workers
) -> FoldChoice:
    """The epoch with the best cosine of left-out training images, each image counted once.

    With a linear read-out, how much of encoder and prior is used is chosen with the epoch.

    Every fold is trained as the whole will be, in a run folder of its own below the run's. Its
    metrics are kept, its weights are not.
    """
    cosines: dict[tuple[int, str], list[float]] = {}
    counts: list[int] = []
    for number in range(FOLDS):
        fold, own = TrialFold(number, FOLDS), folder / "folds" / f"fold-{number + 1}"
        judged = [trials.table["image"].to_numpy() for _, trials in splits_of(config, fold)]
        counts.append(sum(len(np.unique(each)) for each in judged))
        mine = {**settings, "fold": f"{number + 1} of {FOLDS}"}
        with shared_run(workers, own, mine, {"run": config.run.seed}) as run:
            if not workers.broadcast(
                run.finished
            ):  # its weights are removed, its metrics are what it is for
                accelerator = accelerator_of(config, own, config.training.batch_size)
                fit(
                    config,
                    parts_of(config, modality, accelerator, workers, fold),
                    run,
                    accelerator,
                    workers,
                )
            for record in run.metrics:
                for name, value in record.items():
                    if name.startswith("validation/cosine"):
                        cosines.setdefault((record["epoch"], name), []).append(value)
        if workers.main:
            shutil.rmtree(own / EMBEDDING_DECODER, ignore_errors=True)
    return choose_by_folds(cosines, counts)


def choose_by_folds(
    cosines: Mapping[tuple[int, str], Sequence[float]], images: Sequence[int]
) -> FoldChoice:
    """The best epoch, with weights of encoder and prior where they were tried.

    Parameters
    ----------
    cosines : Mapping[tuple[int, str], Sequence[float]]
        (epoch, name of the metric) -> its value in every fold.
    images : Sequence[int]
        Left-out images of every fold.
    """
    share = np.array(images) / sum(images) * len(images)
    epochs = sorted({epoch for epoch, _ in cosines})
    tried = [w for w in all_weights() if (epochs[0], grid_key(w)) in cosines]
    if not tried:
        mean = {epoch: share @ cosines[epoch, "validation/cosine"] for epoch in epochs}
        return FoldChoice(max(epochs, key=lambda epoch: (mean[epoch], -epoch)), None)
    folds = {epoch: {w: share * cosines[epoch, grid_key(w)] for w in tried} for epoch in epochs}
    best = max(epochs, key=lambda e: (max(folds[e][w].mean() for w in tried), -e))
    return FoldChoice(best, best_weights(folds[best]))


class EncoderTask(TrainingTask):
    """Training of an image or text encoder, an epoch being a pass over the trials.

    Parameters
    ----------
    chosen : int | None
        The epoch whose weights are kept; None for the one with the best held-out cosine.
    """

    monitor = "validation/cosine"

    def __init__(
        self,
        config: Config,
        parts: EncoderParts,
        run: Run,
        accelerator: Accelerator,
        workers: Workers,
        chosen: int | None = None,
    ) -> None:
        wanted = config.training
        self.title = f"training {run.folder.name}"
        self.epochs, self.accumulation = wanted.num_epochs, wanted.gradient_accumulation_steps
        self.max_norm = wanted.max_grad_norm
        self.advice = (
            f"Lower training.max_lr (now {wanted.max_lr:g}) or training.max_grad_norm"
            f" ({wanted.max_grad_norm:g}), compute in float32 (--mixed_precision no), or look"
            " at the responses with `braingen doctor`."
        )
        self.config, self.run, self.workers, self.chosen = config, run, workers, chosen
        self.share = trained_share(parts.embedding_decoder)
        optimizer = optimizer_of(parts.embedding_decoder, config)
        schedule = schedule_of(optimizer, config, -(-parts.batches.steps // self.accumulation))
        super().__init__(Whole(parts.embedding_decoder), optimizer, schedule, accelerator)
        self.data = parts._replace(targets_ND=parts.targets_ND.to(accelerator.device))

    def passes(self, epoch: int) -> int:
        """As many as there are batches."""
        return self.data.batches.steps

    def begin(self, epoch: int) -> None:
        """Dropout and mixing of an epoch depend on its number alone, and on the process."""
        rank, seed = self.accelerator.process_index, self.config.run.seed
        process = f" of process {rank}" if rank else ""
        torch.manual_seed(hash_seed(seed, f"dropout{process}", epoch))
        self.generator.manual_seed(hash_seed(seed, f"mixing{process}", epoch))

    def batches(self, epoch: int, first: int) -> Iterator[tuple[VoxelBatch, ...]]:
        """One record per subject each."""
        return iter(self.data.batches.epoch(epoch, first))

    def losses(self, batch: tuple[VoxelBatch, ...], epoch: int, number: int) -> StepLosses:
        """Of :func:`step`."""
        steps = self.passes(epoch)
        done = (epoch * steps + number) / (self.epochs * steps)
        return cast(StepLosses, self.model(step, batch, self.data, done, self.generator))

    def clipped(self) -> Iterator[torch.nn.Parameter]:
        """All parameters."""
        return self.model.parameters()

    def parts(self) -> Mapping[str, Stateful]:
        """Embedding decoder, optimizer and schedule."""
        if self.sharded:
            return {"schedule": self.schedule}
        return {
            "embedding_decoder": self.data.embedding_decoder,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def is_validated(self, epochs: int) -> bool:
        """Every ``training.validate_every`` epochs."""
        return epochs % self.config.training.validate_every == 0

    def validate(self) -> dict[str, float]:
        """Of :func:`validate`."""
        if self.sharded:
            return cast(dict[str, float], self.model(validate, self.data))
        return validate(self.data.embedding_decoder, self.data)

    def is_saved(self, epochs: int, better: bool) -> bool:
        """The best epoch, or the one that folds chose."""
        return better if self.chosen is None else epochs == self.chosen

    def save_best(self) -> None:
        """Of :func:`save_best`, calibrated."""
        if not self.sharded:
            calibrate(self.data.embedding_decoder, self.data)
        save_best(self.run, self.model, self.accelerator, self.workers)

    def labels(self, epochs: int) -> dict[str, int]:
        """The epoch."""
        return {"epoch": epochs}

    def standing(self, best: float) -> str:
        """The cosine."""
        return f", held-out cosine {best:.3f}"

    def finish(self, best: float) -> dict[str, Any]:
        """Sizes, and how the epoch was chosen."""
        by = {} if self.chosen is None else {"epoch_chosen_by_folds": self.chosen}
        counts = {"trained_parameters": self.share.trained, "parameters": self.share.total}
        return {"best_validation_cosine": best, **counts, **by}


def fit(
    config: Config,
    parts: EncoderParts,
    run: Run,
    accelerator: Accelerator,
    workers: Workers,
    chosen: FoldChoice | None = None,
) -> None:
    """Train; parameters as for :class:`EncoderTask`, with the choice of a cross-validation."""
    if chosen is not None:
        parts = parts._replace(weights=chosen.weights)
    epoch = None if chosen is None else chosen.epoch
    if parts.space_KP is not None and workers.main:
        with replaced_file(run.folder / SPACE) as handle:
            handle.write(save({"space_KP": torch.from_numpy(parts.space_KP)}))
    task = EncoderTask(config, parts, run, accelerator, workers, epoch)
    run_task(task, config, run, workers, SAVE_SECONDS)


def save_best(run: Run, model: torch.nn.Module, accelerator: Accelerator, workers: Workers) -> None:
    """Make the present embedding decoder the best checkpoint."""
    embedding_decoder = accelerator.unwrap_model(model).embedding_decoder
    if (
        accelerator.distributed_type in SHARDED
    ):  # no process holds the whole embedding decoder: put it together in the main one
        weights = accelerator.get_state_dict(model)
        if workers.main:
            embedding_decoder = EmbeddingDecoder.from_config(embedding_decoder.config)
            embedding_decoder.load_state_dict(
                {
                    name.removeprefix("embedding_decoder."): weight
                    for name, weight in weights.items()
                }
            )
    if workers.main:
        with run.replace(EMBEDDING_DECODER) as temporary:
            embedding_decoder.save_pretrained(temporary)
