"""Check that the files of the frozen models exist and are complete, without loading any model."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
from typing import Literal, NamedTuple
import urllib.error
import urllib.request

from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
import torch

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.pretrained.hub import hub_folder, is_hub_name, located
from braingen.pretrained.sdxl import IP_ADAPTER_FILE, NO_ADAPTER
from braingen.pretrained.weight_files import HALF, STEMS, Library, model_files, whole_safetensors
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in
from braingen.runtime.precision import generation_type

TIMEOUT = 3.0
"""Seconds to wait for the hub."""


class PartFinding(NamedTuple):
    """Result of checking one part of the backbone."""

    level: Literal["ok", "note", "warning", "error"]
    part: str
    sentence: str


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


class NeededModel(NamedTuple):
    """A model that some command loads."""

    part: str
    """Name in the findings."""
    setting: str
    """The setting that says where it is."""
    source: str
    """Folder or hub name."""
    subfolder: str
    """Folder inside the source; of a whole CLIP model beside others "" is taken as well."""
    library: Library
    half: bool = False
    """Whether it is loaded in half precision, and so from a copy in half precision."""


def needed_models(config: Config) -> list[NeededModel]:
    """Everything that the commands of a configuration load, apart from the IP-Adapter.

    SDXL's first text encoder is among it only where its text embedding is decoded, or where a
    negative prompt is encoded.
    """
    choice = config.backbone
    path, half = backbone_folder(choice.path), generation_type(config) != torch.float32
    found = [
        NeededModel("unet", "backbone.path", path, "unet", "diffusers", half),
        NeededModel("vae", "backbone.path", path, "vae", "diffusers"),
    ]
    towers = {"bigG": "text_encoder_2", "L": "text_encoder"}
    prompts = config.generation.negative_prompt or config.refinement.negative_prompt
    used = {"bigG"} if choice.text_output == "bigG" else {"L"}
    used |= {"bigG", "L"} if choice.text_output == "joint" or prompts else set()
    if not choice.refiner:  # refining with the base model encodes the empty prompt
        used.add("bigG")
    found += [
        NeededModel(folder, "backbone.path", path, folder, "transformers")
        for name, folder in towers.items()
        if name in used
    ]
    setting = "backbone.image_encoder" if choice.image_encoder else "backbone.path"
    found.append(
        NeededModel(
            "image_encoder",
            setting,
            choice.image_encoder or path,
            "" if is_hub_name(choice.image_encoder) else "image_encoder",
            "transformers",
        )
    )
    if choice.refiner:
        found += [
            NeededModel(
                "refiner unet", "backbone.refiner", choice.refiner, "unet", "diffusers", half
            ),
            NeededModel("refiner vae", "backbone.refiner", choice.refiner, "vae", "diffusers"),
            NeededModel(
                "refiner text_encoder_2",
                "backbone.refiner",
                choice.refiner,
                "text_encoder_2",
                "transformers",
            ),
        ]
    return found


def folder_of(model: NeededModel) -> Path | None:
    """Where a model's files are on this machine; None where they are not, or not yet."""
    root = hub_folder(model.source) if is_hub_name(model.source) else Path(model.source)
    if root is None or not root.exists():
        return None
    inside = root / model.subfolder
    return inside if inside.is_dir() or not (root / "config.json").exists() else root


def download_line(model: NeededModel) -> str:
    """The command that fetches what is loaded of a hub repository, and nothing else."""
    safe, _ = STEMS[model.library]
    inside = f"{model.subfolder}/" if model.subfolder else ""
    mark = f".{HALF}" if model.half else ""
    patterns = [f"{inside}*.json", f"{inside}{safe}*{mark}.safetensors"]
    if model.subfolder.startswith("text_encoder"):
        patterns.append(f"{model.subfolder.replace('text_encoder', 'tokenizer')}/*")
    if model.subfolder == "unet":
        patterns.append("scheduler/*")
    return f"{_download(model.source)} " + " ".join(f'--include "{each}"' for each in patterns)


def _download(source: str) -> str:
    """The beginning of the command that fetches files of a repository, at its revision."""
    name, hub = located(source)
    return f"hf download {name}" + "".join(f" --{key} {value}" for key, value in hub.items())


def _not_here(model: NeededModel) -> PartFinding:
    """A model that would have to be downloaded, or that is nowhere."""
    if not is_hub_name(model.source):
        text = (
            f"{model.setting} = {model.source!r} is neither a folder nor a hub name (owner/name or"
            " owner/name@revision); correct it."
        )
        return PartFinding("error", model.setting, text)
    line = download_line(model)
    if hub_answers():
        text = f"{model.source} will be downloaded when first used; do it now with:  {line}"
        return PartFinding("warning", model.setting, text)
    text = (
        f"{model.source} is not in the cache and the hub does not answer (offline): on a machine"
        f" with network run  {line}  and copy the folder here, then set {model.setting}=FOLDER."
    )
    return PartFinding("error", model.setting, text)


def _model(model: NeededModel, folder: Path) -> PartFinding:
    """Check configuration and weights of one model by the rule that loads it."""
    get_it = f"get it again, or name another folder with {model.setting}=FOLDER"
    try:
        files = model_files(folder, model.library, model.half, get_it)
    except UserError as error:
        return PartFinding("error", model.part, str(error))
    size = sum(file.stat().st_size for file in files)
    return PartFinding("ok", model.part, f"{model.part}: {folder}, {size / 1e6:.0f} MB.")


def _tokenizer(model: NeededModel, folder: Path) -> PartFinding:
    """Check the tokenizer beside a text encoder."""
    name = model.subfolder.replace("text_encoder", "tokenizer")
    place = folder.parent / name
    if any(place.glob("*.json")):
        return PartFinding("ok", name, f"{name}: {place}.")
    text = (
        f"{folder.parent} has no {name}; get it again, or name another folder with"
        f" {model.setting}=FOLDER."
    )
    return PartFinding("error", name, text)


def _adapter(config: Config) -> PartFinding:
    """Check the IP-Adapter."""
    choice = config.backbone
    if choice.ip_adapter == NO_ADAPTER:
        text = (
            f"backbone.ip_adapter={NO_ADAPTER}: encoders can be trained, but no images can be"
            " generated from the image embedding."
        )
        return PartFinding("note", "ip_adapter", text)
    source = choice.ip_adapter or str(Path(backbone_folder(choice.path)) / "ip_adapter")
    place = hub_folder(source) if is_hub_name(source) and choice.ip_adapter else Path(source)
    if place is None:
        line = f"{_download(source)} {IP_ADAPTER_FILE}"
        if hub_answers():
            text = f"{source} will be downloaded when first used; do it now with:  {line}"
            return PartFinding("warning", "backbone.ip_adapter", text)
        text = (
            f"{source} is not in the cache and the hub does not answer (offline): on a machine with"
            f" network run  {line}  and copy the file here, then set backbone.ip_adapter=FILE."
        )
        return PartFinding("error", "backbone.ip_adapter", text)
    candidates = (place, place / "ip-adapter.safetensors", place / IP_ADAPTER_FILE)
    file = next((path for path in candidates if path.is_file()), None)
    try:
        if file is None:
            raise UserError(
                f"There is no IP-Adapter in {place}; set backbone.ip_adapter=h94/IP-Adapter, or the"
                " path of your copy."
            )
        get_it = "get it again, or set backbone.ip_adapter=h94/IP-Adapter"
        if file.suffix == ".safetensors":
            whole_safetensors(file, get_it)
        else:
            refuse_stand_in(file, get_it)
    except UserError as error:
        return PartFinding("error", "ip_adapter", str(error))
    size = file.stat().st_size / 1e6
    return PartFinding("ok", "ip_adapter", f"ip_adapter: {file}, {size:.0f} MB.")


def backbone_findings(config: Config) -> Iterator[PartFinding]:
    """Check every part of the configured backbone that some command loads."""
    absent: set[str] = set()
    for model in needed_models(config):
        folder = folder_of(model)
        if folder is None:
            if model.source not in absent or is_hub_name(model.source):
                yield _not_here(model)
            absent.add(model.source)
            continue
        yield _model(model, folder)
        if model.subfolder.startswith("text_encoder"):
            yield _tokenizer(model, folder)
    if config.backbone.ip_adapter or backbone_folder(config.backbone.path) not in absent:
        yield _adapter(config)
