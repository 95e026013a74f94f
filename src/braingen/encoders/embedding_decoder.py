"""The embedding decoder: encoder, prior and target scale in one model, voxels to CLIP embedding.

B batch, V voxels, T tokens, D CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal, NamedTuple

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor

from braingen.encoders.base import encoder_class as class_of
from braingen.encoders.confidence import Confidence
from braingen.encoders.linear_readout import LinearReadout, expert_shares
from braingen.encoders.prior.diffusion_prior import DiffusionPrior
from braingen.encoders.stored_model import ModelKind, StoredModel
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings

IMAGE_SCORES = (
    "clip_cos",
    "clip_cos_centred",
    "two_way_embedding",
    "retrieval_brain_to_image",
    "retrieval_image_to_brain",
)
"""Scores of an evaluated run that are of the image encoder alone."""


class TargetScale(NamedTuple):
    """Mean and spread of the embeddings of the training images."""

    mean_TD: Tensor
    spread: float | Tensor
    """Standard deviation around the mean, over all dimensions."""

    def to(self, device: torch.device | str) -> TargetScale:
        """The same scale on another device, in float32."""
        spread = self.spread
        if isinstance(spread, Tensor):
            spread = spread.to(device, torch.float32)
        return TargetScale(self.mean_TD.to(device, torch.float32), spread)

    def standardised(self, embedding_BTD: Tensor) -> Tensor:
        """A CLIP embedding in the units of encoder and prior."""
        return (embedding_BTD - self.mean_TD) / self.spread

    def in_clip_units(self, standard_BTD: Tensor) -> Tensor:
        """Undo :meth:`standardised`."""
        return standard_BTD * self.spread + self.mean_TD


# a pipeline finds out how a part is loaded by the ModelMixin in the part's module
class EmbeddingDecoder(StoredModel, ModelMixin):
    """Predicts one kind of embedding (image or text) from voxels.

    Encoder and prior use standardised units, (embedding - mean) / spread. Contrastive cosines are
    then not dominated by the common mean, and the noise schedule of the prior applies to data of
    unit variance. The published implementation uses raw embeddings.

    Parameters
    ----------
    encoder_class : str
        Name of the encoder, as in ``encoder.model``.
    encoder_config : dict[str, Any]
        Arguments of its constructor.
    prior_config : dict[str, Any] | None
        Arguments of the constructor of the prior, or None for no prior.
    prior_use : Literal['predict', 'sample'], optional
        'predict', one deterministic call of the prior's network, or 'sample'.
    sample_steps, guidance_scale : int, optional
        Sampling of the prior.
    head_trained : bool, optional
        Whether the projection heads were trained (``clip_scale`` above 0); otherwise images are
        retrieved by the output of the encoder.
    linear_config : dict[str, Any] | None, optional
        Rank of ridge regression beside encoder and prior, and regions of the mixture that may take
        its place (:class:`LinearReadout`); None for neither.
    calibrated : bool, optional
        Whether it tells how close its embeddings are (:class:`Confidence`).
    """

    mean_TD: Tensor
    spread: Tensor
    _dropped = False
    """Whether :meth:`keep_scale` was called."""

    @register_to_config
    def __init__(
        self,
        encoder_class: str,
        encoder_config: dict[str, Any],
        prior_config: dict[str, Any] | None,
        prior_use: Literal["predict", "sample"] = "predict",
        sample_steps: int = 30,
        guidance_scale: float = 1.5,
        head_trained: bool = True,
        linear_config: dict[str, Any] | None = None,
        calibrated: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = class_of(encoder_class)(**encoder_config)
        shared = {
            name: encoder_config[name] for name in ("subjects", "clip_seq_dim", "clip_emb_dim")
        }
        self.linear = None if linear_config is None else LinearReadout(**shared, **linear_config)
        self.prior = DiffusionPrior(**prior_config) if prior_config is not None else None
        self.confidence = Confidence() if calibrated else None
        self.register_buffer(
            "mean_TD", torch.zeros(encoder_config["clip_seq_dim"], encoder_config["clip_emb_dim"])
        )
        self.register_buffer("spread", torch.ones(()))

    def model_kind(self, stage: dict[str, Any]) -> ModelKind:
        """An image or a text encoder, as the settings of its training say."""
        kind = "embedding decoder"
        scores: tuple[str, ...] = IMAGE_SCORES
        losses = [name for name in ("image", "text") if f"loss_{name}" in stage]
        if len(losses) == 1:
            kind = f"{losses[0]} encoder"
            scores = IMAGE_SCORES if losses == ["image"] else ()
        elif stage:
            raise UserError(
                "The run is not of one encoder: name the folder of its training, for instance"
                ' run="runs/demo/image".'
            )
        config = self.config
        subjects = dict(config.encoder_config["subjects"])
        return ModelKind(kind, config.encoder_class, subjects, scores)

    @property
    def device(self) -> torch.device:
        """Where it is; its scale is there even without an encoder."""
        return self.mean_TD.device

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EmbeddingDecoder:
        """Move what is there: of what :meth:`keep_scale` dropped there is nothing to move."""
        if not self._dropped:
            return super()._apply(fn, recurse)
        return super()._apply(lambda x: x if x.is_meta else fn(x), recurse)

    @cached_property
    def expert_counts(self) -> tuple[int, ...]:
        """Experts of every level, as a router is built for them; (1,) for a dense encoder."""
        subject, voxels = next(iter(self.config.encoder_config["subjects"].items()))
        was_training = self.training
        with torch.no_grad():  # by running it, so that every kind of encoder is served
            out = self.eval()(self.mean_TD.new_zeros(1, voxels), int(subject), return_experts=True)
        self.train(was_training)
        levels = out.level_backbone_BLTD.shape[1]
        return tuple(x.shape[1] for x in out.expert_backbone) or (1,) * levels

    def keep_scale(self, prior: bool = False) -> None:
        """Give back the memory of the encoder, which cannot be used any more.

        Parameters
        ----------
        prior : bool, optional
            Keep the prior as well as the scale.
        """
        _ = self.expert_counts  # is kept
        self._dropped = True
        self.encoder.to("meta")
        if self.linear is not None:
            self.linear.drop_maps()
        if self.prior is not None and not prior:
            self.prior.to("meta")
        if self.mean_TD.device.type == "cuda":
            torch.cuda.empty_cache()

    def set_scale(self, scale: TargetScale) -> None:
        """Set the scale of the target, once, before training."""
        self.mean_TD.copy_(scale.mean_TD)
        self.spread.fill_(scale.spread)

    @property
    def scale(self) -> TargetScale:
        """The scale of the target, as tensors of this model."""
        return TargetScale(self.mean_TD, self.spread)

    def standardised(self, embedding_BTD: Tensor) -> Tensor:
        """A CLIP embedding in the units of encoder and prior."""
        return self.scale.standardised(embedding_BTD)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape R x T x D of the noise for the sampler of the prior; empty without sampling."""
        if self.prior is None or self.config.prior_use == "predict":
            return ()
        return self.prior.noise_shape(self.config.sample_steps)

    def forward(
        self, voxels_BV: Tensor, subject: int, return_experts: bool = False
    ) -> ExpertEmbeddings:
        """Encode voxels; outputs are in standardised units.

        Mixed with ridge regression, where there is some, except in training.
        """
        out = self.encoder(voxels_BV, subject, return_experts=return_experts)
        if self.linear is not None and not self.training:
            shares = expert_shares(self.encoder, out) if return_experts else ()
            out = self.linear.mixed(out, self.linear(voxels_BV, subject), shares)
        if self.config.head_trained or self.training:
            return out
        return out._replace(
            clip_BTD=out.backbone_BTD,
            level_clip_BLTD=out.level_backbone_BLTD,
            expert_clip=out.expert_backbone,
        )

    def without_held_out(self) -> AbstractContextManager[None]:
        """Decode held-out training images as if they were unseen: ridge regression, where there is
        some, by its fit without them.
        """
        return nullcontext() if self.linear is None else self.linear.without_held_out()

    def through_prior(self, backbone_BTD: Tensor, noise: Tensor | None = None) -> Tensor:
        """Output of the prior for encoder outputs, in standardised units.

        Differentiable with prior_use 'predict'.

        Parameters
        ----------
        backbone_BTD : Tensor
            Encoder outputs, averaged over presentations where there are several.
        noise : Tensor | None, optional
            Standard normal B x R x T x D for the sampler (:attr:`noise_shape`), unused without
            sampling. With more rows than noise (levels or experts of the same image), a row of
            noise is shared by the same number of neighbouring rows.
        """
        if self.prior is None or self.config.prior_use == "predict":
            return self.predicted(backbone_BTD)
        if noise is not None:
            noise = noise.repeat_interleave(len(backbone_BTD) // len(noise), dim=0)
        found_BTD = self.prior.sample(
            backbone_BTD,
            steps=self.config.sample_steps,
            guidance_scale=self.config.guidance_scale,
            noise=noise,
        )
        return self._weighted(backbone_BTD, found_BTD)

    def predicted(self, backbone_BTD: Tensor) -> Tensor:
        """:meth:`through_prior` by one call of the prior's network, for any prior_use:
        deterministic and differentiable.
        """
        if self.prior is None:
            return backbone_BTD
        return self._weighted(backbone_BTD, self.prior.predict(backbone_BTD))

    def _weighted(self, backbone_BTD: Tensor, prior_BTD: Tensor) -> Tensor:
        """As much of the prior's output as was chosen."""
        if self.linear is None or self.training:
            return prior_BTD
        return backbone_BTD + self.linear.prior_weight * (prior_BTD - backbone_BTD)

    def in_clip_units(self, standard_BTD: Tensor) -> Tensor:
        """Undo :meth:`standardised`."""
        return self.scale.in_clip_units(standard_BTD)

    @torch.no_grad()
    def embedding(self, backbone_BTD: Tensor, noise: Tensor | None = None) -> Tensor:
        """CLIP embeddings from encoder outputs, in CLIP units; see :meth:`through_prior`."""
        return self.in_clip_units(self.through_prior(backbone_BTD, noise))
