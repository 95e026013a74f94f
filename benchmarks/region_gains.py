"""The mixture of regions with gains (`training.linear=best`) on the hard world: is it better than
fixed weights, are its regions planted areas, the same ones in every person, and does silencing one
cost what its area carries?

    braingen simulate --config simulated_hard
    python benchmarks/region_gains.py --subjects 1,2,3,4 --sessions 4

Training images alone: two folds of five are left out in turn; test images have no part.

decoding   cosine around the training mean and retrieval among a fold's images, presentations
           averaged; 95 % intervals over images. *Planted areas*: the same with the planted areas
           for regions.
areas      adjusted mutual information of regions and planted areas, of voxels with signal; before:
           groups of voxels with the same tuning, which is where `BrainMoERegions` starts.
agreement  regions of two people, found in all training images, are paired by the mean and by the
           second moments of their voxels' tuning, which know no truth; then, of the voxels of a
           region, the shares of the areas, correlated between the two over all regions and areas.
           Baseline: pairs at random. Best possible: pairs by these shares themselves.
silencing  what a region carries: squared planted weights of its voxels on every group of content;
           what silencing costs: loss of the correlation of decoded and true content, by group. Both
           around their means over regions and groups, correlated. Baseline: regions shuffled.

N images, T trials, V voxels, A regions, C groups of content, K dimensions of tuning.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_mutual_info_score
import torch

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.trials import fold_of_images, train_trials
from braingen.encoders.gated_readout import GatedReadout
from braingen.encoders.region_groups import spherical_groups
from braingen.encoding_model import region_gains
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.library import Inverse, Library
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.responses import average_array
from braingen.encoding_model.voxel_space import shared_space
from braingen.evaluation.uncertainty import mean_interval
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.simulation.hard_world.dataset import load_hard_scenes
from braingen.simulation.hard_world.scene_features import content_groups

FOLDS, OF, SHUFFLES = 2, 5, 200


class Person(NamedTuple):
    """Training data of one subject, and what was planted."""

    features: dict[str, np.ndarray]
    embedding_ND: np.ndarray
    content: dict[str, np.ndarray]
    """Content of the images by group, N x width."""
    row_T: np.ndarray
    response_TV: np.ndarray
    area_V: np.ndarray
    carried_VC: np.ndarray
    """Squared planted weights on every group of content."""
    signal_V: np.ndarray
    """Voxels with signal."""


class Fit(NamedTuple):
    """Of the images of some folds."""

    model: EncodingModel
    gains: region_gains.RegionGains
    tuning_V: np.ndarray
    """Groups of voxels with the same tuning."""


def load(config: Config, subject: int) -> Person:
    """Read one subject."""
    layout = Layout.of(config.data.root)
    table = train_trials(layout, subject, config.data.num_sessions).table
    images, row_T = np.unique(table["image"].to_numpy(), return_inverse=True)
    spaces, scenes = FeatureSpaces(config), load_hard_scenes(layout)
    groups = content_groups(type(scenes)(*(values[images] for values in scenes)))
    with np.load(layout.truth(subject), allow_pickle=False) as truth:
        ends = truth["content_ends"]
        parts = np.split(np.square(truth["content_weights"]), ends[:-1], axis=1)
        area_V, snr_V = truth["area"].astype(str), truth["snr"]
    return Person(
        spaces.of_ids(images),
        spaces.targets.image(images).flatten(1).numpy(),
        groups,
        row_T,
        Betas.of(layout, subject).rows(table["trial"].to_numpy()),
        area_V,
        np.stack([part.sum(1) for part in parts], axis=1),
        snr_V > 0,
    )


def fit(person: Person, known_N: np.ndarray, regions: int, planted: bool = False) -> Fit:
    """Fit encoding model and gains to some images."""
    place_N = np.cumsum(known_N) - 1
    kept_T = known_N[person.row_T]
    response_TV, row_T = person.response_TV[kept_T], place_N[person.row_T[kept_T]]
    features = {band: values[known_N] for band, values in person.features.items()}
    known, scales_CB = average_array(response_TV, row_T), candidate_scales(len(features), 0)
    model = EncodingModel.fit(features, known, scales_CB)
    tuning = torch.from_numpy(model.embed_voxels(shared_space([model], features)))
    weight_V = torch.from_numpy(np.maximum(model.explained_V, 1e-3) ** 2)
    tuning_V = (tuning @ spherical_groups(tuning, weight_V, regions).T).argmax(1).numpy()
    areas = np.unique(person.area_V, return_inverse=True)[1] if planted else None
    gains = region_gains.fit_region_gains(
        features,
        known,
        row_T,
        lambda rows: response_TV[rows],
        model,
        regions,
        left_out=2000,
        region_V=areas,
    )
    return Fit(model, gains, tuning_V)


def decode(
    person: Person, found: Fit, known_N: np.ndarray, silenced: tuple[int, ...] = ()
) -> np.ndarray:
    """Embeddings of the left-out images, presentations averaged: N x D."""
    read = GatedReadout(
        person.response_TV.shape[1], person.embedding_ND.shape[1], len(found.gains.growth_A)
    )
    read.take(found.gains.weights(person.embedding_ND[known_N]))
    left_T = ~known_N[person.row_T]
    decoded_TD = read(torch.from_numpy(person.response_TV[left_T]), silenced).numpy()
    return average_array(decoded_TD, person.row_T[left_T]).mean_NV


def decode_fixed(person: Person, found: Fit, known_N: np.ndarray) -> np.ndarray:
    """The same with fixed weights."""
    features = {band: values[known_N] for band, values in person.features.items()}
    library = Library(person.embedding_ND[known_N], found.model.predict(features))
    left_T = ~known_N[person.row_T]
    averaged = average_array(person.response_TV[left_T], person.row_T[left_T])
    return Inverse(library, found.model.noise).gaussian(averaged.mean_NV, 1.0)


def by_image(decoded_ND: np.ndarray, true_ND: np.ndarray, mean_D: np.ndarray) -> dict[str, Any]:
    """Scores of every image."""
    rows = [x - mean_D for x in (decoded_ND, true_ND)]
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    cosine_NN = rows[0] @ rows[1].T
    own_N = np.arange(len(cosine_NN))
    return {
        "cosine": np.diag(cosine_NN),
        "brain_to_image": (cosine_NN.argmax(1) == own_N).astype(float),
        "image_to_brain": (cosine_NN.argmax(0) == own_N).astype(float),
    }


def content_found(person: Person, decoded_ND: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """Correlation of true content and that read from decoded embeddings, by group: C."""
    found = []
    for values in person.content.values():
        varies = values[known_N].std(0) > 0
        read = RidgeCV(np.logspace(-3, 3, 7)).fit(
            person.embedding_ND[known_N], values[known_N][:, varies]
        )
        guess, truth = read.predict(decoded_ND), values[~known_N][:, varies]
        there = truth.std(0) > 0
        pairs = zip(guess.T[there], truth.T[there])
        found.append(np.mean([np.corrcoef(g, t)[0, 1] for g, t in pairs]))
    return np.array(found)


def around_means(table_AC: np.ndarray) -> np.ndarray:
    """What is neither of the region nor of the group alone."""
    table_AC = table_AC / np.maximum(table_AC.std(0), 1e-12)
    return table_AC - table_AC.mean(0) - table_AC.mean(1, keepdims=True) + table_AC.mean()


def silencing(person: Person, found: Fit, known_N: np.ndarray) -> dict[str, float]:
    """Does silencing a region cost what it carries?"""
    whole_C = content_found(person, decode(person, found, known_N), known_N)
    region_V, regions = found.gains.region_V, range(len(found.gains.growth_A))
    cost_AC = np.stack(
        [
            whole_C - content_found(person, decode(person, found, known_N, (a,)), known_N)
            for a in regions
        ]
    )
    carried_AC = np.stack([person.carried_VC[region_V == a].sum(0) for a in regions])
    cost_AC, carried_AC = around_means(cost_AC), around_means(carried_AC)
    rng = np.random.default_rng(0)
    shuffled = [
        np.corrcoef(cost_AC.ravel(), rng.permutation(carried_AC).ravel())[0, 1]
        for _ in range(SHUFFLES)
    ]
    return {
        "cost_against_carried": float(np.corrcoef(cost_AC.ravel(), carried_AC.ravel())[0, 1]),
        "shuffled_95th_percentile": float(np.percentile(shuffled, 95)),
    }


def profile(region_V: np.ndarray, area_V: np.ndarray, areas: np.ndarray, count: int) -> np.ndarray:
    """Of every region's voxels, the share in every area."""
    table = np.array(
        [[(area_V[region_V == a] == name).sum() for name in areas] for a in range(count)], float
    )
    return table / np.maximum(table.sum(1, keepdims=True), 1)


def agreement(people: list[Person], fits: list[Fit]) -> dict[str, float]:
    """Does the same region of two people, paired by tuning, lie in the same area?"""
    rng, regions = np.random.default_rng(0), len(fits[0].gains.growth_A)
    areas = np.unique(np.concatenate([person.area_V for person in people]))
    features = {
        band: np.concatenate([person.features[band] for person in people])
        for band in people[0].features
    }
    space_KP = shared_space([each.model for each in fits], features)
    means, moments, tables = [], [], []
    for person, each in zip(people, fits):
        tuning_VK = each.model.embed_voxels(space_KP)
        weighed_VK = tuning_VK * np.maximum(each.model.explained_V, 0)[:, None]
        inside = [each.gains.region_V == a for a in range(regions)]
        means.append(unit_rows(np.stack([weighed_VK[i].sum(0) for i in inside])))
        moments.append(
            unit_rows(np.stack([(weighed_VK[i].T @ tuning_VK[i]).ravel() for i in inside]))
        )
        mine = person.signal_V
        tables.append(profile(each.gains.region_V[mine], person.area_V[mine], areas, regions))
    ways = {"by_means": means, "by_second_moments": moments}
    ways["best_possible"] = [unit_rows(table - table.mean()) for table in tables]
    found: dict[str, list[float]] = {}
    for a, b in combinations(range(len(people)), 2):
        for way, rows in ways.items():
            first, second = linear_sum_assignment(-rows[a] @ rows[b].T)
            pair = np.corrcoef(tables[a][first].ravel(), tables[b][second].ravel())
            found.setdefault(way, []).append(pair[0, 1])
        for _ in range(SHUFFLES // 10):
            shuffled = rng.permutation(tables[b])
            pair = np.corrcoef(tables[a].ravel(), shuffled.ravel())
            found.setdefault("at_random", []).append(pair[0, 1])
    return {way: float(np.mean(values)) for way, values in found.items()}


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    parser.add_argument("--config", default="simulated_hard")
    parser.add_argument("--subjects", default="1,2,3,4")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/region_gains.json"))
    chosen = parser.parse_args()
    _, overrides = parse_overrides(chosen.words)
    found: dict[str, Any] = {}
    people, fits = [], []
    for subject in map(int, chosen.subjects.split(",")):
        own = {"data.subjects": str(subject), "data.num_sessions": str(chosen.sessions)}
        config = load_config(chosen.config, {**overrides, **own})
        person = load(config, subject)
        fold_N = fold_of_images(np.arange(len(person.embedding_ND)), OF, config.run.seed)
        scores: dict[str, list[dict[str, np.ndarray]]] = {}
        for fold in range(FOLDS):
            known_N = fold_N != fold
            mine = fit(person, known_N, chosen.regions)
            areas = fit(person, known_N, len(np.unique(person.area_V)), planted=True)
            ways = {
                "fixed weights": decode_fixed(person, mine, known_N),
                "regions found": decode(person, mine, known_N),
                "planted areas": decode(person, areas, known_N),
            }
            mean_D = person.embedding_ND[known_N].mean(0)
            for way, decoded_ND in ways.items():
                row = by_image(decoded_ND, person.embedding_ND[~known_N], mean_D)
                scores.setdefault(way, []).append(row)
        joined = {
            way: {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
            for way, rows in scores.items()
        }
        row = {way: {n: mean_interval(v) for n, v in each.items()} for way, each in joined.items()}
        row["regions found minus fixed weights"] = {
            n: mean_interval(v - joined["fixed weights"][n])
            for n, v in joined["regions found"].items()
        }
        inside = person.signal_V
        facts = {
            "ami_before": adjusted_mutual_info_score(person.area_V[inside], mine.tuning_V[inside]),
            "ami": adjusted_mutual_info_score(person.area_V[inside], mine.gains.region_V[inside]),
            **silencing(person, mine, known_N),
        }
        people.append(person)
        fits.append(fit(person, np.ones(len(fold_N), dtype=bool), chosen.regions))
        found[str(subject)] = {"scores": row, "regions": facts}
        print(f"subject {subject}: " + "  ".join(f"{n} {v:.3f}" for n, v in facts.items()))
        for way, each in row.items():
            text = "  ".join(f"{n} {v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})" for n, v in each.items())
            print(f"  {way:34s} {text}", flush=True)
    if len(people) > 1:
        found["people"] = agreement(people, fits)
        print("  ".join(f"{name} {value:.3f}" for name, value in found["people"].items()))
    write_json(chosen.json, found)


if __name__ == "__main__":
    main()
