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
# YAML reads a bare `no` as false
Precision = Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class RunConfig(Section):
    """Where results go and how the machine is used."""

    folder: Folder = Path("runs/demo")
    """Folder of everything a run writes."""
    seed: NotNegative = 0
    """Seed of everything random (initial weights, batches, noise, bootstrap)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    mixed_precision: Precision = "auto"
    """Number format while training; auto is fp16 on a GPU (published implementation) and float32 on a CPU."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where learning curves are sent, besides metrics.jsonl."""


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


class BackboneConfig(Section):
    """The frozen models that see and draw."""

    path: str = "tiny"
    """'tiny' (shipped), a folder in the layout of an SDXL pipeline, or a hub name such as stabilityai/stable-diffusion-xl-base-1.0."""
    image_encoder: str = ""
    """CLIP whose image embeddings are decoded: folder or hub name; empty for <path>/image_encoder."""
    ip_adapter: str = ""
    """IP-Adapter: a safetensors file, or a folder or hub name with sdxl_models/ip-adapter_sdxl.safetensors; empty for <path>/ip_adapter."""
    image_output: Literal["pooled", "tokens", "both"] = "pooled"
    """What of the image is decoded: CLIP's pooled embedding (MoRE-Brain), its patch tokens (MindEye2: 256), or both."""
    image_projected: bool = True
    """Decode image embeddings after CLIP's projection (MoRE-Brain: yes; MindEye2's tokens: no)."""
    text_output: Literal["bigG", "L", "joint"] = "bigG"
    """Which text encoder of SDXL is decoded: the second (MoRE-Brain), the first, or both side by side."""
    text_tokens: Literal["eos", "all"] = "eos"
    """Which tokens of a caption: the end-of-sequence token (MoRE-Brain) or all of them (77)."""


class EncoderConfig(Section):
    """Voxels to CLIP space (METHOD section 2)."""

    model: Literal["BrainMoEMulti", "BrainMoE", "BrainMoEHier", "BrainEncoder"] = "BrainMoEMulti"
    """Which encoder; BrainMoEMulti is MoRE-Brain's."""
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
    trunk: Literal["working", "published"] = "working"
    """working: residual MLP; published: the wiring whose blocks have no effect with one token."""
    head: Literal["projector", "linear"] = "projector"
    """Projection of an expert's output: the published three-layer projector, or one linear map (a fraction of the parameters)."""
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
    """Weights of the objective's terms (METHOD section 2)."""

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


class SamplerConfig(Section):
    """Reconstruction (METHOD section 4)."""

    source: Literal["brain", "random", "ceiling"] = "brain"
    """What is read: brain activity, voxels drawn at random (baseline), or the true embeddings (ceiling)."""
    steps: Positive = 30
    """Denoising steps (published: 30-50)."""
    guidance_scale: Annotated[float, Field(ge=1)] = 15.0
    """Classifier-free guidance (published runs: 15)."""
    ip_adapter_scale: Scale = 1.0
    """Strength of the image condition (published: 1)."""
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


class ScoresConfig(Section):
    """Evaluation."""

    bootstrap: Positive = 2000
    """Resamples of the images for the 95 % intervals."""
    retrieval_pool: Positive = 300
    """Candidates in a retrieval; all test images when there are fewer (published: 300)."""
    retrieval_draws: Positive = 30
    """Seeded draws of the candidates (published: 30)."""


class Config(Section):
    """All settings."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    simulation: SimulationConfig = SimulationConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
    prior: PriorConfig = PriorConfig()
    loss_image: LossConfig = LossConfig()
    loss_text: LossConfig = LossConfig(clip_scale=0.9, prior_scale=0.1, prior_clip_scale=0.1, temp_coeff=10.0, mixup_pct=0.0)
    optim: OptimConfig = OptimConfig()
    sampler: SamplerConfig = SamplerConfig()
    scores: ScoresConfig = ScoresConfig()


ALIASES = {
    "model_name": "run.folder",
    "data_path": "data.root",
    "subj": "data.subjects",
    "multi_subject": "data.subjects",
    "num_sessions": "data.num_sessions",
    "seed": "run.seed",
    "lr": "optim.max_lr",
    "batch_size": "optim.batch_size",
    "guidance_scale": "sampler.guidance_scale",
    "num_inference_steps": "sampler.steps",
    "num_steps": "sampler.steps",
    "blurry_recon": "encoder.low_level",
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
        return [part for part in text.strip("[]() ").replace(" ", "").split(",") if part]
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
    defaults = Config().model_dump()  # section by section, since loss_text and loss_image share a class and not its defaults
    try:
        return Config.model_validate({**defaults, **{name: {**defaults.get(name, {}), **section} for name, section in tree.items()}})
    except ValidationError as error:
        raise UserError(_explain(error, file, {resolve(name) for name in overrides or {}})) from error


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
