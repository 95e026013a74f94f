"""Published encoders written out plainly, one torch layer per weight, from the description in
tests/parity/data/README.md.

They are the independent answer to the importer and to the stacked encoders: state_dict() has the
published names, forward is a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.autoencoders.vae import Decoder
import torch
from torch import Tensor, nn

import braingen  # noqa: F401  (before diffusers: it guards the import of torchvision)


def mlp(width: int) -> nn.Sequential:
    """Norm, then linear, GELU, dropout, linear, nested as published."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(0.15), nn.Linear(width, width)
        ),
    )


def projector(width: int, inner: int) -> nn.Sequential:
    """Norm, GELU, linear, three times."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.GELU(), nn.Linear(width, inner),
        nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, inner),
        nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, width),
    )  # fmt: skip


class Mixer(nn.Module):
    """The published trunk; heads are added where width and tokens of an output are given."""

    def __init__(
        self,
        width: int,
        blocks: int,
        tokens: int = 0,
        clip_width: int = 0,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mixer_blocks1 = nn.ModuleList(mlp(width) for _ in range(blocks))
        self.mixer_blocks2 = nn.ModuleList(mlp(1) for _ in range(blocks))
        self.tokens = tokens
        if tokens:
            self.backbone_linear = nn.Linear(width, tokens * clip_width)
            self.clip_proj = head

    def trunk(self, x: Tensor) -> Tensor:
        """B x 1 x width in and out; residuals as published: each kind of block adds to the last
        output of its own kind.
        """
        first = second = x
        for block1, block2 in zip(self.mixer_blocks1, self.mixer_blocks2):
            first = block1(x) + first
            x = second = block2(first.mT).mT + second
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return backbone and clip outputs, B x tokens x clip width."""
        backbone = self.backbone_linear(self.trunk(x).flatten(1)).unflatten(1, (self.tokens, -1))
        assert self.clip_proj is not None
        return backbone, self.clip_proj(backbone)


class Ridge(nn.Module):
    """A linear map per subject, by place in the list."""

    def __init__(self, voxels: Sequence[int], width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(count, width) for count in voxels)


class MindEye2(nn.Module):
    """Ridge, trunk, heads and low-level branch under MindEye2's names."""

    def __init__(
        self, voxels: Sequence[int], width: int, blocks: int, tokens: int, clip_width: int
    ) -> None:
        super().__init__()
        self.ridge = Ridge(voxels, width)
        self.backbone = Mixer(width, blocks, tokens, clip_width, projector(clip_width, clip_width))
        self.backbone.blin1 = nn.Linear(width, 64 * 7 * 7)
        self.backbone.bnorm = nn.GroupNorm(1, 64)
        self.backbone.bupsampler = Decoder(
            in_channels=64,
            out_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 128),
            layers_per_block=1,
        )
        self.backbone.b_maps_projector = nn.Sequential(
            nn.Conv2d(64, 512, 1, bias=False),
            nn.GroupNorm(1, 512),
            nn.ReLU(True),
            nn.Conv2d(512, 512, 1, bias=False),
            nn.GroupNorm(1, 512),
            nn.ReLU(True),
            nn.Conv2d(512, 512, 1),
        )

    def forward(self, voxels: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return backbone, clip, blurry latents and ConvNext features."""
        x = self.ridge.linears[place](voxels)[:, None]
        backbone, clip = self.backbone(x)
        part = self.backbone
        grid = part.bnorm(part.blin1(part.trunk(x).flatten(1)).view(len(x), 64, 7, 7))
        return backbone, clip, part.bupsampler(grid), part.b_maps_projector(grid).flatten(2).mT


class Text(nn.Module):
    """One trunk per text encoder, fused or not; residuals pass by the fusion maps, as published.

    Parameters
    ----------
    widths : dict[str, int]
        D of ViT-L ("L") and of ViT-bigG ("G"); either may be absent.
    fusion : str, optional
        '', 'early', 'mid' or 'late'.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        tokens: int,
        widths: dict[str, int],
        fusion: str = "",
        pool: bool = False,
    ) -> None:
        super().__init__()
        self.names, self.tokens, self.fusion = list(widths), tokens, fusion
        for name, clip_width in widths.items():
            setattr(self, f"bn_{name}", Mixer(width, blocks))
            setattr(self, f"backbone_linear_{name}", nn.Linear(width, tokens * clip_width))
            setattr(self, f"clip_proj_{name}", projector(clip_width, 2 * clip_width))
        if pool:
            self.pool_attn = nn.Linear(widths["G"], widths["G"])
        self.fused = {
            "early": range(blocks),
            "mid": range(blocks // 2, blocks),
            "late": range(blocks - 1, blocks),
        }.get(fusion, range(0))
        maps = [nn.Linear(2 * width, 2 * width) for _ in self.fused]
        if maps:
            self.fusion_linears = maps[0] if fusion == "late" else nn.ModuleList(maps)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Backbone and clip outputs side by side, and the pooled one; x is B x 1 x width."""
        trunks = {name: getattr(self, f"bn_{name}") for name in self.names}
        states, first, second = (dict.fromkeys(self.names, x) for _ in range(3))
        for place in range(len(trunks[self.names[0]].mixer_blocks1)):
            for name, trunk in trunks.items():
                first[name] = trunk.mixer_blocks1[place](states[name]) + first[name]
                states[name] = second[name] = (
                    trunk.mixer_blocks2[place](first[name].mT).mT + second[name]
                )
            if place in self.fused:
                linear = (
                    self.fusion_linears
                    if self.fusion == "late"
                    else self.fusion_linears[place - self.fused.start]
                )
                states = dict(
                    zip(
                        self.names,
                        linear(torch.cat([states[name] for name in self.names], dim=-1)).chunk(
                            2, dim=-1
                        ),
                    )
                )
        backbones = {
            name: getattr(self, f"backbone_linear_{name}")(states[name].flatten(1)).unflatten(
                1, (self.tokens, -1)
            )
            for name in self.names
        }
        clips = {
            name: getattr(self, f"clip_proj_{name}")(backbone)
            for name, backbone in backbones.items()
        }
        out = {
            "backbone": torch.cat(list(backbones.values()), dim=-1),
            "clip": torch.cat(list(clips.values()), dim=-1),
        }
        if hasattr(self, "pool_attn"):
            share = self.pool_attn(clips["G"]).softmax(dim=1).mean(dim=-1, keepdim=True)
            out["pooled"] = (share * clips["G"]).sum(dim=1)
        return out


class Chooser(nn.Module):
    """A linear map without bias under the name ``router``."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(1, experts, bias=False)


class MultiLevel(nn.Module):
    """MoRE-Brain's levels of experts, called one after another; units in ascending order, or by the
    GPU's rule.
    """

    def __init__(
        self,
        voxels: Sequence[int],
        width: int,
        blocks: int,
        tokens: int,
        clip_width: int,
        factors: Sequence[int],
        capacities: Sequence[float],
        bottleneck: int = 0,
    ) -> None:
        super().__init__()
        self.ridge = Ridge(voxels, width)
        self.bottleneck = None
        if bottleneck:
            self.bottleneck = nn.Module()
            self.bottleneck.ln = nn.Linear(width, bottleneck)
        self.factors, self.tokens = list(factors), tokens
        self.widths, number = [], 1
        units = bottleneck or width
        parts: dict[str, list[list[nn.Module]]] = {
            "expert_list": [],
            "b_proj_list": [],
            "c_proj_list": [],
            "router_list": [],
        }
        for level, (factor, capacity) in enumerate(zip(factors, capacities)):
            units = int(units // factor * capacity)
            parents, number = number, number * factor
            self.widths.append(units)
            bodies = [
                Mixer(units, blocks) if level == 0 else nn.Linear(units, units)
                for _ in range(number)
            ]
            outs = [nn.Linear(units, tokens * clip_width) for _ in range(number)]
            clips = [projector(clip_width, 2 * clip_width) for _ in range(number)]
            routers = [Chooser(factor) for _ in range(parents)]
            if level == 0:
                (self.router_0,) = routers
                self.experts_0, self.backbone_proj_0, self.clip_proj_0 = (
                    nn.ModuleList(x) for x in (bodies, outs, clips)
                )
                continue
            for name, modules in zip(parts, (bodies, outs, clips, routers)):
                parts[name].append(list(modules))
        for name, lists in parts.items():
            setattr(self, name, nn.ModuleList(nn.ModuleList(modules) for modules in lists))

    def chosen(
        self, x: Tensor, router: Chooser, width: int, rule: str, noise: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Per expert the chosen values times their probabilities, and their places."""
        probability = router.router(x[..., None]).softmax(dim=-1)  # B x U x E
        if noise is not None:
            probability = probability + 0.001 * noise
        found = []
        for expert in range(probability.shape[-1]):
            rows = []
            for row in probability[:, :, expert].detach():
                best = sorted(range(len(row)), key=lambda unit, row=row: (-float(row[unit]), unit))[
                    :width
                ]
                last = float(row[best[-1]])
                key = (
                    (lambda unit, row=row, last=last: (float(row[unit]) == last, unit))
                    if rule == "gpu"
                    else (lambda unit: unit)
                )
                rows.append(sorted(best, key=key))
            places = torch.tensor(rows)
            found.append(
                (x.gather(1, places) * probability[:, :, expert].gather(1, places), places)
            )
        return found

    def forward(
        self, voxels: Tensor, place: int, rule: str = "index", noise: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encoder output and its projection, B x tokens x clip width; `noise` is one draw per
        router, in the order they are called.
        """
        x = self.ridge.linears[place](voxels)
        given = [x if self.bottleneck is None else self.bottleneck.ln(x)]
        levels: list[tuple[Tensor, Tensor]] = []
        draws = iter(noise) if noise is not None else None
        for level, width in enumerate(self.widths):
            routers = [self.router_0] if level == 0 else list(self.router_list[level - 1])
            inputs = []
            for parent, router in zip(given, routers):
                inputs += [
                    x
                    for x, _ in self.chosen(
                        parent, router, width, rule, None if draws is None else next(draws)
                    )
                ]
            if level == 0:
                bodies, outs, clips = self.experts_0, self.backbone_proj_0, self.clip_proj_0
                given = [body.trunk(x[:, None])[:, 0] for body, x in zip(bodies, inputs)]
            else:
                bodies, outs, clips = (
                    part[level - 1]
                    for part in (self.expert_list, self.b_proj_list, self.c_proj_list)
                )
                given = [body(x) for body, x in zip(bodies, inputs)]
            backbones = [out(x).unflatten(1, (self.tokens, -1)) for out, x in zip(outs, given)]
            levels.append((sum(backbones), sum(clip(x) for clip, x in zip(clips, backbones))))
        backbone, clip = (torch.stack(parts).mean(dim=0) for parts in zip(*levels))
        return backbone, clip


def lively(model: nn.Module, seed: int) -> nn.Module:
    """Random weights of sensible size, norms and routers included, in eval mode: at torch's own
    initial values much would be trivial.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = (
                1.0
                if "router" in name
                else 0.3
                if parameter.ndim < 2
                else parameter[0].numel() ** -0.5
            )
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * spread
                + (parameter.ndim == 1 and name.endswith("weight"))
            )
    return model.eval()
