"""A simulated data folder: what it is simulated from, and whether it is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from braingen.data import nsd
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_json
from braingen.simulation import pictures
from braingen.simulation.presentations import Design, make_design


class Arguments(NamedTuple):
    """Arguments that determine a simulated data folder, to the bit."""

    num_subjects: int
    """1 to 8."""
    num_sessions: int
    """Of every subject."""
    trials_per_session: int
    """Presentations in a session (NSD: 750)."""
    num_voxels: int
    """Of subject 1 in nsdgeneral; the others follow NSD's proportions."""
    num_test_images: int
    """Images that all subjects see three times, for testing only."""
    noise: float
    """Multiple of NSD's noise."""
    seed: int
    """Of images, brains and noise."""

    def voxels(self, subject: int) -> int:
        """Numbers of voxels per subject, in the proportions of NSD's eight subjects."""
        taken: list[int] = []
        for number in range(1, subject + 1):
            width = max(1, round(self.num_voxels * nsd.VOXELS[number] / nsd.VOXELS[1]))
            while width in taken:
                width += 1
            taken.append(width)
        return taken[-1]


def manifest_path(layout: Layout) -> Path:
    """Path of the manifest: arguments of a simulated data folder, and whether it is finished."""
    return layout.root / "manifest.json"


def manifest_of(arguments: Arguments, version: int | str) -> dict[str, Any]:
    """The manifest of a folder that is not finished; the version changes when the same arguments
    give other data.
    """
    return {
        "made_by": "braingen simulate",
        "format": version,
        "finished": False,
        "arguments": arguments._replace(noise=float(arguments.noise))._asdict(),
    }


def check_arguments(arguments: Arguments) -> Design:
    """Plan the presentations; refuses arguments that are out of range."""
    if not 1 <= arguments.num_subjects <= len(nsd.SUBJECTS):
        raise UserError(
            f"simulation.num_subjects is {arguments.num_subjects}: 1 to {len(nsd.SUBJECTS)} people"
            " can be simulated."
        )
    for name in ("num_sessions", "trials_per_session", "num_voxels", "num_test_images"):
        if getattr(arguments, name) < 1:
            raise UserError(
                f"simulation.{name} is {getattr(arguments, name)}: give a whole number from 1."
            )
    if arguments.num_voxels < 50:
        raise UserError(
            f"simulation.num_voxels is {arguments.num_voxels}: a visual cortex needs at least 50"
            " voxels to have its areas."
        )
    if not 0 <= arguments.noise < float("inf"):
        raise UserError(
            f"simulation.noise is {arguments.noise}: give a multiple of NSD's noise from 0, 1 for"
            " as much."
        )
    if not 0 <= arguments.seed <= pictures.MAX_SEED:
        raise UserError(
            f"simulation.seed is {arguments.seed}: give one from 0 to {pictures.MAX_SEED}."
        )
    design = make_design(
        arguments.seed,
        arguments.num_sessions,
        arguments.trials_per_session,
        arguments.num_test_images,
    )
    if image_count(arguments, design) > pictures.MAX_IMAGES:
        raise UserError(
            f"That would be {image_count(arguments, design)} images; at most {pictures.MAX_IMAGES}"
            " can be drawn."
        )
    return design


def image_count(arguments: Arguments, design: Design) -> int:
    """Images of all subjects, test images included."""
    return design.test_images + arguments.num_subjects * design.own_images


def is_finished(layout: Layout, manifest: dict[str, Any]) -> bool:
    """Whether the folder is complete; refuses other content."""
    path = manifest_path(layout)
    if not path.exists():
        for other in (
            *(layout.images(), layout.features()),
            *(layout.root / "wds", layout.captions(), layout.masks()),
        ):
            if other.exists():
                raise UserError(
                    f"{layout.root} holds {other.name}, which `braingen simulate` did not write;"
                    " choose another data folder with --data_path FOLDER."
                )
        return False
    try:
        found = read_json(path)
        theirs = {"format": found["format"], **found["arguments"]}
        finished = bool(found["finished"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a manifest of `braingen simulate`; choose another data folder or remove"
            f" {layout.root}."
        ) from error
    ours = {"format": manifest["format"], **manifest["arguments"]}
    different = [
        f"{name} {theirs.get(name)} (now {value})"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    if different:
        raise UserError(
            f"{layout.root} was simulated with {', '.join(different)}: use the same arguments,"
            " choose another data folder with --data_path FOLDER, or remove it."
        )
    return finished
