"""The test images decoded once, for everything that is scored of the image encoder itself.

N test images, B batch, T tokens, D CLIP width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.confidence import Confidence, ReadFeatures, read_features
from braingen.encoders.trained import load_embedding_decoder
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.targets.tables import Targets
from braingen.types import ExpertEmbeddings


class DecodedImages(NamedTuple):
    """The first subject's test images by the image encoder, on the CPU; standardised units."""

    image_N: np.ndarray
    """Image ids."""
    times_N: Tensor
    """Presentations of every image."""
    true_NTD: Tensor
    """True embeddings."""
    parts: dict[str, Tensor]
    """'level 0', 'level 0, expert 1' -> its output before the prior, averaged over presentations,
    N x T x D.
    """
    confidence: Confidence | None
    """None for an encoder that was not calibrated."""
    read: ReadFeatures | None
    """Embeddings after the prior, and what they say about their error; None without confidence."""


def _parts(out: ExpertEmbeddings) -> dict[str, Tensor]:
    """Outputs of levels and experts by name, one row per presentation."""
    found = {
        f"level {level}": out.level_backbone_BLTD[:, level]
        for level in range(out.level_backbone_BLTD.shape[1])
    }
    for level, experts_BETD in enumerate(out.expert_backbone):
        found |= {
            f"level {level}, expert {expert}": experts_BETD[:, expert]
            for expert in range(experts_BETD.shape[1])
        }
    return found


@torch.no_grad()
def decode_test_images(config: Config, targets: Targets) -> DecodedImages:
    """Decode every test image of the first subject, with the output of every expert."""
    decoder = load_embedding_decoder(config, "image").to(device_of(config)).eval()
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    repeats = group_repeats(test_trials(layout, subject))
    parts: dict[str, list[Tensor]] = {}
    read: list[ReadFeatures] = []
    for batch in RepeatBatches(repeats, Betas.of(layout, subject), subject, 32):
        shape, present_BR = batch.present_BR.shape, batch.present_BR.to(decoder.device)
        voxels_BV = batch.voxels_BRV.flatten(0, 1).to(decoder.device)
        out = decoder(voxels_BV, subject, return_experts=True)
        for name, part_BTD in _parts(out).items():
            mean_BTD = average_repeats(part_BTD.float().unflatten(0, shape), present_BR)
            parts.setdefault(name, []).append(mean_BTD.cpu())
        if decoder.confidence is not None:
            each_BRTD = out.backbone_BTD.unflatten(0, shape)
            found = read_features(each_BRTD, present_BR, decoder.predicted)
            read.append(ReadFeatures(*(x.cpu() for x in found)))
    decoder = decoder.cpu()
    return DecodedImages(
        repeats.image_N,
        torch.from_numpy((repeats.rows_NR >= 0).sum(1)),
        decoder.standardised(targets.image(repeats.image_N)),
        {name: torch.cat(rows) for name, rows in parts.items()},
        decoder.confidence,
        ReadFeatures(*(torch.cat(x) for x in zip(*read))) if read else None,
    )
