"""Cross-validate scans too few for a test set: encoders never train on the images they decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
import torch

from braingen.config import Config
from braingen.data.prepare_scans import prepare, scans_of
from braingen.data.response_reliability import load_reliability
from braingen.data.stimuli import Stimuli
from braingen.data.trials import test_trials, train_trials
from braingen.encoders.trained import load_embedding_decoder
from braingen.evaluation.embeddings import decode_test_images
from braingen.evaluation.folds import Difference, FoldRow, ImageFold, pooled, split_images
from braingen.evaluation.ridge_baseline import ridge_embeddings
from braingen.report.cross_validation import render_cross_validation
from braingen.runtime.console import console
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import clear_temporaries, replaced_path, write_json, write_text
from braingen.runtime.seeds import hash_seed
from braingen.targets.tables import Targets
from braingen.training.encoder import train

FOLDER, DECODED, SCORES = "cross_validation", "decoded.safetensors", "cross_validation"
RANDOM_DRAWS = 10
"""Samples of random voxels; a single one's two-way score varies by 0.04 for 92 images."""
METHODS = {
    "encoder": "encoder",
    "ridge": "ridge regression",
    "random": f"encoder, random voxels (mean of {RANDOM_DRAWS} draws)",
}
"""Method -> its name in tables; the first one is compared with the others."""


def names_of_images(root: Path) -> dict[str, list[str]]:
    """Map every image to its names in the events; equal images are left out together.

    Raises
    ------
    UserError
        When the folder was not prepared from own scans.
    """
    path = root / "pictures.tsv"
    if not path.is_file():
        raise UserError(
            f"{root} has no pictures.tsv: cross-validation is for scans of your own, named with"
            " --scans. NSD has test images: braingen train, reconstruct, evaluate."
        )
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    names = {
        group["stim_file"].min(): sorted(group["stim_file"]) for _, group in table.groupby("image")
    }
    return dict(sorted(names.items()))


def fold_config(config: Config, folder: Path, subject: int, test_list: Path) -> Config:
    """Return the configuration of one fold of one subject, with its own data and run folders."""
    number = test_list.stem
    return config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"root": config.data.root / "folds" / number, "subjects": (subject,)}
            ),
            "run": config.run.model_copy(
                update={
                    "folder": folder / f"subject-{subject:02d}" / number,
                    "image": None,
                    "text": None,
                }
            ),
            "prepare": config.prepare.model_copy(update={"test_images": test_list}),
        }
    )


def decode_fold(config: Config, modality: str) -> Path:
    """Prepare, train and decode one fold; finished parts are kept.

    Returns
    -------
    Path
        File with ``ids``, ``true``, ``mean`` and the embeddings of every method, tokens flattened.
    """
    prepare(config, report=lambda text: None)  # the whole folder was summarised once
    run = train(config, modality)
    path = run / DECODED
    if not path.exists():
        embedding_decoder = load_embedding_decoder(config, modality)
        read = decode_test_images(config, modality, embedding_decoder)
        random = []
        for draw in range(RANDOM_DRAWS):
            seed = hash_seed(config.run.seed, "draw of random voxels", draw)
            own = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
            random.append(
                decode_test_images(own, modality, embedding_decoder, random=True).embedding_ND
            )
        targets = Targets(config)
        table = train_trials(
            Layout.of(config.data.root), config.data.subjects[0], config.data.num_sessions
        ).table
        known = targets.of(modality, np.unique(table["image"].to_numpy())).flatten(1)
        found = {
            "ids": torch.from_numpy(read.image_N),
            "true": targets.of(modality, read.image_N).flatten(1),
            "mean": known.mean(0),
            "encoder": read.embedding_ND,
            "ridge": ridge_embeddings(config, targets, read.image_N, modality)[0],
            "random": torch.stack(random),
        }
        with replaced_path(path) as temporary:
            save_file(
                {
                    name: rows.float().contiguous() if name != "ids" else rows
                    for name, rows in found.items()
                },
                temporary,
            )
    return path


def read_fold(path: Path, subject: int, root: Path) -> ImageFold:
    """Read what a fold decoded, with its images by name."""
    found = load_file(path)
    table = pd.read_csv(root / "pictures.tsv", sep="\t", dtype=str, keep_default_na=False)
    name_of = table.groupby(table["image"].astype(int))["stim_file"].min().to_dict()
    return ImageFold(
        subject=subject,
        images=[name_of[int(image)] for image in found["ids"]],
        true_ND=found["true"].numpy(),
        mean_D=found["mean"].numpy(),
        decoded={method: found[method].numpy() for method in METHODS},
    )


def cross_validate(config: Config) -> Path:
    """Prepare, train and score every fold of every subject, and write a table, JSON and a page.

    Returns
    -------
    Path
        Path of the page.
    """
    chosen, folder = config.cross_validation, config.run.folder / FOLDER
    terminal = console()
    scans = scans_of(config)
    subjects = list(chosen.subjects) or list(scans.subjects())
    whole = config.model_copy(
        update={"data": config.data.model_copy(update={"subjects": tuple(subjects)})}
    )
    prepare(whole)
    scans.prepare_for(subjects)
    if "split" in str(scans.who(subjects[0]).get("test pictures", "")):
        terminal.print(
            "The column split of the events is not used here: every image is left out once."
        )
    names = names_of_images(config.data.root)
    lists = []
    for number, images in enumerate(split_images(list(names), chosen.folds, config.run.seed), 1):
        path = folder / "folds" / f"fold-{number:02d}-of-{chosen.folds:02d}.txt"
        write_text(path, "".join(f"{name}\n" for image in images for name in names[image]))
        lists.append(path)
    clear_temporaries(folder)
    found: list[ImageFold] = []
    for subject in subjects:
        seen = _seen(config, subject)
        for number, test_list in enumerate(lists, 1):
            if seen.isdisjoint(test_list.read_text(encoding="utf-8").splitlines()):
                continue
            terminal.print(f"subject {subject}, fold {number} of {len(lists)}", style="bold")
            own = fold_config(config, folder, subject, test_list)
            found.append(read_fold(decode_fold(own, chosen.modality), subject, own.data.root))
    rows, differences = pooled(found, config.evaluation.bootstrap, config.run.seed)
    return write(config, folder, rows, differences, found)


def _seen(config: Config, subject: int) -> set[str]:
    """Names of the images that a subject saw."""
    layout = Layout.of(config.data.root)
    tables = [trials(layout, subject).table for trials in (train_trials, test_trials)]
    images = np.concatenate([table["image"].to_numpy() for table in tables])
    known = pd.read_csv(config.data.root / "pictures.tsv", sep="\t", dtype=str)
    return set(known["stim_file"][known["image"].astype(int).isin(images)])


def write(
    config: Config,
    folder: Path,
    rows: Sequence[FoldRow],
    differences: Sequence[Difference],
    folds: Sequence[ImageFold],
) -> Path:
    """Write the table, JSON and the page."""
    data = Stimuli(Layout.of(config.data.root)).data_name
    sizes = sorted({len(fold.images) for fold in folds})
    facts: dict[str, Any] = {
        "data": data,
        "modality": config.cross_validation.modality,
        "backbone": config.backbone.path,
        "encoder": config.encoder.model,
        "folds": config.cross_validation.folds,
        "left_out_together": sizes,
        "subjects": sorted({fold.subject for fold in folds}),
        "seed": config.run.seed,
    }
    record = {
        **facts,
        "rows": [row._asdict() for row in rows],
        "differences": [each._asdict() for each in differences],
    }
    write_json(folder / f"{SCORES}.json", record)
    write_text(folder / f"{SCORES}.md", markdown(rows, differences, facts))
    page = folder / "report.html"
    layout = Layout.of(config.data.root)
    found = {subject: load_reliability(layout, subject) for subject in facts["subjects"]}
    reliable = {subject: each for subject, each in found.items() if each is not None}
    write_text(page, render_cross_validation(rows, differences, facts, METHODS, reliable))
    console().print(markdown(rows, differences, facts), soft_wrap=True)
    return page


def markdown(
    rows: Sequence[FoldRow], differences: Sequence[Difference], facts: Mapping[str, Any]
) -> str:
    """Format the table as Markdown."""
    lines = [
        f"# Cross-validation over images: {facts['data']}",
        "",
        (
            f"{facts['folds']} folds, {len(facts['subjects'])} subjects; every image left out"
            " once; intervals over images."
        ),
        "",
        "| score | method | value | 95 % interval | chance | images |",
        "| --- | --- | ---: | :---: | ---: | ---: |",
    ]
    for row in rows:
        chance = "" if row.chance is None else f"{row.chance:.3f}"
        interval = f"{row.low:.3f} to {row.high:.3f}"
        lines.append(
            f"| {row.score} | {METHODS[row.method]} | {row.value:.3f} | {interval} | {chance} |"
            f" {row.n} |"
        )
    lines += [
        "",
        "| score | difference | value | 95 % interval | p |",
        "| --- | --- | ---: | :---: | ---: |",
    ]
    for each in differences:
        what = f"{METHODS[each.first]} minus {METHODS[each.second]}"
        interval = f"{each.low:+.3f} to {each.high:+.3f}"
        lines.append(
            f"| {each.score} | {what} | {each.difference:+.3f} | {interval} | {each.p:.4f} |"
        )
    return "\n".join(lines) + "\n"
