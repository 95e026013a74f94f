"""A simulated NSD with known truth, in the layout of the real one (docs/simulation.md)."""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config
from braingen.simulation.dataset import write_dataset


def simulate(cfg: Config) -> Path:
    """Write the simulated data folder, or what is missing of it.

    Returns
    -------
    Path
        The data folder, `data.root`.
    """
    return write_dataset(cfg.data.root, **cfg.simulation.model_dump()).root
