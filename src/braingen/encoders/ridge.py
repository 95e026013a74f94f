"""The baseline of every decoder: cross-validated ridge regression from voxels to CLIP targets.

N trials, B of them at a time, V voxels, D target width, A penalties, R rank (the smaller of N and
V), G images of M presentations each.

The penalty is chosen by leaving out one *image* at a time with all its presentations; leaving out
one trial would leak the answer through the image's other presentations. No model is fitted
again for that: with the centred voxels X = Z Q' (Q the eigenvectors of X'X, l its eigenvalues) the
left-out residuals of an image's rows are (I - H)^-1 e, where H = 1/N + Z diag(1 / (l + penalty)) Z'
on those rows and e are the residuals of the full fit. This is exact, and one eigendecomposition, of
the smaller of X'X and XX', serves them all.

Voxels are read in blocks, so memory maps of any length work; memory holds the R x R matrix, its
eigenvectors and a few R x D products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.runtime.errors import UserError

RELATIVE_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 9))
"""Grid of penalties as multiples of the mean eigenvalue of X'X; the optimum on NSD is inside."""
_LARGEST_DOUBLE = 2000
"""Rank up to which the decomposition is in float64; float32 keeps 15 724 voxels at 1 GB."""
_ROWS = 1024
"""Trials, or voxels, read at a time."""


class LinearMap(NamedTuple):
    """A linear map from voxels to targets, around means."""

    coefficients_VD: np.ndarray
    """float32."""
    voxel_mean_V: np.ndarray
    target_mean_D: np.ndarray


class Ridge(NamedTuple):
    """A fitted ridge regression."""

    coefficients_VD: np.ndarray
    """float32."""
    voxel_mean_V: np.ndarray
    target_mean_D: np.ndarray
    penalty_D: np.ndarray
    """Chosen penalty of every target (one value throughout unless ``per_target``)."""
    penalties_A: np.ndarray
    """The grid."""
    error_A: np.ndarray
    """Squared error of left-out images over the targets' variance, per penalty of the grid: 1 is
    what predicting the mean would give.
    """

    def predict(self, voxels_NV: np.ndarray) -> np.ndarray:
        """Predicted targets, N x D, float32."""
        if voxels_NV.ndim != 2 or voxels_NV.shape[1] != len(self.voxel_mean_V):
            raise UserError(
                f"The voxels are of shape {voxels_NV.shape}; this ridge was fitted on"
                f" {len(self.voxel_mean_V)} voxels."
            )
        return (
            voxels_NV.astype(np.float32) - self.voxel_mean_V
        ) @ self.coefficients_VD + self.target_mean_D


def average_repeats(values_NV: np.ndarray, image_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the presentations of every image; returns means (float32) and ascending ids."""
    ids, inverse, times = np.unique(image_N, return_inverse=True, return_counts=True)
    sums = np.zeros((len(ids), values_NV.shape[1]))
    np.add.at(sums, inverse, values_NV)
    return (sums / times[:, None]).astype(np.float32), ids


class _Factors(NamedTuple):
    """The centred voxels as Z Q', and the targets' projection onto them."""

    eigenvalues_R: Tensor
    vectors_RR: Tensor
    """Eigenvectors of X'X (rows are voxels), or of XX' (rows are trials) when there are fewer
    trials than voxels.
    """
    projected_RD: Tensor
    """Z' Y."""
    dual: bool


def _slices(length: int) -> Iterator[slice]:
    for start in range(0, length, _ROWS):
        yield slice(start, min(start + _ROWS, length))


def _factorise(
    voxels_NV: np.ndarray, targets_ND: Tensor, mean_V: np.ndarray, device: str
) -> _Factors:
    """One pass over the voxels for the smaller Gram matrix, then its eigendecomposition."""
    trials, voxels = voxels_NV.shape
    rank, dual = min(trials, voxels), trials < voxels
    dtype = torch.float64 if rank <= _LARGEST_DOUBLE else torch.float32
    gram_RR = torch.zeros(rank, rank, dtype=dtype, device=device)
    products_RD = torch.zeros(rank, targets_ND.shape[1], dtype=dtype, device=device)
    for part in _slices(voxels if dual else trials):
        block = voxels_NV[:, part] - mean_V[part] if dual else voxels_NV[part] - mean_V
        x = torch.as_tensor(block).to(device, dtype)
        gram_RR += x @ x.T if dual else x.T @ x
        if not dual:
            products_RD += x.T @ targets_ND[part].to(device, dtype)
    eigenvalues_R, vectors_RR = torch.linalg.eigh(gram_RR)
    del gram_RR
    eigenvalues_R = eigenvalues_R.clamp(min=0)
    if dual:
        projected_RD = eigenvalues_R.sqrt()[:, None] * (vectors_RR.T @ targets_ND.to(device, dtype))
    else:
        projected_RD = vectors_RR.T @ products_RD
    return _Factors(eigenvalues_R, vectors_RR, projected_RD, dual)


def _image_blocks(image_N: np.ndarray) -> Iterator[np.ndarray]:
    """Yield row numbers, about ``_ROWS`` at a time; presentations of an image stay in one block."""
    order = np.argsort(image_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(image_N[order])) + 1, len(order))
    begin = 0
    for end in ends:
        if end - begin >= _ROWS or end == len(order):
            yield order[begin:end]
            begin = end


def _left_out(
    residuals_BD: Tensor, z_BR: Tensor, shrinkage_R: Tensor, image_B: np.ndarray, trials: int
) -> Tensor:
    """Residuals of every image's rows for the fit without it. Rows of one image are adjacent."""
    _, first, times = np.unique(image_B, return_index=True, return_counts=True)
    out_BD = torch.empty_like(residuals_BD)
    for repeats in np.unique(times):
        rows_GM = torch.as_tensor(
            first[times == repeats][:, None] + np.arange(repeats), device=z_BR.device
        )
        z_GMR = z_BR[rows_GM]
        hat_GMM = (z_GMR * shrinkage_R) @ z_GMR.mT + 1 / trials
        identity = torch.eye(int(repeats), dtype=hat_GMM.dtype, device=hat_GMM.device)
        out_BD[rows_GM] = torch.linalg.solve(identity - hat_GMM, residuals_BD[rows_GM])
    return out_BD


def fit_ridge(
    voxels_NV: np.ndarray,
    targets_ND: np.ndarray,
    image_N: np.ndarray,
    relative_penalties: Sequence[float] = RELATIVE_PENALTIES,
    per_target: bool = False,
    device: str = "cpu",
) -> Ridge:
    """Fit ridge regression with an intercept and leave-one-image-out choice of the penalty.

    Parameters
    ----------
    voxels_NV : np.ndarray
        Responses, one row per trial, z-scored; an array or memory map.
    targets_ND : np.ndarray
        What to predict for every trial, e.g. the CLIP embedding of its image, tokens flattened.
    image_N : np.ndarray
        Image id of every trial.
    relative_penalties : Sequence[float], optional
        Grid, as multiples of the mean eigenvalue of X'X.
    per_target : bool, optional
        A penalty for every target instead of one for all.
    device : str, optional
        Where the products and the decomposition are computed.

    Raises
    ------
    UserError
        When shapes disagree, there are fewer than three images, or voxels or targets hold NaN.
    """
    trials = len(voxels_NV)
    image_N = np.asarray(image_N)
    if (
        voxels_NV.ndim != 2
        or targets_ND.ndim != 2
        or len(targets_ND) != trials
        or image_N.shape != (trials,)
    ):
        shapes = (
            f"Voxels {voxels_NV.shape}, targets {targets_ND.shape} and image ids {image_N.shape}"
        )
        raise UserError(f"{shapes} must be trials x voxels, trials x width, and trials.")
    if len(np.unique(image_N)) < 3:
        raise UserError(
            "Cross-validation over images needs at least 3 of them; there are"
            f" {len(np.unique(image_N))}."
        )
    mean_V = np.zeros(voxels_NV.shape[1])
    for part in _slices(trials):
        mean_V += voxels_NV[part].sum(0, dtype=np.float64) / trials
    target_mean_D = targets_ND.mean(0, dtype=np.float64)
    if not (np.isfinite(mean_V).all() and np.isfinite(target_mean_D).all()):
        bad = int((~np.isfinite(mean_V)).sum())
        raise UserError(
            f"{bad} voxels and {int((~np.isfinite(target_mean_D)).sum())} targets hold NaN or"
            " infinity; mask them before fitting."
        )
    mean_V = mean_V.astype(np.float32)
    targets = torch.as_tensor(targets_ND.astype(np.float32) - target_mean_D.astype(np.float32))
    factors = _factorise(voxels_NV, targets, mean_V, device)
    dtype = factors.vectors_RR.dtype
    penalties_A = np.asarray(relative_penalties, dtype=np.float64) * max(
        float(factors.eigenvalues_R.mean()), 1e-12
    )

    error_AD = torch.zeros(len(penalties_A), targets.shape[1], dtype=torch.float64)
    for rows in _image_blocks(image_N):
        if factors.dual:
            z_BR = (
                factors.vectors_RR[torch.as_tensor(rows, device=device)]
                * factors.eigenvalues_R.sqrt()
            )
        else:
            z_BR = (
                torch.as_tensor(voxels_NV[np.sort(rows)][np.argsort(np.argsort(rows))] - mean_V).to(
                    device, dtype
                )
                @ factors.vectors_RR
            )
        y_BD = targets[torch.as_tensor(rows)].to(device, dtype)
        for number, penalty in enumerate(penalties_A):
            shrinkage_R = 1 / (factors.eigenvalues_R + penalty)
            residuals_BD = y_BD - (z_BR * shrinkage_R) @ factors.projected_RD
            error_AD[number] += (
                _left_out(residuals_BD, z_BR, shrinkage_R, image_N[rows], trials)
                .square()
                .sum(0)
                .double()
                .cpu()
            )

    best_D = error_AD.argmin(0) if per_target else error_AD.sum(1).argmin().expand(targets.shape[1])
    penalty_D = torch.as_tensor(penalties_A)[best_D]
    weights_RD = factors.projected_RD / (
        factors.eigenvalues_R[:, None] + penalty_D.to(device, dtype)
    )
    if factors.dual:
        # X' U diag(1 / (l + penalty)) U' Y, and Z' Y above is sqrt(l) U' Y
        inverse_R = torch.where(factors.eigenvalues_R > 0, factors.eigenvalues_R.rsqrt(), 0)
        weights_ND = (factors.vectors_RR @ (inverse_R[:, None] * weights_RD)).float()
        coefficients_VD = np.empty((voxels_NV.shape[1], targets.shape[1]), dtype=np.float32)
        for part in _slices(voxels_NV.shape[1]):
            block = torch.as_tensor(voxels_NV[:, part] - mean_V[part]).to(device, torch.float32)
            coefficients_VD[part] = (block.T @ weights_ND).cpu().numpy()
    else:
        coefficients_VD = (factors.vectors_RR @ weights_RD).float().cpu().numpy()
    return Ridge(
        coefficients_VD=coefficients_VD,
        voxel_mean_V=mean_V,
        target_mean_D=target_mean_D.astype(np.float32),
        penalty_D=penalty_D.numpy(),
        penalties_A=penalties_A,
        error_A=(error_AD.sum(1) / targets.double().square().sum()).numpy(),
    )
