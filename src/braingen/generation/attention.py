"""Choose the attention kernels of the U-Net; its weights and the IP-Adapter's are kept."""

from __future__ import annotations

from typing import Literal

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.utils.import_utils import is_xformers_available

from braingen.runtime.errors import UserError

Attention = Literal["auto", "sdpa", "plain", "xformers"]
_KINDS = {
    "sdpa": (AttnProcessor2_0, IPAdapterAttnProcessor2_0),
    "plain": (AttnProcessor, IPAdapterAttnProcessor),
    "xformers": (XFormersAttnProcessor, IPAdapterXFormersAttnProcessor),
}


def use_attention(unet: UNet2DConditionModel, kind: Attention) -> None:
    """Replace the attention processors of a U-Net.

    Parameters
    ----------
    unet : UNet2DConditionModel
        With or without an IP-Adapter.
    kind : Attention
        "sdpa" (PyTorch's fused kernels), "plain" (its backward pass is several times faster on a
        CPU at small head widths), "xformers"; "auto" is sdpa on a GPU and plain on a CPU.

    Raises
    ------
    UserError
        If xformers is not installed.
    """
    if kind == "auto":
        kind = "sdpa" if unet.device.type == "cuda" else "plain"
    if kind == "xformers" and not is_xformers_available():
        raise UserError(
            "attention = xformers, but xformers is not installed: `pip install xformers`, or use"
            " --attention sdpa."
        )
    plain, adapted = _KINDS[kind]
    processors = {}
    for name, old in unet.attn_processors.items():
        if not hasattr(old, "to_k_ip"):
            processors[name] = plain()
            continue
        new = adapted(
            old.hidden_size,
            old.cross_attention_dim,
            num_tokens=list(old.num_tokens),
            scale=list(old.scale),
        )
        new.to_k_ip, new.to_v_ip = old.to_k_ip, old.to_v_ip
        processors[name] = new
    unet.set_attn_processor(processors)
