"""What a decoder returns: images, embeddings, captions, routing and uncertainty.

B decoded images, R presentations, T tokens, D embedding width, C h w latents.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
import io
from typing import NamedTuple

from diffusers.utils import BaseOutput
from markupsafe import Markup, escape
from PIL import Image
import torch
from torch import Tensor

from braingen.encoders.confidence import Closeness
from braingen.types import ExpertStack

SHOWN = 24
"""Images that a notebook shows; of more, the first."""
_SIDE = 128


class DecodedEmbeddings(NamedTuple):
    """What was decoded and conditions the U-Net: embeddings in standardised units, after the prior
    where it comes first.
    """

    image: ExpertStack
    text: ExpertStack | None
    """None where the decoder has no text encoder."""
    image_clip_BTD: Tensor
    """The image encoder's projected output, for retrieval; standardised units."""
    text_clip_BTD: Tensor | None
    latents_BChw: Tensor | None = None
    """VAE latents of the coarse image; None without a low-level path."""


class Decoded(NamedTuple):
    """Decoded embeddings, before anything is generated."""

    image_BTD: Tensor
    """CLIP image embedding, in CLIP's own units."""
    text_BTD: Tensor | None
    """End-of-sequence state of the text encoder, in its own units; None without a text encoder."""
    image_clip_BTD: Tensor
    """The image encoder's projected output, for retrieval; standardised units."""
    text_clip_BTD: Tensor | None


class DecodingUncertainty(NamedTuple):
    """How much the result varies, where something is repeated."""

    embedding_B: Tensor | None
    """Standard error of the decoded image embedding over presentations: root mean square over its
    dimensions, as a share of the standard deviation of embeddings between training images. NaN for
    an image with a single presentation; None if all have one.
    """
    pixels_BHW: Tensor | None
    """Standard deviation of the pixels (0 to 1) over samples from different noise, mean over
    colours; None with one sample.
    """
    cosine: Closeness | None = None
    """How close the decoded image embedding is to the true one, by what was found on held-out
    training images: cosines around the training mean, which half of the images and nine of ten
    exceed. None for a decoder that was not calibrated, NaN with more presentations than it knows.
    """


@dataclass
class BrainDecoderOutput(BaseOutput):
    """Images and what they were generated from; in a notebook it shows itself as a table of images.

    Attributes
    ----------
    images : list of PIL.Image.Image
        One per decoded image; empty if no image was to be generated.
    decoded : Decoded
        Embeddings, B x T x D each.
    routing : dict of str to Tensor
        How levels and experts were mixed at every step: ``image_levels`` and ``text_levels`` (B x
        steps x levels), ``image_experts`` and ``text_experts`` (B x steps x experts); empty without
        routers.
    image_ids : list of int
        Of the images, in their order.
    captions : list of str or None
        The training caption nearest to every decoded text embedding; None without a text encoder
        or without captions in the decoder.
    uncertainty : DecodingUncertainty or None
        None where nothing is repeated, neither presentations nor samples, and nothing calibrated.
    samples : list of list of PIL.Image.Image or None
        All samples of every image, the one in `images` first; None with one sample.
    """

    images: list[Image.Image]
    decoded: Decoded
    routing: dict[str, Tensor]
    image_ids: list[int]
    captions: list[str] | None = None
    uncertainty: DecodingUncertainty | None = None
    samples: list[list[Image.Image]] | None = None

    def _repr_html_(self) -> str:
        """Figures of the images with id, nearest caption and uncertainty."""
        cards = [self._card(row) for row in range(min(len(self.image_ids), SHOWN))]
        more = len(self.image_ids) - len(cards)
        rest = Markup("<p>and {} more</p>").format(more) if more > 0 else Markup()
        return str(
            Markup('<div style="display:flex;flex-wrap:wrap;gap:12px">{}</div>{}').format(
                Markup().join(cards), rest
            )
        )

    def _card(self, row: int) -> Markup:
        name = f"image {self.image_ids[row]}"
        lines = [Markup("<strong>{}</strong>").format(name)]
        if self.captions is not None:
            lines.append(Markup("nearest caption: {}").format(self.captions[row]))
        error = None if self.uncertainty is None else self.uncertainty.embedding_B
        if error is not None and not torch.isnan(error[row]):
            lines.append(Markup("standard error {}").format(f"{float(error[row]):.2f}"))
        close = None if self.uncertainty is None else self.uncertainty.cosine
        if close is not None and not torch.isnan(close.least_B[row]):
            expected, least = float(close.expected_B[row]), float(close.least_B[row])
            lines.append(
                Markup("expected cosine {} (at least {} for 9 of 10 images)").format(
                    f"{expected:.2f}", f"{least:.2f}"
                )
            )
        picture = Markup()
        if self.images:
            alt = f"Decoded from brain activity: {name}"
            picture = Markup('<img src="{}" width="{}" height="{}" alt="{}">').format(
                _png_uri(self.images[row]), _SIDE, _SIDE, alt
            )
        return Markup(
            '<figure style="margin:0;width:{}px">{}<figcaption>{}</figcaption></figure>'
        ).format(_SIDE, picture, Markup("<br>").join(escape(line) for line in lines))


def _png_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    small = image if image.size == (_SIDE, _SIDE) else image.resize((_SIDE, _SIDE))
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def spread_of_presentations(each_BRTD: Tensor, present_BR: Tensor) -> Tensor | None:
    """Standard error of the mean over presentations, root mean square over dimensions.

    Parameters
    ----------
    each_BRTD : Tensor
        Embedding of every presentation, standardised units.
    present_BR : Tensor
        Which presentations there are.

    Returns
    -------
    Tensor or None
        B, on the CPU; NaN with one presentation, None where no image has more.
    """
    count_B = present_BR.sum(1)
    if int(count_B.max()) < 2:
        return None
    weight_BR11 = present_BR.to(each_BRTD)[..., None, None]
    known_B11 = count_B.to(each_BRTD)[:, None, None]
    mean_BTD = (each_BRTD * weight_BR11).sum(1) / known_B11
    square_BTD = ((each_BRTD - mean_BTD[:, None]) ** 2 * weight_BR11).sum(1)
    variance_BTD = square_BTD / (known_B11 - 1).clamp(min=1) / known_B11
    error_B = variance_BTD.flatten(1).mean(1).sqrt().cpu()
    return torch.where(count_B.cpu() > 1, error_B, torch.nan)


def spread_of_samples(samples: Sequence[Tensor]) -> Tensor:
    """Standard deviation of B x 3 x H x W images over samples, mean over colours: B x H x W."""
    return torch.stack(list(samples)).std(0).mean(1).cpu()
