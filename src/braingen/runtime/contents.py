"""Fingerprints of the files and folders that settings name.

A folder may be moved, mounted elsewhere, or written differently between two starts of a run. So a
run is identified by the content of its data and models (`contents_of`, kept in config.yaml), not by
their paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
from pathlib import Path
from typing import Any

from braingen.config.shipped import backbone_folder
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.run_folder import flat

DATA = "data.root"
PLACES = (
    DATA,
    "backbone.path",
    "backbone.image_encoder",
    "backbone.ip_adapter",
    "backbone.refiner",
    "training.init_from",
    "data.synthetic_images",
    "encoding.init_from",
    "encoding.library",
    "interpret.labels",
    "published.checkpoint",
    "published.router_image",
    "published.router_text",
    "published.adapter",
)
"""Settings that name a file or folder which the run reads."""
_SAMPLE = 1 << 16  # bytes from either end of a data file: a release has hundreds of files


def contents_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint the files and folders that exist, by the name of their setting.

    Parameters
    ----------
    settings : Mapping[str, Any]
        A tree of settings as the run folder holds it.
    """
    found: dict[str, str] = {}
    values = flat(settings)
    for name in PLACES:
        value = values.get(name)
        if not value or str(value) == ".":
            continue
        if name == DATA:
            digest = data_fingerprint(
                Layout.of(value),
                values.get("data.subjects") or (),
                captions=_reads_captions(settings),
            )
        else:
            path = Path(backbone_folder(str(value))).expanduser()
            digest = fingerprint_of_files(path) if path.exists() else ""
        if digest:
            found[name] = digest
    return found


def _reads_captions(settings: Mapping[str, Any]) -> bool:
    return not ("loss_image" in settings and "loss_text" not in settings)


def data_fingerprint(layout: Layout, subjects: Sequence[int], captions: bool = True) -> str:
    """Fingerprint images, responses, trials and used captions of some subjects; empty if none.

    Names and sizes of the files, with the first and last 64 KiB of each.
    """
    shared = [
        layout.images(),
        layout.features(),
        *((layout.captions(), layout.captions_mindeye2()) if captions else ()),
    ]
    own = [
        path
        for subject in subjects
        for path in (layout.betas(subject), layout.root / "wds" / subject_name(subject))
    ]
    there = [path for path in (*shared, *own) if path.exists()]
    if not there:
        return ""
    parts = [
        f"{path.relative_to(layout.root)} {fingerprint_of_files(path, _SAMPLE)}" for path in there
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
