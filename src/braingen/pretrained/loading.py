"""Load frozen transformers models; a missing weight is an error, not a random initial value."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from braingen.pretrained.hub import local_copy, located, quiet
from braingen.pretrained.weight_files import chosen_files, files_in
from braingen.runtime.console import reported
from braingen.runtime.errors import UserError
from braingen.runtime.weights import plain_text, refuse_not_finite

HUB_OPTIONS = {"revision", "cache_dir", "local_files_only", "token"}
"""Options of a caller that determine how files are fetched from the hub."""
Model = TypeVar("Model", bound=PreTrainedModel)


def subfolder_of(path: str | Path, name: str) -> str:
    """Return `name` if a local folder is laid out like a pipeline (``image_encoder/``), else "".

    The files of a hub name are not known without a download, so there the caller names the folder.
    """
    folder = Path(path)
    return (
        name
        if not (folder / "config.json").exists() and (folder / name / "config.json").exists()
        else ""
    )


def load_frozen(
    cls: type[Model],
    path: str | Path,
    *,
    subfolder: str = "",
    allowed_extra: tuple[str, ...] = (),
    **kwargs,
) -> Model:
    """Load a frozen transformers model in eval mode, with every weight accounted for.

    transformers initialises missing weights at random and only logs it; here that is an error.

    Parameters
    ----------
    cls : type
        Class to load, for example ``CLIPTextModel``.
    path : str or Path
        Local folder or hub name.
    subfolder : str
        Folder inside it that holds config.json and the weights.
    allowed_extra : tuple of str
        Prefixes of keys that the file may hold beyond the class's own: the other tower of a whole
        CLIP model.
    **kwargs
        Passed on to ``from_pretrained`` (config, dtype, revision, local_files_only ...).

    Raises
    ------
    UserError
        If nothing loadable is there, or if weights are missing, of another shape, or left over.
    """
    if not HUB_OPTIONS & kwargs.keys():
        path = local_copy(str(path), subfolder, "transformers")
    path, revision = located(str(path))
    kwargs = revision | kwargs
    where = f"{path}/{subfolder}" if subfolder else str(path)
    info: dict
    model: Model
    chosen = chosen_files(files_in(Path(where)), "transformers")
    if chosen is not None:
        kwargs |= {"variant": chosen.variant, "use_safetensors": chosen.use_safetensors}
    files = [Path(where) / name for name in chosen.weights] if chosen is not None else []
    try:
        # with output_loading_info it returns a pair, which its annotation leaves out
        with quiet(), reported(subfolder or cls.__name__, files):
            # the error below has what its report would have
            model, info = cls.from_pretrained(
                str(path), subfolder=subfolder, output_loading_info=True, **kwargs
            )  # type: ignore[misc]
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{cls.__name__} cannot be loaded from {where!r}: {plain_text(error)} Give a folder"
            " that holds config.json and model.safetensors, or the hub name of such a model."
        ) from error
    extra = sorted(
        key
        for key in info["unexpected_keys"]
        if not key.startswith(allowed_extra) and not key.endswith("position_ids")
    )
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(map(str, info["mismatched_keys"])),
        "left over": extra,
    }
    found = "; ".join(
        f"{len(keys)} {what} (first: {keys[0]})" for what, keys in wrong.items() if keys
    )
    if found:
        raise UserError(
            f"{where!r} does not fit {cls.__name__}: weights {found}. Give the folder of a"
            f" {cls.__name__}."
        )
    refuse_not_finite(model, where, "get it again")
    return model.requires_grad_(False).eval()


def load_config(path: str | Path, *, subfolder: str = "", **kwargs) -> PretrainedConfig:
    """Load the configuration of a local folder or hub name.

    Raises
    ------
    UserError
        If there is none.
    """
    name, revision = located(str(path))
    try:
        return AutoConfig.from_pretrained(name, subfolder=subfolder, **(revision | kwargs))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        where = f"{path}/{subfolder}" if subfolder else str(path)
        raise UserError(
            f"no model configuration in {where!r}: {plain_text(error)} Give a folder that holds"
            " config.json, or a hub name."
        ) from error
