"""From the outputs of an encoder to the condition of the diffusion model: the same lines while
fine-tuning and while sampling.

B batch, R presentations, V voxels, L levels, E experts, S denoising steps, T tokens, D CLIP width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

from diffusers import UNet2DConditionModel
import torch
from torch import Tensor, nn

from braingen.data.batches import average_repeats
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.sampling import predict, size_ids
from braingen.routing.conditioning import (
    ConditioningForm,
    ConditioningSource,
    RoutedConditioning,
    through_prior,
)
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.types import Conditioning, ExpertStack, Routing

PriorOrder = Literal["output", "levels", "experts", "step"]
"""What the prior is applied to: before the denoising the encoder's output, every level or every
expert; or the condition, at every step.
"""


def expert_counts(embedding_decoder: EmbeddingDecoder) -> tuple[int, ...]:
    """Experts of every level of an encoder, as a router is built for them; (1,) for a dense
    encoder.
    """
    return embedding_decoder.expert_counts


class DecodedVoxels(NamedTuple):
    """Outputs of an embedding decoder, averaged over presentations; standardised units."""

    stack: ExpertStack
    """After the prior, where it comes before the denoising."""
    clip_BTD: Tensor
    """The projected output, for retrieval."""


@torch.no_grad()
def decode_voxels(
    embedding_decoder: EmbeddingDecoder,
    voxels_BRV: Tensor,
    subject: int,
    present_BR: Tensor,
    order: PriorOrder,
    *,
    experts: bool,
    noise: Tensor | None = None,
) -> DecodedVoxels:
    """Encoder outputs averaged over presentations, then through the prior where it comes first.

    Parameters
    ----------
    present_BR : Tensor
        Which presentations there are.
    experts : bool
        Keep the output of every expert, as its own estimate of the embedding.
    noise : Tensor | None, optional
        Of the prior's sampler, see :meth:`EmbeddingDecoder.through_prior`.
    """
    count, repeats = voxels_BRV.shape[:2]
    each = embedding_decoder(voxels_BRV.flatten(0, 1), subject, return_experts=experts)

    def mean(x: Tensor) -> Tensor:
        return average_repeats(x.unflatten(0, (count, repeats)), present_BR.to(x.device))

    stack = each.stack.map(mean)
    if experts:
        stack = embedding_decoder.encoder.as_estimates(stack)
    if order != "step" and embedding_decoder.prior is not None:
        noise = noise.to(voxels_BRV) if noise is not None else None
        stack = through_prior(stack, lambda x: embedding_decoder.through_prior(x, noise), of=order)
    return DecodedVoxels(stack, mean(each.clip_BTD))


def source_of(
    decoded: Tensor | ExpertStack,
    embedding_decoder: EmbeddingDecoder,
    router: DiffuseRouter | None,
    order: PriorOrder,
    device: torch.device | None = None,
) -> ConditioningSource:
    """The source of a condition.

    Parameters
    ----------
    decoded : Tensor | ExpertStack
        Of :func:`decode_voxels`; or B x T x D embeddings in CLIP's own units, which no prior
        changes, and which every expert is taken to have.
    embedding_decoder : EmbeddingDecoder
        Knows CLIP's units and the prior.
    router : DiffuseRouter | None
        None for the encoder's output, unrouted.
    order : PriorOrder
        As for :func:`decode_voxels`.
    device : torch.device | None, optional
        Where it is computed, if the embedding decoder waits elsewhere: only its scale is used, of
        which the source has a copy, and with order "step" its prior.
    """
    scale = embedding_decoder.scale.to(device or embedding_decoder.mean_TD.device)
    if isinstance(decoded, Tensor):
        counts = router.expert_counts if router is not None else (1,)
        standard_BTD = scale.standardised(decoded.to(scale.mean_TD))
        return ConditioningSource(
            ExpertStack.repeated(standard_BTD, counts), router, scale.in_clip_units
        )
    if order == "step":
        return ConditioningSource(
            decoded,
            router,
            lambda x_BTD: scale.in_clip_units(embedding_decoder.through_prior(x_BTD)),
        )
    return ConditioningSource(decoded, router, scale.in_clip_units)


class RoutingRecorder:
    """Records how levels and experts are mixed at every step: an ``on_step`` for the
    denoising loop.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Routing | None, Routing | None]] = []

    def __call__(self, step: int, latents: Tensor, condition: Conditioning) -> None:
        self._steps.append((condition.image_routing, condition.text_routing))

    def tensors(self, times_S: Tensor | None = None) -> dict[str, Tensor]:
        """What was kept, with the diffusion times of the steps where they are given; nothing where
        nothing was routed.

        ``image_levels`` and ``text_levels`` (B x S x L), ``image_experts`` and ``text_experts`` (B
        x S x all experts, by level), ``times`` (B x S).
        """
        found: dict[str, Tensor] = {}
        for name, column in zip(("image", "text"), zip(*self._steps)):
            steps = [routing for routing in column if routing is not None]
            if steps:
                found[f"{name}_levels"] = torch.stack(
                    [routing.level_weights_BL for routing in steps], dim=1
                )
                found[f"{name}_experts"] = torch.stack(
                    [torch.cat(routing.expert_weights, dim=1) for routing in steps], dim=1
                )
        if found and times_S is not None:
            found["times"] = times_S[None].expand(len(next(iter(found.values()))), -1)
        return {name: value.float().cpu().contiguous() for name, value in found.items()}


class ConditionedUNet(nn.Module):
    """U-Net and routers in one module: what an optimizer, and a wrapper for several processes, is
    given.

    Parameters
    ----------
    unet : UNet2DConditionModel
        With IP-Adapter, and a LoRA where one is trained.
    form : ConditioningForm
        Shape of what it reads.
    embedding_decoders : dict[str, EmbeddingDecoder]
        Of image and text, frozen; not part of the module.
    routers : dict[str, DiffuseRouter]
        Of image and text, where they are routed.
    counts : dict[str, tuple[int, ...]]
        Experts of every level, of image and text.
    order : PriorOrder
        Of prior and routers.
    size : int
        Side of the images in pixels.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        form: ConditioningForm,
        embedding_decoders: dict[str, EmbeddingDecoder],
        routers: dict[str, DiffuseRouter],
        counts: dict[str, tuple[int, ...]],
        order: PriorOrder,
        size: int,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.routers = nn.ModuleDict(routers)
        self.form, self.counts, self.order, self.size = form, counts, order, size
        self._embedding_decoders = (
            embedding_decoders,
        )  # in a tuple, so that their weights are not this module's

    def source(self, name: str, experts_BETD: Tensor) -> ConditioningSource:
        """The source of a condition, from outputs of all experts of the image or text encoder."""
        router = dict(self.routers.items()).get(name)
        return source_of(
            ExpertStack.of_experts(experts_BETD, self.counts[name]),
            self._embedding_decoders[0][name],
            cast(DiffuseRouter | None, router),
            self.order,
        )

    def forward(
        self,
        noisy_BChw: Tensor,
        t_B: Tensor,
        image_BETD: Tensor,
        text_BETD: Tensor | None,
        no_image_B: Tensor,
        no_text_B: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """The U-Net's prediction, and how image and text were routed.

        Parameters
        ----------
        image_BETD, text_BETD : Tensor
            Outputs of all experts, of :func:`decode_voxels`; no text where none is decoded.
        no_image_B, no_text_B : Tensor
            Whose image or text condition is left out.
        generator : torch.Generator | None, optional
            Of hard choices in training.
        """
        condition_at = RoutedConditioning(
            self.form,
            image=self.source("image", image_BETD),
            text=None if text_BETD is None else self.source("text", text_BETD),
            generator=generator,
        )
        condition = self.form.dropped(
            condition_at(t_B, noisy_BChw), image_B=no_image_B, text_B=no_text_B
        )
        prediction = predict(
            self.unet, noisy_BChw, t_B, condition, size_ids(self.size, len(t_B), noisy_BChw)
        )
        return prediction, tuple(
            x for x in (condition.image_routing, condition.text_routing) if x is not None
        )
