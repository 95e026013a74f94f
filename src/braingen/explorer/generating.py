"""Images generated for the page, with what happened on the way.

B images (one here), R presentations, S denoising steps, L levels, H W sides in pixels.
"""

from __future__ import annotations

from contextlib import ExitStack
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from braingen.evaluation.pixel import pixel_correlation
from braingen.explorer.ablating import ablated_voxels, level_sizes, parts_ablated
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.requests import ImageRequest
from braingen.generation.conditioned_unet import RoutingRecorder
from braingen.generation.pipeline import DecodedEmbeddings
from braingen.generation.sampling import CoarseImage, OnStep, decode_latents
from braingen.runtime.errors import UserError
from braingen.types import Conditioning

MOST_FRAMES = 12
"""Images along denoising time that are decoded, at most; the last one is the result."""


class ExploredImage(NamedTuple):
    """A generated image and its measures."""

    picture_HW3: np.ndarray
    """uint8."""
    frames: tuple[np.ndarray, ...]
    """The latents after some of the steps, decoded; H x W x 3, uint8. Empty unless asked for."""
    frame_steps: tuple[int, ...]
    """Steps of the frames, counted from 1."""
    times: tuple[float, ...]
    """Diffusion time of every step."""
    weights: dict[str, list[list[float]]]
    """Encoder -> weight of every level at every step, S x L."""
    voxels: int
    """How many voxels were set to 0."""
    cosine: float | None
    """Of the decoded image embedding (of the level, where one was asked for) and the true one,
    around the training mean; None where the true one is unknown.
    """
    pixcorr: float
    """Pixel correlation with the seen image."""
    steps: int
    seconds: float
    """Of decoding and generating."""


def generate_image(run: ExploredRun, asked: ImageRequest) -> ExploredImage:
    """Decode the responses to a test image and generate an image from them.

    Raises
    ------
    UserError
        For an image, presentation, level, expert or region that the run does not have.
    """
    started = time.perf_counter()
    _check_level(run, asked)
    responses_RV = responses_of(run, asked)
    voxels_V = ablated_voxels(run, asked.ablate)
    responses_RV[:, voxels_V] = 0
    with torch.no_grad(), ExitStack() as stack:
        for encoder, names in (("image", asked.ablate.image), ("text", asked.ablate.text)):
            stack.enter_context(parts_ablated(run, encoder, names))
        device = run.decoder.brain_image.device
        decoded = run.decoder.decode_embeddings(
            torch.from_numpy(responses_RV)[None].to(device),
            run.subject,
            [asked.image],
            run.generation.seed,
        )
    recorder, kept = RoutingRecorder(), []

    def on_step(step: int, latents: Tensor, condition: Conditioning) -> None:
        recorder(step, latents, condition)
        kept.append(latents)

    picture_B3HW = _generate(run, asked, decoded, on_step)
    times = [float(t) for t in run.decoder.scheduler.timesteps[-len(kept) :]]
    shown = _frame_steps(len(kept)) if asked.frames else []
    frames: tuple[np.ndarray, ...] = ()
    if shown:
        latents = torch.cat([kept[step - 1] for step in shown])
        frames = tuple(as_bytes(x) for x in decode_latents(run.decoder.vae, latents))
    picture_HW3 = as_bytes(picture_B3HW[0])
    return ExploredImage(
        picture_HW3,
        frames,
        tuple(shown),
        tuple(times),
        _weights(run, asked, recorder, len(kept)),
        int(voxels_V.sum()),
        _cosine(run, asked, decoded),
        _pixcorr(run, asked.image, picture_HW3),
        len(kept),
        time.perf_counter() - started,
    )


def responses_of(run: ExploredRun, asked: ImageRequest) -> np.ndarray:
    """Responses to decode, R x V; a copy.

    Raises
    ------
    UserError
        For an unknown image or presentation.
    """
    check_image(run, asked.image)
    responses_RV = np.array(run.responses(asked.image), dtype=np.float32)
    if asked.presentation is None:
        return responses_RV
    if asked.presentation >= len(responses_RV):
        raise UserError(
            f"Image {asked.image} was presented {len(responses_RV)} times; presentation"
            f" {asked.presentation}, counted from 0, is not there."
        )
    return responses_RV[asked.presentation : asked.presentation + 1]


def check_image(run: ExploredRun, image: int) -> None:
    """Refuse an image that is no test image of the run.

    Raises
    ------
    UserError
    """
    if image not in run.image_ids():
        ids = run.image_ids()
        raise UserError(
            f"{run.name} has no test image {image}; its {len(ids)} test images are {ids[0]} to"
            f" {ids[-1]}."
        )


def _check_level(run: ExploredRun, asked: ImageRequest) -> None:
    if asked.level is None:
        return
    for encoder in ("image", "text"):
        sizes = level_sizes(run, encoder)
        if sizes and (len(sizes) == 1 or asked.level >= len(sizes)):
            what = "no levels" if len(sizes) == 1 else f"levels 0 to {len(sizes) - 1}"
            raise UserError(f"The {encoder} encoder of {run.name} has {what}, not {asked.level}.")


def _generate(
    run: ExploredRun, asked: ImageRequest, decoded: DecodedEmbeddings, on_step: OnStep
) -> Tensor:
    settings = run.generation
    coarse = None
    if decoded.latents_BChw is not None and asked.level is None:
        coarse = CoarseImage(decoded.latents_BChw, settings.strength, settings.blend)
    return run.decoder.generate(
        decoded.image if settings.use_image else None,
        decoded.text if settings.use_text else None,
        [asked.image],
        seed=settings.seed,
        steps=asked.steps or settings.preview_steps,
        guidance_scale=settings.guidance_scale,
        guidance_end=settings.guidance_end,
        ip_adapter_scale=settings.ip_adapter_scale,
        size=settings.size,
        level=asked.level,
        on_step=on_step,
        negative=settings.negative,
        sample=asked.sample,
        coarse=coarse,
    )


def _frame_steps(steps: int) -> list[int]:
    """Steps, counted from 1, whose latents are decoded: evenly spaced, the last one included."""
    return sorted({int(x) for x in np.linspace(1, steps, min(steps, MOST_FRAMES)).round()})


def as_bytes(picture_3HW: Tensor) -> np.ndarray:
    """An image in [0, 1] as H x W x 3, uint8."""
    return (picture_3HW * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _weights(
    run: ExploredRun, asked: ImageRequest, recorder: RoutingRecorder, steps: int
) -> dict[str, list[list[float]]]:
    """Weights of the levels; without a router all levels count alike, at every step."""
    routed = recorder.tensors()
    found: dict[str, list[list[float]]] = {}
    for encoder, used in (("image", run.generation.use_image), ("text", run.generation.use_text)):
        count = len(level_sizes(run, encoder))
        if not used or not count:
            continue
        if f"{encoder}_levels" in routed:
            found[encoder] = routed[f"{encoder}_levels"][0].tolist()
        elif asked.level is not None:
            found[encoder] = [[float(level == asked.level) for level in range(count)]] * steps
        else:
            found[encoder] = [[1 / count] * count] * steps
    return found


def _cosine(run: ExploredRun, asked: ImageRequest, decoded: DecodedEmbeddings) -> float | None:
    """Of the decoded image embedding, or that of the level alone, with the true one."""
    if run.true is None:
        return None
    encoder, stack = run.decoder.brain_image, decoded.image
    found_BTD = stack.output_BTD if asked.level is None else stack.levels_BLTD[:, asked.level]
    if run.decoder.config.prior_order == "step":  # else the prior came first
        with torch.no_grad():
            found_BTD = encoder.through_prior(found_BTD)
    true_BTD = encoder.standardised(run.true(asked.image).to(encoder.device))
    return float(cosine_similarity(found_BTD.flatten(1), true_BTD.flatten(1)))


def _pixcorr(run: ExploredRun, image: int, picture_HW3: np.ndarray) -> float:
    height, width = picture_HW3.shape[:2]
    seen_HW3 = np.asarray(run.seen(image).convert("RGB").resize((width, height)))
    pair = [x.astype(np.float32).transpose(2, 0, 1)[None] / 255 for x in (seen_HW3, picture_HW3)]
    return float(pixel_correlation(*pair)[0])
