"""Ablations: silence something, decode again, and compare with silencing as much of anything else.

Silencing takes information away, not offsets: voxels are set to 0 (their mean), and what an expert says is set to its mean over the
images. An expert is silenced in what it says; the experts that read its units go on.

N images, V voxels, C classes, E experts, R random draws, F numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from braingen.brain.reader import BrainReader
from braingen.errors import UserError
from braingen.explain.experts import Said, listen
from braingen.explain.readout import Part
from braingen.scores.uncertainty import mean_interval


class ImageScores(NamedTuple):
    """Scores of every image from its decoded embedding."""

    cosine_N: np.ndarray
    """Cosine with the true embedding, both around the training mean."""
    found_N: np.ndarray
    """Whether the true embedding is the nearest of all test images', 0 or 1."""
    evidence_N: np.ndarray
    """How far the embedding points to the image's own classes (mean over them); NaN for an image without one."""


def scores_of(said: Said, true_NF: Tensor, direction_CF: Tensor, member_NC: np.ndarray) -> ImageScores:
    """Score what was decoded.

    Parameters
    ----------
    true_NF : true embeddings in units around the training mean
    direction_CF : directions of classes
    member_NC : bool
    """
    true_unit_NF = normalize(true_NF, dim=1)
    cosine_N = (normalize(said.whole_NF, dim=1) * true_unit_NF).sum(dim=1).numpy()
    nearest_N = (normalize(said.clip_NF, dim=1) @ true_unit_NF.T).argmax(dim=1).numpy()
    evidence_NC = (said.whole_NF @ direction_CF.T).numpy()
    with np.errstate(invalid="ignore"):
        own_N = (evidence_NC * member_NC).sum(axis=1) / member_NC.sum(axis=1)
    return ImageScores(cosine_N, (nearest_N == np.arange(len(nearest_N))).astype(np.float64), own_N)


def level_modules(reader: BrainReader) -> Sequence[nn.Module]:
    """The levels of a mixture of experts.

    Raises
    ------
    UserError
        For an encoder without experts.
    """
    encoder = reader.encoder
    found = getattr(encoder, "levels", None) or ([encoder.level] if hasattr(encoder, "level") else None)
    if found is None:
        raise UserError(f"{type(encoder).__name__} has no experts to silence; its regions can be (--ablate regions).")
    return list(found)


@contextmanager
def silenced(reader: BrainReader, part: Part, voxels_NV: Tensor, subject: int) -> Iterator[None]:
    """Within it, a level or an expert says the same for every image: its mean over the given ones."""
    if part.level is None:
        raise ValueError("silence a level or an expert, not the whole decoder")
    heads = cast(nn.Module, level_modules(reader)[part.level].heads)
    means: list[tuple[Tensor, Tensor]] = []
    counted = heads.register_forward_hook(lambda _, __, out: means.append((out[0].mean(dim=1).detach(), out[1].mean(dim=1).detach())))
    with torch.no_grad():
        reader.eval()(voxels_NV, subject)
    counted.remove()
    which = slice(None) if part.expert is None else slice(part.expert, part.expert + 1)

    def replace(_: nn.Module, __: object, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        changed = []
        for said_EBTD, mean_ETD in zip(out, means[0]):
            said_EBTD = said_EBTD.clone()
            said_EBTD[which] = mean_ETD[which, None]
            changed.append(said_EBTD)
        return changed[0], changed[1]

    hook = heads.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class Ablation(NamedTuple):
    """What silencing one thing changed, image by image."""

    name: str
    voxels: int
    """How many were silenced; 0 where experts were."""
    scores: ImageScores
    random: tuple[ImageScores, ...]
    """The same after silencing as many voxels drawn at random from the others; empty for experts and levels."""


def ablate_voxels(
    name: str, inside_V: np.ndarray, voxels_NV: np.ndarray, score: Callable[[np.ndarray], ImageScores], draws: int = 20, seed: int = 0
) -> Ablation:
    """Silence some voxels, then, `draws` times, as many of the others.

    Parameters
    ----------
    inside_V : bool, the voxels in question
    score : decodes responses and scores them
    draws : R; fewer voxels outside than inside: there is nothing to draw as many from, so none are drawn
    """

    def without(silent_V: np.ndarray) -> ImageScores:
        changed_NV = voxels_NV.copy()
        changed_NV[:, silent_V] = 0
        return score(changed_NV)

    rng = np.random.default_rng(seed)
    outside, count = np.flatnonzero(~inside_V), int(inside_V.sum())
    random = tuple(without(rng.choice(outside, count, replace=False)) for _ in range(draws)) if len(outside) >= count else ()
    return Ablation(name, count, without(np.flatnonzero(inside_V)), random)


def ablate_part(reader: BrainReader, part: Part, voxels_NV: np.ndarray, subject: int, score: Callable[[Said], ImageScores]) -> Ablation:
    """Silence a level or an expert."""
    device = next(reader.parameters()).device
    with silenced(reader, part, torch.as_tensor(voxels_NV, device=device), subject):
        return Ablation(part.name, 0, score(listen(reader, voxels_NV, subject)), ())


def ablation_table(before: ImageScores, ablations: Sequence[Ablation], groups: dict[str, np.ndarray], seed: int = 0) -> pd.DataFrame:
    """Loss of every score by every ablation, over all images and over those of every class.

    Parameters
    ----------
    before : scores with nothing silenced
    groups : name -> bool N, such as "all" and the classes

    Returns
    -------
    columns silenced, voxels, images (the group), n, score, before, loss (before less after), low, high (95 % interval of the loss, over
    images), random (mean loss over the random draws), excess (loss less random), excess_low, excess_high (over images), p_random (share of
    random draws that cost as much or more; counts the ablation itself)
    """
    rows = []
    for ablation in ablations:
        for field in ImageScores._fields:
            start_N = getattr(before, field)
            loss_N = start_N - getattr(ablation.scores, field)
            random_RN = np.array([start_N - getattr(each, field) for each in ablation.random]).reshape(-1, len(start_N))
            for group, inside_N in groups.items():
                asked_N = inside_N & np.isfinite(loss_N)
                if not asked_N.any():
                    continue
                interval = mean_interval(loss_N[asked_N], 2000, seed)
                row = {
                    "silenced": ablation.name,
                    "voxels": ablation.voxels,
                    "images": group,
                    "n": int(asked_N.sum()),
                    "score": field.removesuffix("_N"),
                    "before": float(start_N[asked_N].mean()),
                    "loss": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                }
                if len(random_RN):
                    excess = mean_interval((loss_N - random_RN.mean(axis=0))[asked_N], 2000, seed)
                    drawn_R = random_RN[:, asked_N].mean(axis=1)
                    row |= {
                        "random": float(drawn_R.mean()),
                        "excess": excess.value,
                        "excess_low": excess.low,
                        "excess_high": excess.high,
                        "p_random": (1 + int((drawn_R >= interval.value).sum())) / (1 + len(drawn_R)),
                    }
                rows.append(row)
    return pd.DataFrame(rows)
