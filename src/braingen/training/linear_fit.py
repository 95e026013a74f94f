"""Fit the read-out beside an encoder: ridge regression, or an inversion of the encoding model where
held-out images are decoded better by it.

Ridge regression learns signal and noise from the trials at once. The encoding model learns what
images do to voxels, and the covariance of what is left, and its inversion (the embedding's mean
given the responses, all Gaussian) is a linear map, too. Where regions of voxels respond more in one
trial than in another, a router estimates their gains in every trial, and the inversion follows
them: a mixture of experts that are regions.

N images, I images of the table of targets, R rank of the read-out, P precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
import logging
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.gated_readout import GatedReadout, GatedWeights
from braingen.encoders.linear_readout import STANDARD_ERRORS
from braingen.encoders.ridge import LinearMap, fit_ridge
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.library import PRECISIONS, Inverse, Library
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.region_gains import RegionGains, fit_region_gains, left_out_trials
from braingen.encoding_model.responses import average_responses, average_rows
from braingen.encoding_model.shared_regions import PersonVoxels, shared_regions
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
REFERENCE_IMAGES = 2000
"""Most images by whose predicted responses voxels of several people are compared."""
LARGER = 1.5
"""Size of what is decoded, in units of the size with the least squared error. Two-way
identification compares raw embeddings and fails where they all are near their mean: 1.5 was the
largest size with which the cosine of raw embeddings of left-out training images did not fall below
that of ridge regression (docs/experiments/peers.md).
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


class Inversion(NamedTuple):
    """How the encoding model is inverted."""

    gated: bool
    """With gains of regions, in every trial their own."""
    precision: float
    """Factor of the noise's inverse covariance."""


class Inversions:
    """The encoding model of a subject's trials, its inversion, and that with gains of regions.

    Parameters
    ----------
    trials : Trials
        That it is fitted to.
    spaces : FeatureSpaces
        Of the images.
    aim_of : Callable[[np.ndarray], np.ndarray]
        Image ids -> what is decoded, N x R.
    """

    def __init__(
        self,
        config: Config,
        trials: Trials,
        betas: Betas,
        spaces: FeatureSpaces,
        aim_of: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.config, self.trials, self.betas, self.aim_of = config, trials, betas, aim_of
        self.known = average_responses(trials, betas)
        self.features = spaces.of_ids(self.known.image_N)
        self.scales_CB = candidate_scales(
            len(self.features), config.encoding.band_draws, config.run.seed
        )
        self.aim_NR = aim_of(self.known.image_N)
        self.model = EncodingModel.fit(self.features, self.known, self.scales_CB, *self._fitting())
        self.gains: RegionGains | None = None

    def _fitting(self) -> tuple[int, int, torch.device]:
        config = self.config
        return config.encoding.left_out_images, config.run.seed, device_of(config)

    def _read(self, place: np.ndarray) -> np.ndarray:
        return self.betas.rows(self.trials.table["trial"].to_numpy()[place])

    @cached_property
    def inverse(self) -> Inverse:
        """With fixed weights."""
        return Inverse(Library(self.aim_NR, self.model.predict(self.features)), self.model.noise)

    def voxels(self) -> PersonVoxels:
        """What regions are found from that are the same in several people."""
        image_T = self.trials.table["image"].to_numpy()
        trial_S, response_SV, signal_NV = left_out_trials(
            self.features, self.known, image_T, self._read, self.model, self.config.run.seed
        )
        row_S = np.searchsorted(self.known.image_N, image_T[trial_S])
        return PersonVoxels(self.model, response_SV - signal_NV[row_S])

    def fit_gains(self, region_V: np.ndarray | None = None) -> None:
        """Fit gains of regions, which are found unless they are known."""
        left_out, seed, device = self._fitting()
        self.gains = fit_region_gains(
            self.features,
            self.known,
            self.trials.table["image"].to_numpy(),
            self._read,
            self.model,
            self.config.training.gain_regions,
            left_out,
            seed,
            device,
            region_V,
        )

    def ways(self) -> list[Inversion]:
        """Every inversion that there is."""
        kinds = (False,) if self.gains is None else (False, True)
        return [Inversion(gated, precision) for gated in kinds for precision in PRECISIONS]

    def _gains(self) -> RegionGains:
        assert self.gains is not None
        return self.gains

    def weights(self, way: Inversion) -> LinearMap | GatedWeights:
        """What decodes single trials."""
        if way.gated:
            return self._gains().weights(self.aim_NR, way.precision)
        return self.inverse.linear_map(way.precision)

    def decode(self, way: Inversion, trials: Trials, betas: Betas) -> np.ndarray:
        """Decode trials and average by image, in ascending order of ids: N x R."""
        averaged = average_responses(trials, betas)
        if not way.gated:
            return self.inverse.gaussian(averaged.mean_NV, way.precision)
        gains = self._gains()
        read = GatedReadout(betas.voxels, self.aim_NR.shape[1], len(gains.growth_A))
        read.take(gains.weights(self.aim_NR, way.precision))
        return average_rows(
            lambda part: read(
                torch.from_numpy(betas.rows(trials.table["trial"].to_numpy()[part]))
            ).numpy(),
            averaged.image_N,
            np.searchsorted(averaged.image_N, trials.table["image"].to_numpy()),
            averaged.times_N,
        ).mean_NV


def take_better(
    embedding_decoder: EmbeddingDecoder,
    measured: Sequence[tuple[Trials, Betas]],
    held_out: Sequence[Trials],
    components_IR: Tensor,
    row_of_image: np.ndarray,
    config: Config,
    targets: Targets,
) -> None:
    """Put an inversion of the encoding model in the place of a subject's ridge regression if the
    cosine of held-out images is higher by more than `STANDARD_ERRORS` of the paired difference.

    What it decodes is then given the size, around the mean, of :func:`fitting_size`. With fewer
    than `FEWEST_TO_CHOOSE` held-out images, ridge regression stays. Regions with gains are the same
    ones in all subjects (:func:`shared_regions`).

    Parameters
    ----------
    embedding_decoder : EmbeddingDecoder
        With fitted ridge regressions (:func:`fit_ridges`).
    measured : Sequence[tuple[Trials, Betas]]
        Training trials of every subject; those of its held-out images are in ``held_out``.
    components_IR : Tensor
        What is predicted (:meth:`LinearReadout.components`), per image of the table of targets;
        ``row_of_image`` says where an image is in it.
    """
    parts = [
        (trials, betas, held)
        for (trials, betas), held in zip(measured, held_out)
        if held.table["image"].nunique() >= FEWEST_TO_CHOOSE
    ]
    if not parts:
        return
    spaces = FeatureSpaces(config, targets)

    def aim_of(image_N: np.ndarray) -> np.ndarray:
        return components_IR[torch.from_numpy(row_of_image[image_N])].numpy()

    # one subject's model at a time, unless regions are found from all of them
    fits = (Inversions(config, trials, betas, spaces, aim_of) for trials, betas, _ in parts)
    regions: Sequence[np.ndarray | None] = [None] * len(parts)
    if config.training.gain_regions and len(parts) > 1:
        everybody = list(fits)
        regions = _regions_of(config, everybody, spaces)
        fits = (everybody.pop(0) for _ in parts)
    for (trials, betas, held), without, region_V in zip(parts, fits, regions):
        if config.training.gain_regions:
            without.fit_gains(region_V)
        best = _best_of_held_out(embedding_decoder, without, held)
        if best is not None:
            way, size = best
            both = trials._replace(table=pd.concat([trials.table, held.table]))
            whole = Inversions(config, both, betas, spaces, aim_of)
            if way.gated:
                whole.fit_gains(region_V)
            linear = embedding_decoder.linear
            assert linear is not None
            for each, without_held_out in ((without, True), (whole, False)):
                linear.take(trials.subject, scaled(each.weights(way), size), without_held_out)


def _regions_of(
    config: Config, fits: Sequence[Inversions], spaces: FeatureSpaces
) -> list[np.ndarray]:
    """Regions of every subject's voxels, the same ones in all."""
    images = np.unique(np.concatenate([each.known.image_N for each in fits]))
    seen = spaces.of_ids(images[:: -(-len(images) // REFERENCE_IMAGES)])
    logger.info("Finding the %d regions of %d subjects", config.training.gain_regions, len(fits))
    return shared_regions([each.voxels() for each in fits], seen, config.training.gain_regions)


def _best_of_held_out(
    embedding_decoder: EmbeddingDecoder, fit: Inversions, held: Trials
) -> tuple[Inversion, float] | None:
    """The inversion that decodes held-out images best, and the size of what it decodes; None where
    ridge regression is not clearly worse.
    """
    linear, betas, subject = embedding_decoder.linear, fit.betas, fit.trials.subject
    assert linear is not None
    judged = average_responses(held, betas)
    truth_NR = fit.aim_of(judged.image_N)
    responses_NV = torch.from_numpy(judged.mean_NV).to(embedding_decoder.device)
    with linear.without_held_out():
        ridge_NR = linear.components(linear(responses_NV, subject)).cpu().numpy()
    decoded = {way: fit.decode(way, held, betas) for way in fit.ways()}
    cosine = {way: cosines(found_NR, truth_NR) for way, found_NR in decoded.items()}
    best = max(cosine, key=lambda way: float(cosine[way].mean()))
    gain_N = cosine[best] - cosines(ridge_NR, truth_NR)
    taken = bool(gain_N.mean() > STANDARD_ERRORS * gain_N.std(ddof=1) / len(gain_N) ** 0.5)
    logger.info(
        "Subject %d: cosine of held-out images by the encoding model's inversion %s less that by"
        " ridge regression: %.3f; %s is used.",
        subject,
        "with gains of regions" if best.gated else "with fixed weights",
        gain_N.mean(),
        "the inversion" if taken else "ridge regression",
    )
    return (best, fitting_size(decoded[best], truth_NR)) if taken else None


def cosines(found_NR: np.ndarray, truth_NR: np.ndarray) -> np.ndarray:
    """Cosine of every image's decoded and true description."""
    length_N = np.linalg.norm(found_NR, axis=1) * np.linalg.norm(truth_NR, axis=1)
    return np.einsum("nr,nr->n", found_NR, truth_NR) / np.maximum(length_N, 1e-12)


def fitting_size(found_NR: np.ndarray, truth_NR: np.ndarray) -> float:
    """Factor of what is decoded, around the mean: `LARGER` times that with the least squared error,
    at least 0.
    """
    slope = (found_NR * truth_NR).sum() / max(float((found_NR**2).sum()), 1e-12)
    return LARGER * max(float(slope), 0.0)


def scaled(weights: LinearMap | GatedWeights, size: float) -> LinearMap | GatedWeights:
    """The same weights whose outputs are larger around the target's mean, which is zero."""
    factor = np.float32(size)
    if isinstance(weights, GatedWeights):
        return weights._replace(
            weights_KR=weights.weights_KR * factor, mean_R=weights.mean_R * factor
        )
    return weights._replace(
        coefficients_VD=weights.coefficients_VD * factor,
        target_mean_D=weights.target_mean_D * factor,
    )
