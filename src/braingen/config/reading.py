"""Settings of stage 1, from voxels to CLIP space, and of the frozen and published models it builds on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from braingen.config.values import Factor, Folder, NotNegative, Positive, Scale, Section, Share


class BackboneConfig(Section):
    """The frozen models that see and draw."""

    path: str = "tiny"
    """'tiny' (shipped), a folder in the layout of an SDXL pipeline, or a hub name such as stabilityai/stable-diffusion-xl-base-1.0."""
    image_encoder: str = ""
    """CLIP whose image embeddings are decoded: folder or hub name; empty for <path>/image_encoder."""
    ip_adapter: str = ""
    """IP-Adapter: a safetensors file, or a folder or hub name with sdxl_models/ip-adapter_sdxl.safetensors; empty for <path>/ip_adapter."""
    refiner: str = ""
    """What `braingen refine` draws with (stabilityai/stable-diffusion-xl-refiner-1.0, or a folder); empty for <path>, the base model."""
    image_output: Literal["pooled", "tokens", "both"] = "pooled"
    """What of the image is decoded: CLIP's pooled embedding (MoRE-Brain), its patch tokens (MindEye2: 256), or both."""
    image_projected: bool = True
    """Decode image embeddings after CLIP's projection (MoRE-Brain: yes; MindEye2's tokens: no)."""
    text_output: Literal["bigG", "L", "joint"] = "bigG"
    """Which text encoder of SDXL is decoded: the second (MoRE-Brain), the first, or both side by side."""
    text_tokens: Literal["eos", "all"] = "eos"
    """Which tokens of a caption: the end-of-sequence token (MoRE-Brain) or all of them (77)."""


class EncoderConfig(Section):
    """Voxels to CLIP space (docs/models.md)."""

    model: Literal["BrainMoEMulti", "BrainMoE", "BrainMoEHier", "BrainMoEVoxel", "BrainEncoder"] = "BrainMoEMulti"
    """Which encoder; BrainMoEMulti is MoRE-Brain's, BrainMoEVoxel routes voxels instead of units (docs/explain.md)."""
    hidden_dim: Positive = 4096
    """Shared width H after the subject layer (published: 4096)."""
    n_blocks: Positive = 4
    """Residual blocks of an expert of the first level (published: 4)."""
    num_exp_0: Positive = 2
    """Experts of the first level (published: 2)."""
    exp_factor_list: tuple[Positive, ...] = (2, 2, 2)
    """Into how many each expert splits, level by level (published: 2,2,2)."""
    capacity_factor_0: Annotated[float, Field(gt=0)] = 1.0
    """Units an expert reads, as a multiple of an even share (published: 1)."""
    routing: Literal["affinity", "value"] = "affinity"
    """affinity: an expert reads the same units every trial (ours); value: the published router, by activation."""
    parcel_start: Literal["responses", "random"] = "responses"
    """BrainMoEVoxel only: parcels start with voxels whose responses go together, or at random (docs/explain.md)."""
    trunk: Literal["working", "published"] = "working"
    """working: residual MLP; published: the wiring whose blocks have no effect with one token."""
    head: Literal["projector", "linear"] = "linear"
    """Projection of an expert's output: one linear map, or the published three-layer projector (docs/models.md: 2.6 x the parameters)."""
    dropout: Share = 0.15
    """Dropout inside blocks (published: 0.15)."""
    voxel_dropout: Share = 0.0
    """Dropout on voxels (published: none)."""
    b_size: Annotated[int, Field(ge=0), BeforeValidator(lambda value: 0 if str(value).strip() == "-1" else value)] = 0
    """Width of a bottleneck after the subject layer, for the bottleneck analysis (BrainBits); 0 (or the published -1) for none."""
    cap_fac_list: tuple[Factor, ...] = ()
    """Capacity factors of the levels after the first; empty for 1 (published: 1,1,1)."""
    num_exp: NotNegative = 0
    """BrainMoE: its experts (published: 16); 0 for as many as the last level of BrainMoEMulti has."""
    num_exps: tuple[Positive, ...] = ()
    """BrainMoEHier: experts level by level (published: 4,8,16,32); empty for as many as the levels of BrainMoEMulti have."""
    capacity_factors: tuple[Factor, ...] = ()
    """BrainMoEHier: capacity factors level by level; empty for capacity_factor_0 everywhere."""
    meta: bool = False
    """BrainMoE, BrainMoEHier: one more expert that reads all units (published: none)."""
    level_combine: Literal["sum", "mean"] = "sum"
    """Output of a level of experts: their sum (published implementation) or mean (MoRE-Brain's paper)."""
    activation_term: bool = False
    """Affinity routing: let the activation modulate the weight of a unit (ours; off keeps weights the same in every trial)."""
    token_order: Literal["index", "gpu", "value", "native"] = "index"
    """Value routing: order of an expert's units; gpu for published weights, which were trained on GPUs (docs/models.md)."""
    fusion: Literal["none", "early", "mid", "late"] = "none"
    """BrainEncoder on captions with backbone.text_output=joint: where the two text trunks are joined (published: none)."""
    low_level: bool = False
    """BrainEncoder on images: MindEye2's low-level branch, for its checkpoints; stage 1 does not train it."""
    interm_out: bool = False
    """BrainEncoder on images: projection heads after every block but the last, for checkpoints; stage 1 does not train them."""
    train_pool: bool = False
    """BrainEncoder on captions: also predict the pooled embedding, for checkpoints; stage 1 does not train it."""


class PriorConfig(Section):
    """The diffusion prior: encoder output to CLIP embedding."""

    use_prior: bool = True
    """Train and use the prior; without it the encoder's output is the embedding."""
    depth: Positive = 6
    """Transformer layers (MindEye2: 6)."""
    dim_head: Positive = 52
    """Width of a head (MindEye2: 52)."""
    timesteps: Positive = 100
    """Noise steps in training (MindEye2: 100)."""
    use: Literal["predict", "sample"] = "predict"
    """predict: one deterministic call of the network (nearer to the target, docs/deviations.md); sample: as published, many and random."""
    sample_steps: Positive = 30
    """Steps when sampling (MoRE-Brain: 30)."""
    guidance_scale: Annotated[float, Field(ge=1)] = 1.5
    """Classifier-free guidance when sampling (MoRE-Brain: 1.5)."""


class LossConfig(Section):
    """Weights of the objective's terms (docs/pipeline.md)."""

    clip_scale: Scale = 1.0
    """Contrastive loss on the projected output."""
    mse_scale: Scale = 0.0
    """Squared error of the encoder's output, in units of the target's variance (MoRE-Brain's paper: 1)."""
    prior_scale: Scale = 30.0
    """Squared error of the prior's prediction."""
    cos_scale: Scale = 0.5
    """1 - cosine of the prior's prediction with the target."""
    prior_clip_scale: Scale = 1.0
    """Contrastive loss on the prior's prediction."""
    level_scale: Scale = 0.0
    """Squared error of every level's output by itself, mean over levels: makes each level a decoder (published: only their mean is one)."""
    balance_scale: Scale = 0.1
    """Load balancing over experts (MoRE-Brain's paper: 0.1)."""
    temp_coeff: Annotated[float, Field(gt=0)] = 5.0
    """Multiplies the temperatures of the contrastive losses."""
    mixup_pct: Share = 0.33
    """Share of the epochs with MixCo; SoftCLIP afterwards."""


class OptimConfig(Section):
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
    """Epochs between looks at the held-out training images."""
    gradient_accumulation_steps: Positive = 1
    """Steps per update of the weights, whose gradients are averaged; contrastive losses see one step (published: 1)."""
    start_from: Folder | None = None
    """Finished run whose experts and prior are taken over, RUN or RUN/image; its architecture and losses are the defaults then."""
    trained: Literal["all", "routers", "subject"] = "all"
    """What is trained: all, the subject layers and the routers (published: --train_router_only), or the subject layers alone."""


class PublishedConfig(Section):
    """Published weights to import (`braingen import`)."""

    checkpoint: Folder = Path()
    """Encoder, with its prior where it holds one: MindEye2's last.pth, or MoRE-Brain's weights (.pth or .safetensors)."""
    router_image: Folder = Path()
    """Diffusion router of the image embedding (import finetune)."""
    router_text: Folder = Path()
    """Diffusion router of the text embedding (import finetune)."""
    adapter: Folder = Path()
    """LoRA of the U-Net in diffusers' safetensors form (import finetune)."""
    trained_on: Literal["gpu", "cpu"] = "gpu"
    """Where the published router was trained: its top-k decides the order of an expert's units (docs/models.md)."""
    partial: bool = False
    """Import what fits although weights are missing, unexpected or of another shape; those missing stay random."""
