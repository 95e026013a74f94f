"""Published checkpoints' names for our encoders' weights (tests/parity/data/README.md, 'Keys';
MindEye2's and MoRE-Brain's are alike).

The published code keeps experts as lists of modules; ours are stacked. A published tensor is
therefore one of ours, or a slice of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from braingen.encoders.dense import BrainEncoder, ImageBackbone, TextBackbone
from braingen.encoders.experts import ExpertHeads, MixerTrunk, Projector, ResidualTrunk
from braingen.encoders.moe import BrainMoE, BrainMoEHier, BrainMoEMulti

Place = tuple[str, tuple[int, ...]]
"""Our parameter and the index of the slice within it (empty for the whole)."""
Pairs = Iterator[tuple[str, Place]]


class LoadReport(NamedTuple):
    """What became of a published state dict."""

    missing: list[str]
    """Published names that our model has a place for and the state dict lacks."""
    unexpected: list[str]
    """Names in the state dict that our model has no place for."""
    other_shape: list[str]
    """Name, shape found and shape needed."""

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.other_shape)


def _both(published: str, ours: str, *index: int) -> Pairs:
    for kind in ("weight", "bias"):
        yield f"{published}.{kind}", (f"{ours}.{kind}", index)


def _mlp(published: str, ours: str, expert: int) -> Pairs:
    """Norm, linear, GELU, dropout, linear: the published code nests the last four."""
    for theirs, place in (("0", 0), ("1.0", 1), ("1.3", 4)):
        yield from _both(f"{published}.{theirs}", f"{ours}.{place}", expert)


def _trunk(published: str, ours: str, trunk: nn.Module, expert: int) -> Pairs:
    """A working trunk's blocks stand where the published width blocks stand; it has no token
    blocks.
    """
    if isinstance(trunk, ResidualTrunk):
        for place in range(len(trunk.blocks)):
            yield from _mlp(f"{published}mixer_blocks1.{place}", f"{ours}.blocks.{place}", expert)
        return
    assert isinstance(trunk, MixerTrunk)
    for place in range(len(trunk.width_blocks)):
        yield from _mlp(f"{published}mixer_blocks1.{place}", f"{ours}.width_blocks.{place}", expert)
        yield from _mlp(f"{published}mixer_blocks2.{place}", f"{ours}.token_blocks.{place}", expert)


def _head(published: str, ours: str, head: nn.Module, expert: int) -> Pairs:
    if isinstance(head, Projector):
        for place in (0, 2, 3, 5, 6, 8):
            yield from _both(f"{published}.{place}", f"{ours}.{place}", expert)
    else:
        yield from _both(published, ours, expert)


def _heads(backbone: str, clip: str, ours: str, heads: nn.Module, expert: int) -> Pairs:
    assert isinstance(heads, ExpertHeads)
    yield from _both(backbone, f"{ours}.backbone", expert)
    yield from _head(clip, f"{ours}.clip", heads.clip, expert)


def _image_backbone(published: str, ours: str, backbone: ImageBackbone) -> Pairs:
    yield from _trunk(published, f"{ours}trunk", backbone.trunk, 0)
    yield from _heads(
        f"{published}backbone_linear", f"{published}clip_proj", f"{ours}heads", backbone.heads, 0
    )
    for place, heads in enumerate(backbone.intermediate):
        yield from _heads(
            f"{published}interm_linear.{place}",
            f"{published}clip_proj_interm.{place}",
            f"{ours}intermediate.{place}",
            heads,
            0,
        )
    if backbone.low_level is not None:
        names = {
            "blin1": "linear",
            "bnorm": "norm",
            "bupsampler": "decoder",
            "b_maps_projector": "auxiliary",
        }
        for theirs, mine in names.items():
            for name, _ in getattr(backbone.low_level, mine).named_parameters():
                yield f"{published}{theirs}.{name}", (f"{ours}low_level.{mine}.{name}", ())


def _text_backbone(published: str, ours: str, backbone: TextBackbone) -> Pairs:
    for name, trunk in backbone.trunks.items():
        yield from _trunk(f"{published}bn_{name}.", f"{ours}trunks.{name}", trunk, 0)
        heads = backbone.heads[name]
        yield from _heads(
            f"{published}backbone_linear_{name}",
            f"{published}clip_proj_{name}",
            f"{ours}heads.{name}",
            heads,
            0,
        )
    if backbone.pool is not None:
        yield from _both(f"{published}pool_attn", f"{ours}pool")
    for place in range(len(backbone.fusion_linears)):
        suffix = "" if backbone.fusion == "late" else f".{place}"
        yield from _both(f"{published}fusion_linears{suffix}", f"{ours}fusion_linears.{place}")


def _one_level(published: str, ours: str, level: Any) -> Pairs:
    """Experts that are whole backbones."""
    for expert in range(level.heads.backbone.weight.shape[0]):
        prefix = f"{published}.{expert}."
        yield from _trunk(prefix, f"{ours}.trunk", level.trunk, expert)
        yield from _heads(
            f"{prefix}backbone_linear", f"{prefix}clip_proj", f"{ours}.heads", level.heads, expert
        )


def _meta(model: Any) -> Pairs:
    if model.meta_expert is not None:
        yield from _trunk("meta_exp.", "meta_expert.trunk", model.meta_expert.trunk, 0)
        yield from _heads(
            "meta_exp.backbone_linear",
            "meta_exp.clip_proj",
            "meta_expert.heads",
            model.meta_expert.heads,
            0,
        )


def _multi(model: Any) -> Pairs:
    for depth, level in enumerate(model.levels):
        parents = level.router.weight.shape[0]
        for parent in range(parents):
            name = "router_0" if depth == 0 else f"router_list.{depth - 1}.{parent}"
            yield f"{name}.router.weight", (f"levels.{depth}.router.weight", (parent,))
        for expert in range(level.heads.backbone.weight.shape[0]):
            ours = f"levels.{depth}"
            if depth == 0:
                yield from _trunk(f"experts_0.{expert}.", f"{ours}.trunk", level.trunk, expert)
                yield from _heads(
                    f"backbone_proj_0.{expert}",
                    f"clip_proj_0.{expert}",
                    f"{ours}.heads",
                    level.heads,
                    expert,
                )
                continue
            place = f"{depth - 1}.{expert}"
            yield from _both(f"expert_list.{place}", f"{ours}.trunk", expert)
            yield from _heads(
                f"b_proj_list.{place}", f"c_proj_list.{place}", f"{ours}.heads", level.heads, expert
            )


def _encoder(model: Any) -> Pairs:
    for place, subject in enumerate(model.subject_layer.linears):
        yield from _both(f"ridge.linears.{place}", f"subject_layer.linears.{subject}")
    if model.bottleneck is not None:
        yield from _both("bottleneck.ln", "bottleneck")
    if isinstance(model, BrainEncoder):
        yield from _backbone("backbone.", "backbone.", model.backbone)
    elif isinstance(model, BrainMoEMulti):
        yield from _multi(model)
    elif isinstance(model, BrainMoE):
        yield "expert_router.router.weight", ("level.router.weight", (0,))
        yield from _one_level("experts", "level", model.level)
        yield from _meta(model)
    elif isinstance(model, BrainMoEHier):
        for depth, level in enumerate(model.levels):
            yield f"expert_routers.{depth}.router.weight", (f"levels.{depth}.router.weight", (0,))
            yield from _one_level(f"experts.{depth}", f"levels.{depth}", level)
            yield f"back_router.{depth}.router", (f"mixes.{depth}.backbone", ())
            yield f"clip_router.{depth}.router", (f"mixes.{depth}.clip", ())
        yield from _meta(model)


def _backbone(published: str, ours: str, backbone: Any) -> Pairs:
    if isinstance(backbone, ImageBackbone):
        yield from _image_backbone(published, ours, backbone)
    else:
        yield from _text_backbone(published, ours, backbone)


def published_keys(model: nn.Module) -> dict[str, Place]:
    """Published name -> where that tensor lies in our model.

    Parameters
    ----------
    model : nn.Module
        An encoder of :mod:`braingen.encoders` with ``routing: expert_choice``, or a
        backbone alone. Names of settings that the published code does not have (a working trunk)
        are those of the nearest published part; affinities have none.
    """
    pairs = (
        _backbone("", "", model)
        if isinstance(model, ImageBackbone | TextBackbone)
        else _encoder(model)
    )
    return dict(pairs)


def load_published(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy a published state dict into our model; what does not fit is reported, and left as it
    was.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        Published name -> tensor.
    """
    parameters = dict(model.named_parameters())
    keys = published_keys(model)
    other_shape = []
    with torch.no_grad():
        for name in keys.keys() & state.keys():
            ours, index = keys[name]
            target = parameters[ours][index] if index else parameters[ours]
            if target.shape != state[name].shape:
                other_shape.append(
                    f"{name}: {tuple(state[name].shape)} instead of {tuple(target.shape)}"
                )
            else:
                target.copy_(state[name])
    return LoadReport(
        missing=sorted(keys.keys() - state.keys()),
        unexpected=sorted(state.keys() - keys.keys()),
        other_shape=sorted(other_shape),
    )
