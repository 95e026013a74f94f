"""What conditioning (reading, priors, routers) adds to the bare denoising loop: in seconds at the
demo's size, in operations at full size.

    python benchmarks/conditioning_cost.py                     both
    python benchmarks/conditioning_cost.py --skip seconds      full size only: on the meta device,
                                                               without weights

Bare is the same loop with a condition that never changes. Reading is encoder and prior of image and
text, of three presentations. With the order "step" the priors are asked at every step, one call
each; "published" is as its code does it: sampled in 29 calls with guidance. Prints Markdown tables
and writes JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from braingen.config import Config, load_config
from braingen.config.shipped import TINY
from braingen.data import nsd
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.conditioned_unet import expert_counts
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.sampling import denoise, latent_shape, seeded_noise
from braingen.pretrained.sdxl import image_size, load_backbone
from braingen.routing.conditioning import RoutedConditioning
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.training.diffusion import router_of
from braingen.training.encoder_setup import build_embedding_decoder
from braingen.types import Conditioning

ORDERS = ("output", "levels", "experts", "step")
PUBLISHED_CALLS = 2 * 29  # 30 steps make 29 calls, both branches of guidance one after the other
STEPS, SHORT = 50, 4
"""Of the loop at full size, and of the one that is timed."""


def embedding_decoders_of(
    config: Config, voxels: int, image: tuple[int, int], text: tuple[int, int]
) -> tuple[EmbeddingDecoder, EmbeddingDecoder]:
    """An image and a text embedding decoder with random weights."""
    first, second = (
        build_embedding_decoder(config, {1: voxels}, shape).eval().requires_grad_(False)
        for shape in (image, text)
    )
    return first, second


def random_router(
    config: Config, embedding_decoder: EmbeddingDecoder, latent_side: int
) -> DiffuseRouter:
    """A router as `braingen finetune` makes it, untrained."""
    shape = (
        embedding_decoder.config.encoder_config["clip_seq_dim"],
        embedding_decoder.config.encoder_config["clip_emb_dim"],
    )
    return (
        router_of(config, expert_counts(embedding_decoder), shape, latent_side, times=1000)
        .eval()
        .requires_grad_(False)
    )


def demo_decoder(config: Config, order: str) -> BrainDecoder:
    """The demo's models, encoders and routers with random weights: time does not depend on them."""
    backbone = load_backbone("tiny")
    texts = CLIPTextEncoderDual.from_pretrained(TINY, dtype=torch.float32)
    width = backbone.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
    image, text = embedding_decoders_of(
        config, config.simulation.num_voxels, (1, width), (1, texts.clip_emb_dim)
    )
    routers = [
        random_router(config, embedding_decoder, backbone.unet.config.sample_size)
        for embedding_decoder in (image, text)
    ]
    settings: dict[str, Any] = {
        "router_image": routers[0],
        "router_text": routers[1],
        "prior_order": order,
    }
    return BrainDecoder.assemble(image, text, *backbone, texts, **settings)


@torch.no_grad()
def seconds(config: Config, batch: int, rounds: int) -> dict[str, float]:
    """Median processor seconds of reading (by order of prior and routers), and of a step of the
    bare and of the routed loop, in turns.

    Processor seconds of one thread, so that other work on the machine does not count.
    """
    voxels = torch.randn(batch, 3, config.simulation.num_voxels)
    ids = list(range(batch))
    runs: dict[str, Callable[[], Any]] = {}
    for order in ORDERS:
        decoder = demo_decoder(config, order)
        runs[f"reading, {order}"] = lambda d=decoder: d.decode_embeddings(voxels, 1, ids)
        if order not in ("output", "step"):
            continue  # they differ in what is read; the loop is the same
        heard = decoder.decode_embeddings(voxels, 1, ids)
        sources = decoder.sources(heard.image, heard.text)
        size = image_size(decoder.unet, decoder.vae)
        noise = seeded_noise(ids, latent_shape(decoder.unet, decoder.vae, size), 0, "picture")
        routed = RoutedConditioning(decoder.form, image=sources[0], text=sources[1])
        fixed: Conditioning = routed(500.0, noise)

        def loop(decoder: BrainDecoder, condition: Any, noise: torch.Tensor, size: int) -> None:
            empty = decoder.form.empty(len(noise))
            denoise(
                decoder.unet,
                decoder.scheduler,
                noise,
                condition,
                empty,
                size=size,
                steps=SHORT,
                guidance_scale=3.0,
            )

        runs[f"routed, {order}"] = lambda d=decoder, c=routed, run=loop, n=noise, s=size: run(
            d, c, n, s
        )
        if order == "output":
            runs["bare"] = lambda d=decoder, c=fixed, run=loop, n=noise, s=size: run(
                d, lambda t, latents: c, n, s
            )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:  # the first round warms up
                times[name].append(
                    (time.process_time() - started) / (1 if name.startswith("reading") else SHORT)
                )
    return {name: statistics.median(values) for name, values in times.items()}


class Calls(TorchDispatchMode):
    """Counts the operators that are called, views included: what a small batch on a GPU
    waits for.
    """

    number = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


class Cost(NamedTuple):
    """Of a call."""

    operations: float
    """Floating-point operations, a multiplication and an addition being two."""
    calls: int
    """Operators called."""


def counted(call: Callable[[], Any]) -> Cost:
    """Cost of a call, on whatever device its tensors are."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    with torch.no_grad(), Calls() as calls:
        call()
    return Cost(float(counter.get_total_flops()), calls.number)


def both(first: Cost, second: Cost) -> Cost:
    """One after the other."""
    return Cost(first.operations + second.operations, first.calls + second.calls)


def full_size(config: Config, batch: int) -> dict[str, Cost]:
    """Cost of every part at full size: SDXL at 512 px with its IP-Adapter, ViT-bigG widths, subject
    1, three presentations.
    """
    sys.path.append(
        str(Path(__file__).parents[1] / "tests")
    )  # its configuration is written down once, there
    from unit.test_full_size import sdxl_with_adapter

    with torch.device("meta"):
        unet = sdxl_with_adapter()
        embedding_decoders = embedding_decoders_of(config, nsd.VOXELS[1], (1, 1280), (1, 1280))
        side = config.generation.size // 8
        routers = [
            random_router(config, embedding_decoder, side)
            for embedding_decoder in embedding_decoders
        ]
        latents, embedding = torch.empty(batch, 4, side, side), torch.empty(batch, 1, 1280)
        t, voxels = torch.full((batch,), 500.0), torch.empty(3 * batch, nsd.VOXELS[1])
        rows, tokens = torch.empty(2 * batch, 4, side, side), torch.empty(2 * batch, 77, 2048)
        added = {"text_embeds": torch.empty(2 * batch, 1280), "time_ids": torch.empty(2 * batch, 6)}
        added["image_embeds"] = [torch.empty(2 * batch, 1, 1280)]  # type: ignore[assignment]
        experts = tuple(
            torch.empty(batch, count, 1, 1280) for count in expert_counts(embedding_decoders[0])
        )
        return {
            "unet": counted(
                lambda: unet(rows, t[0], encoder_hidden_states=tokens, added_cond_kwargs=added)
            ),
            "encoders": both(
                *(
                    counted(lambda r=r: r(voxels, 1, return_experts=True))
                    for r in embedding_decoders
                )
            ),
            "priors": both(
                *(counted(lambda r=r: r.through_prior(embedding)) for r in embedding_decoders)
            ),
            "routers": both(*(counted(lambda r=r: r(experts, t, latents)) for r in routers)),
        }


def shares(parts: dict[str, Cost], of: str, rows: dict[str, int]) -> dict[str, float]:
    """What conditioning adds to the bare loop of STEPS steps, by order of prior and routers.

    Parameters
    ----------
    of : str
        Operations or calls.
    rows : dict[str, int]
        Order -> how often the priors' cost counts.
    """
    unet, encoders, priors, routers = (float(getattr(part, of)) for part in parts.values())
    return {
        order: (encoders + count * priors + STEPS * routers) / (STEPS * unet)
        for order, count in rows.items()
    }


def main() -> None:
    """Measure, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        help="pictures at once, for the seconds; the demo's and 1 when left out",
    )
    parser.add_argument("--skip", choices=("seconds", "operations"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/conditioning_cost.json"))
    chosen = parser.parse_args()
    results: dict[str, Any] = (
        json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.exists() else {}
    )
    if chosen.skip != "seconds":
        torch.set_num_threads(1)
        config = load_config(Path("simulated"))
        steps = config.generation.steps
        print(
            f"Demo's size: processor seconds of one thread, median of {chosen.rounds} rounds; loops"
            f" of {steps} steps\n"
        )
        print(
            "| prior before routers | batch | bare loop | reading | routed loop | conditioning"
            " adds |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        results.setdefault("seconds", {})
        for batch in chosen.batches or (config.generation.batch_size, 1):
            times = seconds(config, batch, chosen.rounds)
            found: dict[str, Any] = {}
            results["seconds"][str(batch)] = found
            for order in ORDERS:
                bare, reading = steps * times["bare"], times[f"reading, {order}"]
                routed = steps * times["routed, step" if order == "step" else "routed, output"]
                share = (reading + routed) / bare - 1
                print(
                    f"| {order} | {batch} | {bare:.3f} | {reading:.3f} | {routed:.3f} |"
                    f" {share:.1%} |",
                    flush=True,
                )
                found["rounds"] = chosen.rounds
                found[order] = {"bare": bare, "reading": reading, "routed": routed, "adds": share}
    if chosen.skip != "operations":
        config = load_config(Path("nsd_subj01"))
        names = (
            "U-Net, a step with guidance",
            "encoders, three presentations",
            "priors, a row per picture",
            "routers, a step",
        )
        results["full size"] = {}
        for batch in (24, 1):
            parts = full_size(config, batch)
            every_step = {"step": STEPS, "published": STEPS * PUBLISHED_CALLS}
            operations = shares(
                parts, "operations", {"output": 1, "levels": 4, "experts": 30, **every_step}
            )
            # rows that go through the priors before the loop do so in one call
            calls = shares(parts, "calls", {"output": 1, "levels": 1, "experts": 1, **every_step})
            results["full size"][str(batch)] = {
                "parts": {name: part._asdict() for name, part in parts.items()},
                "adds": {
                    order: {"operations": operations[order], "calls": calls[order]}
                    for order in operations
                },
            }
            print(
                f"\n| full size, 512 px, batch {batch} | 10^12 operations | operators called |\n|"
                " --- | ---: | ---: |"
            )
            for name, part in zip(names, parts.values()):
                print(f"| {name} | {part.operations / 1e12:.4f} | {part.calls} |")
            print(
                f"\n| prior before routers | adds to the operations of {STEPS} steps | to the"
                " operators called |\n| --- | ---: | ---: |"
            )
            for order in operations:
                print(f"| {order} | {operations[order]:.2%} | {calls[order]:.2%} |")
    chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
