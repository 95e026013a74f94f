"""Models by their hub names: where their files are on this machine, and how to get only those that
are used.

``owner/name`` is a repository, ``owner/name@revision`` a commit, tag or branch of it. Runs and
caches know a model by its content (:func:`model_key`): a revision with other weights is another
model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
from pathlib import Path
import re
from typing import Any
import warnings

from diffusers.utils import logging as diffusers_logging
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
import torch
from transformers.utils import logging as transformers_logging

from braingen.pretrained.weight_files import Library, chosen_files, files_in, key_of
from braingen.runtime.console import console
from braingen.runtime.fingerprints import fingerprint_of_files

NOT_THERE = (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError, ValueError)
CONFIGURATIONS = ("config.json", "preprocessor_config.json")
"""Files beside the weights that are loaded too."""
_NAME = re.compile(r"([^/@\s]+/[^/@\s]+)(?:@(\S+))?")


def is_hub_name(source: str) -> bool:
    """Whether a setting names a repository of the hub, with a revision or without, and no folder
    here.
    """
    return _NAME.fullmatch(source) is not None and not Path(source).exists()


def located(source: str) -> tuple[str, dict[str, Any]]:
    """A folder or hub name as the libraries take it.

    Returns
    -------
    tuple[str, dict[str, Any]]
        The name, and `revision` of ``from_pretrained`` where one is named.
    """
    match = _NAME.fullmatch(source)
    if match is None or match.group(2) is None or not is_hub_name(source):
        return source, {}
    return match.group(1), {"revision": match.group(2)}


def hub_folder(name: str) -> Path | None:
    """Return the cached folder of a hub repository, or None."""
    name, revision = located(name)
    try:
        return Path(snapshot_download(name, local_files_only=True, **revision))
    except NOT_THERE:
        return None


def local_copy(source: str, subfolder: str, library: Library, half: bool = False) -> str:
    """The folder of a model's repository on this machine; a hub name is downloaded first.

    Only the configuration and the weights that will be loaded are fetched. Where that fails, the
    source is returned as it is, and the loader says what is wrong.

    Parameters
    ----------
    source : str
        A folder or hub name.
    subfolder : str
        Folder of the model inside it, or "".
    """
    if not is_hub_name(source):
        return source
    cached = hub_folder(source)
    there = files_in(cached / subfolder) if cached is not None else []
    if cached is not None and "config.json" in there and chosen_files(there, library, half):
        return str(cached)
    try:
        with quiet(progress=True):
            wanted = wanted_files(source, subfolder, library, half)
            if not wanted:
                return source
            console(stderr=True).print(f"Downloading {source}: {', '.join(wanted)}")
            name, revision = located(source)
            return snapshot_download(name, allow_patterns=wanted, **revision)
    except NOT_THERE:
        return source


def whole_folder(source: str, subfolder: str) -> Path:
    """A small folder of a repository on this machine (tokenizer, noise schedule), with all files.

    It may be missing: the loader then says so.
    """
    if not is_hub_name(source):
        return Path(source) / subfolder
    cached = hub_folder(source)
    if cached is not None and files_in(cached / subfolder):
        return cached / subfolder
    try:
        with quiet():
            name, revision = located(source)
            found = snapshot_download(name, allow_patterns=f"{subfolder}/*", **revision)
            return Path(found) / subfolder
    except NOT_THERE:
        return Path(source) / subfolder


def wanted_files(source: str, subfolder: str, library: Library, half: bool = False) -> list[str]:
    """Files of a hub repository that a model needs, by their names there."""
    prefix = f"{subfolder}/" if subfolder else ""
    repository, revision = located(source)
    names = [
        name.removeprefix(prefix)
        for name in HfApi().list_repo_files(repository, **revision)
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    ]
    chosen = chosen_files(names, library, half)
    return [
        prefix + name
        for name in (*(chosen.names if chosen else ()), *CONFIGURATIONS)
        if name in names
    ]


def model_key(source: str, subfolder: str, library: Library, half: bool = False) -> str:
    """Fingerprint of a model for caches and run folders (:func:`weight_files.key_of`).

    A hub name that is not on this machine is its own key.
    """
    root = Path(local_copy(source, subfolder, library, half))
    inside = root / subfolder if (root / subfolder).is_dir() else root
    if found := key_of(inside, library, half):
        return found
    if root.exists():  # no weights that can be loaded: reported where they are
        return fingerprint_of_files(inside)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def backbone_key(source: str, dtype: torch.dtype = torch.float32) -> str:
    """Fingerprint of what generates images: U-Net, autoencoder and noise schedule, and an
    IP-Adapter that lies beside them.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Of the U-Net, on which the copy that is loaded depends.
    """
    half = dtype != torch.float32
    keys = [model_key(source, name, "diffusers", half and name == "unet") for name in PARTS]
    for folder in (whole_folder(source, "scheduler"), Path(source) / "ip_adapter"):
        if folder.is_dir():
            keys.append(fingerprint_of_files(folder))
    return hashlib.sha256("/".join(keys).encode()).hexdigest()[:16]


PARTS = ("unet", "vae")


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Silence what the libraries log while they load; faults are raised all the same.

    Parameters
    ----------
    progress : bool, optional
        Leave their progress bars on, for a download.
    """
    loggings = (diffusers_logging, transformers_logging, hub_logging)
    levels = [each.get_verbosity() for each in loggings]
    bars = transformers_logging.is_progress_bar_enabled()
    for each in loggings:
        each.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"huggingface_hub\..*")
            yield
    finally:
        for each, level in zip(loggings, levels):
            each.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
