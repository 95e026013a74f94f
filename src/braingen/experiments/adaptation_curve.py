"""Adaptation to a new subject, by number of sessions and by trained part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.data.trials import train_trials
from braingen.evaluation.curves import Curve, Point, as_rows, plot, write_table
from braingen.evaluation.embeddings import EmbeddingScores, scores_at
from braingen.evaluation.uncertainty import compare, summarise
from braingen.runtime.console import console
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDING_DECODER, one_subject
from braingen.runtime.text_files import read_json
from braingen.training.encoder import train

FOLDER = "adaptation_curve"
WAYS = {
    "routers": "pretrained, subject layer and routers",
    "subject": "pretrained, subject layer only",
    "all": "pretrained, everything",
    "scratch": "from scratch",
}
PANELS = ("retrieval_brain_to_image", "two_way_clip", "clip_cos")
Key = tuple[str, int, int]
"""Way, sessions, seed."""


def sessions_of(config: Config) -> list[int]:
    """Numbers of sessions to train on, at most those of the new subject."""
    table = train_trials(Layout.of(config.data.root), config.data.subjects[0], 0).table
    most = int(table["session"].nunique())
    return sorted({min(count, most) for count in config.adaptation_curve.sessions})


def changed(
    config: Config, folder: Path, seed: int, data: dict[str, Any], optim: dict[str, Any]
) -> Config:
    """Return the configuration of one run of the curve."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(
                update={"folder": folder, "image": None, "text": None, "seed": seed}
            ),
            "data": config.data.model_copy(update=data),
            "training": config.training.model_copy(update=optim),
        }
    )


def pretrained(config: Config, seed: int) -> Path:
    """Return the run on the other subjects: ``training.init_from``, or one of this curve."""
    if config.training.init_from is not None:
        return config.training.init_from
    folder = config.run.folder / FOLDER / f"pretrained-seed{seed}"
    epochs = config.adaptation_curve.pretrain_epochs or config.training.num_epochs
    data = {"subjects": config.adaptation_curve.pretrain_on, "num_sessions": 0}
    train(
        changed(config, folder, seed, data, {"num_epochs": epochs, "trained": "all"}),
        config.adaptation_curve.modality,
    )
    return folder


def one_run(config: Config, key: Key, workers: Workers) -> tuple[EmbeddingScores, dict[str, Any]]:
    """Train one point of the curve and decode the test images.

    Returns
    -------
    tuple[EmbeddingScores, dict[str, Any]]
        Scores, and the summary of the run (numbers of parameters).
    """
    way, sessions, seed = key
    folder = config.run.folder / FOLDER / f"{way}-{sessions}sessions-seed{seed}"
    optim: dict[str, Any] = {"trained": "all", "init_from": None}
    if way != "scratch":
        optim = {"trained": way, "init_from": pretrained(config, seed)}
    point = changed(
        config,
        folder,
        seed,
        {"subjects": config.data.subjects[:1], "num_sessions": sessions},
        optim,
    )
    run = train(point, config.adaptation_curve.modality)
    reading = point.model_copy(update={"run": config.run})  # the same random pools for all
    found = workers.main_first(
        lambda: scores_at(
            reading,
            config.adaptation_curve.modality,
            run / "scores_of_embeddings.json",
            run / EMBEDDING_DECODER,
        )
    )
    return found, read_json(run / "finished")


def adaptation_curve(config: Config) -> Path:
    """Train and score every point; finished parts are kept.

    Writes ``curve.json``, ``curve.md``, ``curve.png`` and ``curve.svg``.

    Returns
    -------
    Path
        Path of the table.
    """
    one_subject(config, "braingen adaptation-curve")
    subject = config.data.subjects[0]
    if config.training.init_from is None and subject in config.adaptation_curve.pretrain_on:
        raise UserError(
            f"Subject {subject} is the new subject (data.subjects) and among the pretraining ones"
            " (adaptation_curve.pretrain_on"
            f" {','.join(map(str, config.adaptation_curve.pretrain_on))}): name another with"
            " --subj, or leave it out of --pretrain_on."
        )
    workers = Workers(config)
    terminal = console(quiet=not workers.main)
    counts = sessions_of(config)
    keys = [
        (way, count, seed)
        for seed in config.adaptation_curve.seeds
        for count in counts
        for way in config.adaptation_curve.ways
    ]
    found: dict[Key, EmbeddingScores] = {}
    shares: dict[str, tuple[int, int]] = {}
    for number, key in enumerate(keys, 1):
        terminal.print(
            f"{number}/{len(keys)} {WAYS[key[0]]}, {key[1]} sessions, seed {key[2]}", style="bold"
        )
        found[key], mark = one_run(config, key, workers)
        shares[key[0]] = (mark["trained_parameters"], mark["parameters"])
    folder = config.run.folder / FOLDER
    if workers.main:
        write(config, folder, found, shares, counts)
        terminal.print((folder / "curve.md").read_text(encoding="utf-8"))
    workers.wait()
    return folder / "curve.md"


def write(
    config: Config,
    folder: Path,
    found: dict[Key, EmbeddingScores],
    shares: dict[str, tuple[int, int]],
    counts: list[int],
) -> None:
    """Write table, plot and JSON."""
    subject, resamples = config.data.subjects[0], config.evaluation.bootstrap
    names = [*next(iter(found.values())).values]

    def values(way: str, count: int, name: str) -> dict[tuple[int, int], dict[int, float]]:
        return {
            (subject, seed): found[way, count, seed].by_place(name)
            for seed in config.adaptation_curve.seeds
        }

    points = [
        Point(
            way,
            count,
            name,
            summarise(values(way, count, name), resamples, config.run.seed),
            found[way, count, seed].chance.get(name),
        )
        for way in config.adaptation_curve.ways
        for count in counts
        for name in names
        for seed in config.adaptation_curve.seeds[:1]
    ]
    differences = []
    for count in counts:  # seeds are averaged per image
        means: dict[str, dict[str, np.ndarray]] = {
            way: {
                name: np.mean(
                    [
                        found[way, count, seed].values[name]
                        for seed in config.adaptation_curve.seeds
                    ],
                    axis=0,
                )
                for name in names
            }
            for way in config.adaptation_curve.ways
        }
        ids: dict[str, np.ndarray] = {
            way: np.arange(len(next(iter(means[way].values())))) for way in means
        }
        if len(means) > 1:
            differences += [
                {"sessions": count, **each._asdict()}
                for each in compare(means, ids, resamples, config.run.seed)
            ]
    kind = Stimuli(Layout.of(config.data.root)).data_name
    ways: dict[str, str] = {way: WAYS[way] for way in config.adaptation_curve.ways}
    curve = Curve(f"Adapting to subject {subject} ({kind})", "sessions", ways, points)
    notes = [
        f"{WAYS[way][:1].upper()}{WAYS[way][1:]}: {trained:,} of {total:,} parameters trained"
        f" ({trained / total:.1%})."
        for way, (trained, total) in shares.items()
    ]
    parameters = {
        way: {"trained": trained, "total": total, "share": trained / total}
        for way, (trained, total) in shares.items()
    }
    write_json(
        folder / "curve.json",
        {
            "points": as_rows(curve),
            "differences": differences,
            "parameters": parameters,
            "data": kind,
        },
    )
    write_table(curve, folder / "curve.md", notes)
    plot(curve, folder, "curve", PANELS)
