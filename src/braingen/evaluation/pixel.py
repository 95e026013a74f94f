"""Pixel scores: PixCorr, SSIM (two versions), MSE and PSNR, one value per image.

N images, B of them at a time, H x W pixels. Images are streamed, so memory does not grow with N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from braingen.evaluation.pixel_metrics import pixel_metrics

PIXCORR_SIDE = 425
"""Pixels; side of the NSD stimuli, at which MindEye2 and MoRE-Brain compute PixCorr and SSIM."""
ERROR_SIDE = 256
"""Pixels; the published evaluation script resizes every image to this side first."""
GREY_WEIGHTS = (0.2125, 0.7154, 0.0721)
"""Weights of red, green and blue in scikit-image's rgb2gray."""
HIGHEST_PSNR = 100.0
"""dB. Equal images have an infinite PSNR, which has no mean and no interval; it counts as this."""


class Images(Protocol):
    """N x 3 x H x W images in [0, 1] that can be sliced, e.g. an array or `ImageSource`."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, part: slice) -> Any:
        """Images of a slice."""


def resize(images_B3HW: Tensor, side: int) -> Tensor:
    """Resize bilinearly without antialiasing, as the published evaluations (docs/scores.md)."""
    if images_B3HW.shape[-2:] == (side, side):
        return images_B3HW
    return interpolate(
        images_B3HW, size=(side, side), mode="bilinear", align_corners=False, antialias=False
    )


def grey(images_B3HW: Tensor) -> Tensor:
    """B x H x W luminance, as scikit-image's rgb2gray."""
    return torch.einsum("bchw,c->bhw", images_B3HW, images_B3HW.new_tensor(GREY_WEIGHTS))


def per_image(
    score: Callable[[Tensor, Tensor], Tensor],
    truth_N3HW: Images,
    recons_N3HW: Images,
    batch: int = 1,
) -> np.ndarray:
    """Apply a score to images, a batch at a time.

    Parameters
    ----------
    score : Callable[[Tensor, Tensor], Tensor]
        Function of B x 3 x H x W truth and reconstructions that returns B values, or B rows of
        values.
    truth_N3HW, recons_N3HW : Images
        Images in [0, 1].
    batch : int, optional
        Images at a time; one at 425 pixels already fills a processor's cache, and larger batches
        are slower.

    Returns
    -------
    np.ndarray
        N values, or N rows of values, float64.
    """
    values = []
    for start in range(0, len(truth_N3HW), batch):
        truth = torch.as_tensor(truth_N3HW[start : start + batch]).float()
        recons = torch.as_tensor(recons_N3HW[start : start + batch]).float()
        values.append(score(truth, recons).double().cpu().numpy())
    return np.concatenate(values) if values else np.empty(0)


def correlation(truth_BP: Tensor, recons_BP: Tensor) -> Tensor:
    """Pearson correlation of paired rows, in float64; NaN where a row is constant."""
    truth, recons = truth_BP.double(), recons_BP.double()
    truth = truth - truth.mean(1, keepdim=True)
    recons = recons - recons.mean(1, keepdim=True)
    return (truth * recons).sum(1) / (truth.square().sum(1) * recons.square().sum(1)).sqrt()


def pixel_correlation(
    truth_N3HW: Images, recons_N3HW: Images, side: int = PIXCORR_SIDE, batch: int = 1
) -> np.ndarray:
    """PixCorr: Pearson correlation over all pixels and channels at ``side``, N values.

    A constant image gives NaN when it is black and rounding noise otherwise;
    `braingen.evaluation.image_pairs.ImageSource` refuses it.
    """
    return per_image(
        lambda a, b: correlation(resize(a, side).flatten(1), resize(b, side).flatten(1)),
        truth_N3HW,
        recons_N3HW,
        batch,
    )


def _window(sigma: float = 1.5, radius: int = 5) -> list[float]:
    """Weights of the Gaussian window of Wang et al. 2004: sigma 1.5, cut at 3.5 sigma, 11 taps."""
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-taps.square() / (2 * sigma**2))
    return (weights / weights.sum()).tolist()


def _smooth(maps: Tensor, dim: int) -> Tensor:
    """Smooth along one axis where the whole window fits; scikit-image omits the border too."""
    weights = _window()
    length = maps.shape[dim] - len(weights) + 1
    out = maps.narrow(dim, 0, length) * weights[0]
    for start, weight in enumerate(weights[1:], 1):
        out.add_(maps.narrow(dim, start, length), alpha=weight)
    return out


def _similarity(x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    """Mean SSIM of images and of separate columns (B x 2), with data range 1."""
    maps = torch.stack([x_BHW, y_BHW, x_BHW * x_BHW, y_BHW * y_BHW, x_BHW * y_BHW])
    maps = _smooth(maps, 2)
    columns = _compared(maps)
    return torch.stack([_compared(_smooth(maps, 3)), columns], 1)


def _compared(means: Tensor) -> Tensor:
    x, y, xx, yy, xy = means
    low, contrast = 0.01**2, 0.03**2  # (K1 R)^2 and (K2 R)^2 of Wang et al. 2004, R = 1
    similarity = (2 * x * y + low) * (2 * (xy - x * y) + contrast)
    similarity /= (x * x + y * y + low) * (xx - x * x + yy - y * y + contrast)
    return similarity.mean((1, 2), dtype=torch.float64)


def peak_signal_to_noise(squared_error_N: np.ndarray) -> np.ndarray:
    """PSNR in dB of images in [0, 1] from their MSE, at most `HIGHEST_PSNR`."""
    return -10 * np.log10(np.maximum(squared_error_N, 10 ** (-HIGHEST_PSNR / 10)))


def all_scores(truth_N3HW: Images, recons_N3HW: Images, batch: int = 1) -> dict[str, np.ndarray]:
    """Compute pixcorr, both SSIM, psnr and those of `pixel_metrics` in one pass, N values each.

    Images are resized to 256 pixels first and from there to 425, as in the published evaluation
    script; further metrics get images of their own side.
    """
    further = pixel_metrics()

    def score(truth: Tensor, recons: Tensor) -> Tensor:
        given = truth, recons
        truth, recons = resize(truth, ERROR_SIDE), resize(recons, ERROR_SIDE)
        sized = {ERROR_SIDE: (truth, recons)}
        truth, recons = resize(truth, PIXCORR_SIDE), resize(recons, PIXCORR_SIDE)
        similarity = _similarity(grey(truth), grey(recons))
        columns = [correlation(truth.flatten(1), recons.flatten(1)), *similarity.T]
        for each in further.values():
            if each.SIDE not in sized:
                sized[each.SIDE] = resize(given[0], each.SIDE), resize(given[1], each.SIDE)
            pair = sized[each.SIDE]
            columns.append(each.values(*pair).double())
        return torch.stack(columns, 1)

    pixcorr, ssim, columns, *others = per_image(score, truth_N3HW, recons_N3HW, batch).T
    found = dict(zip(further, others))
    return {
        "pixcorr": pixcorr,
        "ssim": ssim,
        "ssim_columns": columns,
        **found,
        "psnr": peak_signal_to_noise(found["mse"]),
    }
