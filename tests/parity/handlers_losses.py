"""Parity of the losses, of mixing, and of the similarity helpers."""

from __future__ import annotations

from collections.abc import Callable
import math
import re
from typing import Any

import numpy as np
from published import (
    anneal,
    cosine_matrix,
    row_correlations,
    soft_cont,
    soft_siglip,
    top_k_accuracy,
)
import torch
from torch import Tensor

from braingen.encoders.losses import MixDraws, choose_mixed, mix, mixco_nce, soft_clip

Outputs = dict[str, Any]


def _inputs(case: Any) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in case.inputs.items()
    }


def mixco(case: Any) -> Outputs:
    """Mixed voxels and targets from the recorded draws."""
    given, call = _inputs(case), case.spec["call"]
    draws = choose_mixed(given["perm"], given["betas"], given["uniform"], call.get("s_thresh", 0.5))
    return {
        "voxels": mix(given["voxels"], draws),
        "betas": draws.weight_B,
        "select": draws.mixed_B,
        "clip_target": mix(given["clip_target"], draws),
    }


def mixco_contrastive(case: Any) -> Outputs:
    """The contrastive loss of mixed trials, with the published treatment of samples that are their
    own partner.
    """
    given, temperature = _inputs(case), float(case.spec["call"]["temp"])
    out: Outputs = {}
    for name in case.outputs:
        which = name.removesuffix("_oneway")
        partner = {"mixed": "perm", "mixed_fixed": "perm_fixed"}.get(which)
        draws = MixDraws(given[partner], given["betas"], given["select"]) if partner else None
        both_ways = not name.endswith("_oneway")
        out[name] = mixco_nce(
            given["preds"],
            given["targs"],
            temperature,
            draws,
            both_ways=both_ways,
            own_partner="published",
        )
    return out


def soft_losses(case: Any) -> Outputs:
    """Losses with soft labels, and a gradient."""
    given, temperatures = _inputs(case), case.spec["call"]["temps"]
    preds, targets, augmented = given["preds"].requires_grad_(), given["targs"], given["targs_aug"]
    out: Outputs = {}
    for name in case.outputs:
        if name == "soft_siglip":
            out[name] = soft_siglip(preds, targets, math.log(10), -10.0)
        elif name == "grad_preds":
            (out[name],) = torch.autograd.grad(soft_clip(preds, targets, temperatures[0]), preds)
        elif found := re.fullmatch(r"soft_clip_([\d.e-]+)", name):
            out[name] = soft_clip(preds, targets, float(found[1]))
        elif found := re.fullmatch(r"soft_cont_([\d.e-]+)", name):
            out[name] = soft_cont(preds, targets, augmented, float(found[1]))
    return out


def helpers(case: Any) -> Outputs:
    """Similarity matrices, top-k accuracy, annealing."""
    given = _inputs(case)
    left, right = given["B"], given["Z"]
    out: Outputs = {
        "cosine": cosine_matrix(left, right),
        "cosine_mean_removed": cosine_matrix(left, right, centre=True),
        "pearson": row_correlations(right, left),
    }
    for name in case.outputs:
        if found := re.fullmatch(r"topk_(\d+)", name):
            # the published function cuts k to the number of rows
            k = min(int(found[1]), len(given["similarities"]))
            out[name] = top_k_accuracy(given["similarities"], given["labels"], k)
        elif found := re.fullmatch(r"anneal_([\d.e-]+)_([\d.e-]+)_(\d+)", name):
            out[name] = np.array(
                anneal(float(found[1]), float(found[2]), int(found[3])), dtype=np.float32
            )
    return out


HANDLERS: dict[str, Callable[[Any], Outputs]] = {
    "mixco": mixco,
    "mixco_nce": mixco_contrastive,
    "soft_losses": soft_losses,
    "helpers": helpers,
}
