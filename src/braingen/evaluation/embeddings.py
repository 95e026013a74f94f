"""Score the embeddings that a trained decoder predicts for a subject's test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.identification import two_way
from braingen.generation.sampling import seeded_noise
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.files import write_json
from braingen.runtime.text_files import read_json
from braingen.targets.tables import Targets


class TestEmbeddings(NamedTuple):
    """Decoded embeddings of the test images, averaged over presentations."""

    embedding_ND: Tensor
    """Output of the prior in CLIP's own units, tokens flattened."""
    clip_ND: Tensor
    """Projected output in standardised units, tokens flattened."""
    image_N: np.ndarray
    """Image ids."""


@torch.no_grad()
def decode_test_images(
    config: Config, modality: str, embedding_decoder: EmbeddingDecoder, random: bool = False
) -> TestEmbeddings:
    """Decode the test images of the first subject.

    Parameters
    ----------
    random : bool, optional
        Decode standard normal voxels, seeded by image id, instead: the random baseline.
    """
    layout, device, subject = (
        Layout.of(config.data.root),
        device_of(config),
        config.data.subjects[0],
    )
    repeats = group_repeats(test_trials(layout, subject))
    embedding_decoder = embedding_decoder.to(device).eval()
    embedding, clip = [], []
    for batch in RepeatBatches(repeats, Betas.of(layout, subject), subject, 64):
        voxels_BRV, ids = batch.voxels_BRV, batch.image_B.tolist()
        if random:
            voxels_BRV = seeded_noise(
                ids, tuple(voxels_BRV.shape[1:]), config.run.seed, "random voxels"
            )
        count, repeat = batch.present_BR.shape
        each = embedding_decoder(voxels_BRV.flatten(0, 1).to(device), subject)
        backbone_BTD, clip_BTD = (
            average_repeats(x.unflatten(0, (count, repeat)), batch.present_BR.to(device))
            for x in (each.backbone_BTD, each.clip_BTD)
        )
        noise = (
            seeded_noise(
                ids, embedding_decoder.noise_shape, config.run.seed, f"prior of {modality}"
            ).to(device)
            if embedding_decoder.noise_shape
            else None
        )
        embedding.append(embedding_decoder.embedding(backbone_BTD, noise).flatten(1).float().cpu())
        clip.append(clip_BTD.flatten(1).float().cpu())
    return TestEmbeddings(torch.cat(embedding), torch.cat(clip), repeats.image_N)


class EmbeddingScores(NamedTuple):
    """Scores of every test image."""

    values: dict[str, np.ndarray]
    """By name: CLIP cosine, top-1 retrieval in both directions, two-way identification (share of
    distractors beaten).
    """
    chance: dict[str, float]

    def by_place(self, name: str) -> dict[int, float]:
        """Return the values of a score by the image's index among the test images."""
        return dict(enumerate(self.values[name].tolist()))


def score_embeddings(
    config: Config, modality: str, embedding_decoder: EmbeddingDecoder, decoded: TestEmbeddings
) -> EmbeddingScores:
    """Score decoded embeddings against the true ones."""
    true_ND = Targets(config).of(modality, decoded.image_N)
    standard_ND = embedding_decoder.cpu().standardised(true_ND).flatten(1).numpy()
    raw = decoded.embedding_ND.numpy(), true_ND.flatten(1).numpy()
    return _scored(config, raw, (decoded.clip_ND.numpy(), standard_ND), decoded.image_N)


def scores_of_decoded(
    config: Config,
    decoded_ND: np.ndarray,
    true_ND: np.ndarray,
    mean_D: np.ndarray,
    image_N: np.ndarray,
) -> EmbeddingScores:
    """Score flat embeddings of any decoder, as `score_embeddings` scores an encoder's.

    Parameters
    ----------
    decoded_ND, true_ND : np.ndarray
        In the target's own units, in the same order.
    mean_D : np.ndarray
        Mean over training images, around which retrieval compares.
    image_N : np.ndarray
        Image ids.
    """
    around = decoded_ND - mean_D, true_ND - mean_D
    return _scored(config, (decoded_ND, true_ND), around, image_N)


Pair = tuple[np.ndarray, np.ndarray]
"""Decoded and true embeddings."""


def _scored(config: Config, raw: Pair, compared: Pair, image_N: np.ndarray) -> EmbeddingScores:
    """Cosine and two-way of raw embeddings, retrieval of those that are compared."""
    settings: dict[str, Any] = {
        "pool": config.evaluation.retrieval_pool,
        "draws": config.evaluation.retrieval_draws,
        "resamples": 1,
        "seed": config.run.seed,
    }
    _, cosines = decoder_scores(*raw, image_N, **settings)
    scores, retrieval = decoder_scores(*compared, image_N, **settings)
    values = {name: retrieval[name].to_numpy() for name in retrieval if name != "clip_cos"}
    two_way_N = two_way(raw[1], raw[0]).share_N
    values |= {"two_way_clip": two_way_N, "clip_cos": cosines["clip_cos"].to_numpy()}
    return EmbeddingScores(
        values,
        {name: score.chance for name, score in scores.items() if score.chance is not None}
        | {"two_way_clip": 0.5},
    )


def scores_at(
    config: Config, modality: str, path: Path, embedding_decoder_folder: Path, random: bool = False
) -> EmbeddingScores:
    """Score a trained embedding decoder, or read its scores from ``path`` where they exist."""
    if not path.exists():
        embedding_decoder = EmbeddingDecoder.from_pretrained(embedding_decoder_folder)
        found = score_embeddings(
            config,
            modality,
            embedding_decoder,
            decode_test_images(config, modality, embedding_decoder, random),
        )
        write_json(
            path,
            {
                "values": {name: values.tolist() for name, values in found.values.items()},
                "chance": found.chance,
            },
        )
    kept = read_json(path)
    return EmbeddingScores(
        {name: np.array(values) for name, values in kept["values"].items()}, kept["chance"]
    )
