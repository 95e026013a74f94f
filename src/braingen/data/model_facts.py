"""What a run folder and a data folder say of a saved model, for its card."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import hashlib
import math
from pathlib import Path
from typing import Any

from braingen.data.places import ColumnPlaces, SurfacePlaces, key_of, load_any_places
from braingen.data.sealed import training_root
from braingen.data.stimuli import Stimuli
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.model_card import ModelFacts, ScoreFacts, SubjectFacts
from braingen.runtime.run_folder import Run
from braingen.runtime.text_files import read_json

STAGES = ("image", "text", "finetune", "low_level", "encoding")
"""Folders of a run in which trainings lie, the one first whose settings describe a decoder."""
SETTINGS = (
    "encoder.model",
    "encoder.hidden_dim",
    "training.num_epochs",
    "training.batch_size",
    "training.max_lr",
    "prior.use_prior",
    "data.holdout_share",
    "data.synthetic_share",
    "backbone.path",
)
"""Settings that a card shows where the run has them."""
SCORES, SCORED_BY = "scores.json", "scores_provenance.json"


def subject_facts(root: Path | None, subject: int, voxels: int) -> SubjectFacts:
    """Places and order of a subject's voxels, as far as the data folder says them.

    Parameters
    ----------
    root : Path | None
        The data folder; None or a folder without the subject leaves them unknown.
    """
    if root is None:
        return SubjectFacts(subject, voxels)
    layout = Layout.of(root)
    try:
        places = load_any_places(layout, subject)
    except UserError:
        return SubjectFacts(subject, voxels)
    if places.voxels != voxels:
        return SubjectFacts(subject, voxels)
    path = layout.volumes(subject) / "order.json"
    order = read_json(path) if path.is_file() else {}
    if isinstance(places, SurfacePlaces):
        what = f"vertices of {places.surface}"
    elif isinstance(places, ColumnPlaces):
        what = f"columns without places ({places.source})"
    else:
        what = f"voxels of {order.get('mask', 'nsdgeneral.nii.gz')}, {places.order} order"
    return SubjectFacts(
        subject, voxels, what, order_digest(root, subject), str(order.get("mask_sha256", ""))
    )


def order_digest(root: Path, subject: int) -> str:
    """Digest of the places of a subject's columns in their order.

    Raises
    ------
    UserError
        When the data folder does not say where they lie.
    """
    return hashlib.sha256(key_of(load_any_places(Layout.of(root), subject))).hexdigest()[:16]


def model_facts(
    kind: str,
    architecture: str,
    subjects: Mapping[Any, Any],
    run: Path | str | None = None,
    root: Path | None = None,
    known: ModelFacts | None = None,
    only: Collection[str] | None = None,
) -> ModelFacts:
    """What is known of a model.

    Parameters
    ----------
    kind, architecture : str
        As in `ModelFacts`.
    subjects : Mapping
        Subject -> number of voxels, as the model has them.
    run : Path | str | None, optional
        Run folder (of all stages, or of one) whose settings and scores are taken; None for neither.
    root : Path | None, optional
        Data folder; None for the one that the run names.
    known : ModelFacts | None, optional
        What was recorded before; kept where nothing else is found.
    only : Collection[str] | None, optional
        Names of the scores that are of this model; None for all.

    Raises
    ------
    UserError
        When a run is named and is none.
    """
    found = ModelFacts(kind, architecture, ())
    if run is not None:
        stage = stage_of(Path(run))
        settings = stage.config
        data = settings.get("data") or {}
        if root is None and data.get("root"):
            root = Path(str(data["root"])).expanduser()
        found = found._replace(
            sessions=data.get("num_sessions"),
            seed=_seed(stage),
            backbone=str((settings.get("backbone") or {}).get("path", "")),
            settings=_shown(settings),
            made=_made(stage),
            **_scores(Path(run), only),
        )
    if root is not None:
        root = training_root(root)
        found = found._replace(data=_data_name(root))
    found = found._replace(
        subjects=tuple(
            subject_facts(root, int(subject), int(voxels)) for subject, voxels in subjects.items()
        )
    )
    return found if known is None else _completed(found, known)


def _completed(found: ModelFacts, known: ModelFacts) -> ModelFacts:
    """What was found, with what was known before where nothing was found."""
    merged: dict[str, Any] = {
        name: known_value if value in ("", None, (), {}, 0) else value
        for (name, value), known_value in zip(found._asdict().items(), known)
    }
    before = {each.subject: each for each in known.subjects}
    merged["subjects"] = tuple(
        before[each.subject]
        if not each.order_digest
        and each.subject in before
        and before[each.subject].voxels == each.voxels
        else each
        for each in found.subjects
    )
    return ModelFacts(**merged)


def stage_of(run: Path) -> Run:
    """The training of a run folder that describes it.

    Raises
    ------
    UserError
        When there is none.
    """
    run = run.expanduser()
    for folder in (run, *(run / name for name in STAGES)):
        if (folder / "config.yaml").is_file():
            return Run(folder)
    raise UserError(
        f"{run} is no run folder: it holds no config.yaml, nor a folder {', '.join(STAGES)} with"
        " one. Name the folder that `braingen train` wrote."
    )


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name in SETTINGS:
        section, _, field = name.partition(".")
        value = (settings.get(section) or {}).get(field)
        if value is not None:
            found[name] = value
    return found


def _seed(stage: Run) -> int | None:
    try:
        return int(stage.provenance["seeds"]["run"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _made(stage: Run) -> dict[str, str]:
    """Version, commit and date of the last start of the training."""
    try:
        start = stage.provenance["starts"][-1]
    except (UserError, KeyError, IndexError, TypeError):
        return {}
    git = start.get("git") or {}
    commit = str(git.get("commit", ""))[:12] + (" (modified)" if git.get("modified") else "")
    found = {
        "BrainGen": str((start.get("versions") or {}).get("braingen", "")),
        "commit": commit,
        "trained": str(start.get("time", ""))[:10],
    }
    return {name: value for name, value in found.items() if value}


def _data_name(root: Path) -> str:
    try:
        return Stimuli(Layout.of(root)).data_name
    except UserError:
        return ""


def _scores(run: Path, only: Collection[str] | None) -> dict[str, Any]:
    """Scores of the run's evaluation, with the titles that it wrote; nothing without."""
    folder = next((each for each in (run, run.parent) if (each / SCORES).is_file()), None)
    if folder is None:
        return {}
    scores = read_json(folder / SCORES)
    about = read_json(folder / SCORED_BY) if (folder / SCORED_BY).is_file() else {}
    titles = about.get("titles") or {}
    found = []
    for name, score in scores.items():
        value = _finite(score.get("value"))
        if value is None or (only is not None and name not in only):
            continue
        beside = {key: _finite(score.get(key)) for key in ("low", "high", "chance", "ridge")}
        found.append(
            ScoreFacts(
                name,
                str(titles.get(name, name)),
                value,
                n=int(score.get("n") or 0),
                random=_finite(score.get("random")),
                **beside,
            )
        )
    return {"scores": tuple(found), "protocol": str(about.get("protocol", ""))}


def _finite(value: Any) -> float | None:
    """A number, or None for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
