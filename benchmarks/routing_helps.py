"""Does fine-tuning with routers help? The same encoders, drawn with and without it, image by image,
over several seeds.

    python benchmarks/routing_helps.py --config simulated --folder runs/routing_helps --seeds 3
    --images 300

For every seed: both encoders are trained, the diffusion model is fine-tuned with routers, and the
test images are drawn untouched (neither fine-tuned nor routed) and routed, from the same noise.
With ``--lines untouched no_router both`` a fine-tuning without routers stands between them (any
lines of `braingen ablate`). Everything is resumable: the same command goes on. Settings may follow,
as on the command line: ``finetune.max_train_steps=2000``.

An image's difference is averaged over seeds; the interval is a bootstrap over images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.uncertainty import mean_interval
from braingen.experiments.ablation_table import VARIANTS, make, scored
from braingen.runtime.files import write_json
from braingen.simulation.dataset import simulate
from braingen.targets.tables import Targets
from braingen.training.encoder import train

RESULT = "routing_helps.json"
LINES = "lines_paired.json"
"""In a seed's folder: line -> score -> one value per image."""


def config_of(file: Path, folder: Path, seed: int, images: int, words: list[str]) -> Config:
    """The settings of a seed: one simulated subject for all, encoders and drawings of its own."""
    _, overrides = parse_overrides(words)
    own = {
        "data.root": str(folder / "data"),
        "run.folder": str(folder / f"seed{seed}"),
        "run.seed": str(seed),
        "run.tracker": "none",
    }
    return load_config(file, {**own, "simulation.num_test_images": str(images), **overrides})


def values_of(config: Config, lines: list[str]) -> dict[str, dict[str, list[float]]]:
    """Line -> score -> what every test image adds to it (`Sheet.paired`), in the order of their
    ids; kept in the seed's folder.
    """
    path = config.run.folder / LINES
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    targets, store = Targets(config), FeatureStore()
    for line in lines:
        make(config, line)
        if line not in known:
            table = scored(config, line, targets, store).paired.sort_index()
            known[line] = {score: table[score].tolist() for score in table}
            write_json(path, known)
    return {line: known[line] for line in lines}


def compared(
    seeds: list[dict[str, dict[str, list[float]]]], first: str, second: str, resamples: int
) -> dict[str, dict[str, object]]:
    """Per score: both means, their difference with its interval over images, and the difference of
    every seed.
    """
    found: dict[str, dict[str, object]] = {}
    for score in seeds[0][first]:
        one, other = (np.array([seed[line][score] for seed in seeds]) for line in (first, second))
        interval = mean_interval((one - other).mean(axis=0), resamples)
        per_seed = [round(float(each), 5) for each in (one - other).mean(axis=1)]
        means = {first: round(float(one.mean()), 5), second: round(float(other.mean()), 5)}
        difference = {"difference": interval.value, "low": interval.low, "high": interval.high}
        found[score] = {
            **means,
            **{name: round(value, 5) for name, value in difference.items()},
            "seeds": per_seed,
        }
    return found


def arguments(about: str | None) -> argparse.ArgumentParser:
    """The options that say which seeds lie where; ``about`` is the docstring of the script."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("simulated"))
    parser.add_argument("--folder", type=Path, default=Path("runs/routing_helps"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=300)
    return parser


def main() -> None:
    """Run what is missing and write the table."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--lines", nargs="+", default=["untouched", "both"], choices=sorted(VARIANTS)
    )
    chosen, words = parser.parse_known_args()
    seeds = []
    for seed in range(chosen.seeds):
        config = config_of(chosen.config, chosen.folder, seed, chosen.images, words)
        simulate(config)
        for name in ("image", "text"):
            train(config, name)
        seeds.append(values_of(config, chosen.lines))
    result = {
        f"{first} minus {second}": compared(seeds, first, second, config.evaluation.bootstrap)
        for number, second in enumerate(chosen.lines)
        for first in chosen.lines[number + 1 :]
    }
    about = {
        "seeds": chosen.seeds,
        "images": chosen.images,
        "data": "simulated",
        "finetune": config.finetune.model_dump(mode="json"),
    }
    write_json(chosen.folder / RESULT, {**about, "compared": result})
    for title, scores in result.items():
        print(f"\n{title} (simulated, {chosen.seeds} seeds, {chosen.images} test images)")
        for score, row in scores.items():
            first, second = list(row.values())[:2]
            interval = f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            print(f"  {score:28} {first:8} {second:8}  {interval}  {row['seeds']}")
    print(chosen.folder / RESULT)


if __name__ == "__main__":
    main()
