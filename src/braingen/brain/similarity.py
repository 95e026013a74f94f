"""Similarities between two sets of rows, and how often the right one comes first.

N rows of one set, M rows of the other, F features (tokens x CLIP width, flattened)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from braingen.errors import UserError


def cosine_matrix(left: Tensor, right: Tensor, *, centre: bool = False) -> Tensor:
    """Cosine of every row of one set with every row of the other (MindEye2).

    Parameters
    ----------
    left, right : Tensor
        N x ... and M x ..., flattened to N x F and M x F.
    centre : bool
        Take the mean unit row of its set away from every unit row first (rows are not scaled again, so that these are no cosines any more).

    Returns
    -------
    Tensor
        N x M.
    """
    left_NF, right_MF = (normalize(rows.flatten(1), dim=-1) for rows in (left, right))
    if centre:
        left_NF, right_MF = left_NF - left_NF.mean(0), right_MF - right_MF.mean(0)
    return left_NF @ right_MF.T


def correlation_matrix(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation of every row of one set with every row of the other, N x M."""
    left_NF, right_MF = (rows.flatten(1) for rows in (left, right))
    return cosine_matrix(left_NF - left_NF.mean(1, keepdim=True), right_MF - right_MF.mean(1, keepdim=True))


def top_k_accuracy(similarities_NM: Tensor, labels_N: Tensor, k: int = 1) -> Tensor:
    """Share of rows whose label is among their k largest similarities (all of them where k is M or above).

    Parameters
    ----------
    similarities_NM : Tensor
        Rows ask, columns are candidates.
    labels_N : Tensor
        The right column of every row.

    Raises
    ------
    UserError
        If k is below 1.
    """
    if k < 1:
        raise UserError(f"top-{k} accuracy was asked for; k must be at least 1")
    best_Nk = similarities_NM.topk(min(k, similarities_NM.shape[1]), dim=1).indices
    return (best_Nk == labels_N[:, None]).any(dim=1).to(torch.float32).mean()
