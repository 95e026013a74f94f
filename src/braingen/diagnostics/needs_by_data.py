"""The memory of the stages that grow with the data: low-level path, encoding models, evaluation.

They stand beside the stages that work with the backbone (:mod:`braingen.diagnostics.needs`). Arrays
are counted at the moments at which most of them are there.

N training images, T trials, V voxels, D width of the image embedding, P features, L images of the
library, J images left out, K directions of the noise model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch

from braingen.config import Config
from braingen.config.shipped import TINY
from braingen.data import nsd
from braingen.data.captions import has_captions
from braingen.data.stimuli import Stimuli
from braingen.data.trials import train_trials
from braingen.diagnostics.needs import StageNeed, latent_side, numbers_of, picture_side, vae_of
from braingen.diagnostics.summary import Sizes
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.encoding_model.banded_ridge import LARGEST_DOUBLE, PIECE
from braingen.encoding_model.energy import WIDTH
from braingen.encoding_model.noise import DIRECTIONS
from braingen.encoding_model.run import has_encoding
from braingen.encoding_model.train import FOLDED
from braingen.evaluation.features import MissingWeights, find_weights, on_meta, recipes
from braingen.evaluation.observers import published_names
from braingen.generation.accounting import META, counted
from braingen.pretrained.weight_files import model_files, numbers_in
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.targets.clip_text import FOLDERS, PARTS

PRESENTATIONS = 3
"""Of an image of NSD, for when trials are not on this machine."""
SCORED_AT_ONCE = 32
"""Images of a pass of a network that scores them."""
BLOCK = 1024
"""Trials that ridge regression leaves out at a time."""
MOMENTS = 12
"""Bytes of a float32 weight and the two moments of AdamW; gradients are counted with the pass."""


class Amounts(NamedTuple):
    """How much data of a person there is to learn from."""

    images: int
    trials: int


def amounts_of(config: Config) -> Amounts:
    """Training images and trials of the subject with most of them; NSD's where none are here."""
    layout, found = Layout.of(config.data.root), []
    for subject in config.data.subjects:
        try:
            images = train_trials(layout, subject, config.data.num_sessions).table["image"]
            found.append(Amounts(images.nunique(), len(images)))
        except UserError:
            count = nsd.IMAGES // len(nsd.SUBJECTS)
            found.append(Amounts(count, PRESENTATIONS * count))
    return max(found, key=lambda each: each.trials)


# --- the low-level path ---------------------------------------------------------------------------


def low_level_training(config: Config, sizes: Sizes, amounts: Amounts, encoder: int) -> StageNeed:
    """`train low_level`: a step; latents are read from their table as they are used."""
    side = latent_side(config, picture_side(config, config.low_level.resolution))
    channels = int(vae_of(config)["latent_channels"])
    subjects = {int(subject): voxels for subject, voxels in sizes.subjects.items()}
    settings = config.low_level.model_dump(exclude={"resolution", "num_epochs"})
    with META:
        model = LatentEncoder(subjects, channels, side, **settings).train()
    with counted(model) as live:  # a record of every subject in a step
        found = [
            model(torch.empty(config.training.batch_size, voxels, device=META), subject)
            for subject, voxels in subjects.items()
        ]
        torch.cat(found).square().mean().backward()
    count = sum(p.numel() for p in model.parameters())
    return StageNeed("train low_level", {"low-level path": MOMENTS * count}, live.peak)


# --- encoding models ------------------------------------------------------------------------------


class EncodingSizes(NamedTuple):
    """Sizes of one person's encoding model."""

    images: int
    """N."""
    voxels: int
    """V."""
    features: int
    """P."""
    embedding: int
    """D, tokens together."""
    bands: int
    left_out: int
    """J."""
    library: int
    """L."""

    @property
    def directions(self) -> int:
        """K."""
        return min(DIRECTIONS, self.left_out)


def encoding_sizes(config: Config, sizes: Sizes, amounts: Amounts) -> EncodingSizes:
    """Sizes of the encoding model of the person with most voxels."""
    settings = config.encoding
    flat = sizes.image[0] * sizes.image[1]
    widths = {
        "embedding": min(flat, max(settings.feature_width, sizes.image[1])),
        "energy": min(settings.feature_width, WIDTH),
        "caption": min(settings.feature_width, sizes.text[0] * sizes.text[1]),
    }
    features = sum(widths.get(band, settings.feature_width) for band in settings.bands)
    pictures = min(amounts.images * len(sizes.subjects), settings.library_size)
    return EncodingSizes(
        amounts.images,
        max(sizes.subjects.values()),
        features,
        flat,
        len(settings.bands),
        min(amounts.images, settings.left_out_images),
        pictures + (settings.library_size if settings.library else 0),
    )


def fit_bytes(of: EncodingSizes, images: int) -> int:
    """Bytes of fitting the weights and the noise of some images, beside what they are fitted to."""
    voxels, features, left = of.voxels, of.features, min(of.left_out, images)
    rank = min(images, features)
    kind = 8 if rank <= LARGEST_DOUBLE else 4
    best = 4 * voxels * (features + left)
    inputs = images * features * (4 + kind)
    grams = of.bands * images**2 * kind
    if images >= features:
        grams = features**2 * kind + 4 * features * voxels
    # the matrix, its eigenvectors, and two more for the workspace of the decomposition
    decomposing = 4 * rank**2 * kind
    # eigenvectors; rows left out, their squares and what they are made of; a piece of the voxels
    piece = min(PIECE, voxels) * (2 * images + 3 * rank + 5 * left) * kind
    solving = (rank**2 + 2 * left * (rank + features)) * kind + piece
    # of the residuals a fifth, and of the others a copy and two in double precision
    noise = best + left * voxels * (4 + 4 * (4 + 2 * 8)) // 5 + 8 * of.directions * voxels
    return max(best + inputs + grams + max(decomposing, solving), noise)


def model_bytes(of: EncodingSizes) -> int:
    """Bytes of a model that was fitted or loaded: weights, and directions of the noise."""
    return 4 * of.voxels * (of.features + of.directions)


def inverse_bytes(of: EncodingSizes) -> int:
    """Bytes of preparing a library to decode by it."""
    one = of.library * of.voxels
    # predicted responses, centred and scaled; whitened in double precision from another such array
    whitening = one * (3 * 4 + 2 * 8) + 8 * of.directions * of.library
    # predicted, centred and whitened; a matrix of images, four more for its decomposition
    decomposing = one * 3 * 4 + 5 * 4 * of.library**2
    return max(whitening, decomposing) + 4 * of.library * (of.features + of.embedding)


def encoding_training(config: Config, sizes: Sizes, amounts: Amounts, encoder: int) -> StageNeed:
    """`train encoding`: fitting, or preparing the library to choose how responses are decoded."""
    of = encoding_sizes(config, sizes, amounts)
    inputs = 4 * of.images * (of.voxels + of.features + of.embedding)
    inputs += 4 * of.library * (of.features + of.embedding)
    # of others before the last one the residuals are there too
    one = model_bytes(of) + 4 * of.left_out * of.voxels
    weights = {"responses and features": inputs, "other people": (len(sizes.subjects) - 1) * one}
    fold = of.images - of.images // min(config.encoding.decoding_folds, of.images // 2 or 1)
    chosen = fold if of.images > FOLDED else of.images
    moments = [
        4 * of.images * (of.voxels + of.features) + fit_bytes(of, of.images),
        4 * chosen * (of.voxels + of.features) + one + inverse_bytes(of),
    ]
    if device_of(config).type == "cuda":  # there are products and decompositions of the fit
        return StageNeed("train encoding", {}, fit_bytes(of, of.images))
    return StageNeed("train encoding", weights, max(moments))


# --- evaluation -----------------------------------------------------------------------------------


def ridge_bytes(trials: int, images: int, voxels: int, width: int) -> int:
    """Bytes of ridge regression from trials to embeddings."""
    rank = min(trials, voxels)
    kind = 8 if rank <= LARGEST_DOUBLE else 4
    # responses; embeddings of images, of trials, and around their mean
    tables = 4 * (trials * voxels + images * width + 2 * trials * width)
    # the matrix, its eigenvectors, and two more for the workspace of the decomposition
    decomposing = 4 * kind * rank**2
    # eigenvectors; a block of trials left out, with what is made of it
    leaving_out = kind * (rank**2 + 5 * BLOCK * rank) + 3 * 4 * BLOCK * voxels
    return tables + kind * rank * width + max(decomposing, leaving_out)


def scoring_networks(config: Config, simulated: bool) -> tuple[int, int]:
    """Parameters of the published networks that are here, and bytes that a pass works with."""
    count, working = 0, 0
    for name in published_names(config, simulated):
        with suppress(MissingWeights, ModuleNotFoundError):
            find_weights(name, config.evaluation.feature_weights or None)
            module = on_meta(name)
            if module is None:  # DreamSim's package builds it from its files only: three ViT-B/16
                count += 3 * 86_000_000
                continue
            count += sum(x.numel() for x in (*module.parameters(), *module.buffers()))
            side = recipes()[name].side
            image = torch.empty(SCORED_AT_ONCE, 3, side, side, device=META)
            with torch.no_grad(), counted(module) as live:
                module(*[image] * (2 if recipes()[name].use == "pair" else 1))
            working = max(working, live.peak)
    return count, working


def evaluating(config: Config, sizes: Sizes, amounts: Amounts, encoder: int) -> StageNeed:
    """`evaluate`: networks and ridge regression, and when they are gone the image encoder.

    Parameters
    ----------
    encoder : int
        Parameters of the image encoder with its prior.
    """
    numbers, layout = numbers_of(config), Layout.of(config.data.root)
    simulated = False
    with suppress(UserError):
        simulated = Stimuli(layout).simulated
    weights: dict[str, int] = {}
    networks, working = scoring_networks(config, simulated)
    weights["networks"] = 4 * networks
    if simulated:
        folder = TINY / "scene_classifier"
        weights["networks"] += 4 * numbers_in(model_files(folder, "diffusers"))
    encoded = has_encoding(config)
    if simulated or encoded:
        weights["image_encoder"] = 4 * numbers["image_encoder"]
    if has_captions(layout):
        for name in PARTS[config.backbone.text_output]:
            weights[FOLDERS[name][0]] = 4 * numbers[FOLDERS[name][0]]
    decoding = StageNeed("evaluate", {"encoder": 4 * encoder}, 0)
    if device_of(config).type == "cuda":  # ridge regression and encoding model stay on the CPU
        return max(StageNeed("evaluate", weights, working), decoding, key=lambda each: each.total)
    voxels = max(sizes.subjects.values())
    flat = sizes.image[0] * sizes.image[1]
    moments = [working, ridge_bytes(amounts.trials, amounts.images, voxels, flat)]
    if encoded:
        of = encoding_sizes(config, sizes, amounts)
        weights["encoding model"] = model_bytes(of)
        moments.append(model_bytes(of) + inverse_bytes(of))
    scoring = StageNeed("evaluate", weights, max(moments))
    return max(scoring, decoding, key=lambda each: each.total)


Counted = Callable[[Config, Sizes, Amounts, int], StageNeed]
DATA_STAGES: dict[str, Counted] = {
    "train low_level": low_level_training,
    "train encoding": encoding_training,
    "evaluate": evaluating,
}
"""The table: settings, sizes, amounts of data and parameters of the image encoder -> need."""
