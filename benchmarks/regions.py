"""Are experts brain regions, and the same ones in every person? Groups of voxels of a trained
BrainMoERegions encoder against planted areas of simulated subjects, before and after training.

    braingen train image --config simulated --folder runs/regions encoder.model=BrainMoERegions
    python benchmarks/regions.py runs/regions

Before training the groups are those of the encoding models' tuning, of which the encoder is built
anew here. AMI is the adjusted mutual information of a level's experts (a voxel counts for the one
with its largest share) and planted areas, or kinds of areas; the baseline shuffles voxels.
Agreement: of the voxels of an expert, the shares of the areas, correlated between two people over
all experts and areas; the baseline shuffles the experts of one person.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score
import torch

from braingen.config import Config
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.runtime.run_folder import Run
from braingen.training import encoder_setup

KINDS = {
    "V1": "V1", "V2": "V2", "V3": "V3", "hV4": "hV4", "OFA": "faces", "FFA": "faces",
    "EBA": "bodies", "FBA": "bodies", "OPA": "places", "PPA": "places", "RSC": "places",
    "OWFA": "words", "VWFA": "words", "food": "food", "tools": "tools", "semantic": "semantic",
    "where": "where",
}  # fmt: skip
SHUFFLES = 200


def kinds_of(area_V: np.ndarray) -> np.ndarray:
    """Kind of every voxel's planted area."""
    names = sorted(KINDS, key=len, reverse=True)
    return np.array(
        [KINDS[next(name for name in names if area.startswith(name))] for area in area_V]
    )


def experts_of(decoder: EmbeddingDecoder, subject: int, voxels: int) -> list[np.ndarray]:
    """Per level, the expert with the largest share of every voxel."""
    shares = decoder.encoder.eval().voxel_shares(torch.zeros(2, voxels), subject)
    assert shares is not None
    return [each.share_EV.argmax(0).numpy() for each in shares]


def profiles(
    expert_V: np.ndarray, area_V: np.ndarray, areas: np.ndarray, experts: int
) -> np.ndarray:
    """Of every expert's voxels, the share in every area."""
    table = np.array(
        [[(area_V[expert_V == e] == area).sum() for area in areas] for e in range(experts)], float
    )
    return table / np.maximum(table.sum(1, keepdims=True), 1)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two people's tables."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def measure(
    decoder: EmbeddingDecoder, layout: Layout, subjects: list[int]
) -> list[dict[str, float]]:
    """One row per level."""
    rng = np.random.default_rng(0)
    truth = {s: np.load(layout.truth(s))["area"].astype(str) for s in subjects}
    found = {s: experts_of(decoder, s, len(truth[s])) for s in subjects}
    rows = []
    for level in range(len(found[subjects[0]])):
        expert = np.concatenate([found[s][level] for s in subjects])
        area = np.concatenate([truth[s] for s in subjects])
        row: dict[str, float] = {
            "experts": int(max(expert)) + 1,
            "ami_areas": adjusted_mutual_info_score(area, expert),
            "ami_kinds": adjusted_mutual_info_score(kinds_of(area), expert),
            "ami_shuffled": float(
                np.mean(
                    [adjusted_mutual_info_score(area, rng.permutation(expert)) for _ in range(5)]
                )
            ),
        }
        if len(subjects) > 1:
            names, count = np.unique(kinds_of(area)), int(max(expert)) + 1
            table = {
                s: profiles(found[s][level], kinds_of(truth[s]), names, count) for s in subjects
            }
            pairs = list(combinations(subjects, 2))
            row["agreement"] = float(np.mean([agreement(table[a], table[b]) for a, b in pairs]))
            row["agreement_shuffled"] = float(
                np.mean(
                    [
                        agreement(table[a], rng.permutation(table[b]))
                        for a, b in pairs
                        for _ in range(SHUFFLES // len(pairs))
                    ]
                )
            )
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--modality", choices=("image", "text"), default="image")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/regions.json"))
    chosen = parser.parse_args()
    folder = chosen.run / chosen.modality
    run = Run(folder).require_finished()
    config = Config(**{k: v for k, v in run.config.items() if k in Config.model_fields})
    layout, subjects = Layout.of(config.data.root), list(config.data.subjects)
    start = encoder_setup.setup(config, chosen.modality).embedding_decoder
    trained = EmbeddingDecoder.from_pretrained(folder / EMBEDDING_DECODER)
    found = {
        "before training": measure(start, layout, subjects),
        "after training": measure(trained, layout, subjects),
    }
    for when, rows in found.items():
        print(when)
        for row in rows:
            print(
                "  "
                + "  ".join(
                    f"{n} {v:.3f}" if n != "experts" else f"{n} {v}" for n, v in row.items()
                )
            )
    write_json(chosen.json, found)


if __name__ == "__main__":
    main()
