"""Ablations of voxels, experts and levels, compared with random ablations of the same size.

An ablation removes information, not offsets: voxels are set to 0 (their mean), and the output of an
expert is set to its mean over images. Experts of the next level still receive its units.

N images, V voxels, C classes, E experts, R random draws, F numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation.uncertainty import mean_interval
from braingen.interpret.experts import ExpertOutputs, VoxelRows, expert_outputs_of
from braingen.interpret.readout import DecoderPart
from braingen.runtime.errors import UserError


class AblationScores(NamedTuple):
    """Scores of every image from its decoded embedding."""

    cosine_N: np.ndarray
    """Cosine with the true embedding, both around the training mean."""
    found_N: np.ndarray
    """Whether the true embedding is the nearest among all test images, 0 or 1."""
    evidence_N: np.ndarray
    """Evidence for the classes of the image (mean over them); NaN without a class."""


def scores_of(
    outputs: Iterable[ExpertOutputs], true_NF: Tensor, direction_CF: Tensor, member_NC: np.ndarray
) -> AblationScores:
    """Score decoded embeddings.

    Parameters
    ----------
    outputs : Iterable[ExpertOutputs]
        Outputs of all images, in batches.
    true_NF : Tensor
        True embeddings in units around the training mean.
    direction_CF : Tensor
        Directions of classes.
    member_NC : np.ndarray
        Bool.
    """
    length_N = true_NF.norm(dim=1).clamp_min(1e-12)
    scores: list[AblationScores] = []
    done = 0
    for some in outputs:
        rows = slice(done, done := done + len(some.whole_NF))
        cosine_B = (normalize(some.whole_NF, dim=1) * true_NF[rows]).sum(dim=1) / length_N[rows]
        nearest_B = (some.clip_NF @ true_NF.T / length_N).argmax(dim=1).numpy()
        member_BC = member_NC[rows]
        with np.errstate(invalid="ignore"):
            own_B = ((some.whole_NF @ direction_CF.T).numpy() * member_BC).sum(
                axis=1
            ) / member_BC.sum(axis=1)
        scores.append(
            AblationScores(
                cosine_B.numpy(),
                (nearest_B == np.arange(rows.start, rows.stop)).astype(np.float64),
                own_B,
            )
        )
    return AblationScores(*(np.concatenate(each) for each in zip(*scores)))


def level_modules(embedding_decoder: EmbeddingDecoder) -> Sequence[nn.Module]:
    """The levels of a mixture of experts.

    Raises
    ------
    UserError
        For an encoder without experts.
    """
    encoder = embedding_decoder.encoder
    found = getattr(encoder, "levels", None) or (
        [encoder.level] if hasattr(encoder, "level") else None
    )
    if found is None:
        raise UserError(
            f"{type(encoder).__name__} has no experts to ablate; only regions can be ablated."
        )
    return list(found)


@contextmanager
def ablated(
    embedding_decoder: EmbeddingDecoder,
    part: DecoderPart,
    voxels_NV: VoxelRows,
    subject: int,
    batch_size: int = 64,
) -> Iterator[None]:
    """Context in which a level or an expert outputs its mean over the given images."""
    if part.level is None:
        raise ValueError("ablate a level or an expert, not the whole decoder")
    heads = cast(nn.Module, level_modules(embedding_decoder)[part.level].heads)
    device, sums = next(embedding_decoder.parameters()).device, [torch.zeros(()), torch.zeros(())]

    def count(_: nn.Module, __: object, out: tuple[Tensor, Tensor]) -> None:
        sums[:] = [
            sum_ETD.to(out_EBTD) + out_EBTD.sum(dim=1) for sum_ETD, out_EBTD in zip(sums, out)
        ]

    counted = heads.register_forward_hook(count)
    with torch.no_grad():
        for first in range(0, len(voxels_NV), batch_size):
            embedding_decoder.eval()(
                torch.as_tensor(voxels_NV[first : first + batch_size], device=device), subject
            )
    counted.remove()
    means = [sum_ETD / len(voxels_NV) for sum_ETD in sums]
    which = slice(None) if part.expert is None else slice(part.expert, part.expert + 1)

    def replace(_: nn.Module, __: object, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        changed = []
        for out_EBTD, mean_ETD in zip(out, means):
            out_EBTD = out_EBTD.clone()
            out_EBTD[which] = mean_ETD[which, None]
            changed.append(out_EBTD)
        return changed[0], changed[1]

    hook = heads.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class Ablation(NamedTuple):
    """Scores of every image after one ablation."""

    name: str
    voxels: int
    """Number of ablated voxels; 0 for experts and levels."""
    scores: AblationScores
    random: tuple[AblationScores, ...]
    """Scores after ablating as many random other voxels; empty for experts and levels."""


class WithoutVoxels:
    """Responses with ablated voxels, computed per slice to avoid a full copy."""

    def __init__(self, voxels_NV: VoxelRows, ablated_V: np.ndarray) -> None:
        self._voxels_NV, self._ablated_V = voxels_NV, ablated_V

    def __len__(self) -> int:
        return len(self._voxels_NV)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        changed_BV = np.array(self._voxels_NV[rows])
        changed_BV[:, self._ablated_V] = 0
        return changed_BV


def ablate_voxels(
    name: str,
    inside_V: np.ndarray,
    voxels_NV: VoxelRows,
    score: Callable[[VoxelRows], AblationScores],
    draws: int = 20,
    seed: int = 0,
) -> Ablation:
    """Ablate some voxels, and `draws` times the same number of random others.

    Parameters
    ----------
    inside_V : np.ndarray
        Bool, the voxels to ablate.
    score : Callable[[VoxelRows], AblationScores]
        Decodes responses and scores them.
    draws : int, optional
        R; 0 if there are fewer voxels outside than inside.
    """

    def without(ablated_V: np.ndarray) -> AblationScores:
        return score(WithoutVoxels(voxels_NV, ablated_V))

    rng = np.random.default_rng(seed)
    outside, count = np.flatnonzero(~inside_V), int(inside_V.sum())
    random = (
        tuple(without(rng.choice(outside, count, replace=False)) for _ in range(draws))
        if len(outside) >= count
        else ()
    )
    return Ablation(name, count, without(np.flatnonzero(inside_V)), random)


def ablate_part(
    embedding_decoder: EmbeddingDecoder,
    part: DecoderPart,
    voxels_NV: VoxelRows,
    subject: int,
    score: Callable[[Iterable[ExpertOutputs]], AblationScores],
) -> Ablation:
    """Ablate a level or an expert."""
    with ablated(embedding_decoder, part, voxels_NV, subject):
        return Ablation(
            part.name, 0, score(expert_outputs_of(embedding_decoder, voxels_NV, subject)), ()
        )


def ablation_table(
    before: AblationScores,
    ablations: Sequence[Ablation],
    groups: dict[str, np.ndarray],
    seed: int = 0,
) -> pd.DataFrame:
    """Loss of every score by every ablation, over all images and per class.

    Parameters
    ----------
    before : AblationScores
        Scores with nothing ablated.
    groups : dict[str, np.ndarray]
        Name -> bool N, such as "all" and the classes.

    Returns
    -------
    pd.DataFrame
        Columns ablated, voxels, images (the group), n, score, before, loss (before less after),
        low, high (95 % interval of the loss, over images), random (mean loss over the random
        draws), excess (loss less random), excess_low, excess_high (over images), p_random (share of
        random draws with the same or a larger loss; counts the ablation itself).
    """
    rows = []
    for ablation in ablations:
        for field in AblationScores._fields:
            start_N = getattr(before, field)
            loss_N = start_N - getattr(ablation.scores, field)
            random_RN = np.array(
                [start_N - getattr(each, field) for each in ablation.random]
            ).reshape(-1, len(start_N))
            for group, inside_N in groups.items():
                queries_N = inside_N & np.isfinite(loss_N)
                if not queries_N.any():
                    continue
                interval = mean_interval(loss_N[queries_N], 2000, seed)
                row = {
                    "ablated": ablation.name,
                    "voxels": ablation.voxels,
                    "images": group,
                    "n": int(queries_N.sum()),
                    "score": field.removesuffix("_N"),
                    "before": float(start_N[queries_N].mean()),
                    "loss": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                }
                if len(random_RN):
                    excess = mean_interval((loss_N - random_RN.mean(axis=0))[queries_N], 2000, seed)
                    random_R = random_RN[:, queries_N].mean(axis=1)
                    row |= {
                        "random": float(random_R.mean()),
                        "excess": excess.value,
                        "excess_low": excess.low,
                        "excess_high": excess.high,
                        "p_random": (1 + int((random_R >= interval.value).sum()))
                        / (1 + len(random_R)),
                    }
                rows.append(row)
    return pd.DataFrame(rows)
