"""Stacked experts against a Python loop over experts: seconds per training step and peak memory, at
full size.

    python benchmarks/batched_experts.py                 4096 units, 15 724 voxels, batch 24,
                                                         forward + backward + AdamW
    python benchmarks/batched_experts.py --hidden_dim 512 --voxels 2000 --batch 64 \\
        --clip_emb_dim 128
    python benchmarks/batched_experts.py --device cuda

"loop" has every expert as a module of its own, made of torch's layers and called one after another,
as the published code does; routing and all else are the same, and so is what is computed
(tests/unit/test_moe.py: `test_the_loop_of_the_benchmark_computes_the_same`). Each way runs in a
process of its own. The published trunk is measured with the published router, a loop that computes
the idle width blocks, and without the published balance loss, which alone made its step two to
three times as long. On a busy machine wall time says little; processor seconds on one thread are
the fairer figure. Both ways run with THP_MEM_ALLOC_ENABLE=1, which lets PyTorch ask Linux for huge
pages: else a third of a step goes into page faults of fresh gradients.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import resource
import subprocess
import sys
import time
from typing import Any

LAYOUTS: dict[str, dict[str, Any]] = {
    "published": {"routing": "expert_choice", "trunk": "published"},
    "default, projector heads": {"head": "projector"},
    "default": {"head": "linear"},
}


def looped(model: Any) -> Any:
    """The same encoder with experts that are called one after another."""
    import torch
    from torch import nn

    from braingen.encoders.experts import MixerTrunk, StackedLinear, StackedNorm
    from braingen.encoders.moe import LevelOutput

    def alone(module: nn.Module, expert: int) -> nn.Module:
        """One expert's share of a stacked module, of torch's own layers."""
        if isinstance(module, StackedLinear):
            layer: nn.Module = nn.Linear(module.weight.shape[2], module.weight.shape[1])
        elif isinstance(module, StackedNorm):
            layer = nn.LayerNorm(module.weight.shape[1])
        elif isinstance(module, nn.Sequential):
            return nn.Sequential(*(alone(part, expert) for part in module))
        else:
            return type(module)(module.p) if isinstance(module, nn.Dropout) else type(module)()
        layer.weight.data.copy_(module.weight[expert].data)
        layer.bias.data.copy_(module.bias[expert].data)
        return layer

    class Trunk(nn.Module):
        """Residual blocks, or the published mixer with one token in full, idle blocks included."""

        def __init__(self, trunk: Any, expert: int) -> None:
            super().__init__()
            self.single = alone(trunk, expert) if isinstance(trunk, StackedLinear) else None
            mixer = isinstance(trunk, MixerTrunk)
            width_blocks = trunk.width_blocks if mixer else getattr(trunk, "blocks", [])
            self.width_blocks = nn.ModuleList(alone(block, expert) for block in width_blocks)
            self.token_blocks = (
                nn.ModuleList(alone(block, expert) for block in trunk.token_blocks)
                if mixer
                else None
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.single is not None:
                return self.single(x)
            if self.token_blocks is None:
                for block in self.width_blocks:
                    x = x + block(x)
                return x
            after_width = after_tokens = state = x
            for width_block, token_block in zip(self.width_blocks, self.token_blocks):
                after_width = width_block(state) + after_width
                state = after_tokens = token_block(after_width[..., None])[..., 0] + after_tokens
            return state

    class Level(nn.Module):
        def __init__(self, level: Any) -> None:
            super().__init__()
            self.router, self.tokens = level.router, level.heads.tokens
            experts = range(level.heads.backbone.weight.shape[0])
            self.trunks = nn.ModuleList(Trunk(level.trunk, e) for e in experts)
            self.backbones = nn.ModuleList(alone(level.heads.backbone, e) for e in experts)
            self.clips = nn.ModuleList(alone(level.heads.clip, e) for e in experts)

        def forward(
            self, x_PBU: torch.Tensor, noise_PBUF: torch.Tensor | None = None
        ) -> LevelOutput:
            routed = self.router(x_PBU, noise_PBUF)
            units, backbones, clips = [], [], []
            for x_BK, trunk, backbone, clip in zip(
                routed.x_EBK, self.trunks, self.backbones, self.clips
            ):
                units.append(trunk(x_BK))
                backbones.append(backbone(units[-1]).unflatten(-1, (self.tokens, -1)))
                clips.append(clip(backbones[-1]))
            return LevelOutput(
                torch.stack(units),
                torch.stack(backbones),
                torch.stack(clips),
                routed.routing,
                routed.balance,
            )

    for place in range(len(model.levels)):
        model.levels[place] = Level(model.levels[place])
    return model


def one(layout: str, way: str, args: argparse.Namespace) -> dict[str, float]:
    """Time one way in this process."""
    import torch

    import braingen  # noqa: F401
    from braingen.encoders.moe import BrainMoEMulti
    from braingen.encoders.parameters import trainable_parameters

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    options = {"hidden_dim": args.hidden_dim, "clip_emb_dim": args.clip_emb_dim, **LAYOUTS[layout]}
    model = BrainMoEMulti(subjects={1: args.voxels}, **options)
    count = sum(parameter.numel() for parameter in model.parameters())
    model = (looped(model) if way == "loop" else model).to(device).train()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-4, fused=True)
    voxels_BV = torch.randn(args.batch, args.voxels, device=device)
    target_BTD = torch.randn(args.batch, 1, args.clip_emb_dim, device=device)

    def step() -> None:
        out = model(voxels_BV, 1)
        loss = (
            (out.backbone_BTD - target_BTD).pow(2).mean()
            + (out.clip_BTD - target_BTD).pow(2).mean()
            + out.balance_loss
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(args.warmup):  # memory is first touched
        step()
    walls, processors = [], []
    for _ in range(args.steps):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # the fastest step: whatever else the machine does only adds
    return {
        "parameters": count,
        "seconds": min(walls),
        "processor_seconds": min(processors),
        "peak_gb": peak,
    }


def main() -> None:
    """Run every way, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden_dim", type=int, default=4096)
    parser.add_argument("--voxels", type=int, default=15724)
    parser.add_argument("--clip_emb_dim", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/batched_experts.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one, args)))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(
        f"{'layout':24} {'way':8} {'parameters':>12} {'s a step':>9} {'cpu s':>7} {'peak GB':>8}"
        f" {'loop / stacked':>15}"
    )
    for layout in args.layouts:
        results[layout] = {}
        for way in ("loop", "stacked"):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", layout, way]
            environment = {"THP_MEM_ALLOC_ENABLE": "1", **os.environ}
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", check=False, env=environment
            )
            if done.returncode:
                sys.exit(f"{layout}, {way}: {done.stderr}")
            row = results[layout][way] = json.loads(done.stdout.splitlines()[-1])
            clock = "seconds" if args.device == "cuda" else "processor_seconds"
            ratio = (
                f"{results[layout]['loop'][clock] / row[clock]:15.2f}" if way == "stacked" else ""
            )
            figures = (
                f"{row['parameters']:12,} {row['seconds']:9.3f} {row['processor_seconds']:7.3f}"
                f" {row['peak_gb']:8.2f}"
            )
            print(f"{layout:24} {way:8} {figures} {ratio}", flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "one")}
    args.out.write_text(
        json.dumps({"settings": settings, "results": results}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
