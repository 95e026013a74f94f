"""Parity of the scores: pixels, two-way identification, correlation distance, retrieval."""

from __future__ import annotations

from collections.abc import Callable
import re
from typing import Any

import numpy as np
from published import correlation_matrix, structural_similarity
import torch

from braingen.evaluation import identification as identify
from braingen.evaluation import pixel


def image_metrics(case: Any) -> dict[str, np.ndarray]:
    """PixCorr and both kinds of SSIM at the given size, directly and through a smaller size
    first.
    """
    images, recons = case.inputs["images"], case.inputs["recons"]
    side = int(case.spec["call"].get("size", pixel.PIXCORR_SIDE))
    out: dict[str, np.ndarray] = {}
    through = sorted({name.rpartition("/")[0] for name in case.outputs})  # "", "via256"
    for prefix in through:
        smaller = int(prefix.removeprefix("via")) if prefix else None
        a, b = (
            x if smaller is None else pixel.resize(torch.as_tensor(x), smaller).numpy()
            for x in (images, recons)
        )
        correlation = pixel.pixel_correlation(a, b, side)
        similarity = structural_similarity(a, b, side)
        columns = structural_similarity(a, b, side, columns=True)
        values = {
            "pixcorr": correlation.mean(),
            "pixcorr_each": correlation,
            "pixcorr_helper": np.nanmean(correlation),
            "ssim": similarity.mean(),
            "ssim_each": similarity,
            "ssim_gaussian_gray_each": similarity,
            "ssim_columns_each": columns,
            "ssim_columns": columns.mean(),
        }
        out |= {f"{prefix}/{name}".lstrip("/"): np.asarray(value) for name, value in values.items()}
    black = images.copy()
    black[0] = 0
    out["pixcorr_helper_nan_ignored"] = np.asarray(
        np.nanmean(pixel.pixel_correlation(black, recons, side))
    )
    larger = pixel.resize(torch.as_tensor(images), side)
    for name, probe in (("resized_probe", larger), ("gray_probe", pixel.grey(larger))):
        if name in case.outputs:
            told = re.search(r"every (\d+)", case.spec["out"]["resized_probe"].get("meaning", ""))
            step = int(told[1]) if told else -(-side // case.outputs[name].shape[-1])
            out[name] = probe[..., ::step, ::step].numpy()
    return {name: out[name] for name in case.outputs if name in out}


def two_way_identification(case: Any) -> dict[str, np.ndarray]:
    """Wins of every reconstruction, out of the other images."""
    truth, recons = (
        case.inputs[name].reshape(len(case.inputs[name]), -1) for name in ("reals", "preds")
    )
    score = identify.two_way(truth, recons)
    return {
        "score": np.asarray(score.value),
        "wins": score.wins_N,
        "total": np.asarray(len(truth) - 1),
        "correlation": correlation_matrix(truth, recons),
    }


def feature_distance(case: Any) -> dict[str, np.ndarray]:
    """One minus the correlation of every image's features with its reconstruction's."""
    truth, recons = (
        case.inputs[name].reshape(len(case.inputs[name]), -1) for name in ("gt", "fake")
    )
    each = identify.correlation_distance(truth, recons)
    return {"distance": np.asarray(each.mean()), "distance_each": each}


def retrieval(case: Any) -> dict[str, np.ndarray]:
    """Both directions over the recorded draws. The reference's "fwd" searches, for every image, the
    nearest brain embedding.
    """
    brain, image = case.inputs["brain_embeds"], case.inputs["image_embeds"]
    pools = case.inputs.get("samples")
    if pools is None:  # the recorded generator draws them again
        generator = np.random.RandomState(case.spec["seeds"]["draws_numpy_legacy"])
        call = case.spec["call"]
        pools = np.stack(
            [
                generator.choice(len(image), call["ways"], replace=False)
                for _ in range(call["repeats"])
            ]
        )
    both = identify.retrieval(brain, image, pools)
    out: dict[str, np.ndarray] = {}
    for name, way in (("fwd", both.image_to_brain), ("bwd", both.brain_to_image)):
        out |= {
            name: np.asarray(way.value),
            f"{name}_each": way.draws_R,
            f"{name}_sem": np.asarray(way.error),
        }
    return out


HANDLERS: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
    "image_metrics": image_metrics,
    "two_way_identification": two_way_identification,
    "feature_distance": feature_distance,
    "retrieval": retrieval,
}
