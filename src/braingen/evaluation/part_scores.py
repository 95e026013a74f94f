"""Scores of every level and every expert of the image encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import Repeats, group_repeats, test_trials
from braingen.encoders.trained import load_embedding_decoder
from braingen.evaluation.decoding import scores_by_part
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.targets.tables import Targets


@torch.no_grad()
def scores_of_parts(config: Config, targets: Targets, ids: np.ndarray) -> pd.DataFrame:
    """Score every level and every expert of the image encoder on its own.

    Embeddings are averaged over presentations, before the prior, and compared after subtracting
    the training mean.
    """
    embedding_decoder, subject = (
        load_embedding_decoder(config, "image").to(device_of(config)),
        config.data.subjects[0],
    )
    layout = Layout.of(config.data.root)
    repeats, betas = group_repeats(test_trials(layout, subject)), Betas.of(layout, subject)
    kept = np.isin(repeats.image_N, ids)
    repeats = Repeats(repeats.image_N[kept], repeats.rows_NR[kept])
    outputs: dict[str, list[Tensor]] = {}
    for batch in RepeatBatches(repeats, betas, subject, 32):
        count, presentations = batch.present_BR.shape
        out = embedding_decoder(
            batch.voxels_BRV.flatten(0, 1).to(embedding_decoder.device),
            subject,
            return_experts=True,
        )
        parts = {
            f"level {level}": out.level_backbone_BLTD[:, level]
            for level in range(out.level_backbone_BLTD.shape[1])
        }
        for level, experts_BETD in enumerate(out.expert_backbone):
            parts |= {
                f"level {level}, expert {expert}": experts_BETD[:, expert]
                for expert in range(experts_BETD.shape[1])
            }
        for name, part_BTD in parts.items():
            mean_BTD = average_repeats(
                part_BTD.float().unflatten(0, (count, presentations)),
                batch.present_BR.to(part_BTD.device),
            )
            outputs.setdefault(name, []).append(mean_BTD.flatten(1).cpu())
    true_ND = (
        embedding_decoder.cpu().standardised(targets.image(repeats.image_N)).flatten(1).numpy()
    )
    settings = {
        "pool": config.evaluation.retrieval_pool,
        "draws": config.evaluation.retrieval_draws,
        "seed": config.run.seed,
    }
    decoded = {name: torch.cat(rows).numpy() for name, rows in outputs.items()}
    return scores_by_part(
        decoded, true_ND, repeats.image_N, resamples=config.evaluation.bootstrap, **settings
    )
