"""Every setting of the project: one typed, frozen tree, with the field's own names.

A run is configured by a YAML file of this shape plus overrides (``encoder.hidden_dim=512`` or ``--hidden_dim 512``). The line below a field
says what it is, in which unit, and where its default comes from. Sizes of backbones are never here: they are read from the loaded models.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
import yaml

from braingen.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
Scheduler = Literal["own", "euler", "euler_ancestral", "heun", "ddim", "ddpm", "dpmpp_2m", "unipc"]
# YAML reads a bare `no` as false
Precision = Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class RunConfig(Section):
    """Where results go and how the machine is used."""

    folder: Folder = Path("runs/demo")
    """Folder of everything a run writes."""
    image: Folder | None = None
    """Run folder of the trained image encoder; <folder>/image when empty."""
    text: Folder | None = None
    """Run folder of the trained text encoder; <folder>/text when empty."""
    finetune: Folder | None = None
    """Run folder of the fine-tuning; <folder>/finetune when empty."""
    seed: NotNegative = 0
    """Seed of everything random (initial weights, batches, noise, bootstrap)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    mixed_precision: Precision = "auto"
    """Number format while training; auto is fp16 on a GPU (published implementation) and float32 on a CPU."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where learning curves are sent, besides metrics.jsonl."""
    save_minutes: Factor = 10.0
    """Minutes between saves within an epoch of training; after an epoch a save may come sooner."""


class DataConfig(Section):
    """Which data."""

    root: Folder = Path("data/NSD")
    """Folder in the layout that MindEye2 distributes (docs/data.md)."""
    subjects: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    """Subjects trained on, or the one reconstructed (the first)."""
    num_sessions: NotNegative = 0
    """Use the first n sessions of every subject; 0 for all."""
    holdout_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.08
    """Share of the training *images* held out to choose the checkpoint; test images are never used for it."""


class SimulationConfig(Section):
    """The simulated NSD (docs/simulation.md); defaults are the demo's size."""

    num_subjects: Positive = 1
    """How many people are simulated."""
    num_sessions: Positive = 5
    """Sessions per subject (NSD: 30-40)."""
    trials_per_session: Positive = 750
    """Presentations per session (NSD: 750)."""
    num_voxels: Positive = 2000
    """Voxels in nsdgeneral of subject 1; further subjects differ a little, as people do (NSD: 12682-17907)."""
    num_test_images: Positive = 120
    """Test images shared by all subjects, each seen three times (NSD: 1000)."""
    noise: Scale = 1.0
    """Noise as a multiple of NSD's."""
    seed: NotNegative = 0
    """Seed of pictures, brains and noise."""


class PrepareConfig(Section):
    """Scans to the working layout (docs/data.md)."""

    scans: Folder | None = None
    """Folder with the raw release of NSD, or with scans of your own under BIDS-style names."""
    kind: Literal["auto", "nsd", "own"] = "auto"
    """What it holds; auto: NSD when there is a folder nsddata or nsddata_betas in it."""
    mask: str = ""
    """Voxels that are kept. NSD: a region volume, with labels or without (prf-visualrois:1,2); own scans: a mask's label; or a NIfTI
    file. Empty for nsdgeneral, or the mask without a label."""
    order: Literal["C", "F"] = "C"
    """In which order the voxels of a mask are written: last axis of the volume fastest (C), or first (F); order.json records it."""
    betas: str = "betas_fithrf_GLMdenoise_RR"
    """Which of NSD's betas (MindEye2: GLMsingle's)."""
    coco: Folder | None = None
    """Folder with COCO's captions_train2017.json and captions_val2017.json; empty looks for <scans>/annotations."""
    captions: bool = True
    """Write captions."""
    test_images: Folder | None = None
    """Own scans: file with the test pictures, one stim_file a line; empty for the column `split` of the events, or else test_share."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Own scans: share of the pictures drawn for testing, by their names, where nothing else says which."""


class CacheConfig(Section):
    """Frozen work done once (docs/data.md)."""

    what: Annotated[tuple[Literal["image", "text", "latents"], ...], Field(min_length=1)] = ("image", "text", "latents")
    """CLIP embeddings of pictures, states of the text encoders for captions, VAE latents."""
    images: Literal["used", "all"] = "used"
    """Pictures of the subjects' trials, training and test, or every picture of the image file."""
    batch_size: Positive = 64
    """Pictures at once; a quarter of it for latents, which take more memory."""


class DoctorConfig(Section):
    """Looking at data, backbones and machine."""

    output: Literal["text", "json"] = "text"
    """What is printed: a list for people, or JSON for scripts."""
    checksums: bool = False
    """Also compare the files of a prepared folder with the checksums they were written with (reads all of them)."""


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


class RouterConfig(Section):
    """Time and space routers between the experts and the diffusion model (docs/routing.md)."""

    route_image: bool = True
    """Route the image embedding."""
    route_text: bool = True
    """Route the text embedding."""
    time: Literal["off", "fixed", "mlp", "attention"] = "attention"
    """What weighs the levels at a denoising time: nothing (all alike), a schedule, a perceptron, or attention (MoRE-Brain)."""
    time_choice: Literal["soft", "hard"] = "soft"
    """Mix the levels, or choose one (MoRE-Brain's paper compares both)."""
    time_hidden_dim: Positive = 768
    """Width of the level embeddings (published: 768)."""
    time_context: bool = False
    """Let the time router see the noisy latents (published: off)."""
    space: Literal["off", "gate_softmax", "gate_sigmoid", "gate_gumbel", "weight", "self", "cross"] = "cross"
    """What weighs the experts of a level; cross: attention from the noisy latents (MoRE-Brain's paper; its code leaves it off)."""
    space_grid: NotNegative = 0
    """Side of the grid on which 'cross' sees the latents; 0 for their own side at the training size (published: 64, at 512 px)."""
    kl_scale: Scale = 0.001
    """Weight of the pull toward coarse levels early and fine ones late (paper, eq. 5; its weight is not given)."""
    kl_sigma: Annotated[float, Field(gt=0)] = 1.0
    """Width of that Gaussian over levels, in levels (paper: 1)."""
    prior_order: Literal["output", "levels", "experts", "step"] = "output"
    """What the prior is applied to: the encoder's output (levels and experts move along), every level, every expert, all once before the
    denoising; or the routed embedding at every step (published)."""


class LoraConfig(Section):
    """Low-rank adapters of the U-Net."""

    rank: NotNegative = 16
    """Rank of every adapter, alpha the same (published: 16); 0 for none."""


class FinetuneConfig(Section):
    """Stage 2: teaching the diffusion model to listen."""

    max_train_steps: Positive = 20000
    """Optimizer steps."""
    train_batch_size: Positive = 16
    """Pictures per process and pass (published: 48-128 in all; see gradient_accumulation_steps)."""
    gradient_accumulation_steps: Positive = 3
    """Passes per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of the LoRA (published: 1e-4)."""
    router_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
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
    """Spread of a shift of the noise per channel, so that brightness is learned too (published: 0)."""
    drop_image: Share = 0.05
    """Share of pictures whose image condition is left out, for classifier-free guidance."""
    drop_text: Share = 0.05
    """The same for the text condition."""
    drop_both: Share = 0.05
    """The same for both together."""
    reads: Literal["as_held_out", "plain"] = "as_held_out"
    """What is heard of a training picture: drawn anew, as unsure as reads of held-out pictures are, or its own read (docs/routing.md)."""
    resolution: NotNegative = 0
    """Side of the training pictures in pixels; 0 for the U-Net's own size (published: 512)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments (bitsandbytes, GPU)."""
    use_ema: bool = False
    """Keep averaged weights, and validate and save those."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of that average."""
    attention: Literal["auto", "sdpa", "plain", "xformers"] = "auto"
    """Attention kernels; auto: SDPA on a GPU, plain on a CPU, where SDPA's backward pass is slow at small widths."""
    validation_steps: Positive = 500
    """Optimizer steps between looks at the held-out training images."""
    validation_images: Positive = 128
    """Held-out training images looked at, always the same with the same noise."""


class SamplerConfig(Section):
    """Reconstruction (docs/decoding.md)."""

    source: Literal["brain", "random", "ceiling"] = "brain"
    """What is read: brain activity, voxels drawn at random (baseline), or the true embeddings (ceiling)."""
    steps: Positive = 30
    """Denoising steps (published: 30-50)."""
    scheduler: Scheduler = "own"
    """Rule from step to step; own is the backbone's (SDXL: euler)."""
    negative_prompt: str = ""
    """Text that guidance leads away from (published runs: about low quality); empty for no condition at all."""
    samples: Positive = 1
    """Pictures drawn of every image; kept is the one whose CLIP embedding is nearest to the decoded one (never to the truth)."""
    guidance_scale: Annotated[float, Field(ge=1)] = 15.0
    """Classifier-free guidance (published runs: 15)."""
    ip_adapter_scale: Scale = 1.0
    """Strength of the image condition (published: 1)."""
    finetuned: Literal["auto", "yes", "no"] = "auto"
    """Draw with the LoRA and the routers of `braingen finetune`; auto: when <folder>/finetune is finished."""
    level: NotNegative | None = None
    """Listen to this level of experts only (0 is the coarsest)."""
    use_image: bool = True
    """Listen to the decoded image embedding."""
    use_text: bool = True
    """Listen to the decoded text embedding."""
    size: NotNegative = 0
    """Side of the pictures in pixels; 0 for the U-Net's own size (512 in the published runs)."""
    batch_size: Positive = 8
    """Pictures drawn at once; they do not depend on it."""
    repeats: Literal["average", "first"] = "average"
    """Average the embeddings of an image's presentations (published), or read out a single trial."""
    num_images: NotNegative = 0
    """Reconstruct only the first n test images; 0 for all."""


class DecodeConfig(Section):
    """Decoding voxels somebody brings along; how is drawn, say the settings of `sampler`."""

    voxels: str = ""
    """File of responses, z-scored: .npy, .npz, .h5 or NIfTI (docs/decoding.md)."""
    decoder: str = ""
    """Folder of a saved decoder; empty for the encoders of <folder>, with what fine-tuning taught."""
    output: str = ""
    """Where embeddings and pictures go; empty for <folder>/decoded/<name of the file>."""
    pictures: bool = True
    """Draw; without, embeddings only."""


class RefinerConfig(Section):
    """Refinement: image-to-image on finished reconstructions (docs/decoding.md)."""

    recons: str = ""
    """Folder of reconstructions to refine; empty for <folder>/reconstructions/<sampler.source>."""
    output: str = ""
    """Where refined pictures go; empty for the same name with _refined at its end."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the steps that is drawn anew (published: 0.2-0.5)."""
    denoising_start: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Instead of the strength: share of the noise schedule's time that is left out; the picture is made as noisy as belongs to it."""
    steps: Positive = 20
    """Steps of the whole way, of which strength or denoising_start leave a part."""
    scheduler: Scheduler = "own"
    """Rule from step to step; own is the refiner's."""
    guidance_scale: Annotated[float, Field(ge=1)] = 5.0
    """Classifier-free guidance (published: 5)."""
    negative_prompt: str = ""
    """Text that guidance leads away from."""
    aesthetic_score: Scale = 6.0
    """How pleasing the picture is to be, heard by SDXL's refiner only (diffusers: 6)."""
    negative_aesthetic_score: Scale = 2.5
    """The same for what guidance leads away from (diffusers: 2.5)."""
    use_image: bool = False
    """Listen to the decoded image embedding as well, through the IP-Adapter; a base model's only (published: text alone)."""
    size: NotNegative = 0
    """Side in pixels at which is refined; 0 for the reconstructions' own."""
    batch_size: Positive = 8
    """Pictures refined at once; they do not depend on it."""


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


class CurveConfig(Section):
    """How well a new person is read against sessions of data, with and without training on others before (MoRE-Brain's figure 9)."""

    pretrain_on: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3)
    """Subjects trained on before, with all their sessions; data.subjects is the new person."""
    pretrain_epochs: NotNegative = 0
    """Passes over their trials; 0 for optim.num_epochs."""
    sessions: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 10, 20, 40)
    """Sessions of the new person (paper: 1, 4, 10, 20, 40); more than there are means all."""
    ways: Annotated[tuple[Literal["routers", "subject", "all", "scratch"], ...], Field(min_length=1)] = ("routers", "all", "scratch")
    """Trained for the new person: subject layer and routers, the subject layer, everything, or everything from scratch without others."""
    modality: Literal["image", "text"] = "image"
    """Which encoder."""
    seeds: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0, 1, 2)
    """Everything is done once per seed, training on others included."""


class BottleneckConfig(Section):
    """Scores against the width of a bottleneck after the subject layer (BrainBits; MoRE-Brain's figure 4)."""

    b_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 32, 64, 128, 256, 512)
    """Widths; for the default experts at least 16."""
    seeds: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0,)
    """Every width is trained once per seed; pictures are drawn for the first one."""
    pictures: bool = False
    """Draw and score pictures too, of the image and the text encoder together; else embeddings of the image encoder alone."""


class ScoresConfig(Section):
    """Evaluation."""

    bootstrap: Positive = 2000
    """Resamples of the images for the 95 % intervals."""
    retrieval_pool: Positive = 300
    """Candidates in a retrieval; all test images when there are fewer (published: 300)."""
    retrieval_draws: Positive = 30
    """Seeded draws of the candidates (published: 30)."""
    all_recons_path: str = ""
    """Score these pictures instead of the run's own: a folder of PNGs named by image id, or an array with ids (docs/scores.md)."""
    true_images_path: str = ""
    """What was seen, of the same forms; empty takes it from MindEye2's all_images.pt near the pictures, else from the data folder."""
    method: str = "BrainGen"
    """What the pictures are called in tables and comparisons."""
    feature_weights: str = ""
    """Folder with the weights of comparison networks; empty looks in the usual caches."""
    published_networks: bool = False
    """Let the field's networks look at simulated pictures too; at photographs they always look."""
    strict: bool = False
    """A comparison network, or a word list, that is not on this machine is an error instead of a remark."""
    partial: bool = False
    """Score the images that have a picture when some have none (with all_recons_path)."""


class CompareConfig(Section):
    """Runs beside each other."""

    runs: tuple[str, ...] = ()
    """Evaluated run folders; those whose settings differ in nothing but subject and seed are one method."""
    output: Folder = Path("runs/comparison")
    """Folder of comparisons.json, comparisons.csv, summary.csv and comparison.md."""


class StudyConfig(Section):
    """People as judges (docs/study.md)."""

    study_folder: str = ""
    """Folder of the study: consent text, pages for raters, result files, analysis; empty for <run.folder>/study."""
    method_a: str = ""
    """Reconstructions that are judged: a folder of PNGs named by image id, or an array with ids; empty for the run's own."""
    method_b: str = ""
    """A second set to compare with, of any kind that method_a may be; empty for none, and then there is no preference task."""
    name_a: str = ""
    """What the first method is called in results; empty for the name of its folder. Raters never see it."""
    name_b: str = ""
    """The same for the second."""
    seen: str = ""
    """The pictures that were seen, as for method_a; empty for those of data.root."""
    tasks: Annotated[tuple[Literal["identification", "preference", "similarity"], ...], Field(min_length=1)] = (
        "identification",
        "preference",
        "similarity",
    )
    """Questions, in this order: which was seen? which method is nearer? how alike? Identification first: the others show what was seen."""
    study_images: Annotated[int, Field(ge=4)] = 40
    """Test images drawn for the study (40: 90 questions with one method, 175 with two, checks included)."""
    per_rater: NotNegative = 0
    """Images a rater is asked about in every task, drawn for each rater; 0 for all."""
    checks: Annotated[int, Field(ge=2)] = 5
    """Attention checks in every task: trials whose answer is obvious."""
    failed_checks: NotNegative = 1
    """Attention checks a rater may fail in all; with more the rater is excluded."""
    picture_side: NotNegative = 0
    """Side of the pictures in pixels, the same for all; 0 for the largest there is, at most 512."""
    draft: bool = False
    """Build although the consent text is not filled in, to try the study out; pages and results say so."""
    raters: Positive = 5
    """Simulated raters of `study simulate`."""
    lapse: Share = 0.1
    """Share of the trials that a simulated rater answers at random."""
    eyes: Literal["pixels", "judge"] = "pixels"
    """What a simulated rater compares: pixels, or the judge's late features (simulated pictures)."""


class ExplainConfig(Section):
    """Looking inside a decoder (docs/explain.md)."""

    explain_steps: tuple[Literal["attributions", "experts", "components", "saliency", "ablation", "routers", "page"], ...] = (
        "attributions",
        "experts",
        "components",
        "saliency",
        "ablation",
        "routers",
        "page",
    )
    """What to do, in this order; components and saliency take up finished attributions. Finished maps are never computed again."""
    modality: Literal["image", "text"] = "image"
    """Whose decoding is explained: the image encoder's or the text encoder's."""
    about: str = "target"
    """What is explained: target (length along the true embedding), cosine (with it), embedding (length along what was decoded), label (the
    image's own class), label:NAME (one class for all images), caption (the image's first) or caption:TEXT (text encoder only)."""
    parts: tuple[str, ...] = ("all",)
    """Who is explained: all, whole, levels, experts, or names such as level-0 and level-3-expert-5."""
    method: Literal["integrated_gradients", "gradient_shap"] = "integrated_gradients"
    """integrated_gradients: from zero, every voxel's mean; gradient_shap: from responses to training images (MoRE-Brain's paper)."""
    points: Positive = 64
    """Points between baseline and image (integrated gradients; encoders bend sharply near zero), or draws (GradientSHAP)."""
    baselines: Positive = 128
    """Training images whose responses are GradientSHAP's baselines."""
    explain_images: NotNegative = 0
    """Explain only the first n test images; 0 for all."""
    nifti_images: NotNegative = 0
    """Also write the maps of the first n images as NIfTI, one file each."""
    labels: str = ""
    """CSV with a column image and one per kind of label (several labels of an image joined by ;); simulated images have theirs without."""
    grouping: str = "supercategory"
    """Kind of label that categories mean: a column of labels; simulated: supercategory, object, colour, background or position."""
    atlases: tuple[Folder, ...] = ()
    """Atlas or ROI volumes (NIfTI, whole numbers) in the subject's functional space; the data folder's own are always used."""
    surface: tuple[str, ...] = ()
    """Surfaces for figures: meshes in the subject's space (GIFTI, FreeSurfer), or fsaverage5 where the volumes are in MNI space."""
    field_of_view: Annotated[float, Field(gt=0)] = 8.4
    """Width of the picture in degrees of visual angle (NSD: 8.4)."""
    components: Positive = 32
    """Independent components of the maps (MoRE-Brain's paper: 32); at most a quarter of the images are found."""
    permutations: Positive = 2000
    """Random exchanges of images behind the p values of expert profiles."""
    draws: Positive = 20
    """Times that as many random voxels are silenced as a region has."""


class Config(Section):
    """All settings."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    simulation: SimulationConfig = SimulationConfig()
    prepare: PrepareConfig = PrepareConfig()
    cache: CacheConfig = CacheConfig()
    doctor: DoctorConfig = DoctorConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
    prior: PriorConfig = PriorConfig()
    loss_image: LossConfig = LossConfig()
    loss_text: LossConfig = LossConfig(clip_scale=0.9, prior_scale=0.1, prior_clip_scale=0.1, temp_coeff=10.0, mixup_pct=0.0)
    optim: OptimConfig = OptimConfig()
    router: RouterConfig = RouterConfig()
    lora: LoraConfig = LoraConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sampler: SamplerConfig = SamplerConfig()
    refiner: RefinerConfig = RefinerConfig()
    decode: DecodeConfig = DecodeConfig()
    scores: ScoresConfig = ScoresConfig()
    compare: CompareConfig = CompareConfig()
    curve: CurveConfig = CurveConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    study: StudyConfig = StudyConfig()
    explain: ExplainConfig = ExplainConfig()
    published: PublishedConfig = PublishedConfig()


ALIASES = {
    "model_name": "run.folder",
    "data_path": "data.root",
    "subj": "data.subjects",
    "multi_subject": "data.subjects",
    "num_sessions": "data.num_sessions",
    "seed": "run.seed",
    "model_name_image": "run.image",
    "model_name_text": "run.text",
    "lr": "optim.max_lr",
    "batch_size": "optim.batch_size",
    "guidance_scale": "sampler.guidance_scale",
    "num_inference_steps": "sampler.steps",
    "num_steps": "sampler.steps",
    "steps": "sampler.steps",
    "size": "sampler.size",
    "scheduler": "sampler.scheduler",
    "use_image": "sampler.use_image",
    "negative_prompt": "sampler.negative_prompt",
    "blurry_recon": "encoder.low_level",
    "multisubject_ckpt": "optim.start_from",
    "capacity_factor": "encoder.capacity_factor_0",
}
"""Flags people know from MindEye2 and MoRE-Brain whose field has another name or whose name stands in several sections."""


def field_paths() -> list[str]:
    """Every setting as ``section.field``, in the order of the tree."""
    return [
        f"{section}.{name}"
        for section, info in Config.model_fields.items()
        for name in info.annotation.model_fields  # type: ignore[union-attr]
    ]


def resolve(name: str) -> str:
    """Find the setting that a name on the command line means.

    Parameters
    ----------
    name : ``section.field``, a field whose name stands in one section only, or a known flag, without dashes

    Raises
    ------
    UserError
        When it is none of these; the message names the nearest.
    """
    paths = field_paths()
    if name in paths:
        return name
    name = name.replace("-", "_")
    if name in ALIASES:
        return ALIASES[name]
    matches = [path for path in paths if path == name or path.split(".")[1] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"--{name} could mean {' or '.join(matches)}: write one of them, for instance {matches[0]}=VALUE.")
    known = {path: path for path in paths} | {path.split(".")[1]: path for path in paths} | ALIASES
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "`braingen settings` lists all settings."
    raise UserError(f"There is no setting '{name}'. {hint}")


def _parse(path: str, text: str) -> Any:
    section, name = path.split(".")
    annotation = str(Config.model_fields[section].annotation.model_fields[name].annotation)  # type: ignore[union-attr]
    if annotation.startswith("tuple"):  # lists on the command line: 2,2,2
        return [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]  # folders may have blanks in their names
    return text  # numbers and switches are read by the field's own type, so a folder may be called 2024 and a precision no


def load_config(file: Path | None = None, overrides: dict[str, str] | None = None) -> Config:
    """Read a YAML file and apply overrides.

    Parameters
    ----------
    file : YAML of the tree's shape; None for the defaults
    overrides : setting -> text, as typed on the command line; names as :func:`resolve` takes them

    Raises
    ------
    UserError
        For a missing file, broken YAML, an unknown setting or a value that is not allowed.
    """
    tree: dict[str, dict[str, Any]] = {}
    if file is not None:
        if not file.is_file():
            found = ", ".join(sorted(str(path) for path in Path("configs").glob("*.yaml"))) or "none here"
            raise UserError(f"There is no config file {file}. Configs beside you: {found}.")
        tree = _read_tree(file)
    for name, text in (overrides or {}).items():
        path = resolve(name)
        section, field = path.split(".")
        tree.setdefault(section, {})[field] = _parse(path, text)
    # section by section, since loss_text and loss_image share a class and not its defaults
    defaults: dict[str, dict[str, Any]] = Config().model_dump()
    start = tree.get("optim", {}).get("start_from")
    for taken, fields in (_architecture_of(Path(str(start)).expanduser()) if start else {}).items():
        defaults[taken] = {**defaults[taken], **fields}
    try:
        return Config.model_validate({**defaults, **{name: {**defaults.get(name, {}), **section} for name, section in tree.items()}})
    except ValidationError as error:
        raise UserError(_explain(error, file, {resolve(name) for name in overrides or {}})) from error


def _architecture_of(run: Path) -> dict[str, dict[str, Any]]:
    """What a run that starts from another one takes over from it: backbone, encoder, prior and losses, from its config.yaml."""
    found: dict[str, dict[str, Any]] = {}
    for file in (run / "config.yaml", run / "image" / "config.yaml", run / "text" / "config.yaml"):
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found |= {name: tree[name] for name in ("backbone", "encoder", "prior", "loss_image", "loss_text") if name in tree}
    return found


def _read_tree(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict | None) or any(not isinstance(section, dict | None) for section in (tree or {}).values()):
        raise UserError(
            f"{file} is not of the form 'section:' with indented 'name: value' lines below; configs/simulated.yaml is an example."
        )
    return {str(name): {str(field): value for field, value in (section or {}).items()} for name, section in (tree or {}).items()}


def _explain(error: ValidationError, file: Path | None, overridden: set[str]) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    typed = any(path == name or path.startswith(f"{name}.") for name in overridden)
    origin = f" (in {file})" if file and not typed else ""
    if first["type"] == "extra_forbidden":
        paths = field_paths() + list(Config.model_fields)
        near = difflib.get_close_matches(path, paths, n=1, cutoff=0.4)
        return f"There is no setting '{path}'{origin}." + (f" Did you mean {near[0]}?" if near else "")
    return f"{path} = {str(first['input']) or 'nothing'}{origin} is not allowed: {first['msg'][:1].lower() + first['msg'][1:]}."


def save_config(config: Config, file: Path) -> None:
    """Write a config so that :func:`load_config` reads the same one back."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
