"""Trained encoding models for later stages, and decoding the test images by them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braingen.config import Config
from braingen.config.encoding import EncodingConfig
from braingen.data.betas import Betas
from braingen.data.sealed_runs import at_training_data
from braingen.data.trials import Repeats
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.library import refuse_test_pictures
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.pictures import Pictures, library_pictures
from braingen.runtime.data_layout import subject_name
from braingen.runtime.errors import UserError
from braingen.runtime.paths import encoding_folder
from braingen.runtime.run_folder import Run
from braingen.targets.tables import Targets


class TrainedEncoding(NamedTuple):
    """The encoding model of a subject, with what it needs to predict."""

    model: EncodingModel
    config: Config
    """With the data folder, bands and library of the training."""
    spaces: FeatureSpaces


def has_encoding(config: Config) -> bool:
    """Whether an encoding model of the configuration's first subject was trained."""
    return (encoding_folder(config) / subject_name(config.data.subjects[0])).is_dir()


def load_encoding(config: Config, targets: Targets | None = None) -> TrainedEncoding:
    """The encoding model of the first subject.

    Its bands and its library are those it was trained with, whatever the configuration says.

    Parameters
    ----------
    targets : Targets | None, optional
        Of the training data, where they are loaded already.

    Raises
    ------
    UserError
        When there is none, or it was trained with another backbone.
    """
    folder, subject = encoding_folder(config), config.data.subjects[0]
    if not has_encoding(config):
        raise UserError(
            f"There is no encoding model of subject {subject} in {folder}: run `braingen train"
            f" encoding --folder {config.run.folder}` first, or name its run:"
            " run.encoding=RUN."
        )
    settings = Run(folder).require_finished().config
    now = config.backbone.model_dump(mode="json")
    for name in ("path", "image_encoder", "image_output", "image_projected"):
        if settings["backbone"][name] != now[name]:
            raise UserError(
                f"backbone.{name} is {now[name]!r}, and the encoding model in {folder} was trained"
                f" with {settings['backbone'][name]!r}: train it again."
            )
    training = at_training_data(config)
    training = training.model_copy(update={"encoding": EncodingConfig(**settings["encoding"])})
    own = targets if targets is not None and training.data.root == config.data.root else None
    model = EncodingModel.load(folder / subject_name(subject))
    return TrainedEncoding(model, training, FeatureSpaces(training, own))


def mean_responses(repeats: Repeats, betas: Betas, first: bool = False) -> np.ndarray:
    """Responses averaged over presentations, or the first ones: N x V."""
    used = [rows[rows >= 0][: 1 if first else None] for rows in repeats.rows_NR]
    return np.stack([betas.rows(rows).mean(0) for rows in used])


def decode_with(
    trained: TrainedEncoding, responses_NV: np.ndarray, true_ND: np.ndarray
) -> tuple[np.ndarray, Pictures, np.ndarray]:
    """Decode responses to test images.

    Parameters
    ----------
    true_ND : np.ndarray
        Flat embeddings of those images, only to refuse a library that holds one of them.

    Returns
    -------
    tuple[np.ndarray, Pictures, np.ndarray]
        embedding_ND, the library, and the log likelihood of its images (N x L).
    """
    pictures = library_pictures(trained.config, trained.spaces)
    refuse_test_pictures(pictures.embedding_LD, pictures.names, true_ND, pictures.where)
    found = trained.model.decode(responses_NV, pictures.library(trained.model))
    return found.embedding_ND, pictures, found.evidence_NL
