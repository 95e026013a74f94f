"""Banded ridge regression from image features to voxels, all voxels at once, in closed form.

Every band (one feature space) has its own penalty (Nunez-Elizalde 2019; Dupre la Tour 2022). Bands
are scaled, each candidate set of scales is a plain ridge, and every voxel keeps the scales and the
penalty that predict images best that were left out. Presentations are averaged and weighted by
their number, so that leaving a row out leaves an image out. With rows A = Z Q' (l the eigenvalues
of A'A) the left-out residual of a row is e / (1 - h), where h = t / sum(t) + sum_r z_r^2 /
(l_r + penalty): exact, and no model is fitted again.

N images, J of them left out, P features, R rank (the smaller of N and P), V voxels, C candidates, A
penalties. Voxels are worked on in pieces: beside features and responses, memory holds a few arrays
of P x P, J x V and P x V.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.runtime.errors import UserError

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-8, 4))
"""Grid of penalties, as multiples of the trace of A'A when all bands have scale 1."""
PIECE = 2048
"""Voxels worked on at once."""
LEFT_OUT = 2000
"""Most images left out to choose penalties; a random share of more."""
LARGEST_DOUBLE = 2000
"""Rank up to which decompositions are in float64."""


class BandedRidge(NamedTuple):
    """A fitted banded ridge regression."""

    coefficients_PV: np.ndarray
    """Weights of the features, bands one after another, in their own units; float32."""
    feature_mean_P: np.ndarray
    voxel_mean_V: np.ndarray
    bands: dict[str, int]
    """Width of every band, in order."""
    scales_CB: np.ndarray
    """Candidate scales of the bands; squares sum to 1."""
    candidate_V: np.ndarray
    """Row of ``scales_CB`` that every voxel chose."""
    penalty_V: np.ndarray
    """Chosen penalty, as a multiple of the trace."""
    explained_V: np.ndarray
    """Share of the variance of averaged responses that is explained in left-out images."""
    residual_JV: np.ndarray
    """Left-out residuals of the left-out images, times the root of their presentations."""
    left_out_J: np.ndarray
    """Rows of the images that were left out."""

    def slices(self) -> dict[str, slice]:
        """Where the features of every band are."""
        return band_slices(self.bands)

    def predict(self, features: Mapping[str, np.ndarray], dtype: type = np.float32) -> np.ndarray:
        """Predicted responses, N x V.

        Raises
        ------
        UserError
            When a band is missing or has another width.
        """
        x_NP = stack_bands(features, self.bands)
        return ((x_NP - self.feature_mean_P) @ self.coefficients_PV + self.voxel_mean_V).astype(
            dtype, copy=False
        )


def band_slices(bands: Mapping[str, int]) -> dict[str, slice]:
    """Columns of every band."""
    ends = np.cumsum(list(bands.values())).tolist()
    return {name: slice(end - width, end) for (name, width), end in zip(bands.items(), ends)}


def stack_bands(features: Mapping[str, np.ndarray], bands: Mapping[str, int]) -> np.ndarray:
    """Put the bands of some images side by side: N x P, float32."""
    for name, width in bands.items():
        if name not in features:
            raise UserError(
                f"The band '{name}' is missing; there are {', '.join(features) or 'none'}."
            )
        if features[name].ndim != 2 or features[name].shape[1] != width:
            raise UserError(
                f"The band '{name}' has shape {features[name].shape}; images x {width} was"
                " expected."
            )
    return np.concatenate([features[name] for name in bands], axis=1, dtype=np.float32)


def candidate_scales(bands: int, draws: int, seed: int = 0) -> np.ndarray:
    """Candidate scales of bands (C x B): each alone, all alike, and Dirichlet draws between.

    Squares of a row sum to 1, so that one penalty means the same for all.
    """
    if bands == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).dirichlet(np.ones(bands), size=draws)
    shares = np.concatenate([np.full((1, bands), 1 / bands), np.eye(bands), drawn])
    return np.sqrt(shares)


class _Centred(NamedTuple):
    """Features and responses, centred, each image weighted by the root of its presentations."""

    features_NP: Tensor
    root_N: Tensor
    trace: float

    def responses(self, responses_NV: np.ndarray, mean_V: np.ndarray, part: slice) -> Tensor:
        block = torch.as_tensor(responses_NV[:, part] - mean_V[part])
        return block.to(self.features_NP) * self.root_N[:, None]


def fit_banded_ridge(
    features: Mapping[str, np.ndarray],
    responses_NV: np.ndarray,
    times_N: np.ndarray | None = None,
    scales_CB: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    left_out: int = LEFT_OUT,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_candidate: Callable[[], object] = lambda: None,
) -> BandedRidge:
    """Fit banded ridge regression, with scales and penalty of every voxel chosen on left-out
    images.

    Parameters
    ----------
    features : Mapping[str, np.ndarray]
        Bands of the images: name -> N x width.
    responses_NV : np.ndarray
        Responses, averaged over the presentations of every image.
    times_N : np.ndarray | None, optional
        Presentations of every image; None: one each.
    scales_CB : np.ndarray | None, optional
        Candidate scales; None: `candidate_scales` with four draws per band.
    penalties : Sequence[float], optional
        Grid, as multiples of the trace of A'A.
    left_out : int, optional
        Most images left out in turn.
    seed : int, optional
        Of the draw of those, and of scales.
    device : torch.device | str, optional
        Where products and decompositions are computed.
    on_candidate : Callable[[], object], optional
        Called after every candidate, for progress bars.

    Raises
    ------
    UserError
        For fewer than three images, NaN or infinite values, and a band without variance.
    """
    bands = {name: values.shape[1] for name, values in features.items()}
    x_NP = stack_bands(features, bands)
    images = len(x_NP)
    times_N = np.ones(images) if times_N is None else np.asarray(times_N, dtype=np.float64)
    check_fit(x_NP, responses_NV, times_N)
    if scales_CB is None:
        scales_CB = candidate_scales(len(bands), 4 * len(bands), seed)
    share_N = times_N / times_N.sum()
    feature_mean_P = (share_N @ x_NP).astype(np.float32)
    voxel_mean_V = (share_N @ responses_NV).astype(np.float32)
    x_NP = x_NP - feature_mean_P
    size_P = _sizes(x_NP, share_N, bands)
    x_NP /= size_P

    rank = min(x_NP.shape)
    dtype = torch.float64 if rank <= LARGEST_DOUBLE else torch.float32
    root_N = torch.as_tensor(np.sqrt(times_N)).to(device, dtype)
    data = _Centred(
        torch.as_tensor(x_NP).to(device, dtype) * root_N[:, None], root_N, float(times_N.sum())
    )
    rows_J = np.arange(images)
    if images > left_out:
        rows_J = np.sort(np.random.default_rng(seed).permutation(images)[:left_out])
    best = _Best(len(rows_J), x_NP.shape[1], responses_NV.shape[1])
    solve = _Solver(data, bands, responses_NV, voxel_mean_V, rows_J, share_N)
    for number, scales_B in enumerate(scales_CB):
        solve.candidate(number, scales_B, penalties, best)
        on_candidate()
    total_V = np.zeros(responses_NV.shape[1])
    for part in _pieces(responses_NV.shape[1]):
        y_JV = data.responses(responses_NV, voxel_mean_V, part)[torch.as_tensor(rows_J)]
        total_V[part] = y_JV.square().sum(0).cpu().numpy()
    best.coefficients_PV /= size_P[:, None]
    return BandedRidge(
        best.coefficients_PV,
        feature_mean_P,
        voxel_mean_V,
        bands,
        scales_CB,
        best.candidate_V,
        best.penalty_V,
        (1 - best.error_V / np.maximum(total_V, 1e-12)).astype(np.float32),
        best.residual_JV,
        rows_J,
    )


def check_fit(x_NP: np.ndarray, responses_NV: np.ndarray, times_N: np.ndarray) -> None:
    if responses_NV.ndim != 2 or len(responses_NV) != len(x_NP) or len(times_N) != len(x_NP):
        raise UserError(
            f"Features of {len(x_NP)} images, responses of shape {responses_NV.shape} and"
            f" {len(times_N)} numbers of presentations must belong to the same images."
        )
    if len(x_NP) < 3:
        raise UserError(
            f"Cross-validation over images needs at least 3 of them; there are {len(x_NP)}."
        )
    finite = np.isfinite(x_NP).all() and all(
        np.isfinite(responses_NV[:, part]).all() for part in _pieces(responses_NV.shape[1])
    )
    if not finite:
        raise UserError("Features or responses hold NaN or infinity; mask them before fitting.")


def _sizes(x_NP: np.ndarray, share_N: np.ndarray, bands: Mapping[str, int]) -> np.ndarray:
    """Root of every band's total variance, for each of its features: scaled bands count alike."""
    size_P = np.empty(x_NP.shape[1], dtype=np.float32)
    for name, part in band_slices(bands).items():
        total = float((share_N @ np.square(x_NP[:, part], dtype=np.float64)).sum())
        if total <= 1e-12:
            raise UserError(
                f"The band '{name}' is the same for all images: leave it out of encoding.bands."
            )
        size_P[part] = np.sqrt(total)
    return size_P


def _pieces(voxels: int) -> list[slice]:
    return [slice(start, min(start + PIECE, voxels)) for start in range(0, voxels, PIECE)]


class _Best:
    """What every voxel has chosen so far."""

    def __init__(self, left_out: int, features: int, voxels: int) -> None:
        self.error_V = np.full(voxels, np.inf)
        self.candidate_V = np.zeros(voxels, dtype=np.int64)
        self.penalty_V = np.zeros(voxels)
        self.residual_JV = np.zeros((left_out, voxels), dtype=np.float32)
        self.coefficients_PV = np.zeros((features, voxels), dtype=np.float32)


class _Solver:
    """Products of features and responses, made once, and the ridge of every candidate."""

    def __init__(
        self,
        data: _Centred,
        bands: Mapping[str, int],
        responses_NV: np.ndarray,
        mean_V: np.ndarray,
        rows_J: np.ndarray,
        share_N: np.ndarray,
    ) -> None:
        self.data, self.bands = data, bands
        self.responses_NV, self.mean_V = responses_NV, mean_V
        x_NP = data.features_NP
        self.rows_J = torch.as_tensor(rows_J, device=x_NP.device)
        self.share_J = torch.as_tensor(share_N).to(x_NP)[self.rows_J]
        self.dual = x_NP.shape[0] < x_NP.shape[1]
        self.products: list[Tensor] = []
        if self.dual:
            self.grams = [x_NP[:, part] @ x_NP[:, part].T for part in band_slices(bands).values()]
        else:
            self.grams = [x_NP.T @ x_NP]
            for part in _pieces(responses_NV.shape[1]):
                y_NV = data.responses(responses_NV, mean_V, part)
                self.products.append((x_NP.T @ y_NV).float())

    def candidate(
        self, number: int, scales_B: np.ndarray, penalties: Sequence[float], best: _Best
    ) -> None:
        """Fit one set of scales at all penalties, and let voxels choose it."""
        x_NP, trace = self.data.features_NP, self.data.trace
        scale_P = torch.cat(
            [
                torch.full((width,), float(scale)).to(x_NP)
                for scale, width in zip(scales_B, self.bands.values())
            ]
        )
        if self.dual:
            gram = sum(float(s) ** 2 * gram for s, gram in zip(scales_B, self.grams))
        else:
            gram = self.grams[0] * scale_P[:, None] * scale_P
        value_R, vector_RR = torch.linalg.eigh(gram)
        del gram
        value_R = value_R.clamp(min=0)
        if self.dual:
            z_JR = vector_RR[self.rows_J] * value_R.sqrt()
        else:
            z_JR = (x_NP[self.rows_J] * scale_P) @ vector_RR
        square_JR = z_JR.square()
        for piece, part in enumerate(_pieces(self.responses_NV.shape[1])):
            y_NV = self.data.responses(self.responses_NV, self.mean_V, part)
            if self.dual:
                q_RV = value_R.sqrt()[:, None] * (vector_RR.T @ y_NV)
            else:
                q_RV = vector_RR.T @ (scale_P[:, None] * self.products[piece].to(x_NP))
            y_JV = y_NV[self.rows_J]
            chosen_V = torch.full((q_RV.shape[1],), -1, device=x_NP.device)
            error_V = torch.as_tensor(best.error_V[part], device=x_NP.device)
            residual_JV = torch.zeros_like(y_JV)
            for index, penalty in enumerate(penalties):
                shrink_R = 1 / (value_R + penalty * trace)
                left_J = 1 - self.share_J - square_JR @ shrink_R
                out_JV = (y_JV - (z_JR * shrink_R) @ q_RV) / left_J.clamp(min=1e-6)[:, None]
                sum_V = out_JV.square().sum(0).double()
                better_V = sum_V < error_V
                error_V = torch.where(better_V, sum_V, error_V)
                chosen_V[better_V] = index
                residual_JV[:, better_V] = out_JV[:, better_V]
            columns = torch.nonzero(chosen_V >= 0).flatten()
            if not len(columns):
                continue
            penalty_W = torch.tensor(penalties, dtype=torch.float64, device=x_NP.device)[
                chosen_V[columns]
            ]
            weights_RW = q_RV[:, columns] / (value_R[:, None] + penalty_W.to(x_NP) * trace)
            if self.dual:
                inverse_R = torch.where(value_R > 0, value_R.rsqrt(), 0)
                rows_NW = vector_RR @ (inverse_R[:, None] * weights_RW)
                found_PW = scale_P[:, None] ** 2 * (x_NP.T @ rows_NW)
            else:
                found_PW = scale_P[:, None] * (vector_RR @ weights_RW)
            where = part.start + columns.cpu().numpy()
            best.error_V[part] = error_V.cpu().numpy()
            best.candidate_V[where] = number
            best.penalty_V[where] = penalty_W.cpu().numpy()
            best.residual_JV[:, where] = residual_JV[:, columns].float().cpu().numpy()
            best.coefficients_PV[:, where] = found_PW.float().cpu().numpy()
