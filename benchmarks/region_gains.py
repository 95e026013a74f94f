"""The mixture of regions with gains (`training.linear=best`) on the hard world: is it better than
fixed weights, are its regions planted areas, the same ones in every person, and does silencing one
cost what its area carries?

    braingen simulate --config simulated_hard
    python benchmarks/region_gains.py --sessions 10

Training images alone: two folds of five are left out in turn; test images have no part.

areas      adjusted mutual information of regions and planted areas, of voxels with signal: of
           shared regions (`shared_regions`, of everybody's training images), of those of one person
           alone, and of groups of voxels with the same tuning, where `BrainMoERegions` starts.
agreement  of the voxels of a region, the shares of the areas; correlated between two people over
           all regions of the same number and areas. Baseline: numbers shuffled. Best possible: by
           pairing regions by these shares themselves.
decoding   cosine around the training mean and retrieval among a fold's images, presentations
           averaged; 95 % intervals over images. *Planted areas*: the same with the planted areas
           for regions.
silencing  what a shared region carries: squared planted weights of its voxels on every group of
           content; what silencing costs: loss of the correlation of decoded and true content, by
           group. Both around their means over regions and groups, correlated; of every fold.
           Baseline: regions shuffled.

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
from braingen.encoding_model.responses import AveragedResponses, average_array
from braingen.encoding_model.shared_regions import PersonVoxels, shared_regions
from braingen.encoding_model.voxel_space import shared_space
from braingen.evaluation.uncertainty import mean_interval
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.simulation.hard_world.dataset import load_hard_scenes
from braingen.simulation.hard_world.scene_features import content_groups
from braingen.training.linear_fit import REFERENCE_IMAGES

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


class Known(NamedTuple):
    """One person's images of some folds, and the encoding model that is fitted to them."""

    features: dict[str, np.ndarray]
    averaged: AveragedResponses
    row_T: np.ndarray
    response_TV: np.ndarray
    model: EncodingModel

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Responses of trials."""
        return self.response_TV[rows]

    @property
    def left_TV(self) -> np.ndarray:
        """What left-out predictions do not explain of single trials."""
        trial_S, response_SV, signal_NV = region_gains.left_out_trials(
            self.features, self.averaged, self.row_T, self.read, self.model
        )
        return response_SV - signal_NV[self.row_T[trial_S]]


class Fit(NamedTuple):
    """Of the images of some folds."""

    model: EncodingModel
    gains: region_gains.RegionGains


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


def fit_model(person: Person, known_N: np.ndarray) -> Known:
    """Fit the encoding model to some images."""
    place_N = np.cumsum(known_N) - 1
    kept_T = known_N[person.row_T]
    response_TV, row_T = person.response_TV[kept_T], place_N[person.row_T[kept_T]]
    features = {band: values[known_N] for band, values in person.features.items()}
    averaged, scales_CB = average_array(response_TV, row_T), candidate_scales(len(features), 0)
    return Known(
        features, averaged, row_T, response_TV, EncodingModel.fit(features, averaged, scales_CB)
    )


def share(known: list[Known], regions: int) -> list[np.ndarray]:
    """Regions that are the same in everybody."""
    images = [each.features["embedding"].shape[0] for each in known]
    step = -(-sum(images) // REFERENCE_IMAGES)
    reference = {
        band: np.concatenate([each.features[band][::step] for each in known])
        for band in known[0].features
    }
    voxels = [PersonVoxels(each.model, each.left_TV) for each in known]
    return shared_regions(voxels, reference, regions)


def fit(known: Known, regions: int, region_V: np.ndarray | None = None) -> Fit:
    """Fit the gains of regions."""
    gains = region_gains.fit_region_gains(
        *(known.features, known.averaged, known.row_T, known.read, known.model, regions),
        left_out=2000,
        region_V=region_V,
    )
    return Fit(known.model, gains)


def own_regions(known: Known, regions: int) -> np.ndarray:
    """Regions of one person alone."""
    return region_gains.group_voxels(known.left_TV, known.model, known.features, regions)


def tuned_alike(known: Known, regions: int) -> np.ndarray:
    """Groups of voxels with the same tuning, which is where `BrainMoERegions` starts."""
    tuning = torch.from_numpy(known.model.embed_voxels(shared_space([known.model], known.features)))
    weight_V = torch.from_numpy(np.maximum(known.model.explained_V, 1e-3) ** 2)
    return (tuning @ spherical_groups(tuning, weight_V, regions).T).argmax(1).numpy()


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


def agreement(people: list[Person], region: list[np.ndarray], regions: int) -> dict[str, float]:
    """Does a region of the same number lie in the same area in two people?"""
    rng = np.random.default_rng(0)
    areas = np.unique(np.concatenate([person.area_V for person in people]))
    tables = [
        profile(region_V[each.signal_V], each.area_V[each.signal_V], areas, regions)
        for each, region_V in zip(people, region)
    ]
    found: dict[str, list[float]] = {"same_number": [], "at_random": [], "best_possible": []}
    for first, second in combinations(tables, 2):
        around = [unit_rows(table - table.mean()) for table in (first, second)]
        rows, columns = linear_sum_assignment(-around[0] @ around[1].T)
        pairs = {"same_number": (first, second), "best_possible": (first[rows], second[columns])}
        for way, pair in pairs.items():
            found[way].append(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])
        for _ in range(SHUFFLES // 10):
            shuffled = rng.permutation(second)
            found["at_random"].append(np.corrcoef(first.ravel(), shuffled.ravel())[0, 1])
    return {
        **{way: float(np.mean(values)) for way, values in found.items()},
        "at_random_95th_percentile": float(np.percentile(found["at_random"], 95)),
    }


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
    parser.add_argument("--people", default="1,2,3,4,5,6,7,8", help="who share regions")
    parser.add_argument(
        "--subjects", default="1,2,3,4", help="of these, who are decoded; empty for none"
    )
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/region_gains.json"))
    chosen = parser.parse_args()
    _, overrides = parse_overrides(chosen.words)
    found: dict[str, Any] = {}
    people, configs = {}, {}
    for subject in map(int, chosen.people.split(",")):
        own = {"data.subjects": str(subject), "data.num_sessions": str(chosen.sessions)}
        configs[subject] = load_config(chosen.config, {**overrides, **own})
        people[subject] = load(configs[subject], subject)
    fold = {
        subject: fold_of_images(np.arange(len(person.embedding_ND)), OF, configs[subject].run.seed)
        for subject, person in people.items()
    }
    whole = {s: fit_model(person, fold[s] >= 0) for s, person in people.items()}
    region = share(list(whole.values()), chosen.regions)
    found["people"] = agreement(list(people.values()), region, chosen.regions)
    print("  ".join(f"{name} {value:.3f}" for name, value in found["people"].items()), flush=True)
    for subject, region_V in zip(people, region):
        person, inside = people[subject], people[subject].signal_V
        groups = {
            "ami_tuning_alone": tuned_alike(whole[subject], chosen.regions),
            "ami_of_own_regions": own_regions(whole[subject], chosen.regions),
            "ami": region_V,
        }
        facts = {
            name: adjusted_mutual_info_score(person.area_V[inside], group_V[inside])
            for name, group_V in groups.items()
        }
        facts["regions"] = float(len(np.unique(region_V)))
        found[str(subject)] = {"regions": facts}
        print(f"subject {subject}: " + "  ".join(f"{n} {v:.3f}" for n, v in facts.items()))
    del whole
    scores: dict[int, dict[str, list[dict[str, np.ndarray]]]] = {}
    for number in range(FOLDS if chosen.subjects else 0):
        known = {s: fit_model(person, fold[s] != number) for s, person in people.items()}
        shared = dict(zip(people, share(list(known.values()), chosen.regions)))
        for subject in map(int, filter(None, chosen.subjects.split(","))):
            person, known_N = people[subject], fold[subject] != number
            areas_V = np.unique(person.area_V, return_inverse=True)[1]
            mine = fit(known[subject], chosen.regions)
            same = fit(known[subject], chosen.regions, shared[subject])
            areas = fit(known[subject], int(areas_V.max()) + 1, areas_V)
            ways = {
                "fixed weights": decode_fixed(person, mine, known_N),
                "own regions": decode(person, mine, known_N),
                "shared regions": decode(person, same, known_N),
                "planted areas": decode(person, areas, known_N),
            }
            mean_D = person.embedding_ND[known_N].mean(0)
            for way, decoded_ND in ways.items():
                row = by_image(decoded_ND, person.embedding_ND[~known_N], mean_D)
                scores.setdefault(subject, {}).setdefault(way, []).append(row)
            found[str(subject)].setdefault("silencing", []).append(silencing(person, same, known_N))
    for subject, each in scores.items():
        joined = {
            way: {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
            for way, rows in each.items()
        }
        rows = {way: {n: mean_interval(v) for n, v in row.items()} for way, row in joined.items()}
        for first, second in (("shared", "own"), ("shared", "fixed")):
            less = next(way for way in joined if way.startswith(second))
            rows[f"{first} minus {second}"] = {
                n: mean_interval(v - joined[less][n]) for n, v in joined["shared regions"].items()
            }
        found[str(subject)]["scores"] = rows
        print(f"subject {subject}", found[str(subject)]["silencing"])
        for way, row in rows.items():
            text = "  ".join(f"{n} {v[0]:.3f} ({v[1]:.3f} to {v[2]:.3f})" for n, v in row.items())
            print(f"  {way:24s} {text}", flush=True)
    write_json(chosen.json, found)


if __name__ == "__main__":
    main()
