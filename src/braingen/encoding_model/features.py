"""Feature spaces of images, the bands of an encoding model.

::

    embedding  the CLIP embedding that decoders aim at
    early, middle, late  hidden states of the frozen image encoder at a quarter, a half and all
               of its depth, averaged over a grid of 4 x 4 cells
    energy     oriented contrast energy, luminance and colour (energy.py)
    caption    the text encoders' states of an image's captions; not of images without captions

Simulated scenes without pictures have bands of their own under the same names.

A band wider than ``encoding.feature_width`` is projected to it at random, by fixed seeds: the same
for all people, so that voxels of several people can be compared.

B images, P tokens, D width.
"""

from __future__ import annotations

from functools import lru_cache
import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from braingen.config import Config
from braingen.encoding_model.energy import WIDTH, energy_features
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.targets.cache import Cache
from braingen.targets.tables import Targets

DEPTHS = {"early": 0.25, "middle": 0.5, "late": 1.0}
"""Share of the image encoder's blocks after which a hidden state is taken."""
GRID = 4
"""Cells along a side of the pooled tokens."""
OF_PICTURES = ("embedding", *DEPTHS, "energy")
"""Bands that any image has."""
_VERSION = "1"
"""Raised when the same settings come to mean other features."""


@lru_cache(maxsize=8)
def projection(band: str, width: int, kept: int) -> Tensor:
    """The fixed random projection of a band (width x kept), float32."""
    generator = np.random.default_rng([zlib.crc32(band.encode()), width, kept])
    drawn = generator.standard_normal((width, kept), dtype=np.float32)
    return torch.from_numpy(drawn / np.sqrt(np.float32(kept)))


def narrow(band: str, rows_BD: Tensor, kept: int) -> Tensor:
    """Project a band that is too wide."""
    if rows_BD.shape[1] <= kept:
        return rows_BD
    return rows_BD @ projection(band, rows_BD.shape[1], kept).to(rows_BD)


class FeatureSpaces:
    """The bands of ``encoding.bands``, of images of the data folder or of any images.

    Parameters
    ----------
    config : Config
        Determines data, backbone and bands.
    targets : Targets | None, optional
        Frozen models, where they are loaded already.
    """

    def __init__(self, config: Config, targets: Targets | None = None) -> None:
        self.targets = Targets(config) if targets is None else targets
        self.bands = config.encoding.bands
        self.kept = config.encoding.feature_width
        self._folder = Layout.of(config.data.root).cache() / "features"

    def of_ids(self, image_N: np.ndarray) -> dict[str, np.ndarray]:
        """Features of images of the data folder, from the cache or computed."""
        if not self.targets.stimuli.has_pictures:
            return self._of_scenes(image_N)
        found = {}
        layers = [band for band in self.bands if band in DEPTHS or band == "energy"]
        if layers:
            rows = self._cache().of(image_N, self.targets.stimuli.digests(image_N))
            found = self._split(rows)
        if "embedding" in self.bands:
            found["embedding"] = narrow(
                "embedding", self.targets.image(image_N).flatten(1), self.kept_embedding
            ).numpy()
        if "caption" in self.bands:
            found["caption"] = narrow(
                "caption", self.targets.text(image_N).flatten(1), self.kept
            ).numpy()
        return {band: found[band] for band in self.bands}

    def _of_scenes(self, image_N: np.ndarray) -> dict[str, np.ndarray]:
        if "caption" in self.bands:
            raise UserError(
                "The encoding model has the band caption, which simulated scenes without pictures"
                f" lack: train it with --encoding.bands {','.join(OF_PICTURES)}."
            )
        return {
            band: narrow(
                band, torch.from_numpy(self.targets.stimuli.features(band, image_N)), self.kept
            ).numpy()
            for band in self.bands
        }

    @property
    def kept_embedding(self) -> int:
        """The pooled embedding is kept whole (ViT-bigG: 1280); tokens are projected."""
        return max(self.kept, self.targets.image_encoder.clip_emb_dim)

    def of_images(self, images_B3HW: Tensor) -> dict[str, np.ndarray]:
        """Features of images in [0, 1].

        Raises
        ------
        UserError
            When a band needs captions.
        """
        self.refuse_captions()
        embedding_BD, layers_BD = self._compute(images_B3HW)
        found = self._split(layers_BD.cpu().numpy())
        found["embedding"] = narrow("embedding", embedding_BD, self.kept_embedding).cpu().numpy()
        return {band: found[band] for band in self.bands}

    def embeddings(self, images_B3HW: Tensor) -> np.ndarray:
        """Flat CLIP embeddings of images in [0, 1], float32."""
        device = self.targets.image_encoder.mean_311.device
        target_BTD = self.targets.image_encoder(images_B3HW.to(device)).target_BTD
        return target_BTD.flatten(1).float().cpu().numpy()

    def refuse_captions(self) -> None:
        """Refuse bands that an image without captions lacks."""
        if "caption" in self.bands:
            raise UserError(
                "The encoding model has the band caption, which pictures without captions lack:"
                f" train it with --encoding.bands {','.join(OF_PICTURES)}."
            )

    @torch.no_grad()
    def _compute(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The flat embedding, and all other bands side by side."""
        encoder = self.targets.image_encoder
        device = encoder.mean_311.device
        images = images_B3HW.to(device)
        states = encoder.hidden_states(images)
        parts = []
        for band, depth in DEPTHS.items():
            tokens_BPD = states[max(1, round(depth * (len(states) - 1)))][:, 1:].float()
            side = round(tokens_BPD.shape[1] ** 0.5)
            grid = adaptive_avg_pool2d(tokens_BPD.mT.unflatten(2, (side, side)), GRID)
            parts.append(narrow(band, grid.flatten(1), self.kept))
        parts.append(narrow("energy", energy_features(images), self.kept))
        return encoder(images).target_BTD.flatten(1).float(), torch.cat(parts, 1)

    def _split(self, rows_ND: np.ndarray) -> dict[str, np.ndarray]:
        ends = np.cumsum(self._layer_widths())[:-1]
        return dict(zip((*DEPTHS, "energy"), np.split(rows_ND, ends, axis=1)))

    def _layer_widths(self) -> list[int]:
        tokens = GRID**2 * self.targets.image_encoder.model.config.hidden_size
        return [min(self.kept, tokens)] * len(DEPTHS) + [min(self.kept, WIDTH)]

    def _cache(self) -> Cache:
        def compute(ids: np.ndarray) -> Tensor:
            return self._compute(torch.from_numpy(self.targets.stimuli.images(ids)))[1]

        key = {"weights": self.targets.image_key, "width": str(self.kept), "version": _VERSION}
        return Cache(self._folder, "encoding_features", key, len(self.targets.stimuli), compute)
