"""Fit the linear read-out of an embedding decoder: ridge regression, or the encoding model's
inversion where held-out images are decoded better by it.

Ridge regression learns signal and noise from the trials at once. The encoding model learns what
pictures do to voxels, and the covariance of what is left, and its inversion (the embedding's mean
given the responses, all Gaussian) is a linear map, too.

N images, I images of the table of targets, R rank of the read-out, P precisions.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import STANDARD_ERRORS
from braingen.encoders.ridge import fit_ridge
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.library import PRECISIONS, Inverse, Library
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.responses import AveragedResponses, average_responses
from braingen.runtime.device import device_of
from braingen.targets.tables import Targets
from braingen.types import Trials

logger = logging.getLogger(__name__)

FEWEST_FOR_RIDGE = 3
"""Images from which a penalty can be chosen by leaving one out."""
FEWEST_TO_CHOOSE = 30
"""Held-out images from which the inversion is considered: with 29 it was taken where it was worse
(docs/experiments/peers.md).
"""


def fit_ridges(
    embedding_decoder: EmbeddingDecoder,
    kept: tuple[Trials, Betas],
    held: Trials,
    components_IR: Tensor,
    row_of_image: np.ndarray,
) -> None:
    """Fit one subject's ridge regression to its measured trials, without and with those of
    held-out images.

    Parameters
    ----------
    components_IR : Tensor
        What is predicted (:meth:`LinearReadout.components`), per image of the table of targets.
    row_of_image : np.ndarray
        Row of every image in it.
    """
    linear, (trials, betas) = embedding_decoder.linear, kept
    assert linear is not None
    device = str(embedding_decoder.device)
    for without in (True, False):
        tables = [trials.table] if without else [trials.table, held.table]
        rows, image = (
            np.concatenate([table[name].to_numpy() for table in tables])
            for name in ("trial", "image")
        )
        if len(np.unique(image)) < FEWEST_FOR_RIDGE:
            logger.warning(
                "Subject %d: ridge regression needs %d training images and there are %d; it"
                " predicts the mean here.",
                trials.subject,
                FEWEST_FOR_RIDGE,
                len(np.unique(image)),
            )
            continue
        aim_NR = components_IR[torch.from_numpy(row_of_image[image])].numpy()
        ridge = fit_ridge(betas.rows(rows), aim_NR, image, device=device)
        linear.take(trials.subject, ridge, without)


def take_better(
    embedding_decoder: EmbeddingDecoder,
    kept: tuple[Trials, Betas],
    held: Trials,
    components_IR: Tensor,
    row_of_image: np.ndarray,
    config: Config,
    targets: Targets,
) -> None:
    """Put the inversion in the place of one subject's ridge regression if the cosine of held-out
    images is higher by more than `STANDARD_ERRORS` of the paired difference.

    With fewer than `FEWEST_TO_CHOOSE` of them, ridge regression stays.

    Parameters
    ----------
    embedding_decoder : EmbeddingDecoder
        With fitted ridge regressions (:func:`fit_ridges`).
    kept : tuple[Trials, Betas]
        Measured training trials; those of held-out images are ``held``.
    components_IR : Tensor
        What is predicted (:meth:`LinearReadout.components`), per image of the table of targets;
        ``row_of_image`` says where an image is in it.
    """
    linear, (trials, betas) = embedding_decoder.linear, kept
    assert linear is not None
    spaces = FeatureSpaces(config, targets)

    def truth(image_N: np.ndarray) -> Tensor:
        return components_IR[torch.from_numpy(row_of_image[image_N])]

    def inverse(known: AveragedResponses) -> Inverse:
        features = spaces.of_ids(known.image_N)
        model = EncodingModel.fit(
            features,
            known,
            candidate_scales(len(features), config.encoding.band_draws, config.run.seed),
            config.encoding.left_out_images,
            config.run.seed,
            device_of(config),
        )
        library = Library(truth(known.image_N).numpy(), model.predict(features))
        return Inverse(library, model.noise)

    if held.table["image"].nunique() < FEWEST_TO_CHOOSE:
        return
    known, judged = average_responses(trials, betas), average_responses(held, betas)
    responses_NV = torch.from_numpy(judged.mean_NV)
    truth_NR = truth(judged.image_N)
    with linear.without_held_out():
        ridge_NR = linear.components(linear(responses_NV, trials.subject))
    without = inverse(known)
    cosine_PN = torch.stack(
        [
            cosine_similarity(torch.from_numpy(without.gaussian(judged.mean_NV, p)), truth_NR)
            for p in PRECISIONS
        ]
    )
    best = int(cosine_PN.mean(1).argmax())
    gain_N = (cosine_PN[best] - cosine_similarity(ridge_NR, truth_NR)).numpy()
    error = gain_N.std(ddof=1) / len(gain_N) ** 0.5
    taken = bool(gain_N.mean() > STANDARD_ERRORS * error)
    logger.info(
        "Subject %d: cosine of held-out images by the encoding model's inversion less that by ridge"
        " regression: %.3f; %s is used.",
        trials.subject,
        gain_N.mean(),
        "the inversion" if taken else "ridge regression",
    )
    if taken:
        both = trials._replace(table=pd.concat([trials.table, held.table]))
        whole = inverse(average_responses(both, betas))
        for each, without_held_out in ((without, True), (whole, False)):
            linear.take(trials.subject, each.linear_map(PRECISIONS[best]), without_held_out)
