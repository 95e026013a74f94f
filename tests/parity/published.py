"""Functions of the published code that nothing here calls: what the parity cases and the laws
compare with.

N rows of one set, M rows of the other, F features, B batch, E experts, K units an expert reads, U
units
"""

from __future__ import annotations

from collections.abc import Mapping
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from braingen.compat.keys import published_keys
from braingen.encoders.losses import _cross_entropy, _similarities
from braingen.encoders.prior.schedule import NoiseSchedule, at_times
from braingen.evaluation.identification import Precision, _correlate
from braingen.evaluation.pixel import (
    ERROR_SIDE,
    PIXCORR_SIDE,
    Images,
    _similarity,
    grey,
    per_image,
    resize,
)


def soft_cont(
    preds_BF: Tensor, targets_BF: Tensor, augmented_BF: Tensor, temperature: float
) -> Tensor:
    """Contrastive loss, both ways, against targets of augmented pictures; labels are the
    similarities of targets to them (MindEye).

    Parameters
    ----------
    preds_BF, targets_BF, augmented_BF : Tensor
        Rows of length 1: predictions, targets, targets of the same pictures augmented.
    temperature : float
        Divides cosines of predictions and of labels.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    logits_BB = _similarities(preds_BF, augmented_BF) / temperature
    labels_BB = _similarities(targets_BF, augmented_BF) / temperature
    return (
        _cross_entropy(logits_BB, labels_BB.softmax(-1))
        + _cross_entropy(logits_BB.T, labels_BB.T.softmax(-1))
    ) / 2


def soft_siglip(
    preds_BF: Tensor, targets_BF: Tensor, log_scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Sigmoid contrastive loss with soft labels (MindEye2): every pair is a question of its own,
    without a softmax over the batch.

    Parameters
    ----------
    preds_BF, targets_BF : Tensor
        Rows of length 1.
    log_scale, bias : Tensor or float
        Logits are exp(log_scale) * cosine + bias (SigLIP starts at log 10 and -10).

    Raises
    ------
    ValueError
        If shapes differ.
    """
    logits_BB = (
        _similarities(preds_BF, targets_BF)
        * torch.as_tensor(log_scale, device=preds_BF.device).exp()
        + bias
    )
    # 1 for a pair, cosine - 1 (at most 0) for others
    labels_BB = (
        _similarities(targets_BF, targets_BF)
        - 1
        + torch.eye(len(targets_BF), device=targets_BF.device)
    )
    forth, back = (
        -logsigmoid(pairs_BB * labels_BB).sum() / len(preds_BF)
        for pairs_BB in (logits_BB, logits_BB.T)
    )
    return (forth + back) / 2


def anneal(first: float, last: float, steps: int) -> list[float]:
    """Values that go from first to last on half a cosine, both included; only the first for one
    step.

    (The published function divides 0 by 0 for one step.)

    Parameters
    ----------
    steps : int
        How many values; 0 gives none.
    """
    return [
        last + (first - last) * (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2
        for step in range(steps)
    ]


def cosine_matrix(left: Tensor, right: Tensor, *, centre: bool = False) -> Tensor:
    """Cosine of every row of one set with every row of the other (MindEye2).

    Parameters
    ----------
    left, right : Tensor
        N x ... and M x ..., flattened to N x F and M x F.
    centre : bool
        Take the mean unit row of its set away from every unit row first (rows are not scaled again,
        so that these are no cosines any more).

    Returns
    -------
    Tensor
        N x M.
    """
    left_NF, right_MF = (normalize(rows.flatten(1), dim=-1) for rows in (left, right))
    if centre:
        left_NF, right_MF = left_NF - left_NF.mean(0), right_MF - right_MF.mean(0)
    return left_NF @ right_MF.T


def row_correlations(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation of every row of one set with every row of the other, N x M."""
    left_NF, right_MF = (rows.flatten(1) for rows in (left, right))
    return cosine_matrix(
        left_NF - left_NF.mean(1, keepdim=True), right_MF - right_MF.mean(1, keepdim=True)
    )


def top_k_accuracy(similarities_NM: Tensor, labels_N: Tensor, k: int = 1) -> Tensor:
    """Share of rows whose label is among their k largest similarities (all of them where k is M or
    above).

    Parameters
    ----------
    similarities_NM : Tensor
        Rows ask, columns are candidates.
    labels_N : Tensor
        The right column of every row.

    Raises
    ------
    ValueError
        If k is below 1.
    """
    if k < 1:
        raise ValueError(f"top-{k} accuracy was asked for; k must be at least 1")
    best_Nk = similarities_NM.topk(min(k, similarities_NM.shape[1]), dim=1).indices
    return (best_Nk == labels_N[:, None]).any(dim=1).to(torch.float32).mean()


def published_balance(chosen_BEK: Tensor, units: int) -> Tensor:
    """The published load-balancing figure: from the chosen places alone, without gradient, blind to
    use (docs/deviations.md, row 1.6).

    Parameters
    ----------
    chosen_BEK : Tensor
        Indices of the chosen units.
    units : int
        U.
    """
    batch, experts, width = chosen_BEK.shape
    count_EU = chosen_BEK.new_zeros(experts, units).index_put_(
        (
            torch.arange(experts).repeat_interleave(batch * width),
            chosen_BEK.transpose(0, 1).flatten(),
        ),
        torch.tensor(1),
        accumulate=True,
    )
    return ((count_EU / (batch * width) - 1 / experts) ** 2).mean()


def to_published(
    model: nn.Module, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our weights under published names.

    Parameters
    ----------
    tensors : Mapping[str, Tensor] | None, optional
        Other tensors in the places of the weights, for instance gradients; those that lack are left
        out.
    """
    tensors = dict(model.named_parameters()) if tensors is None else tensors
    places = {name: place for name, place in published_keys(model).items() if place[0] in tensors}
    return {
        name: tensors[ours][index] if index else tensors[ours]
        for name, (ours, index) in places.items()
    }


def posterior_log_variance(schedule: NoiseSchedule) -> np.ndarray:
    """Logarithm of the variance of the step back; the first, which is 0, is kept finite."""
    return np.log(np.maximum(schedule.posterior_variance, 1e-20))


def _inverse(schedule: NoiseSchedule, times_B: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """1 / signal and noise / signal: near the last time both are in the thousands, so that their
    rounding shows in results.
    """
    return at_times(np.sqrt(1 / schedule.kept), times_B, ndim), at_times(
        np.sqrt(1 / schedule.kept - 1), times_B, ndim
    )


def noise_in(
    schedule: NoiseSchedule, sample_BTD: Tensor, times_B: Tensor, start_BTD: Tensor
) -> Tensor:
    """The noise that a sample contains if its clean embedding is `start_BTD`."""
    whole, ratio = _inverse(schedule, times_B, sample_BTD.ndim)
    return (whole * sample_BTD - start_BTD) / ratio


def start_of(
    schedule: NoiseSchedule, sample_BTD: Tensor, times_B: Tensor, noise_BTD: Tensor
) -> Tensor:
    """The clean embedding of a sample if its noise is `noise_BTD`."""
    whole, ratio = _inverse(schedule, times_B, sample_BTD.ndim)
    return whole * sample_BTD - ratio * noise_BTD


def correlation_matrix(
    truth_NF: np.ndarray,
    recons_NF: np.ndarray,
    precision: Precision = "float64",
    device: str = "cpu",
) -> np.ndarray:
    """Pearson correlation of every image (rows) with every reconstruction (columns).

    Centred features are multiplied a block of features at a time, so that beside the inputs only
    the result and two blocks are held, where ``numpy.corrcoef`` stacks both sets in float64 and
    computes four times as many products.

    Parameters
    ----------
    truth_NF, recons_NF : np.ndarray
        Features, arrays or memory maps; the numbers of rows may differ.
    precision : Precision, optional
        Of the products; "int8" is an estimate, see `two_way`.
    device : str, optional
        Where they are computed.
    """
    return _correlate(truth_NF, recons_NF, precision, device)[0]


def structural_similarity(
    truth_N3HW: Images,
    recons_N3HW: Images,
    side: int = PIXCORR_SIDE,
    columns: bool = False,
    batch: int = 1,
) -> np.ndarray:
    """SSIM of grey pictures at ``side`` with an 11-tap Gaussian window, per image.

    Parameters
    ----------
    columns : bool, optional
        The legacy value. scikit-image before 0.20 took ``multichannel=True`` at its word on a grey
        picture, so that every column of pixels was a one-dimensional signal of its own; older
        papers' figures are of this kind and are higher by 0.004 to 0.04.
    """

    def score(truth: Tensor, recons: Tensor) -> Tensor:
        return _similarity(grey(resize(truth, side)), grey(resize(recons, side)))[:, int(columns)]

    return per_image(score, truth_N3HW, recons_N3HW, batch)


def squared_error(
    truth_N3HW: Images, recons_N3HW: Images, side: int = ERROR_SIDE, batch: int = 1
) -> np.ndarray:
    """MSE over all pixels and channels at ``side``, per image."""
    return per_image(
        lambda a, b: (resize(a, side) - resize(b, side)).square().mean((1, 2, 3)),
        truth_N3HW,
        recons_N3HW,
        batch,
    )
