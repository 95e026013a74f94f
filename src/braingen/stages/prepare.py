"""Raw NSD, or anybody's own scans, to the working layout (docs/data.md)."""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config, with_settings
from braingen.data.own_scans import OwnScans
from braingen.data.prepare import prepare as write_layout
from braingen.data.raw_nsd import RawNSD, is_raw_nsd
from braingen.data.scans import Scans
from braingen.errors import UserError


def scans_of(config: Config) -> Scans:
    """The scans that the settings name.

    Raises
    ------
    UserError
        When no folder is named, or it does not exist.
    """
    chosen = config.prepare
    if chosen.scans is None:
        raise UserError("prepare.scans is empty: name the folder of the raw release of NSD, or of your scans, with --scans FOLDER.")
    if not chosen.scans.is_dir():
        found = "is a file" if chosen.scans.exists() else "does not exist"
        raise UserError(f"The folder of scans {chosen.scans} {found}; name yours with --scans.")
    if chosen.kind == "auto":  # what was found there may have no use for some settings
        chosen = with_settings(config, "prepare", {"kind": "nsd" if is_raw_nsd(chosen.scans) else "own"}).prepare
    assert chosen.scans is not None
    if chosen.kind == "nsd":
        return RawNSD(chosen.scans, chosen.betas, chosen.mask or "nsdgeneral", chosen.order, chosen.coco)
    return OwnScans(chosen.scans, chosen.mask, chosen.order, chosen.test_images, chosen.test_share)


def prepare(config: Config) -> Path:
    """Write the data folder of the chosen subjects, or what is missing of it; continues where it was stopped.

    Returns
    -------
    Path
        The data folder, `data.root`.
    """
    scans = scans_of(config)
    settings = config.prepare.model_dump(mode="json", exclude={"scans", "coco", "captions", "kind"})
    return write_layout(scans, config.data.root, config.data.subjects, settings, config.data.num_sessions, config.prepare.captions).root
