"""Ridge regression from the test trials to the target embeddings: the baseline of every decoder."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.sealed_runs import at_training_data
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.encoders.ridge import fit_ridge
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets


def training_mean(config: Config, targets: Targets, modality: str = "image") -> Tensor:
    """Mean embedding of the subject's distinct training images in CLIP's own units, flattened."""
    table = train_trials(
        Layout.of(config.data.root), config.data.subjects[0], config.data.num_sessions
    ).table
    known_ND = targets.of(modality, np.unique(table["image"].to_numpy())).flatten(1)
    return torch.from_numpy(known_ND.numpy().mean(0))


def ridge_embeddings(
    config: Config, targets: Targets, ids: np.ndarray, modality: str = "image"
) -> tuple[Tensor, Tensor]:
    """Predict the test images' embeddings by cross-validated ridge regression.

    Ridge uses all training trials, the encoders' validation images included: it chooses its
    penalty by leave-one-image-out cross-validation.

    Returns
    -------
    tuple[Tensor, Tensor]
        raw_ND, mean_D : predictions in CLIP's own units, and the training mean.
    """
    training, subject = at_training_data(config), config.data.subjects[0]
    layout = Layout.of(training.data.root)
    betas = Betas.of(layout, subject)
    table = train_trials(layout, subject, config.data.num_sessions).table
    images = table["image"].to_numpy()
    known, row = np.unique(images, return_inverse=True)
    true_ND = (
        (targets if training == config else Targets(training))
        .of(modality, known)
        .flatten(1)
        .numpy()
    )
    ridge = fit_ridge(betas.rows(table["trial"].to_numpy()), true_ND[row], images)
    test_layout = Layout.of(config.data.root)
    repeats, betas = (
        group_repeats(test_trials(test_layout, subject)),
        Betas.of(test_layout, subject),
    )
    rows_of_image = dict(zip(repeats.image_N.tolist(), repeats.rows_NR))
    used = [rows_of_image[int(image)] for image in ids]
    used = [rows[rows >= 0] for rows in used]
    if config.generation.repeats == "first":
        used = [rows[:1] for rows in used]
    voxels = np.stack([betas.rows(rows).mean(0) for rows in used])
    return torch.from_numpy(ridge.predict(voxels)), torch.from_numpy(true_ND.mean(0))
