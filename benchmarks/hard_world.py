"""How hard the hard world is: dimensions of the target, parts of the noise, population SNR, and
what observers who know the truth, and ridge regression, decode.

    braingen simulate --config simulated_hard
    python benchmarks/hard_world.py --config simulated_hard --subjects 1,2

Scores are means over the test images, three presentations each; retrieval among all of them.
`new` and `familiar` are the test images with and without a combination that no training image
shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import time

import numpy as np

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.evaluation.embeddings import EmbeddingScores, scores_of_decoded
from braingen.evaluation.ridge_baseline import ridge_embeddings
from braingen.evaluation.uncertainty import mean_interval
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.simulation.hard_world.compose import draw_scenes
from braingen.simulation.hard_world.observers import Observer
from braingen.simulation.hard_world.scene_features import (
    effective_dimensions,
    reference_scenes,
    scene_features,
)
from braingen.targets.tables import Targets

TRAINING_SIZES = (1, 4, 10)
"""Sessions that ridge regression is fitted on."""


def target_facts() -> dict[str, float]:
    """Shape of the embedding over scenes that nobody was shown."""
    embedding_ND = scene_features(draw_scenes(6_000_000, range(8000), 0)).embedding_ND
    centred_ND = embedding_ND - embedding_ND.mean(0)
    value_D = np.sort(np.linalg.eigvalsh(np.cov(centred_ND.T)))[::-1]
    share_D = np.cumsum(value_D) / value_D.sum()
    norm_ND = embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    pairs = norm_ND[:1000] @ norm_ND[1000:2000].T
    energy_NF = scene_features(reference_scenes()).bands["energy"]
    return {
        "width": embedding_ND.shape[1],
        "effective_dimensions": effective_dimensions(embedding_ND),
        "dimensions_of_90_percent": float(np.searchsorted(share_D, 0.9) + 1),
        "share_of_the_leading_direction": float(share_D[0]),
        "cosine_of_two_images": float(pairs.mean()),
        "effective_dimensions_layout": effective_dimensions(energy_NF),
    }


def noise_facts(observer: Observer) -> dict[str, float]:
    """Parts of the noise of a person."""
    plan, brain = observer.plan, observer.brain
    has_V = plan.snr_V > 0
    snr = observer.population_snr(50)
    signal_LV = observer.statistics[0] - observer.baseline_V
    late_V = ~brain.early_V
    return {
        "voxels": len(has_V),
        "silent_share": float(1 - has_V.mean()),
        "snr_median_early": float(np.median(plan.snr_V[has_V & brain.early_V])),
        "snr_median_late": float(np.median(plan.snr_V[has_V & late_V])),
        "snr_95th": float(np.quantile(plan.snr_V[has_V], 0.95)),
        "aligned_share": float(plan.aligned_share_V[has_V].mean()),
        "gain_share": float(
            np.mean(
                plan.gain_variance * (1 + observer.baseline_V[has_V] ** 2) * plan.snr_V[has_V] ** 2
            )
        ),
        "signal_dimensions": effective_dimensions(signal_LV),
        "population_snr_1": float(np.sqrt(snr[0])),
        "population_snr_10": float(np.sqrt(snr[9])),
        "population_snr_50": float(np.sqrt(snr[49])),
    }


def headroom(config: Config, observer: Observer) -> dict[str, EmbeddingScores | np.ndarray]:
    """Scores of observers who know the truth, and of ridge regression."""
    targets, ids = Targets(config), observer.trials.image_N
    true_ND = targets.image(ids).flatten(1).numpy().astype(np.float64)
    found: dict[str, EmbeddingScores | np.ndarray] = {}
    likelihood_NN = observer.identify()
    found["ideal observer"] = (likelihood_NN.argmax(1) == np.arange(len(ids))).astype(float)
    mean_D = observer.statistics[1].mean(0)
    for name, decode in (
        ("oracle gate", observer.oracle_gate),
        ("best linear", observer.best_linear),
    ):
        found[name] = scores_of_decoded(config, decode(), true_ND, mean_D, ids)
    for sessions in TRAINING_SIZES:
        data = config.data.model_copy(update={"num_sessions": sessions})
        some = config.model_copy(update={"data": data})
        raw_ND, mean = ridge_embeddings(some, targets, ids)
        found[f"ridge, {sessions} sessions"] = scores_of_decoded(
            config, raw_ND.numpy().astype(np.float64), true_ND, mean.numpy(), ids
        )
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    parser.add_argument("--config", default="simulated_hard")
    parser.add_argument("--subjects", default="1")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/hard_world.json"))
    chosen = parser.parse_args()
    _, overrides = parse_overrides(chosen.words)
    result: dict[str, object] = {"target": target_facts()}
    for name, value in target_facts().items():
        print(f"{name:34s} {value:.3f}")
    for subject in map(int, chosen.subjects.split(",")):
        start = time.perf_counter()
        config = load_config(chosen.config, {**overrides, "data.subjects": str(subject)})
        observer = Observer(Layout.of(config.data.root), subject)
        facts = noise_facts(observer)
        print(f"subject {subject}, lacks {observer.brain.missing or 'nothing'}")
        for name, value in facts.items():
            print(f"  {name:32s} {value:.3f}")
        rows: dict[str, dict[str, dict[str, float]]] = {}
        new_N = observer.trials.image_N % 2 == 1
        for way, scores in headroom(config, observer).items():
            values = (
                scores.values
                if isinstance(scores, EmbeddingScores)
                else {"retrieval_brain_to_image": scores}
            )
            rows[way] = {
                name: {
                    **mean_interval(each)._asdict(),
                    "new": float(each[new_N].mean()),
                    "familiar": float(each[~new_N].mean()),
                }
                for name, each in values.items()
            }
            cells = "".join(
                f"  {name.removeprefix('retrieval_')} {row['value']:.3f}"
                f" ({row['low']:.3f} to {row['high']:.3f}; new {row['new']:.3f})"
                for name, row in rows[way].items()
            )
            print(f"  {way:20s}{cells}")
        result[f"subject {subject}"] = {"noise": facts, "scores": rows}
        print(f"  {time.perf_counter() - start:.0f} s")
    write_json(chosen.json, result)


if __name__ == "__main__":
    main()
