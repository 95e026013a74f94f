"""Inputs of a report from run and data folder; optional ones may be absent."""

from __future__ import annotations

from collections.abc import Mapping
import csv
import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from braingen.data.captions import Captions, load_captions
from braingen.data.response_reliability import KnownReliability, load_reliability
from braingen.data.stimuli import Stimuli
from braingen.evaluation.human_ratings import read_study
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import INDEX, SOURCES, generated_in, typed_run
from braingen.runtime.text_files import read_json, read_yaml

ENCODERS = ("image", "text")
"""Folders of the trained encoders inside a run folder."""
RUNS = {"image": "image encoder", "text": "text encoder", "reconstructions/brain": "images"}
"""Folders with settings and provenance -> what they contain."""

COMPARED = "comparison"
"""Folder inside a run with the results of `braingen compare`."""


class ReportInputs(NamedTuple):
    """Inputs of all sections."""

    run: Path
    """The run folder."""
    subject: int
    """Number of the subject."""
    simulated: bool
    """Whether images and brain activity are simulated."""
    stimuli: Stimuli
    """The seen images, by image id."""
    captions: Captions | None
    """Captions of the seen images; None without any."""
    images: tuple[int, ...]
    """Ids of the test images that were reconstructed from brain activity, ascending."""
    pictures: dict[str, dict[int, Path]]
    """Source -> image id -> PNG; brain has all images, the others may lack some."""
    decoded_captions: dict[int, str]
    """Image id -> caption nearest to the decoded text embedding."""
    scores: dict[str, dict[str, Any]]
    """Score name -> value, low, high, random, oracle, ridge, chance, n, pool; those of a study
    included.
    """
    study: dict[str, Any]
    """Human evaluation of this run (`human_eval.analysis.as_json`); empty without one."""
    per_image: dict[int, dict[str, str]]
    """Image id -> column -> text of the table of per-image scores."""
    comparisons: list[dict[str, Any]]
    """Paired differences between methods."""
    parts: list[dict[str, str]]
    """Scores of every level and expert alone: part, score, value, low, high, chance, n,
    pool.
    """
    compared: list[dict[str, Any]]
    """Results of `braingen compare`: score, first, second, difference, interval and p."""
    summary: list[dict[str, str]]
    """Its means over subjects and seeds: method, score, value, low, high, between_seeds,
    between_subjects, subjects, seeds.
    """
    controls: dict[str, Any]
    """random, oracle -> draws and scores with their own intervals."""
    refinement: dict[str, Any]
    """Settings, and scores before and after refinement; empty without refinement."""
    refined: dict[int, Path]
    """Image id -> PNG after refinement."""
    metrics: dict[str, list[dict[str, Any]]]
    """Encoder -> one record per epoch."""
    settings: dict[str, dict[str, Any]]
    """Folder of RUNS -> its config.yaml."""
    provenance: dict[str, dict[str, Any]]
    """Folder of RUNS -> its provenance.json."""
    timings: dict[str, float]
    """Stage -> seconds."""
    reliability: KnownReliability | None = None
    """Of the subject's responses; None for a data folder that `prepare` did not write."""
    certainty: Mapping[str, Any] = MappingProxyType({})
    """Expected cosines and whether they hold; empty for an encoder that was not calibrated."""


def read_inputs(
    run: Path, data_root: Path, subject: int = 1, trained: Path | None = None
) -> ReportInputs:
    """Read the files of a run folder.

    Parameters
    ----------
    run : Path
        The run folder.
    data_root : Path
        The data folder with the seen images and their captions.
    subject : int, optional
        Number of the subject, if the settings of the run do not contain it.
    trained : Path | None, optional
        Folder of the encoders, if not the run folder.

    Raises
    ------
    UserError
        When reconstructions from brain activity or seen images are missing, or a file is damaged.
    """
    images, decoded = _index(run)
    pictures = {source: _pictures(generated_in(run, source)) for source in SOURCES}
    lost = [image for image in images if image not in pictures["brain"]]
    if lost:
        raise UserError(
            f"{generated_in(run, 'brain')} lists image {lost[0]} but has no {lost[0]:06d}.png"
            f" ({len(lost)} of {len(images)} missing); remove that folder and run `braingen"
            " reconstruct` again."
        )
    layout = Layout.of(data_root)
    stimuli = Stimuli(layout)
    outside = [image for image in images if image >= len(stimuli)]
    if outside:
        raise UserError(
            f"{run} has a reconstruction of image {outside[0]}, but {stimuli.path} has"
            f" {len(stimuli)} images: these are not the images of this run; give its data folder"
            " with --data_path."
        )
    study = read_study(run)
    folders = {name: (trained or run if name in ENCODERS else run) / name for name in RUNS}
    settings = {
        name: _yaml(folder / "config.yaml")
        for name, folder in folders.items()
        if (folder / "config.yaml").is_file()
    }
    subject = _subject(settings, subject)
    return ReportInputs(
        run=run,
        subject=subject,
        simulated=stimuli.simulated,
        stimuli=stimuli,
        captions=(
            load_captions(layout)
            if layout.captions().exists() or layout.captions_mindeye2().exists()
            else None
        ),
        images=images,
        pictures=pictures,
        decoded_captions=decoded,
        scores={**_mapping(run / "scores.json", "`braingen evaluate`"), **study.get("scores", {})},
        study=study,
        per_image=_per_image(run / "scores_per_image.csv"),
        comparisons=_json(run / "comparisons.json", "`braingen evaluate`") or [],
        parts=_table(run / "scores_by_part.csv", "part", "`braingen evaluate`"),
        compared=_json(run / COMPARED / "comparisons.json", "`braingen compare`") or [],
        summary=_table(run / COMPARED / "summary.csv", "method", "`braingen compare`"),
        controls=_mapping(run / "controls.json", "`braingen evaluate`"),
        refinement=_mapping(run / "refinement.json", "`braingen evaluate`"),
        refined=_pictures(generated_in(run, "brain_refined")),
        metrics={
            name: _lines(folders[name] / "metrics.jsonl")
            for name in ENCODERS
            if (folders[name] / "metrics.jsonl").is_file()
        },
        settings=settings,
        provenance={
            name: found
            for name, folder in folders.items()
            if (found := _mapping(folder / "provenance.json", "its stage"))
        },
        timings={
            stage: float(seconds)
            for stage, seconds in _mapping(run / "timings.json", "`braingen demo`").items()
            if finite(seconds)
        },
        reliability=load_reliability(layout, subject),
        certainty=_mapping(run / "certainty.json", "`braingen evaluate`"),
    )


def finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _index(run: Path) -> tuple[tuple[int, ...], dict[int, str]]:
    """Ids of the reconstructed images, ascending, and their decoded captions."""
    path = generated_in(run, "brain") / INDEX
    if not path.is_file():
        raise UserError(
            f"{path} is missing: there are no images to show; run `braingen reconstruct"
            f" {typed_run(run)}` first."
        )
    index = _mapping(path, "`braingen reconstruct`")
    images = index.get("images") or []
    if not images or not all(isinstance(image, int) and image >= 0 for image in images):
        raise UserError(
            f"{path} names no images (`images` is {str(images)[:40]}); run `braingen reconstruct`"
            " again."
        )
    decoded = {
        int(image): str(text) for image, text in (index.get("captions") or {}).items() if text
    }
    return tuple(sorted(set(images))), decoded


def _pictures(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdigit()}


def _subject(settings: Mapping[str, Mapping[str, Any]], otherwise: int) -> int:
    for config in list(settings.values())[::-1]:  # images first: encoders may have several subjects
        subjects = (config.get("data") or {}).get("subjects")
        if subjects:
            return int(subjects[0])
    return otherwise


def _json(path: Path, command: str) -> Any:
    """Content of a JSON file, or None if it does not exist."""
    if not path.is_file():
        return None
    return read_json(path, f"remove it and run {command} again")


def _mapping(path: Path, command: str) -> dict[str, Any]:
    content = _json(path, command) or {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, an object was expected; remove it and run"
            f" {command} again."
        )
    return content


def _yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; an incomplete last line is skipped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _table(path: Path, column: str, command: str) -> list[dict[str, str]]:
    """Rows of a CSV file that must have a column; none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    if rows and column not in rows[0]:
        raise UserError(
            f"{path} has no column `{column}` (it has {', '.join(map(str, rows[0]))}); run"
            f" {command} again."
        )
    return [{name: (text or "").strip() for name, text in row.items() if name} for row in rows]


def _per_image(path: Path) -> dict[int, dict[str, str]]:
    rows = _table(path, "image", "`braingen evaluate`")
    return {
        int(float(row["image"])): {name: text for name, text in row.items() if name != "image"}
        for row in rows
    }
