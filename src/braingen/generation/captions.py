"""Captions of training images, of which a decoder returns the nearest to what it decoded.

N images of the library, B decoded images, T tokens, D width of the text embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.data.trials import train_trials
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.text_files import read_json
from braingen.runtime.weights import read_tensors
from braingen.targets.tables import Targets

EMBEDDINGS, TEXTS = "captions.safetensors", "captions.json"
_AGAIN = "save the decoder again"


class CaptionLibrary(NamedTuple):
    """Captions with their text embeddings."""

    embedding_NTD: Tensor
    """Mean text embedding of the captions of every image, in the text encoder's own units."""
    texts: Sequence[str]
    """First caption of every image."""
    data: str = ""
    """Which data they are from: simulated data, NSD, or own scans."""

    def nearest(self, text_BTD: Tensor) -> list[str]:
        """The caption with the highest cosine to each decoded text embedding, both around the mean
        of the library.
        """
        known_ND = self.embedding_NTD.flatten(1).float()
        mean_D = known_ND.mean(0)
        decoded_BD = text_BTD.flatten(1).to(known_ND)
        known_ND, decoded_BD = (normalize(x - mean_D, dim=1) for x in (known_ND, decoded_BD))
        return [self.texts[row] for row in (decoded_BD @ known_ND.T).argmax(1).tolist()]

    def save(self, folder: Path) -> None:
        """Write embeddings (safetensors) and texts (JSON) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"embedding": self.embedding_NTD.contiguous()}, folder / EMBEDDINGS)
        write_json(folder / TEXTS, {"data": self.data, "captions": list(self.texts)})

    @classmethod
    def load(cls, folder: Path) -> CaptionLibrary:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            When a file is missing or damaged, or the two do not belong together.
        """
        stored = read_json(folder / TEXTS, _AGAIN)
        tensors = read_tensors(folder / EMBEDDINGS, _AGAIN)
        try:
            texts, embedding_NTD = [str(text) for text in stored["captions"]], tensors["embedding"]
            data = str(stored["data"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no captions ({error}); {_AGAIN}.") from error
        if len(texts) != len(embedding_NTD):
            raise UserError(
                f"{folder} holds {len(texts)} captions and {len(embedding_NTD)} embeddings;"
                f" {_AGAIN}."
            )
        return cls(embedding_NTD, texts, data)


def training_captions(config: Config, targets: Targets) -> CaptionLibrary:
    """The captions of the training images of a configuration's first subject."""
    layout = Layout.of(config.data.root)
    trials = train_trials(layout, config.data.subjects[0], config.data.num_sessions)
    images = np.unique(trials.table["image"].to_numpy())
    return CaptionLibrary(
        targets.text(images),
        [targets.captions[int(image)][0] for image in images],
        Stimuli(layout).data_name,
    )
