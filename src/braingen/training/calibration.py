"""How close an embedding decoder's embeddings are, measured on held-out training images."""

from __future__ import annotations

import torch
from torch import Tensor

from braingen.data.batches import RepeatBatches
from braingen.data.trials import group_repeats
from braingen.encoders.confidence import MOST, angle, read_features
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.training.encoder_setup import EncoderParts


@torch.no_grad()
def calibrate(embedding_decoder: EmbeddingDecoder, parts: EncoderParts) -> None:
    """Find out on the held-out training images how close decoded embeddings are, for every number
    of presentations that there is.
    """
    confidence = embedding_decoder.confidence
    if confidence is None:
        return
    found: dict[int, list[tuple[Tensor, Tensor]]] = {times: [] for times in range(1, MOST + 1)}
    embedding_decoder.eval()
    with embedding_decoder.without_held_out():
        for trials, betas in parts.held_out:
            for batch in RepeatBatches(group_repeats(trials), betas, trials.subject, 64):
                voxels_BRV = batch.voxels_BRV.to(parts.targets_ND.device)
                backbone = embedding_decoder(voxels_BRV.flatten(0, 1), trials.subject).backbone_BTD
                backbone_BRTD = backbone.unflatten(0, voxels_BRV.shape[:2])
                truth_BTD = parts.targets_ND[parts.row_of_image[batch.image_B.numpy()]]
                present_BR = batch.present_BR.to(backbone.device)
                for times, rows in found.items():
                    of_B = present_BR.sum(1) >= times
                    if of_B.any():  # the first of its presentations
                        some = slice(0, times)
                        read = read_features(
                            backbone_BRTD[of_B, some],
                            present_BR[of_B, some],
                            embedding_decoder.predicted,
                        )
                        apart_B = angle(read.embedding_BTD, truth_BTD[of_B])
                        rows.append((read.features_BF, apart_B))
    for times, rows in found.items():
        if rows:
            features, apart = zip(*rows)
            confidence.fit(times, torch.cat(features), torch.cat(apart))
    embedding_decoder.train()
