"""Refuse, or warn of, the tiny backbones on data that are not simulated."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from braingen.config import Config
from braingen.config.shipped import TINY, backbone_folder
from braingen.data.sealed import training_root
from braingen.data.stimuli import Stimuli
from braingen.runtime.console import console
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


class BackboneMismatch(NamedTuple):
    """Why the tiny backbones do not fit the data."""

    refused: bool
    """Whether the mismatch is an error; own scans get a warning instead."""
    sentence: str


def backbone_mismatch(config: Config) -> BackboneMismatch | None:
    """Explain why the backbone does not fit the data's images; None where it fits."""
    layout = Layout.of(config.data.root)
    if Path(backbone_folder(config.backbone.path)) != TINY or not layout.images().exists():
        return None
    stimuli = Stimuli(layout)
    if stimuli.simulated or Stimuli(Layout.of(training_root(layout.root))).simulated:
        return None
    own = stimuli.data_name == "own scans"
    sentence = (
        f"{layout.root} holds {stimuli.data_name}, not simulated data, and backbone.path ="
        f" {config.backbone.path} knows simulated images only (24 rendered objects)"
    )
    sentence += ", so its results only show that the commands run. " if own else ". "
    sentence += (
        "Name Stable Diffusion XL with backbone.path=FOLDER, or a configuration that does: --config"
        " nsd_subj01."
    )
    return BackboneMismatch(not own, sentence)


def check_backbone(config: Config) -> None:
    """Refuse the tiny backbones on NSD, and warn of them on own scans.

    Raises
    ------
    UserError
        Before any computation.
    """
    found = backbone_mismatch(config)
    if found is not None and found.refused:
        raise UserError(found.sentence)
    if found is not None:
        _warn(found.sentence)


@lru_cache
def _warn(sentence: str) -> None:
    """Print a warning once per process."""
    console(stderr=True).print(f"WARNING: {sentence}", soft_wrap=True)
