"""How the U-Net computes while images are generated, by means of torch and diffusers: the memory
format of its convolutions, and compiled blocks.
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel
import torch
from torch.nn.functional import gelu

from braingen.config import Config
from braingen.runtime.errors import UserError
from braingen.runtime.weights import first_line

BACKEND = "inductor"
"""torch's own."""


def prepare_unet(unet: UNet2DConditionModel, config: Config) -> None:
    """Apply ``generation.memory_format`` and ``generation.compile`` to a U-Net on its device.

    Raises
    ------
    UserError
        When it is to be compiled and torch.compile does not work on this machine.
    """
    if config.generation.memory_format == "channels_last":
        unet.to(memory_format=torch.channels_last)
    if config.generation.compile:
        compile_blocks(unet)


def compile_blocks(unet: UNet2DConditionModel) -> None:
    """Compile the transformer blocks of a U-Net, which do most of its work.

    diffusers' regional compilation: blocks of one shape share their code, so it takes a fraction of
    the time that the whole U-Net takes. It happens at the first step.

    Raises
    ------
    UserError
        When torch.compile does not work on this machine; found out with one small function.
    """
    try:
        torch.compile(gelu, backend=BACKEND)(torch.ones(8, device=unet.device))
    except Exception as error:  # of torch, its compilers and the system's: many kinds
        needed = "Triton" if unet.device.type == "cuda" else "a C++ compiler such as g++"
        raise UserError(
            "generation.compile = true, but torch.compile does not work here"
            f" ({first_line(error)}): install what it needs ({needed}), or leave"
            " generation.compile out."
        ) from error
    unet.compile_repeated_blocks(backend=BACKEND)
