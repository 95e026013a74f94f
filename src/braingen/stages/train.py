"""Stage 1: learn to read CLIP embeddings, of pictures or of their captions, out of voxels."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import math
from pathlib import Path
import time
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed
import numpy as np
from rich.progress import Progress
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from braingen.brain import losses
from braingen.brain.moe import encoder_arguments
from braingen.brain.parameters import weight_decay_groups
from braingen.brain.reader import BrainReader, TargetScale
from braingen.config import Config, LossConfig
from braingen.data.batches import RepeatBatches, TrainBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.nsd import Layout
from braingen.data.trials import group_repeats, hold_out_images, train_trials
from braingen.errors import UserError
from braingen.records import Trials, VoxelBatch
from braingen.runs import Run
from braingen.stages.machine import device_of, precision_of
from braingen.stages.targets import Targets

READER = "reader"
"""Folder of the best checkpoint in a training run."""
SAVE_SECONDS = 5.0
"""A run that is killed loses at most one epoch more than this."""
MIXCO_TEMPERATURE = 0.006
"""Times temp_coeff (published implementation)."""
SOFT_CLIP_TEMPERATURES = (0.004, 0.0075)
"""From and to, times temp_coeff (published implementation)."""
UNTRAINED = {"image": ("low_level", "interm_out"), "text": ("train_pool",)}
"""Parts of the dense encoder that are there for published checkpoints and that this stage has no target for."""


class Parts(NamedTuple):
    """Everything a training run needs."""

    reader: BrainReader
    batches: TrainBatches
    held_out: list[tuple[Trials, Betas]]
    """Presentations of held-out training images, per subject."""
    targets_ND: Tensor
    """Standardised embeddings, one row per image of ``row_of_image``: N x T x D."""
    row_of_image: np.ndarray
    """Image id -> row of the targets, -1 for images that are not used."""
    loss: LossConfig


class StepLosses(NamedTuple):
    """Terms of the objective, weighted, and their sum."""

    total: Tensor
    terms: dict[str, Tensor]


def run_folder(config: Config, modality: str) -> Path:
    """Where the image or text run of a configuration lies: run.image and run.text, or beside each other in the run's folder."""
    return (config.run.image if modality == "image" else config.run.text) or config.run.folder / modality


def setup(config: Config, modality: str, rank: int = 0, world: int = 1) -> Parts:
    """Check the data, compute the targets, build the reader."""
    refuse_untrained_parts(config, modality)
    layout = Layout.of(config.data.root)
    check_before_training(layout, config.data.subjects, config.data.num_sessions)
    subjects, held_out = [], []
    for subject in config.data.subjects:
        kept, held = hold_out_images(train_trials(layout, subject, config.data.num_sessions), config.data.holdout_share, config.run.seed)
        betas = Betas.of(layout, subject)
        subjects.append((kept, betas))
        held_out.append((held, betas))
    targets = Targets(config)
    images = np.unique(np.concatenate([part.table["image"].to_numpy() for pairs in (subjects, held_out) for part, _ in pairs]))
    embeddings_NTD = targets.of(modality, images)
    row_of_image = np.full(len(targets.stimuli), -1, dtype=np.int64)
    row_of_image[images] = np.arange(len(images))
    trained_on = row_of_image[np.unique(np.concatenate([trials.table["image"].to_numpy() for trials, _ in subjects]))]
    set_seed(config.run.seed)
    dense = config.encoder.model == "BrainEncoder"
    voxels = {trials.subject: betas.voxels for trials, betas in subjects}
    reader = build_reader(config, voxels, embeddings_NTD.shape[1:], targets.text_widths(modality) if dense else ())
    mean_TD = embeddings_NTD[trained_on].mean(0)
    reader.set_scale(TargetScale(mean_TD, float((embeddings_NTD[trained_on] - mean_TD).std())))
    return Parts(
        reader=reader,
        batches=TrainBatches(subjects, config.optim.batch_size, config.run.seed, rank, world),
        held_out=held_out,
        targets_ND=reader.standardised(embeddings_NTD),
        row_of_image=row_of_image,
        loss=config.loss_image if modality == "image" else config.loss_text,
    )


def refuse_untrained_parts(config: Config, modality: str) -> None:
    """Parts that exist for published checkpoints and for which this stage has no target would stay at their random initial values."""
    if config.encoder.model == "BrainEncoder":
        asked = [name for name in UNTRAINED[modality] if getattr(config.encoder, name)]
        if asked:
            raise UserError(
                f"encoder.{asked[0]}=true has no target in stage 1, which would leave it random: train without it (--no-{asked[0]});"
                " `braingen import` loads it from a published checkpoint."
            )


def build_reader(
    config: Config, voxels: dict[int, int], target_shape: torch.Size | tuple[int, ...], text_widths: Sequence[int] = ()
) -> BrainReader:
    """A reader with random weights, of the configured architecture, for subjects with so many voxels each.

    Parameters
    ----------
    voxels : subject number -> voxel count
    target_shape : T and D of what is decoded
    text_widths : for captions, D of the text encoders that are decoded, in order; empty for images
    """
    tokens, width = target_shape
    fields = config.encoder.model_dump(exclude={"model"})
    if config.encoder.model == "BrainEncoder" and text_widths:
        fields |= {"text_output": config.backbone.text_output, "low_level": False, "interm_out": False}
        # the one that is not decoded may be of any width
        fields["text_emb_dims"] = list(text_widths) if len(text_widths) == 2 else [text_widths[0]] * 2
    elif config.encoder.model == "BrainEncoder":
        fields |= {"fusion": "none", "train_pool": False}
    encoder = {"clip_seq_dim": tokens, "clip_emb_dim": width, **encoder_arguments(config.encoder.model, fields)}
    prior = config.prior.model_dump(exclude={"use_prior", "use", "sample_steps", "guidance_scale"})
    return BrainReader(
        encoder_class=config.encoder.model,
        encoder_config={"subjects": {str(subject): count for subject, count in voxels.items()}, **encoder},
        prior_config={"dim": width, "num_tokens": tokens, **prior} if config.prior.use_prior else None,
        prior_use=config.prior.use,
        sample_steps=config.prior.sample_steps,
        guidance_scale=config.prior.guidance_scale,
    )


def step(reader: torch.nn.Module, batch: tuple[VoxelBatch, ...], parts: Parts, progress: float, generator: torch.Generator) -> StepLosses:
    """One step's losses (METHOD section 2): contrastive (MixCo, then SoftCLIP), squared error, prior, cosine, load balancing.

    While trials are mixed, so are the targets of the prior and of the squared error; the contrastive loss takes unmixed targets with
    mixed labels.

    Parameters
    ----------
    reader : the reader, wrapped for several processes or not
    batch : one record per subject
    progress : share of the training that is done, 0 to 1
    generator : of MixCo, the prior's noise and what it drops
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
        encoded.append(reader(voxels_BV, part.subject))
        truths.append(parts.targets_ND[parts.row_of_image[part.image_B.numpy()]])
    backbone_BTD, clip_BTD = (torch.cat([getattr(each, name) for each in encoded]) for name in ("backbone_BTD", "clip_BTD"))
    truth_BTD = torch.cat(truths)
    mixed = losses.join_mixes(mixes) if mixing else None
    aim_BTD = losses.mix(truth_BTD, mixed) if mixed is not None else truth_BTD

    def contrastive(output_BTD: Tensor) -> Tensor:
        rows, wanted = losses.unit_rows(output_BTD), losses.unit_rows(truth_BTD)
        if mixed is not None:
            return losses.mixco_nce(rows, wanted, MIXCO_TEMPERATURE * weights.temp_coeff, mixed)
        first, last = (temperature * weights.temp_coeff for temperature in SOFT_CLIP_TEMPERATURES)
        done = (progress - weights.mixup_pct) / max(1e-9, 1 - weights.mixup_pct)
        return losses.soft_clip(rows, wanted, last + (first - last) * (1 + math.cos(math.pi * done)) / 2)

    terms = {"clip": weights.clip_scale * contrastive(clip_BTD)}
    terms["balance"] = weights.balance_scale * torch.stack([each.balance_loss for each in encoded]).mean()
    if weights.mse_scale:
        terms["mse"] = weights.mse_scale * mse_loss(backbone_BTD.float(), aim_BTD)
    if weights.level_scale:
        levels_BLTD = torch.cat([each.level_backbone_BLTD for each in encoded]).float()
        terms["levels"] = weights.level_scale * mse_loss(levels_BLTD, aim_BTD[:, None].expand_as(levels_BLTD))
    prior = parts.reader.prior
    if prior is not None:
        predicted = prior(backbone_BTD, aim_BTD, generator)
        terms["prior"] = weights.prior_scale * predicted.loss
        flat = predicted.prediction_BTD.flatten(1).float()
        terms["cosine"] = weights.cos_scale * (1 - cosine_similarity(flat, aim_BTD.flatten(1)).mean())
        if weights.prior_clip_scale:
            terms["prior_clip"] = weights.prior_clip_scale * contrastive(predicted.prediction_BTD)
    return StepLosses(torch.stack(list(terms.values())).sum(), terms)


@torch.no_grad()
def validate(parts: Parts) -> dict[str, float]:
    """Look at the held-out training images, their presentations averaged.

    Returns
    -------
    cosine : mean cosine of the embedding (after the prior, by one call) and the target, around the training mean
    retrieval : share of images whose own target is the nearest to the projected output, among all held-out images
    """
    reader = parts.reader
    reader.eval()
    backbone, clip, truth = [], [], []
    for trials, betas in parts.held_out:
        for batch in RepeatBatches(group_repeats(trials), betas, trials.subject, 64):
            count, repeats = batch.present_BR.shape
            each = reader(batch.voxels_BRV.flatten(0, 1).to(parts.targets_ND.device), trials.subject)
            present = batch.present_BR.to(each.clip_BTD.device)
            backbone.append(average_repeats(each.backbone_BTD.unflatten(0, (count, repeats)), present))
            clip.append(average_repeats(each.clip_BTD.unflatten(0, (count, repeats)), present))
            truth.append(parts.targets_ND[parts.row_of_image[batch.image_B.numpy()]])
    truth_NF = torch.cat(truth).flatten(1)
    embedding = torch.cat(backbone)
    if reader.prior is not None:
        embedding = reader.prior.predict(embedding)
    cosine = cosine_similarity(embedding.flatten(1), truth_NF).mean()
    nearest = (losses.unit_rows(torch.cat(clip)) @ normalize(truth_NF, dim=1).T).argmax(1)
    found = (nearest == torch.arange(len(truth_NF), device=nearest.device)).float().mean()
    reader.train()
    return {"validation/cosine": round(cosine.item(), 6), "validation/retrieval": round(found.item(), 6)}


def optimizer_of(reader: BrainReader, config: Config) -> torch.optim.AdamW:
    """AdamW over all but the idle parameters; weight decay on linear maps only (published: on norm gains too, by a misspelt name)."""
    return torch.optim.AdamW(weight_decay_groups(reader, config.optim.weight_decay), lr=config.optim.max_lr, fused=True)


def schedule_of(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The published one-cycle schedule: two epochs up, then down to a thousandth of the start."""
    epochs = config.optim.num_epochs
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.optim.max_lr, epochs * steps_per_epoch, pct_start=min(0.3, 2 / epochs), final_div_factor=1000
    )


def train(config: Config, modality: str) -> Path:
    """Train the image or the text encoder; continues where an interrupted run stopped.

    Parameters
    ----------
    modality : 'image' or 'text'

    Returns
    -------
    the run folder, with the best checkpoint in ``reader/``
    """
    settings = config.model_dump(mode="json", include={"data", "backbone", "encoder", "prior", f"loss_{modality}", "optim"})
    folder = run_folder(config, modality)
    accelerator = Accelerator(
        cpu=device_of(config).type == "cpu",
        mixed_precision=precision_of(config),
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=folder,
    )
    with Run.start(folder, {**settings, "seed": config.run.seed}, {"run": config.run.seed}) as run:
        if not run.finished:
            fit(config, setup(config, modality, accelerator.process_index, accelerator.num_processes), run, accelerator)
    return folder


def fit(config: Config, parts: Parts, run: Run, accelerator: Accelerator) -> None:
    """Run the epochs: batches, steps, validation, checkpoints, logs."""
    epochs, batches = config.optim.num_epochs, parts.batches
    optimizer = optimizer_of(parts.reader, config)
    schedule = schedule_of(optimizer, config, batches.steps)
    model, optimizer = accelerator.prepare(parts.reader, optimizer)
    parts = parts._replace(targets_ND=parts.targets_ND.to(accelerator.device))
    first, best = 0, -1.0
    state = run.load_state()
    if state is None:
        run.rewind_metrics(0)
    else:
        parts.reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, best = state["epoch"] + 1, state["best"]
        run.rewind_metrics(first * batches.steps)
    accelerator.init_trackers("braingen", config=None)
    saved = time.monotonic()
    with Progress() as progress:
        bar = progress.add_task(f"training {run.folder.name}", total=epochs, completed=first)
        for epoch in range(first, epochs):
            # dropout and mixing of an epoch depend on its number alone, so an interrupted run ends with the same bits
            torch.manual_seed(hash_seed(config.run.seed, "dropout", epoch))
            generator = torch.Generator().manual_seed(hash_seed(config.run.seed, "mixing", epoch))
            model.train()
            sums: dict[str, float] = {}
            for number, batch in enumerate(batches.epoch(epoch)):
                done = (epoch * batches.steps + number) / (epochs * batches.steps)
                with accelerator.autocast():
                    result = step(model, batch, parts, done, generator)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(result.total)
                accelerator.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
                optimizer.step()
                schedule.step()
                for name, term in result.terms.items():
                    sums[name] = sums.get(name, 0.0) + term.item()
            values: dict[str, float] = {f"train/{name}": round(total / batches.steps, 6) for name, total in sums.items()}
            last = epoch + 1 == epochs
            if last or (epoch + 1) % config.optim.validate_every == 0:
                values |= validate(parts)
                if values["validation/cosine"] > best:
                    best = values["validation/cosine"]
                    with run.replace(READER) as temporary:
                        accelerator.unwrap_model(model).save_pretrained(temporary)
            run.log((epoch + 1) * batches.steps, epoch=epoch + 1, **values)
            accelerator.log(values, step=epoch + 1)
            if time.monotonic() - saved > SAVE_SECONDS and not last:
                saved = time.monotonic()
                tree = {"reader": parts.reader.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                run.save_state({**tree, "epoch": epoch, "best": best})
            progress.update(bar, advance=1, description=f"training {run.folder.name}, held-out cosine {best:.3f}")
    accelerator.end_training()
    run.mark_finished({"best_validation_cosine": best})
    run.remove_state()


def hash_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and one number, unrelated to its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "little")
