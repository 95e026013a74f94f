"""The configurations that ship with the package, found by name: ``--config nsd_subj01``."""

from __future__ import annotations

import difflib
from pathlib import Path

from braingen.runtime.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"
"""Part of the package, so that an installed wheel has them. ``accelerate/`` is for ``accelerate
launch``.
"""
TINY = Path(__file__).parents[1] / "simulation" / "assets" / "tiny"
"""The backbones that are shipped with the package."""


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_config(asked: Path | str) -> Path:
    """The file of a configuration.

    Parameters
    ----------
    asked : Path | str
        A file, or the name of a shipped configuration: ``nsd_subj01``, ``nsd_subj01.yaml`` and
        ``configs/nsd_subj01.yaml`` all mean the same one where no such file exists.

    Raises
    ------
    UserError
        When it is neither; the message lists the configurations there are.
    """
    path = Path(asked).expanduser()
    if path.is_file():
        return path
    names = shipped_configs()
    alone = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml", ".yml")
    if alone and path.stem in names:
        return FOLDER / f"{path.stem}.yaml"
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    beside = sorted(map(str, [*Path().glob("[!.]*.yaml"), *Path("configs").glob("[!.]*.yaml")]))
    yours = f" Files here: {', '.join(beside)}." if beside else ""
    raise UserError(
        f"There is no configuration {asked}.{hint} "
        f"Configurations that ship with braingen: {', '.join(names)}.{yours}"
    )


def backbone_folder(path: str) -> str:
    """Turn the setting ``backbone.path`` into a folder or hub name; 'tiny' means the
    shipped one.
    """
    return str(TINY) if path == "tiny" else path
