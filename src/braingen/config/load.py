"""A YAML file and overrides, read into the tree."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from braingen.config.names import field_paths, resolve
from braingen.config.shipped import find_config
from braingen.config.tree import Config
from braingen.errors import UserError
from braingen.text_files import read_yaml


def load_config(file: Path | str | None = None, overrides: dict[str, str] | None = None) -> Config:
    """Read a YAML file and apply overrides.

    Parameters
    ----------
    file : YAML of the tree's shape, or the name of a configuration that ships; None for the defaults
    overrides : setting -> text, as typed on the command line; names as :func:`resolve` takes them

    Raises
    ------
    UserError
        For a missing file, broken YAML, an unknown setting or a value that is not allowed.
    """
    tree: dict[str, dict[str, Any]] = {}
    if file is not None:
        file = find_config(file)
        tree = _read_tree(file)
    for name, text in (overrides or {}).items():
        path = resolve(name)
        section, field = path.split(".")
        tree.setdefault(section, {})[field] = _parse(path, text)
    # section by section, since loss_text and loss_image share a class and not its defaults
    defaults: dict[str, dict[str, Any]] = Config().model_dump()
    start = tree.get("optim", {}).get("start_from")
    for taken, fields in (_architecture_of(Path(str(start)).expanduser()) if start else {}).items():
        defaults[taken] = {**defaults[taken], **fields}
    try:
        return Config.model_validate({**defaults, **{name: {**defaults.get(name, {}), **section} for name, section in tree.items()}})
    except ValidationError as error:
        raise UserError(_explain(error, file, {resolve(name) for name in overrides or {}})) from error


def _parse(path: str, text: str) -> Any:
    section, name = path.split(".")
    annotation = str(Config.model_fields[section].annotation.model_fields[name].annotation)  # type: ignore[union-attr]
    if annotation.startswith("tuple"):  # lists on the command line: 2,2,2
        return [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]  # folders may have blanks in their names
    return text  # numbers and switches are read by the field's own type, so a folder may be called 2024 and a precision no


def _architecture_of(run: Path) -> dict[str, dict[str, Any]]:
    """What a run that starts from another one takes over from it: backbone, encoder, prior and losses, from its config.yaml."""
    found: dict[str, dict[str, Any]] = {}
    for file in (run / "config.yaml", run / "image" / "config.yaml", run / "text" / "config.yaml"):
        tree = read_yaml(file) if file.is_file() else {}
        if not isinstance(tree, dict):
            raise UserError(f"{file} holds no settings; restore it or start from another run.")
        found |= {name: tree[name] for name in ("backbone", "encoder", "prior", "loss_image", "loss_text") if name in tree}
    return found


def _read_tree(file: Path) -> dict[str, dict[str, Any]]:
    tree = read_yaml(file, f"correct it; {find_config('simulated')} is an example")
    if not isinstance(tree, dict | None) or any(not isinstance(section, dict | None) for section in (tree or {}).values()):
        raise UserError(
            f"{file} is not of the form 'section:' with indented 'name: value' lines below; {find_config('simulated')} is an example."
        )
    return {str(name): {str(field): value for field, value in (section or {}).items()} for name, section in (tree or {}).items()}


def _explain(error: ValidationError, file: Path | None, overridden: set[str]) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    typed = any(path == name or path.startswith(f"{name}.") for name in overridden)
    origin = f" (in {file})" if file and not typed else ""
    if first["type"] == "extra_forbidden":
        paths = field_paths() + list(Config.model_fields)
        near = difflib.get_close_matches(path, paths, n=1, cutoff=0.4)
        return f"There is no setting '{path}'{origin}." + (f" Did you mean {near[0]}?" if near else "")
    return f"{path} = {str(first['input']) or 'nothing'}{origin} is not allowed: {first['msg'][:1].lower() + first['msg'][1:]}."
