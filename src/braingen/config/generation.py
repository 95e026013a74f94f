"""Settings of image generation: routers, fine-tuning, sampling, decoding of files,
refinement.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from braingen.config.effect import Needs, above, other_than
from braingen.config.kinds import SPACE_ROUTERS, TIME_ROUTERS, reading_latents, without_weights
from braingen.config.values import Folder, NotNegative, Positive, Scale, Scheduler, Section, Share

ROUTED = Needs("router.route_image", True) | Needs("router.route_text", True)
LEARNED_TIME = Needs("router.time", other_than(*without_weights(TIME_ROUTERS)))
"""Time routers with weights of their own."""
TRAINED_ROUTER = LEARNED_TIME | Needs("router.space", other_than(*without_weights(SPACE_ROUTERS)))
"""Without any of these no router is trained."""
FROM_VOXELS = Needs("generation.source", "brain", "random")
COARSE = Needs("low_level", "auto", "yes")
GUIDED = Needs("guidance_scale", above(1))
CONTEXT = Needs("router.time", *reading_latents(TIME_ROUTERS, "optional"))
SEES_LATENTS = Needs("router.space", *reading_latents(SPACE_ROUTERS, "always")) | Needs(
    "router.time_context", True
)
if always := reading_latents(TIME_ROUTERS, "always"):
    SEES_LATENTS = SEES_LATENTS | Needs("router.time", *always)
if TYPE_CHECKING:
    TimeName: TypeAlias = str
    SpaceName: TypeAlias = str
else:
    TimeName, SpaceName = Literal[tuple(TIME_ROUTERS)], Literal[tuple(SPACE_ROUTERS)]


class RouterConfig(Section):
    """Time and space routers between the experts and the diffusion model (docs/routing.md)."""

    route_image: bool = True
    """Route the image embedding."""
    route_text: bool = True
    """Route the text embedding."""
    time: Annotated[TimeName, ROUTED] = "attention"
    """How levels are weighted at a denoising time: off (all alike), fixed (a schedule), mlp, or
    attention (MoRE-Brain).
    """
    time_choice: Annotated[Literal["soft", "hard"], ROUTED, LEARNED_TIME] = "soft"
    """Mix the levels, or choose one (MoRE-Brain's paper compares both)."""
    time_hidden_dim: Annotated[Positive, ROUTED, LEARNED_TIME] = 768
    """Width of the level embeddings (published: 768)."""
    time_context: Annotated[bool, ROUTED, CONTEXT] = False
    """Let the time router read the noisy latents (published: off)."""
    space: Annotated[SpaceName, ROUTED] = "mix"
    """How the experts of a level are weighted; cross: attention from the noisy latents (MoRE-Brain;
    its code leaves it off); mix: the same, but the condition stays a mixture of the experts.
    """
    space_grid: Annotated[NotNegative, ROUTED, SEES_LATENTS] = 0
    """Side of the grid on which 'cross' and 'mix' read the latents; 0 for their own side at the
    training size (published: 64, at 512 px).
    """
    kl_scale: Annotated[Scale, ROUTED, LEARNED_TIME] = 0.001
    """Weight of the KL term that favours coarse levels early and fine ones late (paper, eq. 5; its
    weight is not given).
    """
    kl_sigma: Annotated[float, Field(gt=0), ROUTED, LEARNED_TIME, Needs("kl_scale", above(0))] = 1.0
    """Width of that Gaussian over levels, in levels (paper: 1)."""
    prior_order: Literal["output", "levels", "experts", "step"] = "output"
    """What the prior is applied to: the encoder's output (levels and experts move along), every
    level, every expert, all once before the denoising; or the routed embedding at every step
    (published).
    """


class LoraConfig(Section):
    """Low-rank adapters of the U-Net."""

    rank: NotNegative = 16
    """Rank of every adapter, alpha the same (published: 16); 0 for none."""


class FinetuneConfig(Section):
    """Stage 2: fine-tuning of the diffusion model."""

    max_train_steps: Positive = 20000
    """Optimizer steps."""
    train_batch_size: Positive = 16
    """Images per process and pass (published: 48-128 in all; see gradient_accumulation_steps)."""
    gradient_accumulation_steps: Positive = 3
    """Passes per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0), Needs("lora.rank", above(0))] = 1e-4
    """Of the LoRA (published: 1e-4)."""
    router_learning_rate: Annotated[float, Field(gt=0), ROUTED, TRAINED_ROUTER] = 1e-4
    """Of the routers (published: 1e-4)."""
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up (published: constant)."""
    lr_warmup_steps: NotNegative = 500
    """Steps of linear warm-up (published: 500)."""
    adam_weight_decay: Scale = 1e-2
    """AdamW weight decay on matrices (published: 1e-2)."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm (published: 1)."""
    snr_gamma: Scale = 1.5
    """Limit of the min-SNR weighting (published: 1.5); 0 for no weighting."""
    noise_offset: Scale = 0.0
    """Standard deviation of a shift of the noise per channel, so that brightness is learned too
    (published: 0).
    """
    drop_image: Share = 0.05
    """Share of images whose image condition is dropped, for classifier-free guidance."""
    drop_text: Share = 0.05
    """The same for the text condition."""
    drop_both: Share = 0.05
    """The same for both together."""
    conditioning: Literal["as_held_out", "plain"] = "as_held_out"
    """Condition of a training image: as_held_out (conditioning augmentation: sampled with the
    decoding error of held-out images) or plain (its own decoded embedding; docs/routing.md).
    """
    resolution: NotNegative = 0
    """Side of the training images in pixels; 0 for the U-Net's own size (published: 512)."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, more time, the same result. auto:
    where the free memory does not hold them.
    """
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments (bitsandbytes, GPU)."""
    use_ema: bool = False
    """Keep averaged weights, and validate and save those."""
    ema_decay: Annotated[float, Field(ge=0, lt=1), Needs("use_ema", True)] = 0.999
    """Decay of that average."""
    attention: Literal["auto", "sdpa", "plain", "xformers"] = "auto"
    """Attention kernels; auto: SDPA on a GPU, plain on a CPU, where SDPA's backward pass is slow at
    small widths.
    """
    validation_steps: Positive = 500
    """Optimizer steps between validations on the held-out training images."""
    validation_images: Positive = 128
    """Held-out training images of a validation, always the same with the same noise."""

    @model_validator(mode="after")
    def dropped_shares_make_a_whole(self) -> FinetuneConfig:
        """Refuse shares of dropped conditions that exceed 1 together."""
        dropped = self.drop_image + self.drop_text + self.drop_both
        if dropped > 1:
            raise ValueError(
                f"finetune.drop_image {self.drop_image:g}, drop_text {self.drop_text:g} and"
                f" drop_both {self.drop_both:g} are {dropped:g} together: give shares of at most 1"
                " in all."
            )
        return self


class GenerationConfig(Section):
    """Reconstruction (docs/decoding.md)."""

    source: Literal["brain", "random", "oracle", "low_level"] = "brain"
    """What is decoded: brain activity, random voxels (baseline), the true embeddings (oracle, from
    noise), or the coarse image of the low-level path alone.
    """
    random_draws: Positive = 1
    """Random draws of voxels for every image; the baseline's scores are averaged over the draws."""
    steps: Positive = 30
    """Denoising steps (published: 30-50)."""
    scheduler: Scheduler = "default"
    """Noise scheduler; default is the backbone's (SDXL: euler)."""
    negative_prompt: Annotated[str, GUIDED] = ""
    """Negative prompt of the guidance (published runs: about low quality); empty for no
    condition.
    """
    samples: Positive = 1
    """Images generated per test image, of which `choose_by` keeps one (never by the truth)."""
    choose_by: Annotated[
        Literal["embedding", "responses"], Needs("samples", above(1)), FROM_VOXELS
    ] = "embedding"
    """Which sample is kept: that whose CLIP embedding is nearest to the decoded one, or that under
    whose predicted responses the measured ones are likeliest (needs an encoding model).
    """
    guidance_scale: Annotated[float, Field(ge=1)] = 15.0
    """Classifier-free guidance (published runs: 15)."""
    guidance_end: Annotated[float, Field(gt=0, le=1), GUIDED] = 1.0
    """Share of the steps, from the first, in which guidance acts (published: all); the others take
    half the time.
    """
    low_level: Literal["auto", "yes", "no"] = "auto"
    """Start from the coarse image of the low-level path; auto: when one is trained
    (<folder>/low_level) and no single level is generated.
    """
    strength: Annotated[float, Field(gt=0, le=1), COARSE] = 0.6
    """Share of the steps that are run from the coarse image, at least one (Brain-IT: 24 of 38
    steps); 1 for all, from noise.
    """
    blend: Annotated[Share, COARSE] = 0.0
    """Weight of the coarse image in the final image, pixel by pixel (MindEye2: 0.25)."""
    ip_adapter_scale: Annotated[Scale, Needs("use_image", True)] = 1.0
    """Strength of the image condition (published: 1)."""
    finetuned: Literal["auto", "yes", "no"] = "auto"
    """Use the LoRA and the routers of `braingen finetune`; auto: when <folder>/finetune is
    finished.
    """
    decode_by: Annotated[Literal["encoder", "encoding_model"], FROM_VOXELS] = "encoder"
    """What decodes responses: the trained encoders, or the encoding model turned around
    (docs/encoding_models.md).
    """
    level: Annotated[NotNegative | None, FROM_VOXELS, Needs("decode_by", "encoder")] = None
    """Condition on this level of experts only (0 is the coarsest)."""
    use_image: bool = True
    """Condition on the decoded image embedding."""
    use_text: bool = True
    """Condition on the decoded text embedding."""
    size: NotNegative = 0
    """Side of the images in pixels; 0 for the U-Net's own size (512 in the published runs)."""
    batch_size: Positive | Literal["auto"] = "auto"
    """Images generated at once; they do not depend on it. auto: as many as the memory of the GPU
    allows, 8 on a CPU.
    """
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the U-Net while images are generated and refined; auto: float16 on a GPU,
    float32 on a CPU. The VAE and everything else are float32.
    """
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory format of the U-Net's convolutions."""
    compile: bool = False
    """Compile the transformer blocks of the U-Net with torch.compile: a minute or more at the first
    step, faster steps afterwards. Needs a C++ compiler on a CPU, Triton on a GPU.
    """
    repeats: Annotated[Literal["average", "first"], FROM_VOXELS] = "average"
    """Average the embeddings of an image's presentations (published), or decode a single trial."""
    num_images: NotNegative = 0
    """Reconstruct only the first n test images; 0 for all."""


class QuickstartConfig(Section):
    """Decoding the shipped test brains with the shipped decoder."""

    output: Folder = Path("runs/quickstart")
    """Folder of the page."""
    open: bool = True
    """Open the page in a browser, where the command runs in a terminal on a desktop; --no-open for
    never.
    """
    steps: Positive = 8
    """Denoising steps."""
    scheduler: Scheduler = "unipc"
    """Noise scheduler; default is the tiny backbone's."""
    guidance_scale: Annotated[float, Field(ge=1)] = 2.5
    """Classifier-free guidance."""


class DecodeConfig(Section):
    """Decoding a file of voxels; the settings of `generation` say how images are generated."""

    voxels: str = ""
    """File of responses, z-scored: .npy, .npz, .h5, NIfTI, or any form that `prepare` reads
    (docs/decoding.md).
    """
    zscore: Literal["none", "folder"] = "none"
    """Responses as they are, or z-scored first with the mean and spread that the data folder keeps
    of its training trials (for responses in the unit of its scans).
    """
    decoder: str = ""
    """Folder of a saved decoder, or a repository of the hub (user/name); empty for the encoders and
    the fine-tuning of <folder>.
    """
    output: str = ""
    """Where embeddings and images go; empty for <folder>/decoded/<name of the file>."""
    generate: bool = True
    """Generate images; without, embeddings only."""


class RefinementConfig(Section):
    """Refinement: image-to-image on finished reconstructions (docs/decoding.md)."""

    recons: str = ""
    """Folder of reconstructions to refine; empty for
    <folder>/reconstructions/<generation.source>.
    """
    output: str = ""
    """Where refined images go; empty for the same name with _refined at its end."""
    strength: Annotated[float, Field(gt=0, le=1), Needs("denoising_start", None)] = 0.3
    """Share of the steps that is generated anew (published: 0.2-0.5)."""
    denoising_start: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Instead of the strength: share of the noise schedule that is skipped; the image is noised
    accordingly.
    """
    steps: Positive = 20
    """Steps of the whole schedule; strength or denoising_start leave a part of them."""
    scheduler: Scheduler = "default"
    """Noise scheduler; default is the refiner's."""
    guidance_scale: Annotated[float, Field(ge=1)] = 5.0
    """Classifier-free guidance (published: 5)."""
    negative_prompt: Annotated[str, GUIDED] = ""
    """Negative prompt of the guidance."""
    aesthetic_score: Scale = 6.0
    """Aesthetic score, a condition of SDXL's refiner only (diffusers: 6)."""
    negative_aesthetic_score: Annotated[Scale, GUIDED] = 2.5
    """The same for the negative condition (diffusers: 2.5)."""
    use_image: bool = False
    """Also condition on the decoded image embedding, through the IP-Adapter; base models only
    (published: text alone).
    """
    size: NotNegative = 0
    """Side in pixels at which images are refined; 0 for the reconstructions' own."""
    batch_size: Positive = 8
    """Images refined at once; they do not depend on it."""

    @model_validator(mode="after")
    def some_step_is_left(self) -> RefinementConfig:
        """Refuse a strength that leaves no step; a denoising_start is checked with the
        scheduler.
        """
        if self.denoising_start is None and int(self.steps * self.strength) < 1:
            raise ValueError(
                f"refinement.strength {self.strength:g} of refinement.steps {self.steps} leaves no"
                " step to refine with: use more steps or a larger strength."
            )
        return self
