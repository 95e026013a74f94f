"""Two-way identification, correlation distance and retrieval, on features or embeddings.

N images, F features, D embedding width, P candidates of a retrieval. Feature matrices may be arrays
or memory maps of any size: they are read once, in blocks of features, and never copied whole.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.runtime.errors import UserError

RETRIEVAL_POOL = 300
"""Candidates of a retrieval (MindEye2's evaluation)."""
RETRIEVAL_DRAWS = 30
"""Random pools whose mean is reported (MindEye2's evaluation)."""
TIE = 1e-12
"""Correlations nearer than this are ties: the rounding error of a float64 correlation."""

Precision = Literal["int8", "float32", "float64"]
_FINER: dict[Precision, Precision | None] = {
    "int8": "float32",
    "float32": "float64",
    "float64": None,
}
_BLOCK_VALUES = 4_000_000
"""Values of one block of features (16 MB in float32) held at a time, of either matrix."""


class FlatFeatures(UserError):
    """Some rows of features are constant or hold NaN, so their correlation is undefined."""

    def __init__(self, rows: np.ndarray, what: str) -> None:
        super().__init__(
            f"Row {rows[0]} of the {what} is constant or holds NaN ({len(rows)} such rows); it"
            " cannot be correlated."
        )
        self.rows = rows
        self.what = what


class TwoWay(NamedTuple):
    """Two-way identification of N reconstructions."""

    beats_NN: np.ndarray
    """bool, (images, reconstructions): image i correlates less with reconstruction j than image j
    does. False on the diagonal.
    """

    @property
    def wins_N(self) -> np.ndarray:
        """Distractors beaten by every reconstruction, int64, out of N - 1."""
        return self.beats_NN.sum(0)

    @property
    def share_N(self) -> np.ndarray:
        """The same as a share; chance is 0.5."""
        return self.wins_N / (len(self.beats_NN) - 1)

    @property
    def value(self) -> float:
        """The score: mean share."""
        return float(self.share_N.mean())


class Retrieval(NamedTuple):
    """One direction of a retrieval. Chance is 1 / pool."""

    value: float
    """Top-1 accuracy, mean over draws."""
    draws_R: np.ndarray
    """Accuracy in every draw."""
    found_N: np.ndarray
    """Times a query found its partner, summed over draws; a k-way tie counts 1 / k."""
    queries_N: np.ndarray
    """Times a query was in a draw."""
    pool: int
    """Number of candidates."""

    @property
    def error(self) -> float:
        """Standard error over draws (population sd / sqrt(draws)), as MindEye2 prints it.

        It measures how far the draws differ, not the uncertainty over images; use the bootstrap.
        """
        return float(self.draws_R.std() / np.sqrt(len(self.draws_R)))


def _check_features(truth_NF: np.ndarray, recons_NF: np.ndarray) -> None:
    if len(np.shape(truth_NF)) != 2 or np.shape(truth_NF) != np.shape(recons_NF):
        shapes = f"of truth {np.shape(truth_NF)} and of reconstructions {np.shape(recons_NF)}"
        raise UserError(f"Features {shapes} must both be images x features.")
    if np.shape(truth_NF)[0] < 2:
        raise UserError(
            "Identification needs at least 2 images; there is 1."
            if len(truth_NF)
            else "There are no images to identify."
        )


def _row(features_NF: np.ndarray, row: int) -> np.ndarray:
    """Return one row, centred and of unit length, float64; NaN where it is constant."""
    values = np.asarray(features_NF[row], dtype=np.float64)
    values = values - values.mean()
    with np.errstate(invalid="ignore"):
        return values / np.sqrt(np.einsum("f,f", values, values))


def correlation_of_pairs(
    truth_NF: np.ndarray, recons_NF: np.ndarray, pairs_M2: np.ndarray
) -> np.ndarray:
    """Pearson correlations of listed (image, reconstruction) pairs, M values, float64."""
    out = np.empty(len(pairs_M2))
    column, recon = -1, np.empty(0)
    for position in np.argsort(pairs_M2[:, 1], kind="stable"):
        i, j = pairs_M2[position]
        if j != column:
            column, recon = j, _row(recons_NF, j)
        out[position] = np.einsum("f,f", _row(truth_NF, i), recon)
    return out


def correlation_distance(truth_NF: np.ndarray, recons_NF: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation of true and reconstructed features, N values (EffNet-B, SwAV)."""
    _check_features(truth_NF, recons_NF)
    own = np.arange(len(truth_NF))
    correlation = correlation_of_pairs(truth_NF, recons_NF, np.stack([own, own], 1))
    undefined = np.flatnonzero(~np.isfinite(correlation))
    if len(undefined):
        row = int(undefined[0])
        side = "reconstructions" if np.isfinite(_row(truth_NF, row)).all() else "true images"
        raise FlatFeatures(undefined, f"features of the {side}")
    return 1 - correlation


class _Side:
    """Streams one of the two matrices: centres its blocks, and accumulates means and squares.

    Buffers are allocated once. Allocating each block anew fragments memory, since small results
    are kept in between.
    """

    def __init__(
        self, features_NF: np.ndarray, what: str, widths: list[int], work: torch.dtype, device: str
    ) -> None:
        self.features_NF, self.what = features_NF, what
        count = len(features_NF)
        self._host = torch.empty(count * max(widths), dtype=work)
        self._device = (
            self._host if device == "cpu" else torch.empty_like(self._host, device=device)
        )
        self._bytes = torch.empty(0, dtype=torch.int8, device=device)
        self._widths_C = torch.tensor(widths, dtype=torch.float64, device=device)
        self._means_NC = torch.zeros(count, len(widths), dtype=torch.float64, device=device)
        self._squares_N = torch.zeros(count, dtype=torch.float64, device=device)

    def block(self, number: int, part: slice) -> Tensor:
        """Return the features of a block, centred per row; valid until the next call."""
        shape = len(self.features_NF), part.stop - part.start
        host = self._host[: shape[0] * shape[1]].view(shape)
        np.copyto(host.numpy(), self.features_NF[:, part], casting="same_kind")
        x = self._device[: shape[0] * shape[1]].view(shape).copy_(host)
        self._means_NC[:, number] = x.mean(1)
        x -= x.mean(1, keepdim=True)
        self._squares_N += torch.linalg.vector_norm(x, dim=1).double().square()
        return x

    def quantised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise a block in place: int8 values, scale per row (N), and their mean (N)."""
        scale_N = torch.maximum(x.amax(1), -x.amin(1)).clamp(min=1e-30) / 127
        x.mul_((1 / scale_N)[:, None]).round_()
        if not self._bytes.numel():
            self._bytes = torch.empty(self._host.shape, dtype=torch.int8, device=x.device)
        return self._bytes[: x.numel()].view(x.shape).copy_(x), scale_N, scale_N * x.mean(1)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return offsets of block means (N x C, times root width), and row norms (N)."""
        widths_C = self._widths_C
        mean_N1 = (self._means_NC * widths_C).sum(1, keepdim=True) / widths_C.sum()
        offsets_NC = (self._means_NC - mean_N1) * widths_C.sqrt()
        square_N = self._squares_N + offsets_NC.square().sum(1)
        rounding = 1e-13 if self._host.dtype == torch.float64 else 1e-6
        flat = ~(square_N > widths_C.sum() * (rounding * mean_N1[:, 0]).square())  # NaN is flat too
        if flat.any():
            raise FlatFeatures(flat.nonzero()[:, 0].cpu().numpy(), f"features of the {self.what}")
        return offsets_NC, square_N.sqrt()


def _correlate(
    truth_NF: np.ndarray, recons_NF: np.ndarray, precision: Precision, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate all images with all reconstructions (N x M), and every image with its own (N).

    One pass over the features; memory holds the result and one block of either side.
    """
    work = torch.float64 if precision == "float64" else torch.float32
    count = truth_NF.shape[1]
    width = max(1024, _BLOCK_VALUES // max(len(truth_NF), len(recons_NF)))
    parts = [slice(start, min(start + width, count)) for start in range(0, count, width)]
    widths = [part.stop - part.start for part in parts]
    truth = _Side(truth_NF, "true images", widths, work, device)
    recons = _Side(recons_NF, "reconstructions", widths, work, device)
    products = torch.zeros(len(truth_NF), len(recons_NF), dtype=work, device=device)
    paired = len(truth_NF) == len(recons_NF)
    own_N = torch.zeros(len(truth_NF), dtype=torch.float64, device=device)
    for number, part in enumerate(parts):
        x, y = truth.block(number, part), recons.block(number, part)
        if paired:
            own_N += torch.linalg.vecdot(x, y)
        if precision == "int8":
            (x8, x_scale, x_mean), (y8, y_scale, y_mean) = truth.quantised(x), recons.quantised(y)
            products += torch._int_mm(x8, y8.T).float().mul_(x_scale[:, None]).mul_(y_scale)
            products.addr_(x_mean, y_mean, alpha=-float(x.shape[1]))  # centred rows stay centred
        else:
            products.addmm_(x, y.T)
    (x_offsets, x_length), (y_offsets, y_length) = truth.finish(), recons.finish()
    all_NM = (products.double() + x_offsets @ y_offsets.T) / x_length[:, None] / y_length
    if paired:
        own_N = (own_N + (x_offsets * y_offsets).sum(1)) / (x_length * y_length)
    return all_NM.cpu().numpy(), own_N.cpu().numpy()


def fastest_precision(device: str = "cpu") -> Precision:
    """Return int8 on processors with AVX-512 VNNI (several times faster), else float32."""
    vnni = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(
        torch.cpu, "_is_avx512_vnni_supported", None
    )  # not public yet
    return (
        "int8"
        if torch.device(device).type == "cpu"
        and vnni is not None
        and vnni()
        and hasattr(torch, "_int_mm")
        else "float32"
    )


def two_way(
    truth_NF: np.ndarray,
    recons_NF: np.ndarray,
    precision: Precision | None = None,
    device: str = "cpu",
) -> TwoWay:
    """Two-way identification, as in MindEye2's and MoRE-Brain's evaluation.

    With r the Pearson correlations of true features (rows) and reconstructed features (columns),
    reconstruction j beats image i when r[i, j] < r[j, j]; ties lose (Ozcelik & VanRullen 2023).
    The wins equal those of float64 for any ``precision``: all correlations are computed fast, and
    their error is measured on a sample of pairs. Pairs nearer to a tie than a multiple of the
    largest error are computed again: one by one in float64 when they are few, else all in the next
    precision.

    Parameters
    ----------
    truth_NF, recons_NF : np.ndarray
        Features in the same order of images, arrays or memory maps.
    precision : Precision | None, optional
        Of the first pass; by default float64 for small inputs, else `fastest_precision`.
    device : str, optional
        Where it is computed.
    """
    _check_features(truth_NF, recons_NF)
    count, width = truth_NF.shape
    tried: Precision | None = precision or (
        "float64" if count * count * width < 1e9 else fastest_precision(device)
    )
    while tried is not None:
        all_NN, own_N = _correlate(truth_NF, recons_NF, tried, device)
        lead_NN = own_N - all_NN
        close_NN = np.abs(lead_NN) <= 4 * _largest_error(truth_NF, recons_NF, all_NN, own_N) + TIE
        np.fill_diagonal(close_NN, False)
        if close_NN.sum() <= count:
            break
        tried = _FINER[tried]
    close_M2 = np.argwhere(close_NN)
    rivals = correlation_of_pairs(truth_NF, recons_NF, close_M2)
    columns, where = np.unique(close_M2[:, 1], return_inverse=True)
    lead_NN[close_NN] = (
        correlation_of_pairs(truth_NF, recons_NF, np.stack([columns, columns], 1))[where] - rivals
    )
    beats_NN = lead_NN > TIE
    np.fill_diagonal(beats_NN, False)
    return TwoWay(beats_NN)


def _largest_error(
    truth_NF: np.ndarray,
    recons_NF: np.ndarray,
    all_NN: np.ndarray,
    own_N: np.ndarray,
    sample: int = 64,
) -> float:
    """Largest error of the computed correlations on a seeded sample of pairs."""
    generator = np.random.default_rng(0)
    pairs_M2 = generator.integers(0, len(own_N), (sample, 2))
    pairs_M2[::4, 1] = pairs_M2[::4, 0]
    found = np.where(
        pairs_M2[:, 0] == pairs_M2[:, 1],
        own_N[pairs_M2[:, 0]],
        all_NN[pairs_M2[:, 0], pairs_M2[:, 1]],
    )
    return float(np.abs(correlation_of_pairs(truth_NF, recons_NF, pairs_M2) - found).max())


def cosine(decoded_ND: np.ndarray, true_ND: np.ndarray) -> np.ndarray:
    """CLIP-cos: cosine of every decoded embedding with the true one, tokens flattened; N values."""
    decoded, true = _unit_pair(decoded_ND, true_ND)
    return (decoded * true).sum(1)


def _unit_pair(decoded_ND: np.ndarray, true_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at length 1; refuses other shapes."""
    decoded = unit_rows(decoded_ND, "decoded embeddings")
    true = unit_rows(true_ND, "true embeddings")
    if decoded.shape != true.shape:
        raise UserError(
            f"Decoded {np.shape(decoded_ND)} and true {np.shape(true_ND)} embeddings must have the"
            " same shape."
        )
    return decoded, true


def unit_rows(embeddings: np.ndarray, what: str) -> np.ndarray:
    """Flatten embeddings and scale them to length 1, float64; raises `FlatFeatures`."""
    flat = np.asarray(embeddings, dtype=np.float64).reshape(len(embeddings), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length) | (length == 0))
    if len(bad):
        raise FlatFeatures(bad, what)
    return flat / length


def draw_pools(
    count: int, pool: int = RETRIEVAL_POOL, draws: int = RETRIEVAL_DRAWS, seed: int = 0
) -> np.ndarray:
    """Random pools of candidates without replacement (draws x P); one of all images if few."""
    if count <= pool:
        return np.arange(count)[None]
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(count, pool, replace=False) for _ in range(draws)])


class BothWays(NamedTuple):
    """Retrieval in both directions, named by what is given and what is searched."""

    brain_to_image: Retrieval
    """Searches the true image nearest to every decoded embedding. The published notebook prints
    this as "backward".
    """
    image_to_brain: Retrieval
    """Searches the decoded embedding nearest to every true image; published as "forward"."""


def retrieval(
    decoded_ND: np.ndarray, true_ND: np.ndarray, pools_RP: np.ndarray | None = None
) -> BothWays:
    """Top-1 retrieval by cosine similarity within random pools, in both directions.

    As MindEye2's evaluation, whose notebook swaps the labels of the directions.

    Parameters
    ----------
    decoded_ND, true_ND : np.ndarray
        Embeddings in the same order of images; further axes (tokens) are flattened.
    pools_RP : np.ndarray | None, optional
        Candidates of every draw, by default `draw_pools` of their number; queries and candidates of
        a draw are the same images.
    """
    decoded, true = _unit_pair(decoded_ND, true_ND)
    pools = draw_pools(len(decoded)) if pools_RP is None else np.asarray(pools_RP)
    similarity_NN = decoded @ true.T
    return BothWays(_search(similarity_NN, pools), _search(similarity_NN.T, pools))


def _search(similarity_NN: np.ndarray, pools_RP: np.ndarray) -> Retrieval:
    """Queries are rows, candidates columns."""
    found, queries = np.zeros(len(similarity_NN)), np.zeros(len(similarity_NN), dtype=np.int64)
    accuracies = []
    for pool_P in pools_RP:
        inside = similarity_NN[np.ix_(pool_P, pool_P)]
        own = np.diag(inside)[:, None]
        better = (inside > own + TIE).any(1)
        tied = (np.abs(inside - own) <= TIE).sum(1)  # itself included
        hit = np.where(better, 0.0, 1.0 / tied)
        found[pool_P] += hit
        queries[pool_P] += 1
        accuracies.append(hit.mean())
    draws = np.array(accuracies)
    return Retrieval(float(draws.mean()), draws, found, queries, pools_RP.shape[1])
