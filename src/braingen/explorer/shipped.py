"""The shipped decoder of `braingen quickstart`, as a run to explore."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.shipped import TINY
from braingen.demo.quickstart import (
    SUBJECT,
    Shipped,
    load_shipped,
    load_shipped_brain,
    load_shipped_decoder,
)
from braingen.explorer.explored_run import ExploredRun, GenerationSettings, ShownImage
from braingen.runtime.device import device_of
from braingen.runtime.precision import unet_type
from braingen.targets.clip_image import CLIPImageEncoder

NAME = "Shipped decoder"


def shipped_run(config: Config, preview_steps: int) -> ExploredRun:
    """The shipped decoder with a dozen test images of its simulated subject.

    Parameters
    ----------
    preview_steps : int
        Denoising steps; 0 for those of `braingen quickstart`.
    """
    settings, shipped, brain = config.quickstart, load_shipped(), load_shipped_brain()
    device = device_of(config)
    decoder = load_shipped_decoder(scheduler=settings.scheduler)
    decoder = decoder.to(device, unet_type("auto", device))
    row = {image: number for number, image in enumerate(shipped.ids)}
    voxels_NRV = shipped.voxels_BRV.numpy()
    return ExploredRun(
        name=NAME,
        folder="",
        simulated=True,
        subject=SUBJECT,
        decoder=decoder,
        generation=GenerationSettings(
            settings.steps,
            preview_steps or settings.steps,
            settings.guidance_scale,
            seed=config.run.seed,
        ),
        images=tuple(map(ShownImage, shipped.ids, shipped.captions)),
        seen=lambda image: shipped.seen[row[image]],
        responses=lambda image: voxels_NRV[row[image]],
        true=_true_embeddings(shipped, row),
        places=brain.places,
        regions=brain.regions,
        tuning={name: partial(_as_is, value_V) for name, value_V in brain.tuning.items()},
        scores=shipped.scores,
    )


def _as_is(value_V: np.ndarray) -> np.ndarray:
    return value_V


def _true_embeddings(shipped: Shipped, row: dict[int, int]) -> Callable[[int], Tensor]:
    """Embeddings of the seen images under the frozen CLIP; it is loaded when first needed."""

    @lru_cache(maxsize=1)
    def table() -> Tensor:
        clip = CLIPImageEncoder.from_pretrained(str(TINY), dtype=torch.float32)
        pixels = np.stack([np.asarray(picture) for picture in shipped.seen])
        with torch.no_grad():
            return clip(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).target_BTD

    return lambda image: table()[row[image]][None]
