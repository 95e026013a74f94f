"""The tiny backbones know simulated pictures only: what is done where the data are not simulated."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from braingen.config import Config
from braingen.console import console
from braingen.data.nsd import Layout
from braingen.data.sealed import training_root
from braingen.data.stimuli import Stimuli
from braingen.diffusion.sdxl import TINY, backbone_folder
from braingen.errors import UserError


class Unfit(NamedTuple):
    """Why the tiny backbones do not fit the data."""

    refused: bool
    """Whether nothing may be computed with them; own scans may be tried out with them, with a warning."""
    sentence: str


def unfit_backbone(config: Config) -> Unfit | None:
    """Why the configured backbone cannot see the data's pictures; None where it can, or where there are no pictures."""
    layout = Layout.of(config.data.root)
    if Path(backbone_folder(config.backbone.path)) != TINY or not layout.images().exists():
        return None
    stimuli = Stimuli(layout)
    if stimuli.simulated or Stimuli(Layout.of(training_root(layout.root))).simulated:
        return None
    own = stimuli.data_name == "own scans"
    sentence = (
        f"{layout.root} holds {stimuli.data_name}, not simulated data, and backbone.path = {config.backbone.path} "
        "knows simulated pictures only (24 drawn objects)"
    )
    sentence += ", so what it computes is good for trying the commands alone. " if own else ". "
    sentence += "Name Stable Diffusion XL with backbone.path=FOLDER, or a configuration that does: --config nsd_subj01."
    return Unfit(not own, sentence)


def check_backbone(config: Config) -> None:
    """Refuse the tiny backbones on NSD, and warn where the pictures are one's own.

    Raises
    ------
    UserError
        Before anything is computed.
    """
    found = unfit_backbone(config)
    if found is not None and found.refused:
        raise UserError(found.sentence)
    if found is not None:
        _warn(found.sentence)


@lru_cache
def _warn(sentence: str) -> None:
    """Once in a process."""
    console(stderr=True).print(f"WARNING: {sentence}", soft_wrap=True)
