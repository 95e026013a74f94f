"""Synthetic trials: responses of a subject to images that were not shown, as training data.

An encoding model, fitted on the very trials that are trained on (never on held-out images),
predicts the responses, and its noise model adds noise. K synthetic trials, V voxels.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.pictures import pictures_of
from braingen.encoding_model.responses import average_responses
from braingen.encoding_model.train import other_people, prior_of
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.targets.tables import Targets
from braingen.types import Trials

logger = logging.getLogger(__name__)


class BetasWithSynthetic(Betas):
    """A subject's responses, and synthetic ones as further rows.

    Parameters
    ----------
    betas : Betas
        The measured ones.
    synthetic_KV : np.ndarray
        float32.
    """

    def __init__(self, betas: Betas, synthetic_KV: np.ndarray) -> None:
        self.__dict__.update(betas.__dict__)
        self.measured, self.synthetic_KV = betas, synthetic_KV

    @property
    def trials(self) -> int:
        """Rows, synthetic ones included."""
        return self.measured.trials + len(self.synthetic_KV)

    def check(self, rows: np.ndarray) -> None:
        """Refuse rows that do not exist."""
        self.measured.check(rows[rows < self.measured.trials])

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Responses of the given trials, measured or synthetic, in their order."""
        rows = np.asarray(rows)
        found = np.empty((len(rows), self.voxels), dtype=np.float32)
        made = rows >= self.measured.trials
        if not made.all():
            found[~made] = self.measured.rows(rows[~made])
        found[made] = self.synthetic_KV[rows[made] - self.measured.trials]
        return found


class SyntheticTrials:
    """Adds synthetic trials to subjects' training trials.

    Parameters
    ----------
    config : Config
        With ``data.synthetic_share`` above 0.
    targets : Targets
        Frozen models.

    Raises
    ------
    UserError
        When there are no images, or images of a folder for a text encoder.
    """

    def __init__(self, config: Config, targets: Targets, modality: str) -> None:
        self.config, self.targets = config, targets
        self.spaces = FeatureSpaces(config, targets)
        self.spaces.refuse_captions()
        self.others = other_people(config)
        folder = config.data.synthetic_images
        if folder and modality == "text":
            raise UserError(
                f"data.synthetic_images = {folder} has no captions, which a text encoder is"
                " trained on: leave it out for braingen train text."
            )
        self.pictures = pictures_of(config, self.spaces, folder)
        ids = self.pictures.image_N
        # ids of images of a folder follow those of the data folder
        further = len(targets.stimuli) + np.arange(len(self.pictures.names))
        self.image_L = further if ids is None else ids

    def targets_table(
        self, row_of_image: np.ndarray, embeddings_NTD: Tensor
    ) -> tuple[np.ndarray, Tensor]:
        """Rows by image id, and targets, with those of a folder's images at their end."""
        if self.pictures.image_N is not None:
            return row_of_image, embeddings_NTD
        rows = len(embeddings_NTD) + np.arange(len(self.pictures.names))
        added = torch.from_numpy(self.pictures.embedding_LD).view(-1, *embeddings_NTD.shape[1:])
        return np.concatenate([row_of_image, rows]), torch.cat([embeddings_NTD, added])

    def added_to(
        self, trials: Trials, betas: Betas, held: np.ndarray
    ) -> tuple[Trials, BetasWithSynthetic]:
        """Trials and responses with synthetic ones, `data.synthetic_share` of them all.

        Parameters
        ----------
        trials, betas : Trials, Betas
            Of the training images.
        held : np.ndarray
            Ids of held-out images, of which no synthetic trials are made.
        """
        shown = np.union1d(trials.table["image"].to_numpy(), held)
        free = np.flatnonzero(~np.isin(self.image_L, shown))
        if not len(free):
            raise UserError(
                f"There is no picture that subject {trials.subject} has not seen: name a folder"
                " of pictures (data.synthetic_images)."
            )
        share = self.config.data.synthetic_share
        count = round(len(trials.table) * share / (1 - share))
        random = np.random.default_rng([self.config.run.seed, trials.subject])
        order = np.concatenate([random.permutation(free) for _ in range(-(-count // len(free)))])
        chosen = order[:count]
        model = self._model(trials, betas)
        used, place = np.unique(chosen, return_inverse=True)
        features = {band: rows[used] for band, rows in self.pictures.features.items()}
        synthetic_KV = model.synthesise(features, random, place)
        logger.info(
            "Subject %d: %d synthetic trials of %d pictures beside %d measured ones.",
            trials.subject,
            count,
            len(used),
            len(trials.table),
        )
        table = pd.DataFrame(
            {
                "subject": trials.subject,
                "session": -1,
                "trial": betas.trials + np.arange(count),
                "image": self.image_L[chosen],
                "repeat": 0,
                "split": "synthetic",
            }
        )
        joined = pd.concat([trials.table, table], ignore_index=True)
        return Trials(joined, trials.subject, trials.presentations), BetasWithSynthetic(
            betas, synthetic_KV
        )

    def _model(self, trials: Trials, betas: Betas) -> EncodingModel:
        settings, seed = self.config.encoding, self.config.run.seed
        responses = average_responses(trials, betas)
        features = self.spaces.of_ids(responses.image_N)
        scales_CB = candidate_scales(len(features), settings.band_draws, seed)
        return EncodingModel.fit(
            features,
            responses,
            scales_CB,
            settings.left_out_images,
            seed,
            device_of(self.config),
            prior=prior_of(self.others, trials.subject, self.pictures.features, seed),
        )
