"""The images among which responses are decoded: of the data folder, or of a folder of one's own.

L images, P features, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from braingen.config import Config
from braingen.data.pictures import load_picture
from braingen.data.trials import subjects_on_disk, test_trials, train_trials
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.library import Library, refuse_test_pictures
from braingen.encoding_model.model import EncodingModel
from braingen.runtime.console import track
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_AT_ONCE = 64


class Pictures(NamedTuple):
    """Images without responses."""

    names: tuple[object, ...]
    """Image ids of the data folder, or file names."""
    features: Mapping[str, np.ndarray]
    embedding_LD: np.ndarray
    """Flat CLIP embeddings."""
    where: str
    """Where they come from, for sentences."""

    @property
    def image_N(self) -> np.ndarray | None:
        """Image ids of images of the data folder; None for a folder of one's own."""
        ids = [name for name in self.names if isinstance(name, int)]
        return np.array(ids) if len(ids) == len(self.names) else None

    def without(self, image_N: np.ndarray) -> Pictures:
        """The images but some images of the data folder."""
        kept = ~np.isin(np.array([n if isinstance(n, int) else -1 for n in self.names]), image_N)
        return Pictures(
            tuple(name for name, keep in zip(self.names, kept) if keep),
            {band: rows[kept] for band, rows in self.features.items()},
            self.embedding_LD[kept],
            self.where,
        )

    def joined(self, other: Pictures) -> Pictures:
        """These images, and others behind them."""
        features = {
            band: np.concatenate([rows, other.features[band]])
            for band, rows in self.features.items()
        }
        embedding_LD = np.concatenate([self.embedding_LD, other.embedding_LD])
        where = f"{self.where} and {other.where}"
        return Pictures((*self.names, *other.names), features, embedding_LD, where)

    def library(self, model: EncodingModel) -> Library:
        """What a model predicts to them."""
        return Library(self.embedding_LD, model.predict(self.features))


def library_pictures(config: Config, spaces: FeatureSpaces) -> Pictures:
    """The training images of all subjects, and those of ``encoding.library``.

    Raises
    ------
    UserError
        When a test image is among them, or the folder has none.
    """
    found = pictures_of(config, spaces)
    if not config.encoding.library:
        return found
    return found.joined(pictures_of(config, spaces, config.encoding.library))


def pictures_of(config: Config, spaces: FeatureSpaces, folder: str = "") -> Pictures:
    """The images of a folder, or the training images of all subjects.

    Raises
    ------
    UserError
        When a test image is among them, or there are none.
    """
    layout = Layout.of(config.data.root)
    test_N = np.unique(
        np.concatenate(
            [test_trials(layout, s).table["image"].to_numpy() for s in config.data.subjects]
        )
    )
    if folder:
        found = folder_pictures(
            Path(folder).expanduser(), spaces, config.encoding.library_size, config.run.seed
        )
    else:
        found = _training_pictures(config, spaces, test_N)
    test_ND = spaces.targets.image(test_N).flatten(1).numpy()
    refuse_test_pictures(found.embedding_LD, found.names, test_ND, found.where)
    return found


def _training_pictures(config: Config, spaces: FeatureSpaces, test_N: np.ndarray) -> Pictures:
    layout = Layout.of(config.data.root)
    images = np.unique(
        np.concatenate(
            [
                train_trials(
                    layout, s, config.data.num_sessions if s in config.data.subjects else 0
                )
                .table["image"]
                .to_numpy()
                for s in subjects_on_disk(layout)
            ]
        )
    )
    images = _some(images[~np.isin(images, test_N)], config.encoding.library_size, config.run.seed)
    embedding_LD = spaces.targets.image(images).flatten(1).numpy()
    names = tuple(images.tolist())
    return Pictures(names, spaces.of_ids(images), embedding_LD, f"of {layout.root}")


def folder_pictures(folder: Path, spaces: FeatureSpaces, most: int, seed: int) -> Pictures:
    """Images of a folder, at most so many, drawn by seed.

    Raises
    ------
    UserError
        When it holds none, or an unreadable one.
    """
    spaces.refuse_captions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(
            f"There are no pictures ({', '.join(SUFFIXES)}) in {folder}: name a folder with some."
        )
    chosen = _some(np.arange(len(paths)), most, seed)
    side = spaces.targets.stimuli.size[0]
    rows: list[dict[str, np.ndarray]] = []
    embeddings = []
    for start in track(
        range(0, len(chosen), _AT_ONCE), description=f"features of {len(chosen)} pictures"
    ):
        some = [paths[i] for i in chosen[start : start + _AT_ONCE]]
        pixels = np.stack([load_picture(path, side, "take it out") for path in some])
        images = torch.from_numpy(pixels).float() / 255
        rows.append(spaces.of_images(images))
        embeddings.append(spaces.embeddings(images))
    features = {band: np.concatenate([row[band] for row in rows]) for band in rows[0]}
    names = tuple(paths[i].name for i in chosen)
    return Pictures(names, features, np.concatenate(embeddings), str(folder))


def _some(values: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(values) <= most:
        return values
    return np.sort(np.random.default_rng(seed).permutation(values)[:most])
