"""Prepare a data folder from scans: the raw release of NSD, or your own (docs/data.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from braingen.config import Config, with_settings
from braingen.config.run_and_data import PrepareConfig
from braingen.data.ingest.own_scans import OwnScans
from braingen.data.prepare.folder import prepare as write_layout
from braingen.data.raw_nsd.fsaverage import SPACE, RawNSDSurface
from braingen.data.raw_nsd.release import RawNSD, is_raw_nsd
from braingen.data.raw_nsd.test_sets import READERS
from braingen.data.scans import Scans
from braingen.data.sealed import sealed_root
from braingen.runtime.console import console
from braingen.runtime.errors import UserError
from braingen.runtime.files import sha256_of
from braingen.runtime.untrusted import one_line

_ALWAYS = ("mask", "order", "betas", "test_images", "test_share")
"""Settings that a manifest has always named; others are named where they are not the default, so
that older folders go on.
"""


def scans_of(config: Config) -> Scans:
    """The scans that the settings name.

    Raises
    ------
    UserError
        When no folder is named, or it does not exist.
    """
    chosen = config.prepare
    if chosen.scans is None:
        raise UserError(
            "prepare.scans is empty: name the folder of the raw release of NSD, or of your scans,"
            " with --scans FOLDER."
        )
    if not chosen.scans.is_dir():
        found = "is a file" if chosen.scans.exists() else "does not exist"
        raise UserError(f"The folder of scans {chosen.scans} {found}; name yours with --scans.")
    if chosen.kind == "auto":  # what was found there may have no use for some settings
        chosen = with_settings(
            config, "prepare", {"kind": "nsd" if is_raw_nsd(chosen.scans) else "own"}
        ).prepare
    assert chosen.scans is not None
    if chosen.kind == "nsd":
        if chosen.space not in ("", "func1pt8mm", SPACE):
            raise UserError(
                f"prepare.space = {chosen.space} is not read of NSD: func1pt8mm (empty) or"
                f" {SPACE} is."
            )
        kind = RawNSDSurface if chosen.space == SPACE else RawNSD
        if config.data.test_set != "default":
            if chosen.space == SPACE:
                raise UserError(
                    f"data.test_set = {config.data.test_set} is read in volumes of 1.8 mm only:"
                    " leave prepare.space out."
                )
            kind = READERS[config.data.test_set]
        return kind(
            chosen.scans,
            chosen.betas,
            chosen.mask or "nsdgeneral",
            chosen.order,
            chosen.coco,
            chosen.zscore,
        )
    if config.data.test_set != "default":
        raise UserError(
            f"data.test_set = {config.data.test_set} is a set of NSD; {chosen.scans} holds own"
            " scans."
        )
    return OwnScans(chosen, config.data.root)


def recorded(chosen: PrepareConfig) -> dict[str, Any]:
    """Settings that determine the result besides the scans."""
    found = chosen.model_dump(mode="json", exclude={"scans", "coco", "captions", "kind", "accept"})
    defaults = PrepareConfig().model_dump(mode="json")
    return {
        name: value for name, value in found.items() if name in _ALWAYS or value != defaults[name]
    }


def _print(text: str) -> None:
    for line in text.splitlines():
        console().print(one_line(line), soft_wrap=True)


def prepare(config: Config, report: Callable[[str], object] = _print) -> Path:
    """Write the data folder of the chosen subjects, or what is missing of it; continues where it
    was stopped, and reports what was done.

    Returns
    -------
    Path
        The data folder, `data.root`.
    """
    scans, chosen = scans_of(config), config.prepare
    settings = recorded(chosen)
    for name in (
        "mask",
        "test_images",
        "trials",
        "stimuli",
    ):  # may lie elsewhere when the command is given again
        path = Path(settings.get(name) or "").expanduser()
        if settings.get(name) and path.is_file():
            settings[name] = f"{path.name} {sha256_of(path)[:16]}"
        elif settings.get(name) and path.is_dir():
            settings[name] = path.resolve().name
    if isinstance(scans, RawNSD) and chosen.mask and not Path(chosen.mask).is_file():
        settings["mask"] = scans.mask.name  # V1 and prf-visualrois:V1 are the same
    name = config.data.test_set
    root = config.data.root if name == "default" else sealed_root(config.data.root, name)
    return write_layout(
        scans,
        root,
        config.data.subjects,
        settings,
        config.data.num_sessions,
        chosen.captions,
        chosen.accept,
        report,
    ).root
