"""One question of `braingen interpret`: its settings, folder and inputs, shared by all steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from braingen.config import Config
from braingen.data.places import SurfacePlaces
from braingen.data.volumes import VoxelPlaces
from braingen.interpret import figures, volumes
from braingen.interpret.inputs import InterpretInputs, SubjectData
from braingen.interpret.maps import MapFile
from braingen.interpret.readout import WHOLE, DecoderPart, experts_per_level, parts_of
from braingen.interpret.surface import meshes_of
from braingen.runtime.console import console as new_console
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_text
from braingen.runtime.untrusted import csv_text


def chosen_parts(config: Config, experts: list[int]) -> list[DecoderPart]:
    """The parts named by interpret.parts, the whole decoder first."""
    everything = parts_of(experts)
    groups = {
        "all": everything,
        "whole": [WHOLE],
        "levels": [part for part in everything if part.level is not None and part.expert is None],
        "experts": [part for part in everything if part.expert is not None],
    }
    found = [
        part
        for name in config.interpret.parts
        for part in groups.get(name) or [DecoderPart.parse(name)]
    ]
    missing = [part.name for part in found if part not in everything]
    if missing:
        raise UserError(
            f"This encoder has no {missing[0]}; its levels have"
            f" {', '.join(map(str, experts)) or 'no'} experts."
        )
    return [part for part in everything if part in found]


class Explanation:
    """One question: settings, folder and inputs.

    Parameters
    ----------
    config : Config
        Settings.
    folder : Path
        Folder of the results.
    inputs : InterpretInputs
        Inputs that are explained.
    """

    def __init__(self, config: Config, folder: Path, inputs: InterpretInputs) -> None:
        self.config, self.folder, self.inputs = config, folder, inputs
        self.experts = experts_per_level(
            inputs.embedding_decoder,
            len(inputs.subjects[0].voxels_NV[0]),
            inputs.subjects[0].number,
        )
        self.parts = chosen_parts(config, self.experts)
        self.layout = Layout.of(config.data.root)
        self.sentences: list[str] = []

    def report(self, sentence: str) -> None:
        """Print a finding and keep it for the page."""
        self.sentences.append(sentence)
        new_console().print(sentence)

    def of(self, subject: SubjectData) -> Path:
        """Folder of a subject."""
        return self.folder / f"subj{subject.number:02d}"

    def map_file(self, subject: SubjectData, part: DecoderPart) -> MapFile:
        """File of the maps of a part."""
        return MapFile(self.of(subject) / "maps" / f"{part.name}.npy")

    def regions(self, subject: SubjectData) -> dict[str, np.ndarray]:
        """Named regions of a subject, and the planted areas of a simulated one."""
        found = volumes.known_regions(
            self.layout, subject.number, subject.places, self.config.interpret.atlases
        )
        area_V = self.planted(subject).get("area")
        if area_V is not None:
            found |= {
                str(area): area_V == area for area in np.unique(area_V) if str(area) not in found
            }
        return found

    def planted(self, subject: SubjectData) -> dict[str, np.ndarray]:
        """Ground truth of the voxels of a simulated subject; empty for a real one."""
        path = self.layout.truth(subject.number)
        if not self.inputs.simulated or not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {
                name: stored[name] for name in ("area", "hemisphere", "sheet_uv", "sheet_extent_mm")
            }

    def table(self, path: Path, table: pd.DataFrame) -> None:
        """Write a table as CSV."""
        write_text(path, csv_text(table, index=False, float_format="%.6g"))

    def draw(self, path: Path, subject: SubjectData, value_V: np.ndarray, title: str) -> None:
        """Plot a map: on the flat cortex of a simulated subject, else projections or a surface."""
        truth = self.planted(subject)
        if truth:
            place_V2 = truth["sheet_uv"] * truth["sheet_extent_mm"]
            figures.draw_flat_cortex(
                path, place_V2, truth["hemisphere"], truth["area"], value_V, title
            )
        elif isinstance(subject.places, VoxelPlaces):
            figures.draw_projections(path, subject.places, value_V, title)
        elif isinstance(subject.places, SurfacePlaces) and (
            meshes := subject.meshes or meshes_of(subject.places)
        ):
            figures.draw_surface(path, subject.places, value_V, meshes, title)
        else:
            figures.draw_columns(path, subject.places, value_V, title)

    def facts(self) -> dict[str, Any]:
        """Values for the page besides the files."""
        settings = self.config.interpret
        return {
            "modality": settings.modality,
            "about": settings.about,
            "method": settings.method,
            "points": settings.points,
            "grouping": settings.grouping,
            "images": len(self.inputs.subjects[0].image_N),
            "subjects": [subject.number for subject in self.inputs.subjects],
            "experts": self.experts,
            "simulated": self.inputs.simulated,
        }
