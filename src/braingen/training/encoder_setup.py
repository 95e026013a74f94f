"""What stage 1 needs before its first step: checked data, targets, batches, and an embedding
decoder with fresh or earlier weights.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import logging
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import set_seed
import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.encoders import CaptionTarget
from braingen.config.training import LossConfig
from braingen.data.batches import TrainBatches
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.trials import fold_of_images, hold_out, hold_out_images, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder, TargetScale
from braingen.encoders.linear_readout import RANK, OutputWeights
from braingen.encoders.parameters import (
    adapting_parameters,
    subject_parameters,
    train_only,
    trainable_parameters,
)
from braingen.generation.compatibility import refuse_incompatible
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.runtime.run_folder import Run
from braingen.runtime.weights import read_tensors
from braingen.targets.tables import Targets
from braingen.training.linear_fit import fit_ridges, take_better
from braingen.training.synthetic import SyntheticTrials
from braingen.training.voxel_tuning import voxel_tuning
from braingen.types import Trials

logger = logging.getLogger(__name__)

SPACE = "voxel_space.safetensors"
"""File of a run's shared space of voxels' tuning."""
PARCEL_TRIALS = 1500
"""Trials from which parcels of voxels start: 94 MB at 15 724 voxels."""
MAY_DIFFER = {"subjects", "dropout", "voxel_dropout"}
"""Settings of an encoder that a run may change from the run it starts from: they are no shape of a
shared weight.
"""


class EncoderParts(NamedTuple):
    """Everything a training run needs."""

    embedding_decoder: EmbeddingDecoder
    batches: TrainBatches
    held_out: list[tuple[Trials, Betas]]
    """Presentations of held-out training images, per subject."""
    targets_ND: Tensor
    """Standardised embeddings, one row per image of ``row_of_image``: N x T x D."""
    row_of_image: np.ndarray
    """Image id -> row of the targets, -1 for images that are not used."""
    loss: LossConfig
    weights: OutputWeights | None = None
    """How much of encoder and prior is used, where a cross-validation chose it."""
    space_KP: np.ndarray | None = None
    """The shared space of voxels' tuning; None for encoders that do not start from it."""


class TrialFold(NamedTuple):
    """One part of a cross-validation over training images."""

    number: int
    """From 0."""
    of: int

    def split(self, trials: Sequence[Trials], seed: int) -> list[tuple[Trials, Trials]]:
        """Training trials of every subject -> those of the other folds, and those of this one."""
        images = np.unique(np.concatenate([each.table["image"].to_numpy() for each in trials]))
        left_out = images[fold_of_images(images, self.of, seed) == self.number]
        return [hold_out(each, left_out) for each in trials]


def splits_of(config: Config, fold: TrialFold | None = None) -> list[tuple[Trials, Trials]]:
    """Per subject, the trials that are trained on and those of the images that checkpoints are
    judged by.

    Images of ``data.holdout_share`` are never trained on, in a fold neither: fine-tuning measures
    on them how unseen images are decoded.
    """
    layout = Layout.of(config.data.root)
    trials = [
        train_trials(layout, subject, config.data.num_sessions) for subject in config.data.subjects
    ]
    found = [hold_out_images(each, config.data.holdout_share, config.run.seed) for each in trials]
    return found if fold is None else fold.split([kept for kept, _ in found], config.run.seed)


def setup(
    config: Config, modality: str, rank: int = 0, world: int = 1, fold: TrialFold | None = None
) -> EncoderParts:
    """Check the data, compute the targets, build the embedding decoder.

    Parameters
    ----------
    modality : str
        'image' or 'text'.
    rank, world : int, optional
        This process and the number of processes.
    fold : TrialFold | None, optional
        Of a cross-validation; None for the held-out images of ``data.holdout_share``.
    """
    refuse_untrained_parts(config, modality)
    refuse_incompatible(config, ("image",) if modality == "image" else ("text",), fetch=True)
    layout = Layout.of(config.data.root)
    check_before_training(
        layout, config.data.subjects, config.data.num_sessions, captions=modality == "text"
    )
    subjects, held_out = [], []
    targets = Targets(config)
    synthetic = (
        SyntheticTrials(config, targets, modality) if config.data.synthetic_share > 0 else None
    )
    measured_N = []
    for kept, held in splits_of(config, fold):
        betas = Betas.of(layout, kept.subject)
        measured_N.append(kept.table["image"].to_numpy())
        held_out.append((held, betas))
        if synthetic is not None:
            kept, betas = synthetic.added_to(kept, betas, held.table["image"].to_numpy())
        subjects.append((kept, betas))
    images = np.unique(
        np.concatenate(
            [part.table["image"].to_numpy() for pairs in (subjects, held_out) for part, _ in pairs]
        )
    )
    images = images[images < len(targets.stimuli)]
    embeddings_NTD = targets.of(modality, images)
    row_of_image = np.full(len(targets.stimuli), -1, dtype=np.int64)
    row_of_image[images] = np.arange(len(images))
    trained_on = row_of_image[np.unique(np.concatenate(measured_N))]
    if synthetic is not None:
        row_of_image, embeddings_NTD = synthetic.targets_table(row_of_image, embeddings_NTD)
    set_seed(config.run.seed)
    voxels = {trials.subject: betas.voxels for trials, betas in subjects}
    loss = config.loss_image if modality == "image" else config.loss_text
    widths = targets.text_widths(modality) if config.encoder.reads_caption_widths else ()
    embedding_decoder = build_embedding_decoder(
        config, voxels, embeddings_NTD.shape[1:], widths, head_trained=loss.clip_scale > 0
    )
    if config.encoder.starts_from_responses:
        embedding_decoder.encoder.init_from(
            {trials.subject: some_responses(trials, betas) for trials, betas in subjects}
        )
    measured = [
        (trials._replace(table=trials.table.iloc[: len(image_T)]), betas)
        for (trials, betas), image_T in zip(subjects, measured_N)
    ]
    space_KP = None
    if config.encoder.tuning_width:
        space_KP = None if config.training.init_from is None else earlier_space(config, modality)
        tuning, space_KP = voxel_tuning(
            config, targets, measured, config.encoder.tuning_width, space_KP
        )
        embedding_decoder.encoder.init_from_tuning(tuning, config.run.seed)
    if config.training.init_from is None:
        mean_TD = embeddings_NTD[trained_on].mean(0)
        embedding_decoder.set_scale(
            TargetScale(mean_TD, float((embeddings_NTD[trained_on] - mean_TD).std()))
        )
    else:
        take_over(
            embedding_decoder,
            EmbeddingDecoder.from_pretrained(earlier_folder(config, modality) / EMBEDDING_DECODER),
        )
    choose_trained(embedding_decoder, config)
    targets_ND = embedding_decoder.standardised(embeddings_NTD)
    if embedding_decoder.linear is not None:
        if config.training.init_from is None:
            embedding_decoder.linear.set_basis(targets_ND[trained_on])
        components_IR = embedding_decoder.linear.components(targets_ND)
        for part, (held, _) in zip(measured, held_out):
            fit_ridges(embedding_decoder, part, held, components_IR, row_of_image)
        if config.training.linear == "best":
            take_better(
                embedding_decoder,
                measured,
                [trials for trials, _ in held_out],
                components_IR,
                row_of_image,
                config,
                targets,
            )
    targets.free()  # of encodings that were fitted
    return EncoderParts(
        embedding_decoder=embedding_decoder,
        batches=TrainBatches(subjects, config.training.batch_size, config.run.seed, rank, world),
        held_out=held_out,
        targets_ND=targets_ND,
        row_of_image=row_of_image,
        loss=loss,
        space_KP=space_KP,
    )


def earlier_space(config: Config, modality: str) -> np.ndarray:
    """The shared space of voxels' tuning of the run that is started from."""
    path = earlier_folder(config, modality) / SPACE
    return read_tensors(path, "train it again")["space_KP"].numpy()


def some_responses(trials: Trials, betas: Betas) -> Tensor:
    """At most PARCEL_TRIALS training trials, spread evenly over the sessions."""
    rows = trials.table["trial"].to_numpy()
    return torch.from_numpy(betas.rows(rows[:: -(-len(rows) // PARCEL_TRIALS)]))


def refuse_untrained_parts(config: Config, modality: str) -> None:
    """Parts that exist for published checkpoints and for which this stage has no target would stay
    at their random initial values.
    """
    parts = config.encoder.without_target.get(modality, ())
    if asked := [name for name in parts if getattr(config.encoder, name)]:
        raise UserError(
            f"encoder.{asked[0]}=true has no target in stage 1, which would leave it random:"
            f" train without it (--no-{asked[0]}); `braingen import` loads it from a published"
            " checkpoint."
        )


def build_embedding_decoder(
    config: Config,
    voxels: dict[int, int],
    target_shape: torch.Size | tuple[int, ...],
    text_widths: Sequence[int] = (),
    head_trained: bool = True,
) -> EmbeddingDecoder:
    """An embedding decoder with random weights, of the configured architecture, for subjects with
    so many voxels each.

    Parameters
    ----------
    voxels : dict[int, int]
        Subject number -> voxel count.
    target_shape : torch.Size | tuple[int, ...]
        T and D of what is decoded.
    text_widths : Sequence[int], optional
        For captions, D of the text encoders that are decoded, in order; empty for images.
    head_trained : bool, optional
        Whether the contrastive loss trains the projection heads.
    """
    tokens, width = target_shape
    captions = CaptionTarget(config.backbone.text_output, text_widths) if text_widths else None
    prior = config.prior.model_dump(exclude={"use_prior", "use", "sample_steps", "guidance_scale"})
    return EmbeddingDecoder(
        encoder_class=config.encoder.model,
        encoder_config={
            "subjects": {str(subject): count for subject, count in voxels.items()},
            **{"clip_seq_dim": tokens, "clip_emb_dim": width},
            **config.encoder.arguments(captions),
        },
        prior_config=(
            {"dim": width, "num_tokens": tokens, **prior} if config.prior.use_prior else None
        ),
        prior_use=config.prior.use,
        sample_steps=config.prior.sample_steps,
        guidance_scale=config.prior.guidance_scale,
        head_trained=head_trained,
        linear_config=linear_config(config, tokens * width),
        calibrated=True,
    )


def linear_config(config: Config, width: int) -> dict[str, int] | None:
    """Sizes of the read-out beside encoder and prior; None without one.

    Parameters
    ----------
    width : int
        Numbers of the target.
    """
    if not config.training.with_ridge:
        return None
    rank = {"rank": min(RANK, width)}
    if config.training.linear == "best" and config.training.gain_regions:
        return {**rank, "regions": config.training.gain_regions}
    return rank


def earlier_folder(config: Config, modality: str) -> Path:
    """The run folder that ``training.init_from`` means: itself, or its image or text part.

    Raises
    ------
    UserError
        When there is no finished encoder.
    """
    start = config.training.init_from
    assert start is not None
    found = [
        folder for folder in (start, start / modality) if (folder / EMBEDDING_DECODER).is_dir()
    ]
    if not found:
        wanted = start / modality / EMBEDDING_DECODER
        raise UserError(
            f"--init_from {start} holds no trained {modality} encoder ({wanted} is missing): train"
            " it first."
        )
    Run(found[0]).require_finished()
    return found[0]


def take_over(embedding_decoder: EmbeddingDecoder, earlier: EmbeddingDecoder) -> None:
    """Copy everything but the layers of subjects that the earlier embedding decoder did not know:
    those keep their initial weights.

    The scale of the target comes along, since experts and prior work in its units.

    Raises
    ------
    UserError
        When the two are not of the same architecture.
    """
    for part, free in (("encoder", MAY_DIFFER), ("prior", set[str]())):
        old, new = (
            json.loads(json.dumps(each.config[f"{part}_config"])) or {}
            for each in (earlier, embedding_decoder)
        )
        changed = [
            name for name in {**old, **new} if name not in free and old.get(name) != new.get(name)
        ]
        if changed:
            name = changed[0]
            raise UserError(
                f"{part} {name} was {old.get(name)!r} in the run that --init_from names and is"
                f" {new.get(name)!r} here: leave the {part}'s settings out, they are taken from"
                " that run."
            )
    weights, own = earlier.state_dict(), embedding_decoder.state_dict()
    fresh = {name for name in own if name not in weights}
    of_people = ("encoder.subject_layer.", "linear.linears.", "linear.judged.", "linear.gated")
    own_of_subjects = {name for name in own if name.startswith(of_people)}
    if not fresh <= own_of_subjects:
        raise UserError(
            "The run that --init_from names lacks"
            f" {sorted(fresh - own_of_subjects)[0]}: train it again."
        )
    embedding_decoder.load_state_dict(
        {name: weights[name] for name in own if name not in fresh}, strict=False
    )


def choose_trained(embedding_decoder: EmbeddingDecoder, config: Config) -> None:
    """Freeze what ``training.trained`` leaves out, and what is idle by design.

    Raises
    ------
    UserError
        When the rest would stay at random weights.
    """
    chosen = trainable_parameters(embedding_decoder)
    if config.training.trained != "all":
        if config.training.init_from is None:
            raise UserError(
                f"training.trained={config.training.trained} would leave the experts at random"
                " weights: name a trained run with --init_from RUN."
            )
        subjects = config.data.subjects
        chosen = (
            adapting_parameters(embedding_decoder, subjects)
            if config.training.trained == "routers"
            else subject_parameters(embedding_decoder, subjects)
        )
    train_only(embedding_decoder, chosen)
