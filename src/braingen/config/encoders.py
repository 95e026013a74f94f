"""Settings of the encoders: one class per encoder, discriminated by ``encoder.model``; none has a
setting that it does not read.

A class here registers its encoder (docs/extending.md). Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
import math
import operator
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from braingen.config.effect import Needs
from braingen.config.values import Factor, NotNegative, Positive, Section, Share

ENCODER_CONFIGS: dict[str, type[AnyEncoder]] = {}
"""The settings of every encoder, by the name that stands in ``encoder.model``."""


class CaptionTarget(NamedTuple):
    """What an encoder of captions decodes."""

    output: str
    """``backbone.text_output``."""
    widths: Sequence[int]
    """D of the text encoders that are decoded, in order; one that is not decoded may be of any
    width.
    """


class AnyEncoder(Section):
    """What every encoder has.

    A subclass whose ``model`` has a default, the name of an encoder, is registered under it.

    Raises
    ------
    TypeError
        For a class that does not say ``where`` its encoder is, or whose name is taken.
    """

    where: ClassVar[str] = ""
    """The encoder's class, ``module:Class``, a subclass of braingen.encoders.base.Encoder."""
    mixture: ClassVar[bool] = True
    """Whether it has experts, whose use is balanced in training."""
    published_head: ClassVar[str] = ""
    """``head`` of the published layout; empty for an encoder that was not published."""
    optional_parts: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Setting that adds a part -> the part in words; for the tables of ``braingen summary``."""
    without_target: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """Modality -> settings whose parts exist for published checkpoints only: stage 1 has no target
    for them.
    """
    reads_caption_widths: ClassVar[bool] = False
    """Whether its layout for captions depends on which text encoders are decoded."""
    model: str = ""
    """Which encoder."""
    hidden_dim: Positive = 4096
    """Shared width H after the subject layer (published: 4096)."""
    dropout: Share = 0.15
    """Dropout inside blocks (published: 0.15)."""
    voxel_dropout: Share = 0.0
    """Dropout on voxels (published: none)."""

    @property
    def experts(self) -> tuple[int, ...]:
        """Experts of every level, coarse to fine; (1,) for an encoder without any."""
        return (1,)

    @property
    def starts_from_responses(self) -> bool:
        """Whether the encoder is initialised from training trials (``Encoder.init_from``)."""
        return False

    @property
    def tuning_width(self) -> int:
        """Dimensions of voxels' tuning, where the encoder is initialised from encoding models of
        the training trials (``init_from_tuning``); else 0.
        """
        return 0

    @property
    def kept_per_trial(self) -> int:
        """About how many numbers a training step keeps of every trial, for doctor's estimate."""
        return self.hidden_dim * 4

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """The settings as arguments of the encoder's constructor, all but sizes of data and
        target.

        Parameters
        ----------
        captions : CaptionTarget | None, optional
            What is decoded of captions; None for images.
        """
        return self.model_dump(exclude={"model"})

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the settings of an encoder."""
        name = cls.model_fields["model"].default
        if not name or "model" not in cls.__annotations__:
            return
        if not cls.where:
            raise TypeError(
                f"{cls.__name__} does not say where its encoder is: add"
                f' where: ClassVar[str] = "braingen.encoders.FILE:{name}".'
            )
        if name in ENCODER_CONFIGS:
            raise TypeError(
                f"There are two encoders with the name {name}: give {cls.__name__} another."
            )
        ENCODER_CONFIGS[name] = cls


class WithTrunks(AnyEncoder):
    """Encoders of residual blocks and projection heads."""

    n_blocks: Positive = 4
    """Residual blocks of an expert of the first level (published: 4)."""
    trunk: Literal["residual", "published"] = "residual"
    """residual: residual MLP; published: the wiring whose blocks have no effect with one token."""
    head: Literal["projector", "linear"] = "linear"
    """Projection of an expert's output: one linear map, or the published three-layer projector
    (docs/models.md: 2.6 x the parameters).
    """

    @property
    def kept_per_trial(self) -> int:
        """Of every block."""
        return self.hidden_dim * self.n_blocks * 4


class WithBottleneck(WithTrunks):
    """Encoders whose subject layer may be followed by a bottleneck."""

    bottleneck_dim: Annotated[
        int, Field(ge=0), BeforeValidator(lambda value: 0 if str(value).strip() == "-1" else value)
    ] = 0
    """Width of a bottleneck after the subject layer, for the bottleneck analysis (BrainBits); 0 (or
    the published -1) for none.
    """


class WithUnitRouters(WithBottleneck):
    """Mixtures whose routers assign units to experts."""

    capacity_factor_0: Annotated[float, Field(gt=0)] = 1.0
    """Units an expert reads, as a multiple of an even share (published: 1)."""
    routing: Literal["static", "expert_choice"] = "static"
    """static: an expert reads the same units every trial (ours); expert_choice: the published
    router, by activation.
    """
    activation_term: Annotated[bool, Needs("routing", "static")] = False
    """Static routing: let the activation modulate the weight of a unit (ours; off keeps weights
    the same in every trial).
    """
    token_order: Annotated[
        Literal["index", "gpu", "value", "native"], Needs("routing", "expert_choice")
    ] = "index"
    """Expert-choice routing: order of an expert's units; gpu for published weights, which were
    trained on GPUs (docs/models.md).
    """


class BrainMoEMultiConfig(WithUnitRouters):
    """Voxels to CLIP space (docs/models.md)."""

    where: ClassVar[str] = "braingen.encoders.moe:BrainMoEMulti"
    published_head: ClassVar[str] = "projector"
    model: Literal["BrainMoEMulti"] = "BrainMoEMulti"
    """Which encoder; BrainMoEMulti is MoRE-Brain's, BrainMoEVoxel routes voxels instead of units
    (docs/interpret.md).
    """
    num_exp_0: Positive = 2
    """Experts of the first level (published: 2)."""
    exp_factor_list: tuple[Positive, ...] = (2, 2, 2)
    """Into how many each expert splits, level by level (published: 2,2,2)."""
    cap_fac_list: tuple[Factor, ...] = ()
    """Capacity factors of the levels after the first; empty for 1 (published: 1,1,1)."""
    level_combine: Literal["sum", "mean"] = "sum"
    """Output of a level of experts: their sum (published implementation) or mean (MoRE-Brain's
    paper).
    """

    @property
    def experts(self) -> tuple[int, ...]:
        """Of levels that split and split again."""
        return splitting(self.num_exp_0, self.exp_factor_list)

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """Without capacity factors, every later level has 1."""
        return super().arguments(captions) | {"cap_fac_list": list(self.cap_fac_list) or None}


class BrainMoEConfig(WithUnitRouters):
    """One level of experts."""

    where: ClassVar[str] = "braingen.encoders.moe:BrainMoE"
    published_head: ClassVar[str] = "linear"
    optional_parts: ClassVar[Mapping[str, str]] = MappingProxyType({"meta": "meta expert"})
    model: Literal["BrainMoE"] = "BrainMoE"
    num_exp: NotNegative = 0
    """BrainMoE: its experts (published: 16); 0 for as many as the last level of
    BrainMoEMulti has.
    """
    num_exp_0: Annotated[Positive, Needs("num_exp", 0)] = 2
    """Experts of the first level (published: 2)."""
    exp_factor_list: Annotated[tuple[Positive, ...], Needs("num_exp", 0)] = (2, 2, 2)
    """Into how many each expert splits, level by level (published: 2,2,2)."""
    level_combine: Literal["sum", "mean"] = "sum"
    """Output of a level of experts: their sum (published implementation) or mean (MoRE-Brain's
    paper).
    """
    meta: bool = False
    """BrainMoE, BrainMoEHier: one more expert that reads all units (published: none)."""

    @property
    def experts(self) -> tuple[int, ...]:
        """Of the only level."""
        return (self.num_exp or splitting(self.num_exp_0, self.exp_factor_list)[-1],)

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """Under the names of an encoder with one level."""
        own = self.model_dump(
            exclude={"model", "num_exp_0", "exp_factor_list", "capacity_factor_0"}
        )
        return own | {"num_exp": self.experts[0], "capacity_factor": self.capacity_factor_0}


class BrainMoEHierConfig(WithUnitRouters):
    """Levels of experts side by side."""

    where: ClassVar[str] = "braingen.encoders.moe:BrainMoEHier"
    published_head: ClassVar[str] = "linear"
    optional_parts: ClassVar[Mapping[str, str]] = MappingProxyType({"meta": "meta expert"})
    model: Literal["BrainMoEHier"] = "BrainMoEHier"
    capacity_factor_0: Annotated[float, Field(gt=0), Needs("capacity_factors", ())] = 1.0
    """Units an expert reads, as a multiple of an even share (published: 1)."""
    num_exps: tuple[Positive, ...] = ()
    """BrainMoEHier: experts level by level (published: 4,8,16,32); empty for as many as the levels
    of BrainMoEMulti have.
    """
    num_exp_0: Annotated[Positive, Needs("num_exps", ())] = 2
    """Experts of the first level (published: 2)."""
    exp_factor_list: Annotated[tuple[Positive, ...], Needs("num_exps", ())] = (2, 2, 2)
    """Into how many each expert splits, level by level (published: 2,2,2)."""
    capacity_factors: tuple[Factor, ...] = ()
    """BrainMoEHier: capacity factors level by level; empty for capacity_factor_0 everywhere."""
    meta: bool = False
    """BrainMoE, BrainMoEHier: one more expert that reads all units (published: none)."""

    @property
    def experts(self) -> tuple[int, ...]:
        """Of levels side by side."""
        return self.num_exps or splitting(self.num_exp_0, self.exp_factor_list)

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """With a number for every level."""
        own = self.model_dump(
            exclude={"model", "num_exp_0", "exp_factor_list", "capacity_factor_0"}
        )
        capacities = self.capacity_factors or (self.capacity_factor_0,) * len(self.experts)
        return own | {"num_exps": list(self.experts), "capacity_factors": list(capacities)}


class BrainMoEVoxelConfig(WithTrunks):
    """Experts that are parcels of cortex."""

    where: ClassVar[str] = "braingen.encoders.moe_voxel:BrainMoEVoxel"
    model: Literal["BrainMoEVoxel"] = "BrainMoEVoxel"
    num_exp_0: Positive = 2
    """Experts of the first level (published: 2)."""
    exp_factor_list: tuple[Positive, ...] = (2, 2, 2)
    """Into how many each expert splits, level by level (published: 2,2,2)."""
    level_combine: Literal["sum", "mean"] = "sum"
    """Output of a level of experts: their sum (published implementation) or mean (MoRE-Brain's
    paper).
    """
    parcel_init: Literal["responses", "random"] = "responses"
    """BrainMoEVoxel only: parcels start with voxels whose responses go together, or at random
    (docs/interpret.md).
    """

    @property
    def starts_from_responses(self) -> bool:
        """Parcels of voxels whose responses go together."""
        return self.parcel_init == "responses"

    @property
    def experts(self) -> tuple[int, ...]:
        """Of the tree of parcels."""
        return splitting(self.num_exp_0, self.exp_factor_list)

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """Where parcels start is decided outside the encoder."""
        return self.model_dump(exclude={"model", "parcel_init"})


class BrainMoERegionsConfig(AnyEncoder):
    """Experts that are groups of voxels with the same tuning, the same in every person."""

    where: ClassVar[str] = "braingen.encoders.moe_regions:BrainMoERegions"
    model: Literal["BrainMoERegions"] = "BrainMoERegions"
    hidden_dim: Positive = 512
    """Width of an expert."""
    n_blocks: NotNegative = 2
    """Blocks of attention among experts."""
    heads: Positive = 8
    """Heads of attention."""
    groups: tuple[Positive, ...] = (2, 4, 8, 16)
    """Experts level by level, coarse to fine; those of coarser levels are unions of the finest."""
    tuning_dim: Positive = 64
    """Numbers that describe what drives a voxel, all that a person owns beside a precision per
    voxel.
    """

    @property
    def experts(self) -> tuple[int, ...]:
        """Of the tree of groups."""
        return self.groups

    @property
    def tuning_width(self) -> int:
        """From encoding models of the training trials."""
        return self.tuning_dim

    @property
    def kept_per_trial(self) -> int:
        """Of every block and expert."""
        return self.hidden_dim * (1 + sum(self.groups)) * (8 * self.n_blocks + 4)


class BrainEncoderConfig(WithBottleneck):
    """The dense encoder."""

    where: ClassVar[str] = "braingen.encoders.dense:BrainEncoder"
    mixture: ClassVar[bool] = False
    published_head: ClassVar[str] = "projector"
    optional_parts: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"low_level": "low-level branch"}
    )
    without_target: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"image": ("low_level", "interm_out"), "text": ("train_pool",)}
    )
    reads_caption_widths: ClassVar[bool] = True
    model: Literal["BrainEncoder"] = "BrainEncoder"
    fusion: Annotated[
        Literal["none", "early", "mid", "late"], Needs("backbone.text_output", "joint")
    ] = "none"
    """BrainEncoder on captions with backbone.text_output=joint: where the two text trunks are
    joined (published: none).
    """
    low_level: bool = False
    """BrainEncoder on images: MindEye2's low-level branch, for its checkpoints; stage 1 does not
    train it.
    """
    interm_out: bool = False
    """BrainEncoder on images: projection heads after every block but the last, for checkpoints;
    stage 1 does not train them.
    """
    train_pool: Annotated[bool, Needs("backbone.text_output", "bigG", "joint")] = False
    """BrainEncoder on captions: also predict the pooled embedding, for checkpoints; stage 1 does
    not train it.
    """

    def arguments(self, captions: CaptionTarget | None = None) -> dict[str, Any]:
        """Of images, or of one or two text encoders."""
        if captions is None:
            return self.model_dump(exclude={"model", "fusion", "train_pool"})
        widths = captions.widths
        return self.model_dump(exclude={"model", "low_level", "interm_out"}) | {
            "text_output": captions.output,
            "text_emb_dims": list(widths) if len(widths) == 2 else [widths[0]] * 2,
        }


def splitting(first: int, factors: Sequence[int]) -> tuple[int, ...]:
    """Experts of levels whose experts split: 2 and (2, 2) are 2, 4 and 8."""
    return tuple(math.prod((first, *factors[:depth])) for depth in range(len(factors) + 1))


def settings_for(model: str, other: AnyEncoder, **changes: Any) -> AnyEncoder:
    """The settings of an encoder, those that another one shares taken from it."""
    known = ENCODER_CONFIGS[model].model_fields
    shared = {
        name: getattr(other, name)
        for name in other.model_fields_set
        if name in known and name != "model"
    }
    return ENCODER_CONFIGS[model](**{**shared, **changes})


MIXTURES = tuple(name for name, settings in ENCODER_CONFIGS.items() if settings.mixture)
"""Encoders with experts."""
DEFAULT_ENCODER = "BrainMoEMulti"


def chosen_encoder(settings: Any) -> str:
    """The encoder that settings are of; the default one where they do not say."""
    if isinstance(settings, dict):
        return str(settings.get("model", DEFAULT_ENCODER))
    return str(getattr(settings, "model", DEFAULT_ENCODER))


if TYPE_CHECKING:
    EncoderConfig: TypeAlias = AnyEncoder
else:
    _tagged = (Annotated[settings, Tag(name)] for name, settings in ENCODER_CONFIGS.items())
    EncoderConfig = Annotated[reduce(operator.or_, _tagged), Discriminator(chosen_encoder)]
    """The settings of one encoder."""
