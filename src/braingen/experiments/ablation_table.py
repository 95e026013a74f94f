"""The paper's table 2: what text, image, time routing and space routing each add to the images.

Every row is a fine-tuning and a reconstruction in a run folder of its own; encoders are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from braingen.config import Config
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.evaluation.metric_table import MetricTable, compare_metric_tables, score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.tables import as_json, comma_separated, markdown, rows_of
from braingen.evaluation.uncertainty import Comparison
from braingen.generation.reconstruct import reconstruct
from braingen.report.ablation import Line, render_ablation
from braingen.runtime.console import console
from braingen.runtime.files import write_json, write_text
from braingen.runtime.paths import (
    EMBEDDINGS,
    generated_folder,
    one_subject,
    run_folder,
    tuning_folder,
)
from braingen.targets.tables import Targets
from braingen.training.diffusion import finetune

ABLATION, TABLE, PAGE = "ablation", "ablation", "ablation.html"
"""Folder inside the run, name of its tables, and the page."""


class Variant(NamedTuple):
    """A row of the table."""

    title: str
    router: Mapping[str, Any] = {}
    """Changed settings of section router."""
    generation: Mapping[str, Any] = {}
    """Changed settings of section generation."""
    tuned_as: str = ""
    """Key of the row whose fine-tuning it uses; empty for its own."""


NO_ROUTER = {"route_image": False, "route_text": False}
SOFT = {"time": "attention", "time_choice": "soft"}
VARIANTS: dict[str, Variant] = {
    "untouched": Variant(
        "neither fine-tuned nor routed", generation={"finetuned": "no"}, tuned_as="both"
    ),
    "no_router": Variant("fine-tuned, no router", NO_ROUTER),
    "space": Variant("space", {"time": "off", "space": "mix"}),
    "time_fixed": Variant("time, fixed schedule", {"time": "fixed", "space": "off"}),
    "time_hard": Variant(
        "time, hard", {"time": "attention", "time_choice": "hard", "space": "off"}
    ),
    "time_soft": Variant("time, soft", {**SOFT, "space": "off"}),
    "both": Variant("time (soft) and space", {**SOFT, "space": "mix"}),
    "text": Variant("text only, time and space", generation={"use_image": False}, tuned_as="both"),
    "image": Variant("image only, time and space", generation={"use_text": False}, tuned_as="both"),
    "random": Variant(
        "random voxels, time and space",
        generation={"source": "random", "random_draws": 1},
        tuned_as="both",
    ),
    "oracle": Variant(
        "true embeddings, time and space", generation={"source": "oracle"}, tuned_as="both"
    ),
}
"""The paper's rows in its order, between its baselines."""
AGAINST = ("untouched", "no_router")
"""Rows that every other row is compared with, image by image."""


def config_of(config: Config, key: str) -> Config:
    """Return the configuration of a row: a folder of its own, and the shared encoders."""
    variant = VARIANTS[key]
    folder = config.run.folder / ABLATION
    places = {name: run_folder(config, name) for name in ("image", "text")}
    run = config.run.model_copy(
        update={
            **places,
            "folder": folder / key,
            "finetune": folder / (variant.tuned_as or key) / "finetune",
        }
    )
    settings = {
        **variant.router,
        **({} if not variant.tuned_as else VARIANTS[variant.tuned_as].router),
    }
    routing = config.router.model_copy(update=settings)
    generation = config.generation.model_copy(update={"finetuned": "yes", **variant.generation})
    return config.model_copy(update={"run": run, "router": routing, "generation": generation})


def make(config: Config, key: str) -> None:
    """Fine-tune and reconstruct a row; finished parts are kept."""
    own, trainer = config_of(config, key), config_of(config, VARIANTS[key].tuned_as or key)
    finetune(
        trainer.model_copy(
            update={"run": trainer.run.model_copy(update={"finetune": tuning_folder(own)})}
        )
    )
    reconstruct(own)


def scored(config: Config, key: str, targets: Targets, store: FeatureStore) -> MetricTable:
    """Score the images of a row."""
    own = config_of(config, key)
    folder = generated_folder(own)
    ids = load_file(folder / EMBEDDINGS)["ids"].numpy()
    networks, named, missing = observers(own, targets.stimuli.simulated, ids)
    settings: dict[str, Any] = {
        "readouts": named,
        "missing": missing,
        "resamples": config.evaluation.bootstrap,
        "seed": config.run.seed,
    }
    return score_images(
        SeenImages(targets.stimuli, ids),
        ids,
        PngImages(folder, ids),
        ids,
        networks,
        store=store,
        **settings,
    )


def comparisons(config: Config, found: Mapping[str, MetricTable]) -> list[Comparison]:
    """Compare every row with those of AGAINST, Holm-corrected over the scores of a pair."""
    out: list[Comparison] = []
    for first in found:
        for second in AGAINST:
            if first != second:
                out += compare_metric_tables(
                    {name: found[name] for name in (first, second)},
                    config.evaluation.bootstrap,
                    config.run.seed,
                )
    return out


def _csv_of(compared: list[Comparison]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Comparison._fields)
    writer.writerows(compared)
    return out.getvalue()


def ablate(config: Config) -> Path:
    """Fine-tune, reconstruct and score every row; finished parts are kept.

    Returns
    -------
    Path
        Path of the page; the table is beside it as .md, .csv and .json, differences between rows
        as .differences.csv.
    """
    one_subject(config, "braingen ablate")
    folder, terminal = config.run.folder / ABLATION, console()
    for number, (key, variant) in enumerate(VARIANTS.items(), 1):
        terminal.print(f"{number}/{len(VARIANTS)} {variant.title}", style="bold")
        make(config, key)
    targets, store = Targets(config), FeatureStore()
    found = {key: scored(config, key, targets, store) for key in VARIANTS}
    data = targets.stimuli.data_name
    protocol = f"{data}, subject {config.data.subjects[0]}"
    rows = [
        rows_of(VARIANTS[key].title, protocol, each.scores, baselines=False)[0]
        for key, each in found.items()
    ]
    write_text(folder / f"{TABLE}.md", markdown(rows))
    write_text(folder / f"{TABLE}.csv", comma_separated(rows))
    compared = comparisons(config, found)
    write_text(folder / f"{TABLE}.differences.csv", _csv_of(compared))
    write_json(
        folder / f"{TABLE}.json",
        {
            key: {"title": VARIANTS[key].title, "scores": as_json(each.scores)}
            for key, each in found.items()
        },
    )
    lines = [
        Line(key, VARIANTS[key].title, generated_folder(config_of(config, key)), each.scores)
        for key, each in found.items()
    ]
    ids = [int(image) for image in found["both"].table.index]
    write_text(folder / PAGE, render_ablation(lines, targets.stimuli, ids, data, compared))
    terminal.print(f"Open {(folder / PAGE).absolute()} in a browser.")
    return folder / PAGE
