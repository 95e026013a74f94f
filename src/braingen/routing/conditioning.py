"""The condition of the U-Net at a denoising step: the one object used while fine-tuning and while
sampling.

B batch, L levels, E experts of a level, T tokens, D CLIP width, N text length, C cross-attention
width, P pooled width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.targets.clip_text import PromptEmbeddings
from braingen.targets.text_form import HasTextForm
from braingen.types import Conditioning, ExpertStack, Routing

Prior = Callable[[Tensor], Tensor]
"""N x T x D embeddings of the brain -> N x T x D embeddings as CLIP makes them."""


def through_prior(
    stack: ExpertStack, prior: Prior, *, of: Literal["output", "levels", "experts"] = "levels"
) -> ExpertStack:
    """Backbone outputs through the diffusion prior, once, before the denoising loop
    (docs/deviations.md, row 6.10).

    Parameters
    ----------
    stack : ExpertStack
        Encoder outputs; levels are the means of their experts (see `ExpertStack.estimates`).
    prior : callable
        The prior as a function; called once, on all rows together.
    of : Literal['output', 'levels', 'experts'], optional
        Input of the prior: the encoder's output (1 row per sample), every level (L rows), or every
        expert (30 rows in the published layout). Levels are then moved by as much as the output,
        and experts by as much as their level. What stands above is the mean of the prior's outputs.

    Returns
    -------
    ExpertStack
        With all embeddings replaced.

    Raises
    ------
    UserError
        If experts are to go through the prior and there are none, or `of` is another word.
    """
    B, E = stack.experts_BETD.shape[:2]
    levels_BLTD = stack.levels_BLTD
    if of == "output":
        output_BTD = prior(stack.output_BTD)
        new_levels_BLTD = levels_BLTD + (output_BTD - stack.output_BTD)[:, None]
    elif of == "levels":
        new_levels_BLTD = prior(levels_BLTD.flatten(0, 1)).unflatten(0, (B, len(stack.counts)))
        output_BTD = new_levels_BLTD.mean(dim=1)
    elif of == "experts" and len(stack.counts) < E:
        new_experts_BETD = prior(stack.experts_BETD.flatten(0, 1)).unflatten(0, (B, E))
        return ExpertStack.of_experts(new_experts_BETD, stack.counts)
    elif of == "experts":
        raise UserError(
            "the prior is to take every expert, but there are none: ask the encoder for its"
            " experts, or use of='levels'"
        )
    else:
        raise UserError(f"of is {of!r}; allowed are 'output', 'levels' and 'experts'")
    moved_BETD = stack.experts_BETD + stack.spread(new_levels_BLTD - levels_BLTD)
    return stack._replace(output_BTD=output_BTD, experts_BETD=moved_BETD)


class ConditioningForm(NamedTuple):
    """The shape of what a U-Net reads, and the fixed part of its text: everything about a condition
    that no brain decides.
    """

    start_C: Tensor
    """Embedding of the start token in the predicted columns, zeros elsewhere."""
    text_length: int
    """N, tokens of a prompt (77 for SDXL)."""
    text_columns: tuple[int, int]
    """Where the cross-attention columns that are predicted begin, and where they end (not
    included): (768, 2048) for bigG in SDXL.
    """
    pooled_dim: int
    """P, width of the pooled text embedding (1280 for SDXL)."""
    image_shape: tuple[int, int]
    """T x D of the image embedding that the IP-Adapter reads ((1, 1280) for SDXL's)."""

    @classmethod
    def of(
        cls,
        text_encoder: HasTextForm,
        *,
        cross_attention_dim: int,
        pooled_dim: int,
        image_shape: tuple[int, int],
    ) -> ConditioningForm:
        """The form for the text target of an encoder and the widths of a U-Net.

        Parameters
        ----------
        text_encoder : HasTextForm
            Whose embeddings the text decoder predicts: L fills the first columns, bigG the last,
            joint all.
        cross_attention_dim : int
            C, from the U-Net's configuration.
        pooled_dim : int
            P, what the U-Net's added embedding leaves beside the time ids.
        image_shape : tuple[int, int]
            (int, int) T and D of the image embedding.

        Raises
        ------
        UserError
            If the text embedding does not fit into C columns.
        """
        start_D = text_encoder.start_token()
        room = cross_attention_dim - len(start_D)
        if room < 0 or (text_encoder.output == "joint" and room):
            raise UserError(
                f"a text embedding {len(start_D)} wide ({text_encoder.output}) does not fit a U-Net"
                f" of {cross_attention_dim} columns"
            )
        first = room if text_encoder.output == "bigG" else 0
        return cls(
            pad(start_D.float(), (first, room - first)),
            text_encoder.length,
            (first, first + len(start_D)),
            pooled_dim,
            image_shape,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ConditioningForm:
        """The same form elsewhere."""
        return self._replace(start_C=self.start_C.to(device, dtype))

    def text(
        self,
        predicted_BTD: Tensor,
        first_BTD: Tensor | None = None,
        first_start_D: Tensor | None = None,
    ) -> Tensor:
        """Cross-attention tokens from a predicted text embedding.

        One predicted token: the start token, then the predicted one in every other place. As many
        as a prompt has: as they are. Columns that nothing predicts are zero.

        Parameters
        ----------
        predicted_BTD : Tensor
            T is 1 or N, D the number of predicted columns.
        first_BTD : Tensor, optional
            A predicted embedding of the first text encoder for the columns before (published:
            zeros, or this).
        first_start_D : Tensor, optional
            That encoder's start token; zeros if left out.

        Returns
        -------
        Tensor
            B x N x C.

        Raises
        ------
        UserError
            If widths or numbers of tokens do not fit.
        """
        begin, end = self.text_columns
        tokens_BND = self._repeated(predicted_BTD, self.start_C[begin:end])
        if first_BTD is None:
            return pad(tokens_BND, (begin, len(self.start_C) - end))
        start_D = (
            first_BTD.new_zeros(first_BTD.shape[-1]) if first_start_D is None else first_start_D
        )
        tokens_BNC = torch.cat([self._repeated(first_BTD, start_D), tokens_BND], dim=-1)
        if tokens_BNC.shape[-1] != len(self.start_C):
            raise UserError(
                f"text embeddings {first_BTD.shape[-1]} and {end - begin} wide do not fill the"
                f" {len(self.start_C)} columns of the U-Net"
            )
        return tokens_BNC

    def _repeated(self, predicted_BTD: Tensor, start_D: Tensor) -> Tensor:
        B, T, D = predicted_BTD.shape
        if len(start_D) != D or T not in (1, self.text_length):
            raise UserError(
                f"a text embedding of {T} x {D} was given; allowed are 1 or {self.text_length}"
                f" tokens, {len(start_D)} wide"
            )
        if T > 1:
            return predicted_BTD
        start_B1D = start_D.to(predicted_BTD)[None, None].expand(B, 1, D)
        return torch.cat([start_B1D, predicted_BTD.expand(B, self.text_length - 1, D)], dim=1)

    def empty(self, batch: int) -> Conditioning:
        """No condition: zeros everywhere (SDXL's ``force_zeros_for_empty_prompt``; zeros are the
        IP-Adapter's null image).
        """
        zeros = self.start_C.new_zeros
        tokens_BNC = zeros(batch, self.text_length, len(self.start_C))
        return Conditioning(
            tokens_BNC, zeros(batch, *self.image_shape), zeros(batch, self.pooled_dim)
        )

    def prompt(self, prompt: PromptEmbeddings) -> Conditioning:
        """A written prompt without an image: a negative prompt, or what a caption alone
        would give.
        """
        empty = self.empty(len(prompt.tokens_BTD))
        tokens_BNC = prompt.tokens_BTD.to(self.start_C)
        if tokens_BNC.shape[-1] != len(self.start_C):  # one of the two text encoders only
            begin, end = self.text_columns
            tokens_BNC = pad(tokens_BNC, (begin, len(self.start_C) - end))
        pooled_BP = (
            empty.pooled_BD if prompt.pooled_BD is None else prompt.pooled_BD.to(self.start_C)
        )
        return empty._replace(tokens_BTC=tokens_BNC, pooled_BD=pooled_BP)

    def dropped(self, condition: Conditioning, *, image_B: Tensor, text_B: Tensor) -> Conditioning:
        """A condition with the image or the text of some rows left out, as in training for
        classifier-free guidance.

        Parameters
        ----------
        condition : Conditioning
            The whole condition.
        image_B, text_B : Tensor
            bool, true where it is to be left out.
        """
        tokens = condition.tokens_BTC.masked_fill(text_B[:, None, None], 0)
        image = condition.image_embeds_BTD.masked_fill(image_B[:, None, None], 0)
        return condition._replace(
            tokens_BTC=tokens,
            image_embeds_BTD=image,
            pooled_BD=condition.pooled_BD.masked_fill(text_B[:, None], 0),
        )


class ConditioningSource(NamedTuple):
    """One source of the condition: the decoded image embedding, or the decoded text embedding."""

    stack: ExpertStack
    """Of every level and expert; after the prior, where the prior comes first (`through_prior`)."""
    router: DiffuseRouter | None = None
    """None: the encoder's output, unrouted."""
    prior: Prior | None = None
    """Applied to the routed embedding at every step (the published order). Gradients reach the
    router if it lets them through.
    """

    def at(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor,
        level: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """The condition of a step, B x T x D, and how it was mixed."""
        routing = None
        if self.router is not None:
            experts = self.stack.by_level
            if not self.router.reads_experts:
                experts = self.stack.levels_BLTD.unsqueeze(2).unbind(1)
            routed = self.router(experts, t_B, latents_BCHW, level=level, generator=generator)  # type: ignore[operator]
            condition_BTD, routing = routed.embedding_BTD, routed.routing
        elif level is not None:
            condition_BTD = self.stack.levels_BLTD[:, level]
        else:
            condition_BTD = self.stack.output_BTD
        return (condition_BTD if self.prior is None else self.prior(condition_BTD)), routing


class RoutedConditioning:
    """``routed(t, latents)``: condition of the U-Net at time t, for a batch of brains.

    Used alike while fine-tuning and while sampling, so that the two cannot drift apart; gradients
    reach routers (and a differentiable prior). Holds the embeddings of one batch and refers to
    routers that live elsewhere; making one costs nothing.

    Parameters
    ----------
    form : ConditioningForm
        Shape of what the U-Net reads.
    image, text : ConditioningSource | None, optional
        The condition's sources; one of them may be missing, and then its part of
        the condition is empty (zeros).
    first_text_BTD : Tensor, optional
        Decoded embedding of the first text encoder, for the columns that are zero without it; not
        routed.
    first_start_D : Tensor, optional
        Its start token.
    negative : Conditioning | None, optional
        What guidance leads away from, one row (`ConditioningForm.prompt` of
        a negative prompt); nothing at all if left out.
    level : int, optional
        Condition on this level only (single-level reconstructions).
    generator : torch.Generator | None, optional
        Source of the noise of hard choices in training.

    Raises
    ------
    UserError
        If there is neither image nor text, or they differ in the number of rows.
    """

    def __init__(
        self,
        form: ConditioningForm,
        *,
        image: ConditioningSource | None = None,
        text: ConditioningSource | None = None,
        first_text_BTD: Tensor | None = None,
        first_start_D: Tensor | None = None,
        negative: Conditioning | None = None,
        level: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {len(source.stack.output_BTD) for source in (image, text) if source is not None}
        if len(sizes) != 1:
            raise UserError(
                f"image and text have {sorted(sizes)} rows; give at least one of them, and both for"
                " the same brains"
            )
        self.batch = sizes.pop()
        self.form = form
        self.image = image
        self.text = text
        self.first_text_BTD = first_text_BTD
        self.first_start_D = first_start_D
        self.negative = negative
        self.level = level
        self.generator = generator

    def __call__(self, t: Tensor | float, latents_BCHW: Tensor) -> Conditioning:
        """The condition at time `t`.

        Parameters
        ----------
        t : Tensor or float
            Diffusion time on the training scale, one for all rows or one per row.
        latents_BCHW : Tensor
            Noisy latents as the U-Net reads them (while sampling: after
            ``scheduler.scale_model_input``, which is what noisy latents are in training), of any
            size. Rows as in the embeddings, not doubled for guidance.

        Returns
        -------
        Conditioning
            With the routing of image and text, where there are routers.
        """
        t_B = torch.as_tensor(t, device=latents_BCHW.device).expand(self.batch)
        condition = self.form.empty(self.batch)
        if self.image is not None:
            condition_BTD, routing = self.image.at(t_B, latents_BCHW, self.level, self.generator)
            condition = condition._replace(image_embeds_BTD=condition_BTD, image_routing=routing)
        if self.text is not None:
            condition_BTD, routing = self.text.at(t_B, latents_BCHW, self.level, self.generator)
            tokens_BNC = self.form.text(condition_BTD, self.first_text_BTD, self.first_start_D)
            condition = condition._replace(tokens_BTC=tokens_BNC, text_routing=routing)
        return condition

    @property
    def unconditional(self) -> Conditioning:
        """What classifier-free guidance leads away from, one row per brain."""
        if self.negative is None:
            return self.form.empty(self.batch)
        tokens, image, pooled = (
            x.expand(self.batch, *x.shape[1:]) for x in self.negative[:3] if isinstance(x, Tensor)
        )
        return Conditioning(tokens, image, pooled)
