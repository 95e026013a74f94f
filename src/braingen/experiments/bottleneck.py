"""Scores against the width of a bottleneck, which limits decoding but not the generator's prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from braingen.config import Config, with_settings
from braingen.data.stimuli import Stimuli
from braingen.evaluation.curves import Curve, Point, as_rows, plot, write_table
from braingen.evaluation.embeddings import scores_at
from braingen.evaluation.evaluate import evaluate, read_scores
from braingen.evaluation.uncertainty import Summary, summarise
from braingen.generation.reconstruct import reconstruct
from braingen.runtime.console import console
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDING_DECODER, one_subject
from braingen.training.encoder import train

FOLDER = "bottleneck"
WAYS = {"brain": "brain"}
PANELS = ("retrieval_brain_to_image", "two_way_clip", "clip_cos")
IMAGE_PANELS = (
    "two_way_classifier_late",
    "two_way_inception",
    "two_way_alexnet2",
    "ssim",
    "two_way_clip",
    "object_accuracy",
)
"""Image scores to plot, where available."""


def narrowed(config: Config, width: int, seed: int) -> Config:
    """Return the configuration of one run."""
    folder = config.run.folder / FOLDER / f"b{width}-seed{seed}"
    run = config.run.model_copy(
        update={"folder": folder, "image": None, "text": None, "seed": seed}
    )
    return with_settings(config, "encoder", {"bottleneck_dim": width}).model_copy(
        update={"run": run}
    )


def of_embeddings(config: Config, workers: Workers) -> Curve:
    """Score the image encoder's embeddings; random voxels use the widest bottleneck."""
    subject, settings = config.data.subjects[0], config.bottleneck
    points: list[Point] = []
    levels: dict[str, dict[str, float]] = {}
    for width in settings.bottleneck_dims:
        by_seed: dict[str, dict[tuple[int, int], dict[int, float]]] = {}
        for seed in settings.seeds:
            run = narrowed(config, width, seed)
            folder = train(run, "image")
            reading = run.model_copy(update={"run": config.run})  # the same random pools for all

            def scored(name: str, random: bool, folder: Path = folder, reading: Config = reading):  # type: ignore[no-untyped-def]
                return workers.main_first(
                    lambda: scores_at(
                        reading, "image", folder / name, folder / EMBEDDING_DECODER, random
                    )
                )

            found = scored("scores_of_embeddings.json", False)
            for name in found.values:
                by_seed.setdefault(name, {})[subject, seed] = found.by_place(name)
            if width == max(settings.bottleneck_dims) and seed == settings.seeds[0]:
                noise = scored("scores_of_random_voxels.json", True)
                levels["random voxels"] = {
                    name: float(values.mean()) for name, values in noise.values.items()
                }
        for name, values_of in by_seed.items():
            summary = summarise(values_of, config.evaluation.bootstrap, config.run.seed)
            points.append(Point("brain", width, name, summary, found.chance.get(name)))
    levels["oracle"] = dict.fromkeys(by_seed, 1.0)  # the true embeddings against themselves
    return Curve("", "width of the bottleneck", WAYS, points, levels)


def of_images(config: Config) -> Curve:
    """Score images; random voxels and oracle are generated once, with the widest bottleneck."""
    seed, widths = config.bottleneck.seeds[0], config.bottleneck.bottleneck_dims
    points: list[Point] = []
    levels: dict[str, dict[str, float]] = {}
    for width in sorted(widths, reverse=True):
        run = narrowed(config, width, seed)
        widest = width == max(widths)
        for modality in ("image", "text"):
            train(run, modality)
        for source in ("brain", "random", "oracle") if widest else ("brain",):
            reconstruct(
                run.model_copy(
                    update={"generation": run.generation.model_copy(update={"source": source})}
                )
            )
        scores = (
            read_scores(run.run.folder)
            if (run.run.folder / "scores.json").exists()
            else read_scores(evaluate(run).parent)
        )
        for name, score in scores.items():
            if score["value"] is None:
                continue
            value, low, high = (float(score[key]) for key in ("value", "low", "high"))  # type: ignore[arg-type]
            points.append(
                Point(
                    "brain",
                    width,
                    name,
                    Summary(value, low, high, None, None, 1, 1),
                    score["chance"],
                )
            )
            if widest:
                for level, key in (("random voxels", "random"), ("oracle", "oracle")):
                    if score[key] is not None:
                        levels.setdefault(level, {})[name] = float(score[key])  # type: ignore[arg-type]
    return Curve(
        "", "width of the bottleneck", WAYS, sorted(points, key=lambda point: point.x), levels
    )


def bottleneck(config: Config) -> Path:
    """Train and score every width; finished parts are kept.

    Writes ``curve.json``, ``curve.md``, ``curve.png`` and ``curve.svg``.

    Returns
    -------
    Path
        Path of the table.

    Raises
    ------
    UserError
        For an encoder without a bottleneck, or several seeds with images.
    """
    narrowed(
        config, config.bottleneck.bottleneck_dims[0], config.bottleneck.seeds[0]
    )  # an encoder without a bottleneck is refused
    if config.bottleneck.generate and len(config.bottleneck.seeds) > 1:
        raise UserError(
            f"bottleneck.seeds = {','.join(map(str, config.bottleneck.seeds))} with"
            " bottleneck.generate=true: images are generated for one seed. Give a single one, or"
            " leave --generate out."
        )
    one_subject(config, "braingen bottleneck")
    workers = Workers(config)
    curve = of_images(config) if config.bottleneck.generate else of_embeddings(config, workers)
    kind = Stimuli(Layout.of(config.data.root)).data_name
    what = "images" if config.bottleneck.generate else "embeddings"
    curve = curve._replace(title=f"Bottleneck, subject {config.data.subjects[0]} ({kind}), {what}")
    folder = config.run.folder / FOLDER
    if workers.main:
        levels: Mapping[str, Mapping[str, float]] = curve.levels
        write_json(
            folder / "curve.json", {"points": as_rows(curve), "levels": levels, "data": kind}
        )
        write_table(curve, folder / "curve.md")
        plot(curve, folder, "curve", IMAGE_PANELS if config.bottleneck.generate else PANELS)
        console().print((folder / "curve.md").read_text(encoding="utf-8"))
    workers.wait()
    return folder / "curve.md"
