"""What the page asks for, checked before anything is computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[int, Field(ge=0)]
PartName = Annotated[str, Field(pattern=r"^level-\d{1,4}(-expert-\d{1,4})?$")]
RegionName = Annotated[str, Field(min_length=1, max_length=200)]


class Asked(BaseModel):
    """A request; hashable, so that answers can be kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AblationRequest(Asked):
    """What is taken out of the decoder before it decodes."""

    image: Annotated[tuple[PartName, ...], Field(max_length=200)] = ()
    """Levels and experts of the image encoder; outputs are set to their mean over test images."""
    text: Annotated[tuple[PartName, ...], Field(max_length=200)] = ()
    """The same of the text encoder."""
    regions: Annotated[tuple[RegionName, ...], Field(max_length=200)] = ()
    """Regions whose voxels are set to 0, their mean."""
    random: bool = False
    """Set as many other voxels to 0, drawn at random, instead of those of the regions."""


class ImageRequest(Asked):
    """An image to generate."""

    run: Number = 0
    image: Number
    """Id of the test image whose responses are decoded."""
    sample: Annotated[int, Field(ge=0, lt=1000)] = 0
    """Number of the noise that denoising starts from."""
    presentation: Number | None = None
    """Decode one presentation alone; all of them, averaged, without."""
    level: Number | None = None
    """Condition on this level of experts only."""
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    """Denoising steps; those of the preview without."""
    frames: bool = False
    """Also return the images along denoising time."""
    ablate: AblationRequest = AblationRequest()


class SpreadRequest(Asked):
    """Spread of several decoded images of one test image."""

    run: Number = 0
    image: Number
    over: Literal["noise", "presentations"] = "noise"
    """What differs between the images: the noise that denoising starts from, or the presentation
    that is decoded.
    """
    count: Annotated[int, Field(ge=2, le=16)] | None = None
    """How many images, from the first; all without."""
    steps: Annotated[int, Field(ge=1, le=100)] | None = None


class MapRequest(Asked):
    """A map of the brain."""

    run: Number = 0
    kind: Literal["experts", "contribution", "tuning"]
    encoder: Literal["image", "text"] = "image"
    part: Annotated[str, Field(pattern=r"^(whole|level-\d{1,4}(-expert-\d{1,4})?)$")] = "whole"
    """Experts: a level for the expert with the largest share of every voxel, an expert for its
    share. Contribution: whose output is attributed.
    """
    image: Number | None = None
    """Contribution: the test image."""
    category: Annotated[str, Field(max_length=200)] = ""
    """Tuning: the category."""
