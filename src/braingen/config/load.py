"""A YAML file and overrides, read into the tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import difflib
from pathlib import Path
import sys
from typing import Any

from pydantic import ValidationError

from braingen.config.describe import allowed
from braingen.config.effect import asks_nothing, refuse_idle, shown, unmet
from braingen.config.encoders import ENCODER_CONFIGS, chosen_encoder
from braingen.config.names import ALL, field_paths, fields_of, having, resolve, variants_of
from braingen.config.shipped import find_config
from braingen.config.tree import Config, default_of
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_yaml

Tree = dict[str, dict[str, Any]]
DEFAULT = "default"
"""As a value on the command line: what the setting is when nobody gives it."""


def load_config(
    file: Path | str | None = None,
    overrides: dict[str, str] | None = None,
    over_file: dict[str, str] | None = None,
) -> Config:
    """Read a YAML file and apply overrides.

    A setting that has no effect beside the others is refused where it is typed, and in a file where
    the file itself makes it so. A file's settings that are without effect because of what is typed
    (another encoder, no prior) give way to it: those of another encoder are left out, with a
    remark.

    Parameters
    ----------
    file : Path | str | None, optional
        YAML of the tree's shape, or the name of a configuration that ships; None for the defaults.
    overrides : dict[str, str] | None, optional
        Setting -> text, as typed on the command line; names as :func:`resolve` takes them.
    over_file : dict[str, str] | None, optional
        The same, for settings of several commands: put over those of the file, and treated as the
        file's.

    Raises
    ------
    UserError
        For a missing file, broken YAML, an unknown setting, a value that is not allowed, or a
        setting without effect.
    """
    written: Tree = {}
    if file is not None:
        file = find_config(file)
        written = _read_tree(file)
    for name, text in (over_file or {}).items():
        section, _, field = resolve(name).partition(".")
        written.setdefault(section, {})[field] = _parse(f"{section}.{field}", text)
    typed: Tree = {}
    for name, text in (overrides or {}).items():
        section, _, field = resolve(name).partition(".")
        if text == DEFAULT:
            written.get(section, {}).pop(field, None)
        else:
            typed.setdefault(section, {})[field] = _parse(f"{section}.{field}", text)
    _name_all_subjects(written, typed)
    start = typed.get("training", {}).get("init_from", written.get("training", {}).get("init_from"))
    taken = _architecture_of(Path(str(start)).expanduser()) if start else {}
    origin = f" (in {file})" if file else ""
    _choose_encoder(taken, written, typed, origin)
    paths = {f"{section}.{field}" for section, fields in typed.items() for field in fields}
    config = _validated(_merged(_defaults(), taken, written, typed), file, paths, _paths(taken))
    refuse_idle(config, sorted(paths))
    return config


def with_settings(config: Config, section: str, settings: Mapping[str, Any]) -> Config:
    """The same configuration with other settings in a section, which is checked as if they had been
    typed.

    Raises
    ------
    UserError
        For a setting that the section's variant lacks, a value that is not allowed, or one
        without effect.
    """
    part = getattr(config, section)
    for field, value in settings.items():
        if field not in type(part).model_fields:
            raise UserError(_lacking(section, field, value, config.encoder.model))
    try:
        new = type(part).model_validate({**part.model_dump(), **settings})
    except ValidationError as error:
        raise UserError(_explain(error, None, set(), section)) from error
    changed = config.model_copy(update={section: new})
    refuse_idle(changed, [f"{section}.{field}" for field in settings])
    given = [
        field
        for field in part.model_fields_set
        if getattr(new, field) != default_of(changed, section, field)
    ]
    refuse_idle(changed, [f"{section}.{field}" for field in sorted(given)])
    return changed


def _defaults() -> Tree:
    """What sections start from besides the defaults of their classes: loss_text and loss_image
    share a class and not their defaults.
    """
    return {
        name: info.default.model_dump(exclude_unset=True)
        for name, info in Config.model_fields.items()
    }


def _merged(*layers: Tree) -> Tree:
    """Layers on top of each other, the last one winning."""
    found: Tree = {}
    for layer in layers:
        for section, fields in layer.items():
            found.setdefault(section, {}).update(fields)
    return found


def _paths(tree: Tree) -> set[str]:
    return {f"{section}.{field}" for section, fields in tree.items() for field in fields}


def _validated(tree: Tree, file: Path | None, typed: set[str], taken: set[str]) -> Config:
    """The tree as a configuration; settings of a file may be made idle by what is typed, and those
    of an earlier run by anything.
    """
    written = {path for path in _paths(tree) - typed if path in field_paths()}
    try:
        first = Config.model_validate(tree, context={"tolerated": written | typed})
        tolerated = typed | taken | {path for path in written if _overruled(first, path, typed)}
        return Config.model_validate(tree, context={"tolerated": tolerated})
    except ValidationError as error:
        raise UserError(_explain(error, file, typed)) from error


def _overruled(config: Config, path: str, typed: Collection[str]) -> bool:
    """Whether a setting has no effect because of something that is typed."""
    section, _, field = path.partition(".")
    if field not in type(getattr(config, section)).model_fields:
        return False
    return any(set(need.paths(section)) & set(typed) for need in unmet(section, field, config))


def _choose_encoder(taken: Tree, written: Tree, typed: Tree, origin: str) -> None:
    """Keep of every layer what the chosen encoder has; an encoder's own setting is refused beside
    another encoder.

    Raises
    ------
    UserError
        For a setting that the chosen encoder lacks and that is given together with it.
    """
    layers = [tree.get("encoder", {}) for tree in (taken, written, typed)]
    model = chosen_encoder(_merged(*({"encoder": layer} for layer in layers)).get("encoder", {}))
    if model not in ENCODER_CONFIGS:
        return  # the tree refuses it, with the names there are
    for number, layer in enumerate(layers):
        for field in list(layer):
            if field in ENCODER_CONFIGS[model].model_fields or not (
                variants := having("encoder", field)
            ):
                continue
            usual = ENCODER_CONFIGS[variants[0]].model_fields[field].default
            value = _value(ENCODER_CONFIGS[variants[0]], field, layer[field])
            idle = asks_nothing(value, usual) or (number < 2 and value == usual)
            replaced = number < 2 and any("model" in later for later in layers[number + 1 :])
            if number and not idle and not replaced:
                raise UserError(
                    _lacking("encoder", field, value, model, origin if number == 1 else "")
                )
            del layer[field]
            if number and not idle:
                print(
                    f"braingen: encoder.{field} = {shown(value)}{origin} is left out, since"
                    f" encoder.model={model} has no such setting.",
                    file=sys.stderr,
                )


def _value(variant: type, field: str, given: Any) -> Any:
    """A value as its field reads it, or as it is where that fails."""
    try:
        return getattr(variant.model_validate({field: given}), field)  # type: ignore[attr-defined]
    except ValidationError:
        return given


def _lacking(section: str, field: str, value: Any, model: str, origin: str = "") -> str:
    """The sentence for a setting of another variant."""
    if not (variants := having(section, field)):
        return f"There is no setting '{section}.{field}'."
    return (
        f"{section}.{field} = {shown(value)}{origin} has no effect with {section}.model={model},"
        f" which has no such setting; {', '.join(variants)}"
        f" {'have' if len(variants) > 1 else 'has'} it. Leave it out ({section}.{field}=default),"
        f" or choose another {section}.model."
    )


def _parse(path: str, text: str) -> Any:
    section, _, name = path.partition(".")
    annotation = str(fields_of(section)[name].annotation)
    if annotation.startswith("tuple"):  # lists on the command line: 2,2,2
        return [
            part.strip() for part in text.strip("[]() ").split(",") if part.strip()
        ]  # folders may have blanks in their names
    # numbers and switches are read by the field's own type, so a folder may be called 2024 and a
    # precision no
    return text


def _name_all_subjects(written: Tree, typed: Tree) -> None:
    """Put the numbers in the place of ``data.subjects=all``."""
    if typed.get("data", {}).get("subjects") == [ALL]:
        root = typed["data"].get("root", written.get("data", {}).get("root", Config().data.root))
        typed["data"]["subjects"] = _all_subjects(Path(str(root)).expanduser())


def _all_subjects(root: Path) -> list[int]:
    """Subjects whose trials lie in a data folder; NSD's eight where there are none (later stages
    report what is missing).
    """
    there = sorted(
        int(folder.name[4:]) for folder in root.glob("wds/subj*") if folder.name[4:].isdecimal()
    )
    return there or list(range(1, 9))


def _architecture_of(run: Path) -> Tree:
    """What a run that starts from another one takes over from it: backbone, encoder, prior and
    losses, from its config.yaml.
    """
    found: Tree = {}
    for file in (run / "config.yaml", run / "image" / "config.yaml", run / "text" / "config.yaml"):
        tree = read_yaml(file) if file.is_file() else {}
        if not isinstance(tree, dict):
            raise UserError(f"{file} holds no settings; restore it or start from another run.")
        found |= {
            name: tree[name]
            for name in ("backbone", "encoder", "prior", "loss_image", "loss_text")
            if name in tree
        }
    return found


def _read_tree(file: Path) -> Tree:
    tree = read_yaml(file, f"correct it; {find_config('simulated')} is an example")
    if not isinstance(tree, dict | None) or any(
        not isinstance(section, dict | None) for section in (tree or {}).values()
    ):
        raise UserError(
            f"{file} is not of the form 'section:' with indented 'name: value' lines below;"
            f" {find_config('simulated')} is an example."
        )
    return {
        str(name): {str(field): value for field, value in (section or {}).items()}
        for name, section in (tree or {}).items()
    }


def _explain(
    error: ValidationError, file: Path | None, overridden: set[str], section: str = ""
) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if len(parts) > 1 and parts[1] in variants_of("encoder"):
        del parts[1]  # which variant of the union
    path = ".".join([section, *parts] if section else parts)
    origin = (
        f" (in {file})"
        if file and not any(path == name or path.startswith(f"{name}.") for name in overridden)
        else ""
    )
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(
            path, field_paths() + list(Config.model_fields), n=1, cutoff=0.4
        )
        return f"There is no setting '{path}'{origin}." + (
            f" Did you mean {near[0]}?" if near else ""
        )
    if first["type"] == "union_tag_invalid":
        names = " or ".join(f"'{name}'" for name in ENCODER_CONFIGS)
        typed = "encoder.model" in overridden
        return (
            f"encoder.model = {chosen_encoder(first['input'])}{'' if typed else origin} is not"
            f" allowed: input should be {names}."
        )
    if len(parts) > 2 and not parts[2].isdecimal():  # several kinds of values: which one failed
        path = ".".join(parts[:2])
        kinds = allowed(*parts[:2]).replace("switch", "true, false")
        return f"{path} = {first['input'] or 'nothing'}{origin} is not allowed: {kinds}."
    if first["type"] in ("bool_parsing", "bool_type"):
        return f"{path} = {str(first['input']) or 'nothing'}{origin} is not allowed: true or false."
    if not parts:  # of the whole tree: a sentence of its own
        return str(first["ctx"]["error"]) if "error" in first.get("ctx", {}) else first["msg"]
    if first["type"] == "value_error" and isinstance(
        first["input"], dict
    ):  # of a section: settings that do not go together
        return f"{first['ctx']['error']}{origin}"
    return (
        f"{path} = {str(first['input']) or 'nothing'}{origin} is not allowed:"
        f" {first['msg'][:1].lower() + first['msg'][1:]}."
    )
