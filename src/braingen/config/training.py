"""Settings of stage 1, from voxels to CLIP space, and of the frozen and published models it builds
on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from braingen.config.effect import Needs, above, given
from braingen.config.encoders import MIXTURES
from braingen.config.values import Folder, NotNegative, Positive, Scale, Section, Share


class BackboneConfig(Section):
    """The frozen models: image and text encoders, U-Net, VAE."""

    path: str = "tiny"
    """'tiny' (shipped), a folder in the layout of an SDXL pipeline, or a hub name such as
    stabilityai/stable-diffusion-xl-base-1.0, also with a revision:
    owner/name@revision.
    """
    image_encoder: str = ""
    """CLIP whose image embeddings are decoded: folder or hub name; empty for
    <path>/image_encoder.
    """
    ip_adapter: str = ""
    """IP-Adapter: a safetensors file, or a folder or hub name with
    sdxl_models/ip-adapter_sdxl.safetensors; empty for <path>/ip_adapter; none to train encoders
    without generating images.
    """
    refiner: str = ""
    """The model of `braingen refine` (stabilityai/stable-diffusion-xl-refiner-1.0, or a folder);
    empty for <path>, the base model.
    """
    image_output: Literal["pooled", "tokens", "both"] = "pooled"
    """Which embedding of the image is decoded: CLIP's pooled embedding (MoRE-Brain), its patch
    tokens (MindEye2: 256), or both.
    """
    image_projected: bool = True
    """Decode image embeddings after CLIP's projection (MoRE-Brain: yes; MindEye2's tokens: no)."""
    text_output: Literal["bigG", "L", "joint"] = "bigG"
    """Which text encoder of SDXL is decoded: the second (MoRE-Brain), the first, or both side by
    side.
    """
    text_tokens: Literal["eos", "all"] = "eos"
    """Which tokens of a caption: the end-of-sequence token (MoRE-Brain) or all of them (77)."""


WITH_PRIOR = Needs("prior.use_prior", True)
SAMPLED = Needs("prior.use", "sample") | Needs("published.checkpoint", given())
"""Priors of published checkpoints are always sampled."""


class PriorConfig(Section):
    """The diffusion prior: encoder output to CLIP embedding."""

    use_prior: bool = True
    """Train and use the prior; without it the encoder's output is the embedding."""
    depth: Annotated[Positive, WITH_PRIOR] = 6
    """Transformer layers (MindEye2: 6)."""
    dim_head: Annotated[Positive, WITH_PRIOR] = 52
    """Width of a head (MindEye2: 52)."""
    timesteps: Annotated[Positive, WITH_PRIOR] = 100
    """Noise steps in training (MindEye2: 100)."""
    use: Annotated[Literal["predict", "sample"], WITH_PRIOR] = "predict"
    """predict: one deterministic call of the network (nearer to the target, docs/deviations.md);
    sample: as published, many and random.
    """
    sample_steps: Annotated[Positive, WITH_PRIOR, SAMPLED] = 30
    """Steps when sampling (MoRE-Brain: 30)."""
    guidance_scale: Annotated[float, Field(ge=1), WITH_PRIOR, SAMPLED] = 1.5
    """Classifier-free guidance when sampling (MoRE-Brain: 1.5)."""


class LossConfig(Section):
    """Weights of the objective's terms (docs/pipeline.md)."""

    clip_scale: Scale = 1.0
    """Contrastive loss on the projected output."""
    mse_scale: Scale = 0.0
    """Squared error of the encoder's output, in units of the target's variance (MoRE-Brain's paper:
    1).
    """
    prior_scale: Annotated[Scale, WITH_PRIOR] = 30.0
    """Squared error of the prior's prediction."""
    cos_scale: Annotated[Scale, WITH_PRIOR] = 0.5
    """1 - cosine of the prior's prediction with the target."""
    prior_clip_scale: Annotated[Scale, WITH_PRIOR] = 1.0
    """Contrastive loss on the prior's prediction."""
    deep_supervision_weight: Scale = 0.0
    """Squared error of every level's output by itself, mean over levels: makes each level a decoder
    (published: only their mean is one).
    """
    balance_scale: Annotated[Scale, Needs("encoder.model", *MIXTURES)] = 0.1
    """Load balancing over experts (MoRE-Brain's paper: 0.1)."""
    temp_coeff: Annotated[
        float, Field(gt=0), Needs("clip_scale", above(0)) | Needs("prior_clip_scale", above(0))
    ] = 5.0
    """Multiplies the temperatures of the contrastive losses."""
    mixup_pct: Share = 0.33
    """Share of the epochs with MixCo; SoftCLIP afterwards."""

    @model_validator(mode="after")
    def something_is_minimised(self) -> LossConfig:
        """Refuse an objective whose terms all have weight 0."""
        aims = (
            "clip_scale",
            "mse_scale",
            "prior_scale",
            "cos_scale",
            "prior_clip_scale",
            "deep_supervision_weight",
        )
        if not any(getattr(self, name) for name in aims):
            raise ValueError(
                f"All of {', '.join(aims)} are 0, so that nothing would be learned: give one of"
                " them a weight."
            )
        return self


class TrainingConfig(Section):
    """Optimisation of stage 1."""

    max_lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of the one-cycle schedule (published: 3e-4)."""
    weight_decay: Scale = 1e-2
    """AdamW weight decay, none on biases, norms and embeddings (published: 1e-2)."""
    num_epochs: Positive = 50
    """Passes over the training trials (published: 50)."""
    batch_size: Positive = 24
    """Trials per process and step (published: 24)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm (published encoder stage: none)."""
    validate_every: Positive = 1
    """Epochs between validations on the held-out training images."""
    checkpoint: Literal["held_out", "folds", "auto"] = "held_out"
    """How the epoch is chosen: on held-out images (data.holdout_share); by 5-fold cross-validation
    over the training images, then training on all of them; auto: by folds where fewer than 30
    images would be held out.
    """
    gradient_accumulation_steps: Positive = 1
    """Steps per update of the weights, whose gradients are averaged; a contrastive loss compares
    the trials of one step (published: 1).
    """
    init_from: Folder | None = None
    """Finished run whose experts and prior are taken over, RUN or RUN/image; its architecture and
    losses are the defaults then.
    """
    with_ridge: bool = True
    """Ridge regression stands beside encoder and prior, and held-out images choose how much of each
    is used: with few trials ridge regression alone (published: no).
    """
    linear: Annotated[Literal["ridge", "best"], Needs("training.with_ridge", True)] = "ridge"
    """What stands beside encoder and prior: ridge regression; or the best one, by held-out images,
    of ridge regression, the encoding model's inversion, which knows the noise's covariance
    (encoding.* are its settings), and the mixture of regions whose gains vary from trial to trial.
    """
    gain_regions: Annotated[NotNegative, Needs("training.linear", "best")] = 16
    """Regions of that mixture: groups of voxels that fluctuate together and are tuned alike, the
    same ones in all subjects; 0 for no mixture.
    """
    trained: Literal["all", "routers", "subject"] = "all"
    """What is trained: all, the subject layers and the routers (published: --train_router_only), or
    the subject layers alone.
    """


class PublishedConfig(Section):
    """Published weights to import (`braingen import`)."""

    checkpoint: Folder = Path()
    """Encoder, with its prior where it holds one: MindEye2's last.pth, or MoRE-Brain's weights
    (.pth or .safetensors).
    """
    router_image: Folder = Path()
    """Diffusion router of the image embedding (import finetune)."""
    router_text: Folder = Path()
    """Diffusion router of the text embedding (import finetune)."""
    adapter: Folder = Path()
    """LoRA of the U-Net of backbone.path, in diffusers', peft's or kohya's names (import
    finetune).
    """
    trained_on: Literal["gpu", "cpu"] = "gpu"
    """Where the published router was trained: its top-k decides the order of an expert's units
    (docs/models.md).
    """
    partial: bool = False
    """Import what fits although weights are missing, unexpected or of another shape; those missing
    stay random.
    """
