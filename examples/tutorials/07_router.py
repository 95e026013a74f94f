"""
Write a router
==============

A time router says how much each level of experts conditions the image at a moment of the denoising.
Here is one of your own, tried out in the shipped decoder.
"""

# %%
# The class
# ---------
#
# The contract is :class:`~braingen.routing.base.TimeRouter`: built from settings, called with the
# diffusion times of a batch (999: pure noise; 0: the image), it returns the weights of the levels.
# This one uses the coarser half of the levels while the image is mostly noise, and the finer half
# afterwards.

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from braingen.routing.base import TimeRouter, TimeRouting, TimeSettings


class HalvesTimeRouter(TimeRouter):
    """Two schedules of equal weights."""

    def __init__(self, levels: int, times: int) -> None:
        super().__init__()
        self.levels, self.times = levels, times

    @classmethod
    def build(cls, settings: TimeSettings, **options: Any) -> "HalvesTimeRouter":
        """A fresh router."""
        return cls(settings.levels, settings.num_train_timesteps)

    def forward(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        """Equal weights of one half of the levels, B x L."""
        early_B1 = (t_B > self.times / 2)[:, None]
        coarse_L = (torch.arange(self.levels) < self.levels // 2).to(t_B.device)
        weights_BL = torch.where(early_B1, coarse_L, ~coarse_L).float()
        weights_BL = weights_BL / weights_BL.sum(1, keepdim=True)
        return TimeRouting(weights_BL, weights_BL)


# %%
# The name
# --------
#
# A kind of router has a name and a line in a table. In the package this is a line in
# ``config/kinds.py``, and help, checks, fine-tuning, the summary and the tests then know it
# (:doc:`/extending`). For a try, the line can be added while Python
# runs; commands in a terminal do not know it then:

from braingen.config.kinds import TIME_ROUTERS, RouterKind

TIME_ROUTERS["halves"] = RouterKind("__main__:HalvesTimeRouter", learned=False)

# %%
# In the decoder
# --------------
#
# :class:`~braingen.routing.diffuse_router.DiffuseRouter` combines a time router with a space
# router, which mixes the experts within a level (``off``: their mean). Here the image embedding is
# routed by three time routers in turn.

from braingen.demo.quickstart import load_shipped, load_shipped_decoder
from braingen.routing.diffuse_router import DiffuseRouter

brains = load_shipped()
decoder = load_shipped_decoder(scheduler="unipc")
form = decoder.brain_image
counts, (tokens, width) = form.expert_counts, form.mean_TD.shape
outputs = {}
for time in ("off", "fixed", "halves"):
    router = DiffuseRouter(
        num_experts=counts, clip_emb_dim=width, clip_seq_dim=tokens, time=time, space="off"
    ).eval()
    decoder.register_modules(router_image=router)
    outputs[time] = decoder(
        brains.voxels_BRV[:6],
        subject=1,
        num_inference_steps=8,
        guidance_scale=2.5,
        guidance_end=0.5,
    )

# %%
# The weights that were used, step by step:

figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained", sharey=True)
for axis, (time, output) in zip(axes, outputs.items()):
    weights_SL = output.routing["image_levels"][0].numpy()
    axis.stackplot(
        np.arange(len(weights_SL)), weights_SL.T, labels=[f"level {k}" for k in range(len(counts))]
    )
    axis.set(title=time, xlabel="denoising step", ylim=(0, 1))
axes[0].set_ylabel("weight of the levels")
axes[0].legend(loc="lower left")
plt.show()

# %%
# And the images:

figure, axes = plt.subplots(4, 6, figsize=(9, 6.4), layout="constrained")
rows = {"seen": brains.seen, **{time: output.images for time, output in outputs.items()}}
for line, (title, pictures) in zip(axes, rows.items()):
    line[0].set_ylabel(title)
    for axis, picture in zip(line, pictures):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
plt.show()

# %%
# They look alike, and :doc:`/routing` says why: every level of this encoder is trained on the same
# target, so no weighting of levels can know more than their mean does. A router is worth writing
# for levels that differ, and ``braingen ablate`` measures whether it helps.
