"""Check that the files of the frozen models exist and are complete, without loading any model."""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from pathlib import Path
from typing import Literal, NamedTuple
import urllib.error
import urllib.request

from huggingface_hub import snapshot_download
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.pretrained.sdxl import IP_ADAPTER_FILE, NO_ADAPTER
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
TIMEOUT = 3.0
"""Seconds to wait for the hub."""


class PartFinding(NamedTuple):
    """Result of checking one part of the backbone."""

    level: Literal["ok", "note", "warning", "error"]
    part: str
    sentence: str


def whole_safetensors(path: Path, get_it: str) -> Path:
    """Refuse a weight file that is truncated, a placeholder or no safetensors file, by its header.

    Raises
    ------
    UserError
        With the command that repairs it.
    """
    refuse_stand_in(path, get_it)
    size = path.stat().st_size
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(size, 10**8):
                raise ValueError
            header = json.loads(handle.read(length))
        needed = (
            8
            + length
            + max(
                (
                    entry["data_offsets"][1]
                    for key, entry in header.items()
                    if key != "__metadata__"
                ),
                default=0,
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a safetensors file or cut short; {get_it}.") from error
    if size != needed:
        raise UserError(
            f"{path} has {size} bytes, {needed} were expected: it is cut short or still being"
            f" downloaded; {get_it}."
        )
    return path


def hub_folder(name: str) -> Path | None:
    """Return the cached folder of a hub repository, or None."""
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def hub_answers() -> bool:
    """Whether the hub can be reached within a few seconds."""
    if HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "0").lower() in (
        "1",
        "true",
        "yes",
        "on",
    ):
        return False
    try:
        with urllib.request.urlopen(
            urllib.request.Request(ENDPOINT, method="HEAD"), timeout=TIMEOUT
        ):
            return True
    except urllib.error.HTTPError:
        return True  # any answer proves the connection
    except (OSError, ValueError):
        return False


def _resolved(source: str, setting: str, findings: list[PartFinding]) -> Path | None:
    """Resolve a setting to a folder or file; appends to `findings` where there is none."""
    path = Path(source)
    if path.exists():
        return path
    if source.count("/") != 1:
        text = (
            f"{setting} = {source!r} is neither a folder nor a hub name (owner/name); correct it."
        )
        findings.append(PartFinding("error", setting, text))
        return None
    cached = hub_folder(source)
    if cached is not None:
        return cached
    if hub_answers():
        text = f"{source} will be downloaded when first used; do it now with:  hf download {source}"
        findings.append(PartFinding("warning", setting, text))
    else:
        text = (
            f"{source} is not in the cache and the hub does not answer (offline): on a machine with"
            f" network run  hf download {source}  and copy the folder here, then set"
            f" {setting}=FOLDER."
        )
        findings.append(PartFinding("error", setting, text))
    return None


def _model(folder: Path, part: str, setting: str) -> PartFinding:
    """Check configuration and weights of one model."""
    get_it = f"get it again, or name another folder with {setting}=FOLDER"
    where = (
        folder / part
        if (folder / part).is_dir() or not (folder / "config.json").exists()
        else folder
    )
    try:
        if not where.is_dir():
            raise UserError(f"{folder} has no folder {part}; {get_it}.")
        refuse_stand_in(where / "config.json", get_it)
        files = sorted(where.glob("*.safetensors"))
        if not files:
            raise UserError(f"{where} holds no weights (*.safetensors); {get_it}.")
        for file in files:
            whole_safetensors(file, get_it)
    except UserError as error:
        return PartFinding("error", part, str(error))
    size = sum(file.stat().st_size for file in files)
    return PartFinding("ok", part, f"{part}: {where}, {size / 1e6:.0f} MB.")


def backbone_findings(config: Config) -> Iterator[PartFinding]:
    """Check every part of the configured backbone."""
    choice, findings = config.backbone, list[PartFinding]()
    folder = _resolved(backbone_folder(choice.path), "backbone.path", findings)
    if folder is not None:
        findings += [_model(folder, part, "backbone.path") for part in PARTS]
        for part in TOKENIZERS:
            there = any((folder / part).glob("*.json"))
            lost = (
                f"{folder} has no {part}; get it again, or name another folder with"
                " backbone.path=FOLDER."
            )
            findings.append(
                PartFinding("ok", part, f"{part}: {folder / part}.")
                if there
                else PartFinding("error", part, lost)
            )
    image = (
        _resolved(choice.image_encoder, "backbone.image_encoder", findings)
        if choice.image_encoder
        else folder
    )
    if image is not None:
        findings.append(_model(image, "image_encoder", "backbone.image_encoder"))
    if choice.ip_adapter == NO_ADAPTER:
        adapter = None
        text = (
            f"backbone.ip_adapter={NO_ADAPTER}: encoders can be trained, but no images can be"
            " generated from the image embedding."
        )
        findings.append(PartFinding("note", "ip_adapter", text))
    else:
        adapter = (
            _resolved(choice.ip_adapter, "backbone.ip_adapter", findings)
            if choice.ip_adapter
            else folder and folder / "ip_adapter"
        )
    if adapter is not None:
        candidates = (adapter, adapter / "ip-adapter.safetensors", adapter / IP_ADAPTER_FILE)
        file = next((path for path in candidates if path.is_file()), None)
        try:
            if file is None:
                raise UserError(
                    f"There is no IP-Adapter in {adapter}; set backbone.ip_adapter=h94/IP-Adapter,"
                    " or the path of your copy."
                )
            whole_safetensors(file, "get it again, or set backbone.ip_adapter=h94/IP-Adapter")
            findings.append(
                PartFinding(
                    "ok", "ip_adapter", f"ip_adapter: {file}, {file.stat().st_size / 1e6:.0f} MB."
                )
            )
        except UserError as error:
            findings.append(PartFinding("error", "ip_adapter", str(error)))
    yield from findings
