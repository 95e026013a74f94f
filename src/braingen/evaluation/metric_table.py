"""The metric table: every score of a set of reconstructions, with intervals and per-image values.

N images, B of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from braingen.evaluation import identification, pixel, uncertainty
from braingen.evaluation.feature_store import FeatureStore, as_scored
from braingen.evaluation.features import Features
from braingen.evaluation.image_pairs import Pairs, match
from braingen.evaluation.metrics import metric
from braingen.runtime.errors import UserError
from braingen.types import Score


class SceneReadout(NamedTuple):
    """A classifier of image content, e.g. the scene classifier's object head."""

    name: str
    """The score is ``<name>_accuracy``."""
    predict: Callable[[Tensor], Tensor]
    """B x 3 x H x W images in [0, 1] to B class numbers."""
    truth: Mapping[int, int]
    """Image id to true class."""
    chance: float | None
    """Accuracy of guessing."""


class MetricTable(NamedTuple):
    """Scores of one set of reconstructions."""

    scores: dict[str, Score]
    """By name, in the order of the field's tables."""
    table: pd.DataFrame
    """Values of every image; the index is the image id."""
    identified: dict[str, identification.TwoWay]
    """Pairwise outcomes of every two-way score, by score name."""
    weights: dict[str, str]
    """Hash of the weights of every network used, where it states one."""
    missing: dict[str, str]
    """Networks that could not be used, and how to get them."""
    versions: dict[str, str]
    """Versions of the libraries that computed it."""

    @property
    def paired(self) -> pd.DataFrame:
        """Table for comparing runs: as ``table``, two-way scores by `two_way_by_image`."""
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
    """Compute every score of matched images.

    Parameters
    ----------
    pairs : Pairs
        Images matched by image id (`braingen.evaluation.image_pairs.match`).
    networks : Sequence[Features], optional
        Comparison networks. By their ``use`` ("two_way" by default) two-way identification becomes
        ``two_way_<name>``, and distances keep the network's name.
    readouts : Sequence[SceneReadout], optional
        Classifiers of image content.
    missing : Mapping[str, str] | None, optional
        Networks that are not available, for the record.
    store : FeatureStore | None, optional
        Where features are stored; by default a temporary folder.
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
                f"Network {network.name} has random weights, so its features give no score. Load"
                " its weights."
            )
    if store is None:
        with FeatureStore() as temporary:
            return metric_table_of(pairs, networks, readouts, missing, temporary, resamples, seed)
    for network in networks:  # refuse an unregistered score before computing anything
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
    identified: dict[str, identification.TwoWay] = {}
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
                values[network.name] = identification.correlation_distance(truth_NF, recons_NF)
                scores[network.name] = _plain(
                    uncertainty.mean_interval(values[network.name], resamples, seed), count, None
                )
                continue
            two_way = identification.two_way(
                truth_NF, recons_NF, device=getattr(network, "device", "cpu")
            )
        except identification.FlatFeatures as error:
            where = f"{network.name}'s {error.what} in image {pairs.image_N[error.rows[0]]}"
            raise UserError(
                f"There is nothing to correlate in {where} ({len(error.rows)} such images): inspect"
                " that image."
            ) from error
        name = f"two_way_{network.name}"
        identified[name], values[name] = two_way, two_way.share_N
        scores[name] = _plain(
            uncertainty.two_way_interval(two_way.beats_NN, resamples, seed), count, 0.5
        )
    for readout in readouts:
        name = f"{readout.name}_accuracy"
        values[name] = _correct(readout, pairs, store.batch)
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
    """Match images by id (`braingen.evaluation.image_pairs.match`) and score them."""
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


def _correct(readout: SceneReadout, pairs: Pairs, batch: int) -> np.ndarray:
    unnamed = [int(image) for image in pairs.image_N if int(image) not in readout.truth]
    if unnamed:
        raise UserError(
            f"The {readout.name} of {len(unnamed)} images is not known, e.g. of image {unnamed[0]}."
        )
    predicted = [
        readout.predict(as_scored(pairs.recons, slice(s, s + batch))).cpu().numpy()
        for s in range(0, len(pairs.image_N), batch)
    ]
    true_N = np.array([readout.truth[int(image)] for image in pairs.image_N])
    return (np.concatenate(predicted) == true_N).astype(np.float64)


def with_baselines(
    scores: Mapping[str, Score],
    random: Mapping[str, Score] | None = None,
    oracle: Mapping[str, Score] | None = None,
    ridge: Mapping[str, Score] | None = None,
    encoding_model: Mapping[str, Score] | None = None,
    low_level: Mapping[str, Score] | None = None,
) -> dict[str, Score]:
    """Add the values of random voxels, oracle, ridge regression, encoding model and low-level path
    to every score.
    """

    def value(others: Mapping[str, Score] | None, name: str) -> float | None:
        return None if others is None or name not in others else others[name].value

    return {
        name: score._replace(
            random=value(random, name),
            oracle=value(oracle, name),
            ridge=value(ridge, name),
            encoding_model=value(encoding_model, name),
            low_level=value(low_level, name),
        )
        for name, score in scores.items()
    }


def compare_metric_tables(
    metric_tables: Mapping[str, MetricTable], resamples: int = uncertainty.RESAMPLES, seed: int = 0
) -> list[uncertainty.Comparison]:
    """Compare every two runs on every shared score, image by image, Holm-corrected."""
    tables = {name: each.paired for name, each in metric_tables.items()}
    columns = {
        name: {score: table[score].to_numpy() for score in table} for name, table in tables.items()
    }
    return uncertainty.compare(
        columns,
        {name: each.table.index.to_numpy() for name, each in metric_tables.items()},
        resamples,
        seed,
    )
