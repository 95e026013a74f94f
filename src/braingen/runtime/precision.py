"""The number formats of image generation: one policy for every stage and for `BrainDecoder`.

The U-Net, which does nearly all the work, is in half precision on a GPU. Everything else stays in
float32: encoders, priors and routers run once or are small, the noise schedule adds small steps to
large numbers, and Stable Diffusion XL's autoencoder overflows in float16. Values change their type
where they enter and leave the U-Net (:func:`braingen.generation.sampling.predict`) and where they
enter the autoencoder, nowhere else.
"""

from __future__ import annotations

from functools import cache
import logging
from typing import Any

import torch
from torch import Tensor

from braingen.config import Config
from braingen.runtime.device import device_of, precision_of

logger = logging.getLogger(__name__)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the names of ``generation.precision``."""
TRAINING_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By Accelerate's names, those of ``run.mixed_precision``."""
HALF_ON_GPU = torch.float16
"""What auto means on a GPU: three more bits of precision than bfloat16, and the format in which
Stable Diffusion XL is published; what overflows is refused.
"""


def unet_type(precision: str, device: torch.device | str) -> torch.dtype:
    """The type of the U-Net while images are generated, by ``generation.precision`` and device."""
    if precision == "auto":
        return HALF_ON_GPU if torch.device(device).type == "cuda" else torch.float32
    return TYPES[precision]


def generation_type(config: Config) -> torch.dtype:
    """The type of the U-Net in `reconstruct`, `decode` and `refine`."""
    return unet_type(config.generation.precision, device_of(config))


def frozen_type(config: Config) -> torch.dtype:
    """The type of the frozen U-Net while it is fine-tuned; what is trained is float32.

    On a CPU frozen weights stay float32: autocast there does not cover every layer that
    half-precision weights would meet.
    """
    on_gpu = device_of(config).type == "cuda"
    return TRAINING_TYPES[precision_of(config)] if on_gpu else torch.float32


def types_of_parts(asked: Any) -> Any:
    """``torch_dtype`` of a pipeline as the policy has it: a half-precision type is the U-Net's.

    Parameters
    ----------
    asked : Any
        A type, a dictionary of types by part as diffusers takes it, or None.
    """
    if asked is None:
        return None
    by_part = dict(asked) if isinstance(asked, dict) else {"unet": asked, "default": torch.float32}
    # float16 overflows in the autoencoder, and bfloat16 has fewer levels than a pixel
    return by_part | {"vae": torch.float32}


def type_of(model: Any, default: torch.dtype) -> torch.dtype:
    """The type of a model's weights; the default for a model without any."""
    return getattr(model, "dtype", default)


def entering(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in the type of the model they enter; bits stay where the types are the same."""
    return values if values.dtype == dtype else values.to(dtype)


SLOW = (
    "The U-Net computes in float16 on a CPU, which is much slower than float32: use"
    " generation.precision=auto or bfloat16 (in Python decoder.to(torch.bfloat16))."
)


def slow_on(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a type is much slower than float32 on a device: float16 on a CPU."""
    return dtype == torch.float16 and device.type == "cpu"


@cache
def warn_slow() -> None:
    """Say once per process that the U-Net computes in float16 on a CPU."""
    logger.warning(SLOW)


def use_tf32(config: Config) -> None:
    """Let a GPU multiply float32 matrices with TF32's 10 bits, or not (``run.tf32``)."""
    torch.backends.cuda.matmul.allow_tf32 = config.run.tf32
    torch.backends.cudnn.allow_tf32 = config.run.tf32
