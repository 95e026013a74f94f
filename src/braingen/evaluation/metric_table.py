"""The score sheet: every score of a set of reconstructions, with intervals, per image, and what it
was computed with.

N images, B of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from braingen.evaluation import identification as identify
from braingen.evaluation import pixel, uncertainty
from braingen.evaluation.feature_store import FeatureStore, as_scored
from braingen.evaluation.features import Features
from braingen.evaluation.image_pairs import Pairs, match
from braingen.evaluation.metrics import metric
from braingen.runtime.errors import UserError
from braingen.types import Score


class SceneReadout(NamedTuple):
    """Something that names what is in a picture, e.g. the judge's object."""

    name: str
    """The score is called ``<name>_accuracy``."""
    predict: Callable[[Tensor], Tensor]
    """B x 3 x H x W pictures in [0, 1] to B class numbers."""
    truth: Mapping[int, int]
    """Image id to the class that was there."""
    chance: float | None
    """Accuracy of guessing."""


class MetricTable(NamedTuple):
    """Scores of one set of reconstructions."""

    scores: dict[str, Score]
    """By name, in the order of the field's tables."""
    table: pd.DataFrame
    """Values of every image; the index is the image id."""
    identified: dict[str, identify.TwoWay]
    """Pairwise outcomes of every two-way score, by score name."""
    weights: dict[str, str]
    """Hash of the weights of every network used, where it states one."""
    missing: dict[str, str]
    """Networks that could not be used, and the sentence that says how to get them."""
    versions: dict[str, str]
    """Of the libraries that computed it."""

    @property
    def paired(self) -> pd.DataFrame:
        """The table for comparing runs: two-way scores as `uncertainty.two_way_by_image`,
        everything else as in ``table``.
        """
        return self.table.assign(
            **{
                name: uncertainty.two_way_by_image(one.beats_NN)
                for name, one in self.identified.items()
            }
        )


_PACKAGES = ("braingen", "torch", "torchvision", "transformers", "torchmetrics", "numpy")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plain(interval: uncertainty.Interval, count: int, chance: float | None) -> Score:
    return Score(*interval, random=None, oracle=None, ridge=None, chance=chance, n=count, pool=None)


def metric_table_of(
    pairs: Pairs,
    networks: Sequence[Features] = (),
    readouts: Sequence[SceneReadout] = (),
    missing: Mapping[str, str] | None = None,
    store: FeatureStore | None = None,
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> MetricTable:
    """Compute every score of pictures.

    Parameters
    ----------
    pairs : Pairs
        Pictures matched by image id (`braingen.evaluation.image_pairs.match`).
    networks : Sequence[Features], optional
        Comparison networks, used as their ``use`` says ("two_way" where they do not): two-way
        identification becomes ``two_way_<name>``, distances keep the network's name.
    readouts : Sequence[SceneReadout], optional
        What names the content of pictures.
    missing : Mapping[str, str] | None, optional
        Networks that are not there, for the record.
    store : FeatureStore | None, optional
        Where features go, and those of the true pictures stay; by default a temporary folder.
    resamples, seed : int, optional
        Of the bootstrap.

    Raises
    ------
    UserError
        When a score is not registered, a network has random weights, or a read-out lacks the class
        of an image.
    """
    for network in networks:
        if getattr(network, "weights", "not stated") is None:
            raise UserError(
                f"Network {network.name} has random weights, and what it says of pictures is not a"
                " score. Load its weights."
            )
    if store is None:
        with FeatureStore() as temporary:
            return metric_table_of(pairs, networks, readouts, missing, temporary, resamples, seed)
    for network in networks:  # an unregistered score is refused before anything is computed
        metric(
            network.name
            if getattr(network, "use", "two_way") != "two_way"
            else f"two_way_{network.name}"
        )
    for readout in readouts:
        metric(f"{readout.name}_accuracy")
    count = len(pairs.image_N)
    values = pixel.all_scores(pairs.truth, pairs.recons)
    scores = {
        name: _plain(uncertainty.mean_interval(each, resamples, seed), count, None)
        for name, each in values.items()
    }
    identified: dict[str, identify.TwoWay] = {}
    for network in networks:
        use = getattr(network, "use", "two_way")
        if use == "pair":
            values[network.name] = _pair_distances(network, pairs, store)
            scores[network.name] = _plain(
                uncertainty.mean_interval(values[network.name], resamples, seed), count, None
            )
            continue
        truth_NF, recons_NF = (
            store.features(network, pairs.truth, keep=True),
            store.features(network, pairs.recons),
        )
        try:
            if use == "distance":
                values[network.name] = identify.correlation_distance(truth_NF, recons_NF)
                scores[network.name] = _plain(
                    uncertainty.mean_interval(values[network.name], resamples, seed), count, None
                )
                continue
            two_way = identify.two_way(
                truth_NF, recons_NF, device=getattr(network, "device", "cpu")
            )
        except identify.FlatFeatures as error:
            where = f"{network.name}'s {error.what} in image {pairs.image_N[error.rows[0]]}"
            raise UserError(
                f"There is nothing to correlate in {where} ({len(error.rows)} such images): look at"
                " that picture."
            ) from error
        name = f"two_way_{network.name}"
        identified[name], values[name] = two_way, two_way.share_N
        scores[name] = _plain(
            uncertainty.two_way_interval(two_way.beats_NN, resamples, seed), count, 0.5
        )
    for readout in readouts:
        name = f"{readout.name}_accuracy"
        values[name] = _right(readout, pairs, store.batch)
        scores[name] = _plain(uncertainty.share_interval(values[name]), count, readout.chance)
    return MetricTable(
        scores=scores,
        table=pd.DataFrame(values, index=pd.Index(pairs.image_N, name="image")),
        identified=identified,
        weights={n.name: str(n.weights) for n in networks if hasattr(n, "weights")},
        missing=dict(missing or {}),
        versions=_versions(),
    )


def score_images(
    truth: Any,
    truth_ids: Any,
    recons: Any,
    recon_ids: Any,
    networks: Sequence[Features] = (),
    partial: bool = False,
    **settings: Any,
) -> MetricTable:
    """`metric_table_of` of pictures that are not matched yet: see
    `braingen.evaluation.image_pairs.match` for what is taken and what is refused.
    """
    return metric_table_of(
        match(truth, truth_ids, recons, recon_ids, partial), networks, **settings
    )


def _pair_distances(network: Any, pairs: Pairs, store: FeatureStore) -> np.ndarray:
    parts = []
    for start in range(0, len(pairs.image_N), store.batch):
        part = slice(start, start + store.batch)
        parts.append(
            network.distance(as_scored(pairs.truth, part), as_scored(pairs.recons, part))
            .double()
            .cpu()
            .numpy()
        )
        if store.progress is not None:
            store.progress(
                network.name, min(start + store.batch, len(pairs.image_N)), len(pairs.image_N)
            )
    return np.concatenate(parts)


def _right(readout: SceneReadout, pairs: Pairs, batch: int) -> np.ndarray:
    unnamed = [int(image) for image in pairs.image_N if int(image) not in readout.truth]
    if unnamed:
        raise UserError(
            f"The {readout.name} of {len(unnamed)} images is not known, e.g. of image {unnamed[0]}."
        )
    said = [
        readout.predict(as_scored(pairs.recons, slice(s, s + batch))).cpu().numpy()
        for s in range(0, len(pairs.image_N), batch)
    ]
    there = np.array([readout.truth[int(image)] for image in pairs.image_N])
    return (np.concatenate(said) == there).astype(np.float64)


def with_baselines(
    scores: Mapping[str, Score],
    random: Mapping[str, Score] | None = None,
    oracle: Mapping[str, Score] | None = None,
    ridge: Mapping[str, Score] | None = None,
) -> dict[str, Score]:
    """Scores with the values of the random-voxel pictures, of the pictures from true embeddings,
    and of ridge regression beside them.
    """

    def value(others: Mapping[str, Score] | None, name: str) -> float | None:
        return None if others is None or name not in others else others[name].value

    return {
        name: score._replace(
            random=value(random, name), oracle=value(oracle, name), ridge=value(ridge, name)
        )
        for name, score in scores.items()
    }


def compare_metric_tables(
    sheets: Mapping[str, MetricTable], resamples: int = uncertainty.RESAMPLES, seed: int = 0
) -> list[uncertainty.Comparison]:
    """Every two runs on every score they share, image by image, Holm-corrected
    (`braingen.evaluation.uncertainty.compare`).
    """
    tables = {name: sheet.paired for name, sheet in sheets.items()}
    columns = {
        name: {score: table[score].to_numpy() for score in table} for name, table in tables.items()
    }
    return uncertainty.compare(
        columns,
        {name: sheet.table.index.to_numpy() for name, sheet in sheets.items()},
        resamples,
        seed,
    )
