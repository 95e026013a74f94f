"""What knowing the gain of every region in every trial is worth on the hard world, in fitting and
in decoding by an encoding model.

    braingen simulate --config simulated_hard
    python benchmarks/region_gains.py --subject 1 --sessions 4 --folds 1

A trial's response in a region is gain x (signal + baseline) + noise. The region's mean response
shows the gain by the baseline; how much the signal grows with it is read off the trials: the slope
of measured on predicted responses, against the region's mean. With gains the encoding model is
fitted per region to responses from which the baseline's part is taken, each trial counting by its
squared gain, and decoding takes the embedding's mean given the responses and the gains.

Regions are the planted areas (an upper bound for any grouping of voxels) or, with `--groups`,
k-means groups of voxels with the same tuning. Scores are of left-out training images: cosine around
the training mean and retrieval among the fold's images. Test images have no part.

T trials, N images, V voxels, P features, A regions, K directions of predicted responses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.trials import fold_of_images, train_trials
from braingen.encoders.region_groups import spherical_groups
from braingen.encoding_model.banded_ridge import candidate_scales, fit_banded_ridge
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.noise import NoiseModel, fit_noise
from braingen.encoding_model.responses import average_array
from braingen.encoding_model.voxel_space import shared_space
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json

DIRECTIONS = 200
LEAST_GAIN, LARGEST_SLOPE = 0.1, 2.0


class Fitted(NamedTuple):
    """Predicted responses of the training images, and the noise."""

    predicted_NV: np.ndarray
    noise: NoiseModel


class Trials(NamedTuple):
    """Single trials; images by their row."""

    response_TV: np.ndarray
    row_T: np.ndarray


def region_means(response_TV: np.ndarray, region_V: np.ndarray) -> np.ndarray:
    """Mean response of every region, T x A."""
    return np.stack(
        [response_TV[:, region_V == a].mean(1) for a in range(region_V.max() + 1)], axis=1
    )


def gain_slope(
    predicted_TV: np.ndarray, response_TV: np.ndarray, means_TA: np.ndarray, region_V: np.ndarray
) -> float:
    """Median over regions of the growth of the signal per unit of the region's mean response,
    relative to the signal at the mean.
    """
    slopes = []
    for a in range(means_TA.shape[1]):
        mine = region_V == a
        square_T = np.square(predicted_TV[:, mine]).sum(1)
        match_T = (predicted_TV[:, mine] * response_TV[:, mine]).sum(1)
        size_T = np.sqrt(square_T)
        design_T2 = np.stack([size_T, size_T * means_TA[:, a]], axis=1)
        level, growth = np.linalg.lstsq(design_T2, match_T / size_T, rcond=None)[0]
        slopes.append(np.clip(growth / level * means_TA[:, a].std(), 0, LARGEST_SLOPE))
    return float(np.median(slopes))


def fit_with_gains(
    features: dict[str, np.ndarray],
    trials: Trials,
    gain_TA: np.ndarray,
    region_V: np.ndarray,
    scales_CB: np.ndarray,
) -> Fitted:
    """Fit every region to its responses over gains, trials weighted by squared gains."""
    images = len(next(iter(features.values())))
    predicted_NV = np.zeros((images, len(region_V)), dtype=np.float32)
    residual_TV = np.zeros_like(trials.response_TV)
    for a in range(gain_TA.shape[1]):
        mine, gain_T = region_V == a, gain_TA[:, a]
        sums_NV, weight_N = np.zeros((images, mine.sum())), np.zeros(images)
        np.add.at(sums_NV, trials.row_T, trials.response_TV[:, mine] * gain_T[:, None])
        np.add.at(weight_N, trials.row_T, gain_T**2)
        mean_NV = (sums_NV / weight_N[:, None]).astype(np.float32)
        ridge = fit_banded_ridge(features, mean_NV, weight_N, scales_CB)
        predicted_NV[:, mine] = ridge.predict(features)
        left_out_NV = mean_NV - ridge.residual_JV / np.sqrt(weight_N)[:, None]
        residual_TV[:, mine] = (
            trials.response_TV[:, mine] - gain_T[:, None] * left_out_NV[trials.row_T]
        )
    return Fitted(predicted_NV, fit_noise(residual_TV.astype(np.float32)))


def decode(
    fitted: Fitted,
    embedding_ND: np.ndarray,
    judged: Trials,
    gain_TA: np.ndarray,
    region_V: np.ndarray,
) -> np.ndarray:
    """The embedding's mean given responses and gains of all trials of an image, all Gaussian."""
    images, regions = len(fitted.predicted_NV), gain_TA.shape[1]
    mean_V, mean_D = fitted.predicted_NV.mean(0), embedding_ND.mean(0)
    left_NK, size_K, vector_KV = np.linalg.svd(fitted.predicted_NV - mean_V, full_matrices=False)
    kept = min(DIRECTIONS, len(size_K))
    direction_KV = vector_KV[:kept] * size_K[:kept, None] / np.sqrt(images)
    weights_KD = left_NK[:, :kept].T @ (embedding_ND - mean_D) / np.sqrt(images)
    noise = fitted.noise
    inverse_VV = np.linalg.inv(np.diag(noise.diagonal_V) + noise.factor_KV.T @ noise.factor_KV)
    blocks_AAKK = np.zeros((regions, regions, kept, kept))
    for a in range(regions):
        weighed_KV = direction_KV[:, region_V == a] @ inverse_VV[region_V == a]
        for b in range(regions):
            blocks_AAKK[a, b] = weighed_KV[:, region_V == b] @ direction_KV[:, region_V == b].T
    gain_TV = gain_TA[:, region_V]
    evidence_TK = (
        ((judged.response_TV - gain_TV * mean_V) @ inverse_VV) * gain_TV
    ) @ direction_KV.T
    count = judged.row_T.max() + 1
    evidence_NK, pairs_NAA = np.zeros((count, kept)), np.zeros((count, regions, regions))
    np.add.at(evidence_NK, judged.row_T, evidence_TK)
    np.add.at(pairs_NAA, judged.row_T, np.einsum("ta,tb->tab", gain_TA, gain_TA))
    decoded = [
        np.linalg.solve(np.eye(kept) + np.tensordot(pairs_AA, blocks_AAKK, 2), evidence_K)
        for pairs_AA, evidence_K in zip(pairs_NAA, evidence_NK)
    ]
    return mean_D + np.stack(decoded) @ weights_KD


def scores(decoded_ND: np.ndarray, true_ND: np.ndarray, mean_D: np.ndarray) -> dict[str, float]:
    """Cosine, and retrieval in both directions."""
    rows = [
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (decoded_ND - mean_D, true_ND - mean_D)
    ]
    cosine_NN = rows[0] @ rows[1].T
    own_N = np.arange(len(cosine_NN))
    return {
        "cosine": float(np.diag(cosine_NN).mean()),
        "brain_to_image": float((cosine_NN.argmax(1) == own_N).mean()),
        "image_to_brain": float((cosine_NN.argmax(0) == own_N).mean()),
    }


def measure(config: Config, folds: int, groups: int) -> list[dict[str, dict[str, float]]]:
    """Scores by fold and way."""
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    table = train_trials(layout, subject, config.data.num_sessions).table
    rows_T = table["trial"].to_numpy()
    images, row_T = np.unique(table["image"].to_numpy(), return_inverse=True)
    response_TV = Betas.of(layout, subject).rows(rows_T)
    with np.load(layout.truth(subject), allow_pickle=False) as truth:
        planted_TA = truth["gain"][rows_T]
        place = {name: index for index, name in enumerate(truth["areas"].astype(str).tolist())}
        area_V = np.array([place[name] for name in truth["area"].astype(str)])
    spaces = FeatureSpaces(config)
    features, embedding_ND = spaces.of_ids(images), spaces.targets.image(images).flatten(1).numpy()
    scales_CB, fold_N = (
        candidate_scales(len(features), 0),
        fold_of_images(images, 5, config.run.seed),
    )
    found = []
    for fold in range(folds):
        left_N = fold_N == fold
        place_N = np.where(left_N, np.cumsum(left_N) - 1, np.cumsum(~left_N) - 1)
        left_T = left_N[row_T]
        known, judged = (
            Trials(response_TV[each], place_N[row_T[each]]) for each in (~left_T, left_T)
        )
        mine = {band: values[~left_N] for band, values in features.items()}
        model = EncodingModel.fit(mine, average_array(known.response_TV, known.row_T), scales_CB)
        region_V = area_V
        if groups:
            direction_VK = torch.from_numpy(model.embed_voxels(shared_space([model], mine)))
            weight_V = torch.from_numpy(np.maximum(model.explained_V, 1e-3) ** 2)
            region_V = (
                (direction_VK @ spherical_groups(direction_VK, weight_V, groups).T)
                .argmax(1)
                .numpy()
            )
            region_V = np.unique(region_V, return_inverse=True)[1]
        means = [region_means(each.response_TV, region_V) for each in (known, judged)]
        averaged = average_array(known.response_TV, known.row_T)
        left_out_NV = (
            averaged.mean_NV - model.ridge.residual_JV / np.sqrt(averaged.times_N)[:, None]
        )
        slope = gain_slope(left_out_NV[known.row_T], known.response_TV, means[0], region_V)
        spread_A = means[0].std(0)
        gains = [np.maximum(1 + slope * each / spread_A, LEAST_GAIN) for each in means]
        own_V = np.array([
            known.response_TV[:, v] @ means[0][:, a] / (means[0][:, a] @ means[0][:, a])
            for v, a in enumerate(region_V)
        ])  # fmt: skip
        without = [
            each._replace(response_TV=each.response_TV - mean_TA[:, region_V] * own_V)
            for each, mean_TA in zip((known, judged), means)
        ]
        plain = Fitted(model.predict(mine), model.noise)
        with_gains = fit_with_gains(mine, without[0], gains[0], region_V, scales_CB)
        aim_ND, mean_D = embedding_ND[~left_N], embedding_ND.mean(0)
        ones_TA = np.ones_like(gains[1])
        ways = {
            "no gains": decode(plain, aim_ND, judged, ones_TA, region_V),
            "gains in fitting": decode(with_gains, aim_ND, without[1], ones_TA, region_V),
            "gains in fitting and decoding": decode(
                with_gains, aim_ND, without[1], gains[1], region_V
            ),
        }
        if not groups:
            known_gains = fit_with_gains(mine, without[0], planted_TA[~left_T], region_V, scales_CB)
            ways["planted gains in both"] = decode(
                known_gains, aim_ND, without[1], planted_TA[left_T], region_V
            )
        found.append(
            {way: scores(each, embedding_ND[left_N], mean_D) for way, each in ways.items()}
        )
        print(f"fold {fold}, {left_N.sum()} images, slope {slope:.2f}", flush=True)
        for way, row in found[-1].items():
            print(f"  {way:30s}" + "".join(f"  {n} {v:.3f}" for n, v in row.items()), flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    parser.add_argument("--config", default="simulated_hard")
    parser.add_argument("--subject", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--folds", type=int, default=5, help="of five, how many are computed")
    parser.add_argument("--groups", type=int, default=0, help="groups of voxels; 0: planted areas")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/region_gains.json"))
    chosen = parser.parse_args()
    _, overrides = parse_overrides(chosen.words)
    own = {"data.subjects": str(chosen.subject), "data.num_sessions": str(chosen.sessions)}
    config = load_config(chosen.config, {**overrides, **own})
    write_json(chosen.json, measure(config, chosen.folds, chosen.groups))


if __name__ == "__main__":
    main()
