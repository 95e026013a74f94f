"""Fine-tuned modules on disk: LoRA (diffusers' format), routers, and the position of the prior."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffusers import UNet2DConditionModel

from braingen.config import Config
from braingen.generation.conditioned_unet import PriorOrder
from braingen.generation.lora import LORA_FILE, has_lora, save_lora
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.paths import tuning_folder
from braingen.runtime.run_folder import Run, has_work
from braingen.runtime.text_files import read_json

BEST, LAST = "best", "last"
"""Folders of the two checkpoints."""
ROUTERS, ORDER = {"image": "router_image", "text": "router_text"}, "prior_order.json"


class FinetunedModules(NamedTuple):
    """Fine-tuned modules of a decoder; see ``BrainDecoder.assemble``."""

    lora: Path | None
    router_image: DiffuseRouter | None
    router_text: DiffuseRouter | None
    prior_order: PriorOrder


NOT_FINETUNED = FinetunedModules(None, None, None, "output")


def save_finetuned(
    folder: Path,
    unet: UNet2DConditionModel,
    routers: dict[str, DiffuseRouter],
    prior_order: PriorOrder,
) -> None:
    """Write a checkpoint into an empty folder; absent LoRA and routers leave no file."""
    if has_lora(unet):
        save_lora(unet, folder)
    for name, router in routers.items():
        router.save_pretrained(folder / ROUTERS[name])
    write_json(folder / ORDER, {"prior_order": prior_order})


def load_finetuned(folder: Path) -> FinetunedModules:
    """Read a checkpoint.

    Raises
    ------
    UserError
        If there is none.
    """
    if not (folder / ORDER).is_file():
        raise UserError(
            f"{folder} holds no checkpoint of a fine-tuning (no {ORDER}); `braingen finetune`"
            " writes one."
        )
    found = {name: folder / sub for name, sub in ROUTERS.items()}
    image, text = (
        DiffuseRouter.from_pretrained(path).eval() if path.is_dir() else None
        for path in found.values()
    )
    lora = folder / LORA_FILE
    return FinetunedModules(
        lora if lora.is_file() else None, image, text, read_json(folder / ORDER)["prior_order"]
    )


def finetuned_folder(config: Config) -> Path | None:
    """Return the folder of the finished fine-tuning's best checkpoint, None where unused."""
    run = tuning_folder(config)
    if config.generation.finetuned == "no" or (
        config.generation.finetuned == "auto" and not (run / "config.yaml").exists()
    ):
        return None
    if config.generation.finetuned == "auto" and not has_work(run):  # it failed at setup
        return None
    if not (run / "config.yaml").exists():
        raise UserError(
            f"There is no fine-tuning in {run}: run `braingen finetune --folder"
            f" {config.run.folder}` first."
        )
    Run(run).require_finished()
    return run / BEST
