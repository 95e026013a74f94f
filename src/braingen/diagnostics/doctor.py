"""`braingen doctor`: check data, backbones and machine, and report what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
import json
import os
from pathlib import Path
import platform
import shutil
import time
from typing import Literal, NamedTuple

import numpy as np
import psutil
import torch

from braingen import __version__
from braingen.config import Config
from braingen.data import nsd
from braingen.data.checks import all_checks
from braingen.data.trials import (
    listed,
    sessions_on_disk,
    subjects_on_disk,
    test_trials,
    train_trials,
)
from braingen.diagnostics.resources import encoder_parameters, gigabytes, needs_of
from braingen.diagnostics.scans import scan_findings
from braingen.diagnostics.summary import sizes_of
from braingen.evaluation import features
from braingen.generation.compatibility import incompatibilities
from braingen.pretrained.files import backbone_findings
from braingen.pretrained.tiny import backbone_mismatch
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import identity, nearest_folder, sha256_of
from braingen.runtime.precision import SLOW, generation_type, slow_on
from braingen.runtime.text_files import read_json

Level = Literal["ok", "note", "warning", "error"]
SHOWN: dict[str, str] = {
    "ok": "ready  ",
    "note": "note   ",
    "warning": "WARNING",
    "error": "MISSING",
}

MANY_PER_TRIAL = 50_000
"""Parameters per training trial: NSD's configuration has 20 000 with all sessions, and 800 000 with
one, where ridge regression does as well.
"""
FEW_TEST_PICTURES = 20


class Item(NamedTuple):
    """Result of one check."""

    level: Level
    """An error prevents some command from running; a warning or note does not."""
    area: str
    """machine, scans, data, backbone, scores or needs."""
    what: str
    """One word, or the name of a part."""
    subject: int | None
    """Subject that it concerns."""
    sentence: str
    """What was found and, for a fault, what to type."""


def doctor(config: Config) -> None:
    """Print all findings.

    Raises
    ------
    UserError
        When something is missing, after printing everything: exit code 2 for scripts.
    """
    started = time.monotonic()
    items = list(examine(config))
    errors = [item for item in items if item.level == "error"]
    seconds = round(time.monotonic() - started, 1)
    if config.doctor.output == "json":
        print(
            json.dumps(
                {
                    "ready": not errors,
                    "seconds": seconds,
                    "findings": [item._asdict() for item in items],
                },
                indent=2,
            )
        )
    else:
        for area in dict.fromkeys(item.area for item in items):
            print(f"\n{area}")
            for item in items:
                if item.area == area:
                    print(f"  {SHOWN[item.level]}  {item.sentence}")
        print()
    if errors:
        raise UserError(
            f"{len(errors)} thing{'s are' if len(errors) > 1 else ' is'} missing or wrong, the"
            f" first: {errors[0].sentence}"
        )
    if config.doctor.output == "text":
        print(f"Everything is there (checked in {seconds:.0f} s).")


def examine(config: Config) -> Iterator[Item]:
    """Run all checks, fast ones first."""
    yield from _machine(config)
    if config.prepare.scans is not None:
        for found in scan_findings(config):
            yield Item(found.level, "scans", found.what, found.subject, found.sentence)
    yield from _data(config)
    with suppress(UserError):  # a damaged image file is reported with the data
        unfit = backbone_mismatch(config)
        if unfit is not None:
            yield Item(
                "error" if unfit.refused else "warning", "backbone", "data", None, unfit.sentence
            )
    for finding in backbone_findings(config):
        yield Item(finding.level, "backbone", finding.part, None, finding.sentence)
    for misfit in incompatibilities(config):
        yield Item("error", "backbone", "widths", None, misfit.sentence)
    yield from _networks()
    yield from _needs(config)
    yield from _trials_and_parameters(config)


def _machine(config: Config) -> Iterator[Item]:
    memory, cores = (
        psutil.virtual_memory(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    text = (
        f"braingen {__version__}, Python {platform.python_version()}, torch {torch.__version__};"
        f" {cores} cores, "
    )
    text += f"{gigabytes(memory.available)} of {gigabytes(memory.total)} memory free."
    yield Item("ok", "machine", "computer", None, text)
    try:
        device = device_of(config)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            name, count = torch.cuda.get_device_name(device), torch.cuda.device_count()
            text = f"GPU {name}, {gigabytes(free)} of {gigabytes(total)} free; {count} in all."
            yield Item("ok", "machine", "device", None, text)
        elif (
            shutil.which("nvidia-smi")
            and torch.version.cuda is None
            and config.run.device == "auto"
        ):
            text = (
                "There is an NVIDIA driver, but torch was installed for the CPU: install torch for"
                " CUDA (README), or use --device cpu."
            )
            yield Item("warning", "machine", "device", None, text)
        else:
            yield Item(
                "ok",
                "machine",
                "device",
                None,
                "Computing on the CPU: enough for the simulated data; NSD at full size needs a"
                " GPU.",
            )
    except UserError as error:
        yield Item("error", "machine", "device", None, str(error))
    with suppress(UserError):
        if slow_on(generation_type(config), device_of(config)):
            yield Item("warning", "machine", "precision", None, SLOW)
    for name, folder in (
        ("runs", config.run.folder),
        ("data", Layout.of(config.data.root).cache()),
    ):
        there = nearest_folder(folder)
        if os.access(there, os.W_OK):
            yield Item("ok", "machine", name, None, f"{folder} can be written.")
        elif name == "data":
            text = (
                f"{folder} cannot be written: CLIP targets and latents have nowhere to go; change"
                f" the permissions of {there}."
            )
            yield Item("error", "machine", name, None, text)
        else:
            yield Item(
                "error",
                "machine",
                name,
                None,
                f"{folder} cannot be written (permissions of {there}); choose another"
                " --model_name.",
            )


def _data(config: Config) -> Iterator[Item]:
    layout = Layout.of(config.data.root)
    for finding in all_checks(layout, config.data.subjects, config.data.num_sessions, "optional"):
        yield Item(finding.level, "data", finding.what, finding.subject, finding.sentence)
    for subject in subjects_on_disk(layout):
        sessions = [] if subject in config.data.subjects else sessions_on_disk(layout, subject)
        if sessions:
            text = (
                f"Subject {subject} is there too (sessions {listed(sessions)}): check it with"
                f" --subj {subject}."
            )
            yield Item("note", "data", "trials", subject, text)
    manifest = layout.prepared()
    if manifest.exists():
        yield from _sources(manifest, config.data.subjects)
    if manifest.exists() and config.doctor.checksums:
        yield from _checksums(layout, manifest)
    elif manifest.exists():
        yield Item(
            "note",
            "data",
            "checksums",
            None,
            "Prepared by `braingen prepare`; compare its files with their checksums with"
            " --checksums.",
        )


def _sources(manifest: Path, subjects: Sequence[int]) -> Iterator[Item]:
    """Report scans that changed since a folder was prepared from them, by size and time."""
    try:
        made_from = {
            subject: read_json(manifest)["subjects"].get(str(subject), {}).get("made_from")
            for subject in subjects
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # reported where the manifest is needed
    for subject, found in made_from.items():
        if not found or not Path(found["folder"]).is_dir():
            continue
        paths = {name: Path(found["folder"], name) for name in found["sources"]}
        changed = [
            name
            for name, path in paths.items()
            if not path.exists() or identity(path) != found["sources"][name]["stamp"]
        ]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            text = (
                f"Subject {subject}: {changed[0]}{more} changed in size or time since the folder"
                " was prepared; run `braingen prepare` again, which compares the content."
            )
            yield Item("warning", "data", "sources", subject, text)


def _checksums(layout: Layout, manifest: Path) -> Iterator[Item]:
    try:
        found = read_json(manifest)
        entries = {
            name: digest
            for entry in found["subjects"].values()
            for name, digest in entry["sha256"].items()
        }
        entries |= {
            name: entry["sha256"] for name, entry in found["shared"].items() if "sha256" in entry
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Item(
            "error",
            "data",
            "checksums",
            None,
            f"{manifest} is not a manifest of `braingen prepare`; {nsd.WRITE_IT}.",
        )
        return
    wrong = []
    for name, digest in entries.items():
        path = layout.root / name
        if not path.exists() or sha256_of(path) != digest:
            wrong.append(name)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        text = (
            f"{', '.join(wrong[:3])}{more} differ from what `braingen prepare` wrote; remove them"
            " and run it again."
        )
        yield Item("error", "data", "checksums", None, text)
    else:
        yield Item(
            "ok",
            "data",
            "checksums",
            None,
            f"{len(entries)} files are as `braingen prepare` wrote them.",
        )


def _networks() -> Iterator[Item]:
    """Check the networks that compare images; each missing one is a missing score."""
    for name, recipe in features.recipes().items():
        try:
            path = features.find_weights(name)
            yield Item("ok", "scores", name, None, f"{recipe.title}: {path}.")
        except features.MissingWeights as error:
            yield Item(
                "note",
                "scores",
                name,
                None,
                f"{recipe.title} will be missing among the scores; get its weights with: "
                f" {error.line}",
            )


def _trials_and_parameters(config: Config) -> Iterator[Item]:
    """Check that there are enough trials for the encoder, and enough test images for scores."""
    layout = Layout.of(config.data.root)
    try:
        sizes = sizes_of(config)
        trials = [
            len(train_trials(layout, each, config.data.num_sessions).table)
            for each in config.data.subjects
        ]
        images = [
            test_trials(layout, each).table["image"].nunique() for each in config.data.subjects
        ]
        parameters = encoder_parameters(config, sizes)
    except UserError:
        return  # reported elsewhere
    per_trial = parameters / sum(trials)
    text = (
        f"{parameters / 1e6:.1f} million parameters of the image encoder, {sum(trials)} training"
        " trials"
    )
    if per_trial > MANY_PER_TRIAL:
        text += (
            f": {per_trial:,.0f} parameters a trial. Expect it to overfit its training images, and"
            " ridge regression to be better; a smaller encoder helps (--config"
            " own_scans, encoder.hidden_dim, encoder.n_blocks), and training.checkpoint=folds"
            " chooses its epoch well."
        )
        yield Item("warning", "data", "trials and parameters", None, text)
    else:
        yield Item("ok", "data", "trials and parameters", None, f"{text}.")
    for subject, count in zip(config.data.subjects, images):
        if count < FEW_TEST_PICTURES:
            text = (
                f"Subject {subject} has {count} test images: so few give wide intervals (chance"
                f" alone moves two-way identification by {0.98 / count**0.5:.2f}). `braingen"
                " cross-validate --scans SCANS` leaves every image out once."
            )
            yield Item("warning", "data", "test images", subject, text)


def _needs(config: Config) -> Iterator[Item]:
    layout = Layout.of(config.data.root)
    used = []
    for subject in config.data.subjects:
        try:
            used.append(
                train_trials(layout, subject, config.data.num_sessions).table["image"].unique()
            )
            used.append(test_trials(layout, subject).table["image"].unique())
        except UserError:
            used.append(
                np.arange(nsd.IMAGES // len(nsd.SUBJECTS))
            )  # voxels and trials of NSD; missing ones are reported elsewhere
    try:
        needs = needs_of(config, len(np.unique(np.concatenate(used))))
    except UserError as error:
        yield Item(
            "warning",
            "needs",
            "sizes",
            None,
            f"The needs of this configuration could not be estimated: {error}",
        )
        return
    for need in needs:
        sentence = (
            f"{need.what[:1].upper()}{need.what[1:]}: about {gigabytes(need.needed)} of"
            f" {gigabytes(need.there)} free"
        )
        hint = ""
        if not need.enough:
            hint = need.hint if isinstance(need.hint, str) else need.hint()
        yield Item(
            "ok" if need.enough else "warning" if need.estimate else "error",
            "needs",
            need.what.split(" in ")[0],
            None,
            f"{sentence}; {hint}." if hint else f"{sentence}.",
        )
