"""The identity-keeping router against the published one: same simulated data, same budget, several
seeds; retrieval in both directions.

    python benchmarks/routing.py --config simulated --seeds 3

Needs the simulated data (`braingen simulate --config simulated`). Prints a Markdown table and
writes JSON beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import tempfile
import time

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation.decoding import decoder_scores
from braingen.runtime.data_layout import Layout
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.targets.tables import Targets
from braingen.training.encoder import train

VARIANTS = {
    "static routing, residual trunk (default)": {"routing": "static", "trunk": "residual"},
    "published expert-choice routing, residual trunk": {
        "routing": "expert_choice",
        "trunk": "residual",
    },
    "published value routing, published trunk": {"routing": "expert_choice", "trunk": "published"},
}


@torch.no_grad()
def retrieval(config: Config, folder: Path) -> dict[str, float]:
    """Top-1 among all test images, both directions, three presentations averaged."""
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    embedding_decoder = EmbeddingDecoder.from_pretrained(folder / EMBEDDING_DECODER).eval()
    repeats, betas = group_repeats(test_trials(layout, subject)), Betas.of(layout, subject)
    decoded = []
    for batch in RepeatBatches(repeats, betas, subject, 64):
        count, presentations = batch.present_BR.shape
        each = embedding_decoder(batch.voxels_BRV.flatten(0, 1), subject).clip_BTD.unflatten(
            0, (count, presentations)
        )
        decoded.append(average_repeats(each, batch.present_BR))
    true = embedding_decoder.standardised(Targets(config).image(repeats.image_N))
    scores, _ = decoder_scores(
        torch.cat(decoded).flatten(1).numpy(), true.flatten(1).numpy(), repeats.image_N, resamples=1
    )
    return {
        name: float(scores[name].value or 0)
        for name in ("retrieval_brain_to_image", "retrieval_image_to_brain")
    }


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("simulated"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="instead of the config's")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/routing.json"))
    chosen = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for name, encoder in VARIANTS.items():
        for seed in range(chosen.seeds):
            overrides = {f"encoder.{field}": value for field, value in encoder.items()} | {
                "run.seed": str(seed)
            }
            if chosen.epochs:
                overrides["training.num_epochs"] = str(chosen.epochs)
            with tempfile.TemporaryDirectory() as scratch:
                config = load_config(
                    chosen.config, overrides | {"run.folder": scratch, "run.tracker": "none"}
                )
                started = time.monotonic()
                folder = train(config, "image")
                seconds = round(time.monotonic() - started, 1)
                results.setdefault(name, []).append(
                    {"seed": seed, "seconds": seconds, **retrieval(config, folder)}
                )
            print(name, results[name][-1], flush=True)
    print("\n| encoder | brain to image | image to brain |\n| --- | --- | --- |")
    for name, runs in results.items():
        cells = []
        for score in ("retrieval_brain_to_image", "retrieval_image_to_brain"):
            values = np.array([run[score] for run in runs])
            cells.append(f"{values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        print(f"| {name} | {' | '.join(cells)} |")
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
