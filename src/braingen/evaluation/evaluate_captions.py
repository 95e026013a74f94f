"""Score the decoded captions of a folder of generated images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from braingen.config import Config
from braingen.evaluation.averaged import Scored
from braingen.evaluation.captions import caption_scores
from braingen.runtime.errors import UserError
from braingen.runtime.paths import INDEX
from braingen.runtime.text_files import read_json
from braingen.targets.tables import Targets

BATCH = 64
"""Texts that are embedded at a time."""


class TextSpace:
    """CLIP text embeddings of captions; each caption is embedded once."""

    def __init__(self, targets: Targets) -> None:
        self._encoder = targets.text_encoder
        self._known: dict[str, np.ndarray] = {}

    @property
    def available(self) -> bool:
        """Whether the backbone has a text encoder that projects into CLIP's joint space."""
        # SDXL's second text encoder
        return "bigG" in self._encoder.models

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts (texts x D)."""
        unknown = list(dict.fromkeys(text for text in texts if text not in self._known))
        for start in range(0, len(unknown), BATCH):
            part = unknown[start : start + BATCH]
            # always as many: kernels chosen by size would give one caption other last bits
            # beside other captions, and scores would depend on which process knows which
            pooled_BD = self._encoder.prompt([*part, *[""] * (BATCH - len(part))]).pooled_BD
            assert pooled_BD is not None
            self._known.update(zip(part, pooled_BD.float().cpu().numpy()))
        return np.stack([self._known[text] for text in texts])


def caption_table(
    config: Config, targets: Targets, space: TextSpace | None, folder: Path, ids: np.ndarray
) -> tuple[Scored | None, dict[str, str]]:
    """Score the decoded captions of a folder against the true ones.

    Returns
    -------
    scores
        None where the data hold no captions or no text was decoded.
    missing
        Name of a score -> how to get it.
    """
    decoded = read_json(folder / INDEX).get("captions")
    if space is None or decoded is None:
        return None, {}
    scores, values, missing = caption_scores(
        [decoded[str(int(image))] for image in ids],
        [targets.captions[int(image)] for image in ids],
        space if space.available else None,
        config.evaluation.bootstrap,
        config.run.seed,
    )
    if not space.available:
        missing["clip_text"] = (
            "CLIP text similarity is missing: it needs SDXL's second text encoder; get it with: "
            " --text_output bigG"
        )
    if missing and config.evaluation.strict:
        raise UserError(next(iter(missing.values())))
    return Scored(scores, pd.DataFrame(values, index=pd.Index(ids, name="image"))), missing
