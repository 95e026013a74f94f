"""Decoding with parts of the decoder, or regions of the brain, ablated.

R presentations, V voxels, N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
import hashlib

import numpy as np

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.requests import AblationRequest
from braingen.interpret.ablation import ablated
from braingen.interpret.readout import DecoderPart
from braingen.runtime.errors import UserError

MEAN_IMAGES = 200
"""Test images over which the mean output of an ablated expert is taken, at most."""


def encoder_of(run: ExploredRun, name: str) -> EmbeddingDecoder:
    """The image or text encoder of a run.

    Raises
    ------
    UserError
        When the run has no text encoder.
    """
    found = run.decoder.brain_image if name == "image" else run.decoder.brain_text
    if found is None:
        raise UserError(f"{run.name} has no text encoder: choose the image encoder.")
    return found


def level_sizes(run: ExploredRun, name: str) -> tuple[int, ...]:
    """Experts of every level of an encoder; (1,) for an encoder without levels, nothing where there
    is no encoder.
    """
    if name == "text" and run.decoder.brain_text is None:
        return ()
    return tuple(encoder_of(run, name).expert_counts)


def checked_part(run: ExploredRun, encoder: str, name: str) -> DecoderPart:
    """The part of an encoder that a name means.

    Raises
    ------
    UserError
        When the encoder has no such part.
    """
    part, sizes = DecoderPart.parse(name), level_sizes(run, encoder)
    known = part.level is None or (
        part.level < len(sizes) and (part.expert is None or part.expert < sizes[part.level])
    )
    if not known:
        raise UserError(
            f"The {encoder} encoder of {run.name} has no {name}; its levels, counted from 0, have"
            f" {', '.join(map(str, sizes))} experts."
        )
    return part


def ablated_voxels(run: ExploredRun, asked: AblationRequest) -> np.ndarray:
    """The voxels that are set to 0, bool V.

    Raises
    ------
    UserError
        When a region is unknown, or there are too few other voxels to draw from.
    """
    inside_V = np.zeros(run.decoder.voxel_count(run.subject), dtype=bool)
    for name in asked.regions:
        if name not in run.regions:
            raise UserError(
                f"{run.name} has no region {name!r}; there are"
                f" {', '.join(run.regions) or 'no regions'}."
            )
        inside_V |= run.regions[name]
    if not asked.random:
        return inside_V
    outside, count = np.flatnonzero(~inside_V), int(inside_V.sum())
    if len(outside) < count:
        raise UserError(
            f"The regions have {count} voxels and only {len(outside)} lie outside of them, so there"
            " are too few to draw as many at random: choose fewer regions."
        )
    names = "\n".join((run.name, *asked.regions))
    seed = int.from_bytes(hashlib.sha256(names.encode()).digest()[:7], "little")
    random_V = np.zeros_like(inside_V)
    random_V[np.random.default_rng(seed).choice(outside, count, replace=False)] = True
    return random_V


class AveragedTestResponses:
    """Responses averaged over presentations, N x V, read in slices."""

    def __init__(self, run: ExploredRun) -> None:
        self._run, self._ids = run, run.image_ids()[:MEAN_IMAGES]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return np.stack([self._run.responses(image).mean(axis=0) for image in self._ids[rows]])


@contextmanager
def parts_ablated(run: ExploredRun, encoder: str, names: Sequence[str]) -> Iterator[None]:
    """Context in which levels and experts of an encoder output their mean over test images."""
    with ExitStack() as stack:
        responses = AveragedTestResponses(run)
        for name in names:
            part = checked_part(run, encoder, name)
            stack.enter_context(ablated(encoder_of(run, encoder), part, responses, run.subject))
        yield
