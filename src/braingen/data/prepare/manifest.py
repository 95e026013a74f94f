"""prepared.json: what a data folder was made from, and whether a subject is up to date."""

from __future__ import annotations

from collections.abc import Iterable
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from braingen.data.prepare.pieces import digest
from braingen.data.scans import Scans
from braingen.data.stimuli import Stimuli
from braingen.data.zscore import statistics_path
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.errors import UserError
from braingen.runtime.files import identity, sha256_of
from braingen.runtime.text_files import read_json

SCRATCH = ".preparing"
"""Folder of unfinished files in the data folder."""
_OTHER_FOLDER = "choose another data folder with --data_path FOLDER"


def open_manifest(layout: Layout, settings: dict[str, Any], scans: Scans) -> dict[str, Any]:
    """Manifest of a data folder, new or continued.

    Raises
    ------
    UserError
        When the folder was prepared with other settings, or from other data.
    """
    settings = json.loads(json.dumps(settings))
    ours = {
        "made_by": "braingen prepare",
        "format": scans.format,
        "settings": settings,
        "data": scans.called,
        "origin": scans.origin,
        **({"sealed": True} if scans.sealed else {}),
    }
    path = layout.prepared()
    if not path.exists():
        if scans.grows and layout.images().exists() and not (layout.root / SCRATCH).exists():
            raise UserError(
                f"{layout.root} holds pictures of {Stimuli(layout).data_name} "
                f"({layout.images().name}), which were not written from these scans: picture 0 of "
                "yours would be picture 0 of theirs. Choose another data folder with --data_path "
                "FOLDER."
            )
        return {**ours, "subjects": {}, "shared": {}}
    try:
        found = read_json(path)
        theirs = {"format": found["format"], **found["settings"]}
        data = found.get("data", "NSD")
        kept = {name: dict(found[name]) for name in ("subjects", "shared")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest of `braingen prepare`; {_OTHER_FOLDER}."
        ) from error
    if data != scans.called:
        raise UserError(
            f"{layout.root} was prepared from {data}, these are {scans.called}: {_OTHER_FOLDER}."
        )
    now = {"format": scans.format, **settings}
    different = [
        f"{name} {_shown(theirs.get(name))} (now {_shown(now.get(name))})"
        for name in now | theirs
        if theirs.get(name) != now.get(name)
    ]
    if different:
        raise UserError(
            f"{layout.root} was prepared with {', '.join(different)}: ask for the same again, or "
            f"{_OTHER_FOLDER}."
        )
    return {**ours, **kept}


def _shown(value: Any) -> str:
    return "the default" if value is None else str(value)


def sources_of(
    scans: Scans, subject: int, behav_T17: np.ndarray, manifest: dict[str, Any]
) -> dict[str, Any]:
    """What a subject is made from: digests of its trials and of every file.

    The digest of a file is computed again where its size or time has changed.
    """
    known = manifest["subjects"].get(str(subject), {}).get("made_from", {}).get("sources", {})
    found = {}
    for path in scans.sources(subject):
        name, stamp = Path(os.path.relpath(path, scans.root)).as_posix(), identity(path)
        same = known.get(name, {}).get("stamp") == stamp
        found[name] = {"stamp": stamp, "sha256": known[name]["sha256"] if same else sha256_of(path)}
    folder = str(scans.root.absolute())
    return {"trials": digest(behav_T17), "folder": folder, "sources": found}


def is_up_to_date(
    layout: Layout, manifest: dict[str, Any], subject: int, sources: dict[str, Any]
) -> bool:
    """Whether all files of a subject are there and were made from these sources."""
    entry = manifest["subjects"].get(str(subject))
    if entry is None:
        return False
    files = [layout.betas(subject), statistics_path(layout, subject)]
    files += [layout.wds_test(subject, which) for which in ("new_test", "test")]
    files += [layout.root / name for name in entry["sha256"]]
    if not all(path.exists() for path in files):
        return False
    before = entry.get("made_from")
    if before is None:
        return True
    digests = [
        {name: file["sha256"] for name, file in each["sources"].items()}
        for each in (before, sources)
    ]
    return before["trials"] == sources["trials"] and digests[0] == digests[1]


def refuse_responses_of_others(
    scans: Scans, made_from: dict[int, dict[str, Any]], manifest: dict[str, Any]
) -> None:
    """Refuse a file of responses that is a copy of another subject's.

    Parameters
    ----------
    scans : Scans
        The scans.
    made_from : dict of int to dict
        Subject -> its `sources_of`.
    manifest : dict
        The manifest, with those of subjects prepared before.

    Raises
    ------
    UserError
        When two subjects have the same responses.
    """
    known = {int(subject): entry for subject, entry in manifest["subjects"].items()}
    before = {subject: entry.get("made_from", {}) for subject, entry in known.items()}
    owner: dict[str, tuple[int, str]] = {}
    for subject, found in (before | made_from).items():
        for name, file in found.get("sources", {}).items():
            owner.setdefault(file["sha256"], (subject, name))
    for subject, found in made_from.items():
        for path in scans.response_files(subject):
            name = Path(os.path.relpath(path, scans.root)).as_posix()
            digest_of_file = found["sources"].get(name, {}).get("sha256", "")
            other, other_name = owner.get(digest_of_file, (subject, name))
            if other != subject:
                raise UserError(
                    f"{path}, of subject {subject}, is equal to {other_name} of subject {other}, "
                    "byte for byte: one of them is a copy. Bring the right file, or say so with "
                    "prepare.accept=copies."
                )


def refuse_foreign_files(layout: Layout, manifest: dict[str, Any], subjects: Iterable[int]) -> None:
    """Refuse to overwrite files of subjects that `braingen prepare` did not write."""
    for subject in subjects:
        unfinished = layout.root / SCRATCH / subject_name(subject)
        if str(subject) in manifest["subjects"] or unfinished.exists():
            continue
        for path in (layout.betas(subject), layout.wds_train(subject, 0).parent):
            if path.exists():
                raise UserError(
                    f"{path} is there and was not written by `braingen prepare`; {_OTHER_FOLDER}, "
                    "or remove it."
                )
